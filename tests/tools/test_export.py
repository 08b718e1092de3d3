"""`tools/export.py` as it is typed: in one process, in little memory, and one line for mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from compass.checkpoint.checkpointer import Checkpointer
from compass.checkpoint.config import CheckpointConfig
from compass.distributed import ParallelConfig, Topology, build_topology, init_topology, launch
from compass.models.config import PolicyConfig
from compass.models.hf.save import model_files
from compass.models.parallel import build_policy, init_policy
from compass.models.specs import SPECS, ModelSpec
from compass.text.tokenizer import Tokenizer
from tests.distributed_run import run_ranks
from tests.recipes.model_directories import write_tokenizer
from tests.recipes.rank_processes import ROOT
from tools import export

MEGABYTE = 1_000_000
SMALL = replace(
    SPECS["30b-a3b"],
    vocab_size=16_000,
    hidden_size=512,
    num_layers=5,
    num_heads=8,
    head_dim=64,
    num_experts=16,
    moe_intermediate_size=512,
)
LARGE = replace(SMALL, vocab_size=32_000, hidden_size=1024, num_layers=10, num_experts=28)
MEASURE = """
import json, sys
from pathlib import Path
import compass.models.hf.export  # which the tool imports when flags are checked
from tools import export

def resident(kind):
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0])

before = resident("VmRSS")
export.main(sys.argv[1:])
print(json.dumps([before, resident("VmHWM")]))  # getrusage's would be the parent's, where larger
"""


def save_random(rank: int, folder: Path, spec: ModelSpec) -> int:
    """Of one rank, whose shards are whole parameters; see `save`."""
    return save(folder, spec, build_topology(rank, 1, device=torch.device("cpu")))


def save(folder: Path, spec: ModelSpec, topology: Topology) -> int:
    """The checkpoint of step 3 of the run `folder/run`; returns the bytes of its largest
    parameter."""
    write_tokenizer(folder)
    policy = build_policy(spec, topology, PolicyConfig(), lambda policy: init_policy(policy, 0))
    tokenizer = Tokenizer.from_dir(folder)
    files = model_files(spec, torch.bfloat16, tokenizer)
    saver = Checkpointer(folder / "run/checkpoints", topology, CheckpointConfig(), files=files)
    saver.save(3, policy, torch.optim.AdamW(policy.parameters()), {"step": 3})
    return max(parameter.nbytes for parameter in policy.parameters())


@pytest.mark.parametrize(
    ("spec", "least", "slack"),
    [
        pytest.param(SMALL, 300 * MEGABYTE, 50 * MEGABYTE, id="300 MB"),
        pytest.param(LARGE, 2000 * MEGABYTE, 300 * MEGABYTE, id="2 GB", marks=pytest.mark.long),
    ],
)
def test_memory_is_bounded_by_the_largest_parameter(spec, least, slack, tmp_path):
    (largest,) = run_ranks(save_random, tmp_path, 1, tmp_path, spec)
    size = sum(p.stat().st_size for p in tmp_path.rglob("*.distcp"))
    assert size > least
    words = [tmp_path / "run", "--output", tmp_path / "out"]
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    before, peak = json.loads(ended.stdout.splitlines()[-1])
    assert peak - before <= 2 * largest + slack, (peak - before) / MEGABYTE


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """Of a run with one checkpoint. The tool has no process group, and so there is none here."""
    topology = init_topology(ParallelConfig(device="cpu"))
    save(tmp_path, replace(SPECS["debug"], vocab_size=320), topology)
    dist.destroy_process_group()
    return tmp_path / "run"


def code(*words: object) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        launch(lambda: export.main([*map(str, words)]))
    return ended.value.code


def refused(capsys: pytest.CaptureFixture[str], message: str, *words: object) -> None:
    assert code(*words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_run_stands_for_its_newest_checkpoint(run_dir, tmp_path, capsys):
    newest = run_dir / "checkpoints/step_000003"
    (run_dir / "checkpoints/step_000009.tmp").mkdir()
    assert code(run_dir, "--output", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert said == f"wrote step 3 of {newest} in bfloat16: {tmp_path / 'a'}\n"
    assert code(newest, "--output", tmp_path / "b") == 0
    assert (
        code("--source", shutil.copytree(newest, tmp_path / "kept"), "--output", tmp_path / "c")
        == 0
    )
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert len(weights) == 1
    assert code(run_dir, "--output", tmp_path / "d", "--dtype", "float16") == 0
    assert json.loads((tmp_path / "d/config.json").read_text())["torch_dtype"] == "float16"


def test_mistakes_are_one_line(run_dir, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    unfinished = run_dir / "checkpoints/step_000009.tmp"
    unfinished.mkdir()
    for message, *words in (
        ("--dtype='int4' must be one of 'auto'", run_dir, "--output", out, "--dtype", "int4"),
        ("empty holds no checkpoint", tmp_path / "empty", "--output", out),
        ("nowhere is no folder", tmp_path / "nowhere", "--output", out),
        (f"{unfinished} was never finished", unfinished, "--output", out),
        ("run is not an empty folder", run_dir, "--output", run_dir),
        ("--output is required", run_dir),
        ("--source is required", "--output", out),
    ):
        refused(capsys, message, *words)
    (run_dir / "checkpoints/step_000003/state.json").write_text("{}")
    refused(capsys, "state.json has 2 bytes instead of", run_dir, "--output", out)
    assert not out.exists()
