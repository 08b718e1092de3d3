"""tools/bench.py step: the imposed batch, our side of a step, and the figures. TRL is an extra, so
its side is tested by the benchmark's own gate alone."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from benches.batch import MOST_TOKENS, PROMPT_TOKENS, Seconds, draw_batch
from benches.step import CompassStep, Config, report, run

from compass.distributed import ParallelConfig, Topology, init_topology
from compass.errors import UserError
from compass.models.specs import SPECS


@pytest.fixture
def topology() -> Iterator[Topology]:
    threads = torch.get_num_threads()
    yield init_topology(ParallelConfig(device="cpu"))
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def test_long_tailed_lengths_are_lognormal_up_to_the_cap() -> None:
    lengths = draw_batch("tail", vocab_size=50, num_prompts=400, group_size=25).lengths_PG.double()
    assert lengths.min() >= 1
    assert lengths.max() == MOST_TOKENS
    assert lengths.median().item() == pytest.approx(40, rel=0.05)
    # Of a lognormal with sigma 1, the upper quartile is e^0.674 medians.
    assert lengths.quantile(0.75).item() == pytest.approx(40 * math.exp(0.674), rel=0.05)


def test_a_batch_is_the_same_each_time_and_asks_for_its_lengths() -> None:
    first, again = (
        draw_batch("tail", vocab_size=50, num_prompts=3, group_size=4) for _ in range(2)
    )
    assert torch.equal(first.lengths_PG, again.lengths_PG)
    assert torch.equal(first.prompts_PN, again.prompts_PN)
    requests = first.requests(0.5)
    asked = [request.sampling.max_completion_tokens for request in requests]
    assert asked == first.lengths_PG.flatten().tolist()
    assert sum(asked) == first.num_tokens
    assert all(len(request.prompt_token_ids) == PROMPT_TOKENS for request in requests)
    assert len({(r.prompt_id, r.first_sample) for r in requests}) == 12
    uniform = draw_batch("uniform", vocab_size=50, num_prompts=3, group_size=4)
    assert set(uniform.lengths_PG.flatten().tolist()) == {64}


def test_our_step_writes_the_imposed_tokens_trains_on_them_and_logs(
    topology: Topology, tmp_path: Path
) -> None:
    batch = draw_batch("tail", vocab_size=512, num_prompts=2, group_size=2)
    ours = CompassStep(SPECS["debug"], batch, topology, tmp_path)
    for _ in range(2):
        ours.step()
    ours.logger.close()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2]
    for line in logged:
        assert line["response_length/mean"] * 4 == batch.num_tokens
        assert line["actor/trained_frac"] == 1
        assert line["actor/grad_norm"] > 0
        assert line["actor/entropy"] > 0
        assert line["router/missing_frac"] == 0
        # The rollout was written by the very weights that score it.
        assert line["mismatch/logprob_abs_max"] < 1e-4
    parts = {"rollout", "pack", "old_logprobs", "update", "load_weights", "step"}
    assert all(step.keys() == parts for step in ours.parts)


def test_the_ratio_is_that_of_median_cpu_seconds() -> None:
    runs = {
        "compass": [Seconds(2.0, 9.0), Seconds(1.0, 1.0), Seconds(4.0, 1.0)],
        "trl": [Seconds(7.0, 1.0), Seconds(8.0, 1.0), Seconds(6.0, 99.0)],
    }
    parts = {"compass": [{"update": 1.5, "step": 2.0}] * 3, "trl": [{"forward": 3.0}] * 3}
    figures = report(Config(json=True), 100, runs, parts)
    assert figures is not None
    assert figures["ratio"] == 3.5 == figures["limit"]
    assert figures["runs"]["compass"] == {"cpu": [2.0, 1.0, 4.0], "wall": [9.0, 1.0, 1.0]}
    assert figures["parts"] == {"compass": {"update": 1.5}, "trl": {"forward": 3.0}}
    assert json.loads(json.dumps(figures)) == figures
    assert report(Config(), 100, runs, parts) is None


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("datasets", "trl"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "benches.trl", raising=False)
    with pytest.raises(UserError, match=r"pip install '\.\[bench\]'"):
        run([], "")


def test_a_trl_batch_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benches.trl", SimpleNamespace(TrlPeer=None))
    with pytest.raises(UserError, match="trl_batch=5 does not divide the 128 completions"):
        run(["--trl-batch", "5"], "")
