"""Checkpoints restore a run bit for bit, survive a crash while writing, and are refused by name
when damaged or of another shape.

The runs are real FSDP2 + expert-parallel ones: one process per rank, gloo on CPU.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from compass.checkpoint.checkpointer import Checkpointer
from compass.checkpoint.config import CheckpointConfig
from compass.checkpoint.folder import step_of
from compass.distributed import Topology, build_topology
from compass.errors import UserError
from tests.distributed_run import exit_codes, run_ranks


class Model(nn.Module):
    """A dense layer and a stack of two experts, of which each is applied to every row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.experts = nn.Parameter(torch.randn(2, width, width))

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        experts = self.experts
        local = experts.to_local() if isinstance(experts, DTensor) else experts
        return self.dense(x_BD) + torch.einsum("bd,edf->bf", x_BD, local)


def build(topology: Topology, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model sharded as the policy is: experts over `ep`, the rest over the dense mesh. Groups
    of different learning rates, as the trainer may have them."""
    torch.manual_seed(0)
    model = Model(width)
    on_ep_mesh = set()
    if topology.ep_mesh is not None:
        sharded = distribute_tensor(model.experts.data, topology.ep_mesh, [Shard(0)])
        model.experts = nn.Parameter(sharded)
        on_ep_mesh = {model.experts}
    fully_shard(model.dense, mesh=topology.dense_mesh)
    fully_shard(model, mesh=topology.dense_mesh, ignored_params=on_ep_mesh)
    groups = [
        {"params": [model.experts], "lr": 1e-2},
        {"params": list(model.dense.parameters()), "lr": 1e-3, "weight_decay": 0.1},
    ]
    return model, torch.optim.AdamW(groups)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int) -> None:
    for step in steps:
        noise = torch.Generator().manual_seed(1000 * rank + step)
        x_BD = torch.randn(3, model.dense.in_features, generator=noise)
        (model(x_BD) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """This rank's shard of every parameter and of every Adam moment."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}.{key}"] = value
    local = {k: v.to_local() if isinstance(v, DTensor) else v for k, v in tensors.items()}
    return {name: value.detach().clone() for name, value in local.items()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def checkpointer(folder: Path, topology: Topology, keep_last: int = 2) -> Checkpointer:
    return Checkpointer(folder, topology, CheckpointConfig(keep_last=keep_last))


def _on_rank(rank: int, body: Callable, folder: Path, world_size: int, ep: int) -> str | None:
    topology = build_topology(rank, world_size, device=torch.device("cpu"), ep=ep)
    try:
        body(folder / "checkpoints", topology)
    except UserError as e:
        return str(e)
    return None


def run(body: Callable, folder: Path, *, world_size: int, ep: int = 1) -> list[str | None]:
    """Run `body(checkpoint folder, topology)` on every rank; the user error of each rank."""
    return run_ranks(_on_rank, folder, world_size, body, folder, world_size, ep)


def save_at(folder: Path, topology: Topology, *steps: int, keep_last: int = 2) -> Checkpointer:
    """Train and save after each of `steps`."""
    model, optimizer = build(topology)
    saver = checkpointer(folder, topology, keep_last)
    done = 0
    for step in steps:
        train(model, optimizer, range(done, step), topology.rank)
        saver.save(step, model, optimizer, {"step": step})
        done = step
    return saver


def resume_equals_uninterrupted(folder: Path, topology: Topology) -> None:
    model, optimizer = build(topology)
    train(model, optimizer, range(0, 3), topology.rank)
    saver = checkpointer(folder, topology)
    extra = {"step": 3, "seen": ["a", "b"], "rate": 0.1}
    path = saver.save(3, model, optimizer, extra, rank_extra={"rank": topology.rank})
    saved = snapshot(model, optimizer)
    train(model, optimizer, range(3, 6), topology.rank)
    uninterrupted = snapshot(model, optimizer)

    model, optimizer = build(topology)
    train(model, optimizer, range(7, 8), topology.rank)  # anything but the saved state
    for group in optimizer.param_groups:
        group["lr"] = 5.0
    loader = checkpointer(folder, topology)
    assert loader.latest() == path
    assert loader.load(path, model, optimizer) == extra
    assert loader.load_rank_extra(path) == {"rank": topology.rank}
    assert equal(snapshot(model, optimizer), saved)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]
    train(model, optimizer, range(3, 6), topology.rank)
    assert equal(snapshot(model, optimizer), uninterrupted)


@pytest.mark.parametrize(("world_size", "ep"), [(1, 1), (2, 1), (2, 2)])
def test_resume_is_bit_identical(tmp_path, world_size, ep):
    errors = run(resume_equals_uninterrupted, tmp_path, world_size=world_size, ep=ep)
    assert errors == [None] * world_size


def load_on_another_world_size(folder: Path, topology: Topology) -> None:
    saver = checkpointer(folder, topology)
    model, optimizer = build(topology)
    path = saver.latest()
    assert path is not None
    assert saver.load(path, model, optimizer) == {"step": 2}
    dense = model.dense.weight.full_tensor()
    moments = optimizer.state[model.experts]["exp_avg"].full_tensor()
    expected = torch.load(folder.parent / "expected.pt")
    assert torch.equal(dense, expected["dense"])
    assert torch.equal(moments, expected["moments"])
    saver.load_rank_extra(path)


def test_weights_reshard_but_rank_state_does_not(tmp_path, alone):
    model, optimizer = build(alone)
    train(model, optimizer, range(2), 0)
    checkpointer(tmp_path / "checkpoints", alone).save(2, model, optimizer, {"step": 2})
    moments = optimizer.state[model.experts]["exp_avg"].full_tensor()
    expected = {"dense": model.dense.weight.full_tensor(), "moments": moments}
    torch.save(expected, tmp_path / "expected.pt")
    errors = run(load_on_another_world_size, tmp_path, world_size=2)
    assert errors[0] == errors[1]
    assert "state of 1 ranks, not of 2; resume with --nproc-per-node 1" in errors[0]


def die_at_rename(folder: Path, topology: Topology) -> None:
    """Save step 1, then be killed while saving step 2, at the rename that `victim.txt` names."""
    victim = (folder.parent / "victim.txt").read_text()
    save_at(folder, topology, 1)
    rename = os.rename

    def dying_rename(source, target) -> None:
        if Path(target).name == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = dying_rename
    save_at(folder, topology, 2)


@pytest.mark.parametrize("victim", [".metadata", "step_000002"])
def test_a_crash_while_writing_leaves_the_previous_checkpoint(tmp_path, alone, victim):
    folder = tmp_path / "checkpoints"
    (tmp_path / "victim.txt").write_text(victim)
    assert exit_codes(_on_rank, tmp_path, 1, die_at_rename, tmp_path, 1, 1) == [-signal.SIGKILL]
    assert (folder / "step_000002.tmp").exists()
    saver = checkpointer(folder, alone)
    assert saver.latest() == folder / "step_000001"
    save_at(folder, alone, 2)
    assert saver.latest() == folder / "step_000002"
    assert sorted(p.name for p in folder.iterdir()) == ["step_000001", "step_000002"]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "manifest.json"])
def test_one_flipped_bit_is_refused_by_name(tmp_path, alone, name, caplog):
    saver = save_at(tmp_path, alone, 1, 2)
    damaged = tmp_path / "step_000002" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    model, optimizer = build(alone)
    before = snapshot(model, optimizer)
    with pytest.raises(UserError, match=str(damaged)):
        saver.load(tmp_path / "step_000002", model, optimizer)
    assert equal(snapshot(model, optimizer), before)
    assert saver.latest() == tmp_path / "step_000001"
    assert str(damaged) in caplog.text


def test_truncated_and_missing_files_are_refused_by_name(tmp_path, alone):
    saver = save_at(tmp_path, alone, 1, 2)
    model, optimizer = build(alone)
    shard = tmp_path / "step_000001" / "__0_0.distcp"
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    with pytest.raises(UserError, match=rf"{shard} has {size - 1} bytes instead of {size}"):
        saver.load(shard.parent, model, optimizer)
    state = tmp_path / "step_000002" / "state.json"
    state.unlink()
    with pytest.raises(UserError, match=rf"{state} is missing"):
        saver.load(state.parent, model, optimizer)
    with pytest.raises(UserError, match="no whole checkpoint"):
        saver.latest()


def refuse_damage_of_the_other_ranks_file(folder: Path, topology: Topology) -> None:
    saver = save_at(folder, topology, 1)
    if topology.is_main:
        (folder / "step_000001" / "rank_00001.json").write_text("[]")
    topology.barrier()
    model, optimizer = build(topology)
    saver.load(folder / "step_000001", model, optimizer)


def test_damage_seen_by_one_rank_is_an_error_on_all(tmp_path):
    errors = run(refuse_damage_of_the_other_ranks_file, tmp_path, world_size=2)
    assert errors[0] == errors[1]
    assert "rank_00001.json has 2 bytes instead of 4" in errors[0]


def write_where_a_file_is(folder: Path, topology: Topology) -> None:
    if topology.is_main:
        folder.write_text("not a folder")
    topology.barrier()
    save_at(folder, topology, 1)


def test_a_folder_that_cannot_be_written_is_an_error_on_all_ranks(tmp_path):
    errors = run(write_where_a_file_is, tmp_path, world_size=2)
    assert errors[0] == errors[1]
    assert "cannot write the checkpoint" in errors[0]


def test_another_shape_names_the_parameter_and_both_shapes(tmp_path, alone):
    saver = save_at(tmp_path, alone, 1)
    model, optimizer = build(alone, width=6)
    before = snapshot(model, optimizer)
    with pytest.raises(UserError, match=r"experts has shape \(2, 4, 4\) .* and \(2, 6, 6\) in the"):
        saver.load(tmp_path / "step_000001", model, optimizer)
    assert equal(snapshot(model, optimizer), before)


def test_parameters_missing_on_either_side_are_named(tmp_path, alone):
    saver = save_at(tmp_path, alone, 1)
    path = tmp_path / "step_000001"
    model, optimizer = build(alone)
    model.bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(UserError, match="has no parameter bias"):
        saver.load(path, model, optimizer)
    del model.bias, model.experts
    with pytest.raises(UserError, match="has parameter experts, which the model lacks"):
        saver.load(path, model, optimizer)


def test_saving_before_the_first_step_leaves_the_optimizer_untouched(tmp_path, alone):
    trained, untouched = build(alone), build(alone)
    saver = checkpointer(tmp_path, alone)
    path = saver.save(0, *trained, {})
    assert not trained[1].state
    resumed = build(alone)
    train(*resumed, range(5), 0)
    saver.load(path, *resumed)
    for model, optimizer in (trained, untouched, resumed):
        train(model, optimizer, range(3), 0)
    assert equal(snapshot(*trained), snapshot(*untouched))
    assert equal(snapshot(*resumed), snapshot(*untouched))


def test_only_the_last_are_kept(tmp_path, alone):
    save_at(tmp_path, alone, 1, 2, 3, 4, keep_last=2)
    assert sorted(map(step_of, tmp_path.iterdir())) == [3, 4]


def test_an_old_checkpoint_stays_until_the_new_one_is_complete(tmp_path, alone, monkeypatch):
    saver = save_at(tmp_path, alone, 1, keep_last=1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        saver.save(2, *build(alone), {})
    assert saver.latest() == tmp_path / "step_000001"


def test_what_a_killed_run_left_half_written_goes_with_the_next_checkpoint(tmp_path, alone):
    (tmp_path / "step_000001.tmp").mkdir()
    save_at(tmp_path, alone, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


def test_moments_are_restored_and_the_settings_of_the_optimizer_are_this_runs(tmp_path, alone):
    model, optimizer = build(alone)
    train(model, optimizer, range(2), 0)
    path = checkpointer(tmp_path, alone).save(2, model, optimizer, {})
    resumed, with_decay = build(alone)
    with_decay.param_groups[1] |= {"weight_decay": 0.5, "betas": (0.5, 0.6)}
    checkpointer(tmp_path, alone).load(path, resumed, with_decay)
    assert with_decay.param_groups[1]["weight_decay"] == 0.5
    assert with_decay.param_groups[1]["betas"] == (0.5, 0.6)
    assert equal(snapshot(model, optimizer), snapshot(resumed, with_decay))


def test_saving_is_due_every_interval_and_after_the_last_step_and_never_at_zero(tmp_path, alone):
    due = Checkpointer(tmp_path, alone, CheckpointConfig(interval=3)).due
    assert [step for step in range(1, 8) if due(step, is_last=step == 7)] == [3, 6, 7]
    assert not Checkpointer(tmp_path, alone, CheckpointConfig(interval=0)).due(3, is_last=True)


@pytest.mark.parametrize(
    ("field", "value"), [("interval", -1), ("keep_last", 0), ("grace_seconds", -1.0)]
)
def test_config_refuses_numbers_that_mean_nothing(field, value):
    with pytest.raises(UserError, match=rf"checkpoint.{field}={value}"):
        CheckpointConfig(**{field: value})


def test_the_manifest_lists_every_file(tmp_path, alone):
    save_at(tmp_path, alone, 1)
    folder = tmp_path / "step_000001"
    content = json.loads(json.loads((folder / "manifest.json").read_text())["content"])
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert set(content["files"]) == names
    assert content["step"] == 1
    assert content["world_size"] == 1
