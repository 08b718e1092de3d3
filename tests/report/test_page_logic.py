"""The page's own logic, without a browser: what Python encodes the page decodes, within the width
of a code; filters, orders, flows and links."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from py_mini_racer import MiniRacer

import compass.report
from compass.report.content import content
from compass.report.sample import Sample, spread
from compass.report.tokens import TokenColumns, encode_block, most_uncertain

PAGE = Path(compass.report.__file__).parent / "page"
EMPTY = Sample(prompts=[], columns={}, blocks=[], num_left_out=0, unread=[])


@pytest.fixture(scope="module")
def engine() -> MiniRacer:
    engine = MiniRacer()
    for name in ("decode.js", "select.js"):
        engine.eval((PAGE / name).read_text())
    return engine


def call(engine: MiniRacer, expression: str, **values: Any) -> Any:
    names, told = ", ".join(values), ", ".join(map(json.dumps, values.values()))
    return json.loads(engine.eval(f"JSON.stringify((({names}) => {expression})({told}))"))


def random_columns(n: int, seed: int) -> TokenColumns:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(0, 300, n)
    return TokenColumns(
        text=bytes(draw.integers(0, 256, sizes.sum(), dtype=np.uint8)),
        sizes=sizes,
        logprobs=-draw.exponential(1.0, n),
        gaps=draw.choice((-1.0, 1.0), n) * 10 ** draw.uniform(-6.9, 0.0, n),
        entropies=draw.exponential(1.0, n),
        advantages=draw.normal(0, 1.5, n),
        flips=draw.integers(0, 5, n),
        uncertain=draw.random(n) < 0.2,
    )


def roots(values: Sequence[float]) -> list[float]:
    return (np.sign(values) * np.sqrt(np.abs(values))).tolist()


def test_the_page_decodes_what_was_encoded(engine):
    rollouts = [random_columns(n, seed=n) for n in (40, 0, 7)]
    block = list(zlib.decompress(encode_block(rollouts), -zlib.MAX_WBITS))
    tokens, sizes = [len(r.sizes) for r in rollouts], [len(r.text) for r in rollouts]
    codes = content([], [], EMPTY)["codes"]
    for place, rollout in enumerate(rollouts):
        planes = call(
            engine,
            "Object.fromEntries(Object.entries(planesOf(new Uint8Array(block), place, tokens, "
            "sizes)).map(([k, v]) => [k, k in valueOf ? [...v].map((c) => valueOf[k](c, codes)) "
            ": [...v]]))",
            block=block, place=place, tokens=tokens, sizes=sizes, codes=codes,
        )  # fmt: skip
        assert bytes(planes["text"]) == rollout.text
        assert planes["flips"] == rollout.flips.tolist()
        assert planes["uncertain"] == rollout.uncertain.astype(int).tolist()
        whole = np.array(planes["low"]) + 256 * np.array(planes["high"])
        assert whole.tolist() == rollout.sizes.tolist()
        assert planes["logprob"] == pytest.approx(rollout.logprobs.tolist(), abs=1 / 16)
        # Codes of square roots are of one width.
        assert roots(planes["entropy"]) == pytest.approx(roots(rollout.entropies), abs=2.001 / 255)
        assert roots(planes["advantage"]) == pytest.approx(
            roots(rollout.advantages), abs=0.5001 * 8**0.5 / 127
        )
        assert planes["gap"] == pytest.approx(rollout.gaps.tolist(), rel=10 ** (1 / 8) - 1)


ROLLOUTS = {
    "run": [0, 0, 0, 0, 1],
    "step": [1, 1, 1, 2, 1],
    "group": [0, 0, 1, 0, 0],
    "sample": [0, 1, 0, 0, 0],
    "prompt": [0, 0, 1, 0, 1],
    "saved_by": ["base", "base", "none", "base", "none"],
    "verdict": [1, 0, None, 0.5, 1],
    "reward": [1, 0, None, 0.5, 1],
    "tokens": [4, 8, 2, 3, 9],
    "finish_reason": ["stop", "length", "stop", "stop", "stop"],
}
PROMPTS = [{"domain": "math"}, {"domain": "code"}]
ANY = dict.fromkeys(("run", "step", "verdict", "saved", "domain", "finish", "text"), "")


@pytest.mark.parametrize(
    ("wanted", "first"),
    [
        ({}, [0, 2, 3, 4]),
        ({"verdict": "wrong"}, [0]),
        ({"verdict": "invalid"}, [2]),
        ({"verdict": "part"}, [3]),
        ({"run": "1"}, [4]),
        ({"run": "0", "step": "1"}, [0, 2]),
        ({"domain": "code", "saved": "none"}, [2, 4]),
        ({"finish": "length", "verdict": "right"}, []),
        ({"text": "TWO"}, [2]),
    ],
)
def test_a_group_passes_when_one_of_its_rollouts_does(wanted, first, engine):
    chosen = call(
        engine,
        "select(groupsOf(r), r, prompts, wanted, (i) => ['', '', 'one two'][i] ?? '')"
        ".map((g) => g.first)",
        r=ROLLOUTS, prompts=PROMPTS, wanted=ANY | wanted,
    )  # fmt: skip
    assert chosen == first


def test_groups_are_put_in_order_and_those_without_a_value_come_last(engine):
    for descending, expected in ((False, [0, 3, 4, 2]), (True, [4, 0, 3, 2])):
        order = call(
            engine, "sorted(groupsOf(r), 'reward', down).map((g) => g.first)",
            r=ROLLOUTS, down=descending,
        )  # fmt: skip
        assert order == expected


def test_what_flows_in_flows_out_of_every_stage(engine):
    flow = call(
        engine, "flowOf(saved, 10)",
        saved={"base": 5, "expand": 1, "reshape": 2, "residual": 3, "none": 4},
    )  # fmt: skip
    for i, name in enumerate(flow["nodes"]):
        into = sum(link["value"] for link in flow["links"] if link["to"] == i)
        out = sum(link["value"] for link in flow["links"] if link["from"] == i)
        assert into == out or 0 in (into, out), name
    ends = {flow["nodes"][link["to"]]: link["value"] for link in flow["links"]}
    assert ends["rolled out"] == 15
    assert ends["train nothing"] == 4
    assert ends["skipped by the pre-filter"] == 10


def test_a_smoothed_constant_is_that_constant_and_gaps_stay(engine):
    assert call(engine, "smooth([3, null, 3, 3], 0.9)") == [3, None, *[pytest.approx(3)] * 2]


def test_a_band_holds_every_run_at_each_step(engine):
    curves = [
        {"steps": [1, 2], "values": [1, 5]},
        {"steps": [2, 3], "values": [3, None]},
    ]
    of = call(engine, "band(curves)", curves=curves)
    assert of == {"steps": [1, 2], "low": [1, 3], "high": [1, 5], "mean": [1, 4]}


def test_links_lead_to_their_rollout(engine):
    for i in range(5):
        place = call(engine, "placeOf(linkOf(r, i, 'entropy group'), r)", r=ROLLOUTS, i=i)
        assert place == {"rollout": i, "colour": "entropy group"}
    for bad in ("", "#curves", "#rollout=0.9.0.0&colour=gap", "#rollout=<b>"):
        assert call(engine, "placeOf(bad, r)", r=ROLLOUTS, bad=bad) is None


def test_controls_and_turns_of_direction_are_shown_as_signs(engine):
    assert (
        call(engine, r"visible('a\u0000\n\u202eb\u007f')") == "a\u2400\n\u27e8U+202E\u27e9b\u2421"
    )


def test_the_most_uncertain_tokens_are_those_of_espo():
    torch = pytest.importorskip("torch")
    from compass.train.espo import entropy_groups, group_shares

    draw = np.random.default_rng(0)
    for n in (1, 2, 5, 33, 100):
        entropy = np.round(draw.exponential(1.0, n), 1).astype(np.float32)
        groups = entropy_groups(
            torch.tensor(entropy), torch.zeros(n, dtype=torch.int64), shares=group_shares(2, 0.2)
        )
        assert most_uncertain(entropy, 0.2).tolist() == (groups == 0).tolist()


def test_steps_are_spread_from_the_ends_inwards():
    assert spread([3, 4, 5, 6, 7]) == [7, 3, 5, 4, 6]
    assert sorted(spread(list(range(50)))) == list(range(50))
    assert spread([1]) == [1]
