"""A checkpoint becomes the Hugging Face directory that was read, in one process and little memory,
whatever ranks wrote it; and what is no whole checkpoint, or no empty folder, is refused."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compass.checkpoint.checkpointer import Checkpointer
from compass.checkpoint.config import CheckpointConfig
from compass.distributed import Topology, build_topology
from compass.errors import UserError
from compass.models.config import PolicyConfig
from compass.models.hf.export import export_checkpoint
from compass.models.hf.save import model_files, save_hf
from compass.models.hf.weights import load_hf, read_dtype, read_spec
from compass.models.parallel import build_policy
from compass.text.tokenizer import Tokenizer
from tests.distributed_run import run_ranks
from tests.models.hf.test_weights import CONFIGS
from tests.recipes.model_directories import write_tokenizer
from tests.recipes.small_disk import small_disk


def write_base(directory: Path, name: str, dtype: torch.dtype) -> Path:
    """A model and a tokenizer, by transformers."""
    write_tokenizer(directory)
    torch.manual_seed(0)
    config = type(CONFIGS[name])(**CONFIGS[name].to_dict() | {"vocab_size": 320})
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(directory)
    return directory


def save(base: Path, folder: Path, topology: Topology) -> Path:
    """A checkpoint of `base` with an optimizer that has moments, as a run writes it."""
    policy = build_policy(read_spec(base), topology, PolicyConfig(), lambda p: load_hf(p, base))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, weight_decay=0.0)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    files = model_files(policy.spec, read_dtype(base), Tokenizer.from_dir(base))
    checkpointer = Checkpointer(folder, topology, CheckpointConfig(), files=files)
    return checkpointer.save(7, policy, optimizer, {"step": 7})


def _save_on_ranks(rank: int, world: int, ep: int, base: Path, folder: Path) -> None:
    save(base, folder, build_topology(rank, world, device=torch.device("cpu"), ep=ep))


LAYOUTS = [
    pytest.param("moe-gqa-untied-normed", 4, 2, marks=pytest.mark.long),
    ("moe-mha-tied-raw-probabilities-one-dense-layer", 2, 2),
    ("moe-mqa-every-second-layer-large-theta", 1, 1),
    ("dense-gqa-tied", 3, 1),  # its rows cannot be shared equally
]


@pytest.mark.parametrize(("name", "world", "ep"), LAYOUTS)
def test_a_checkpoint_of_a_bfloat16_model_is_that_model_again(name, world, ep, tmp_path):
    base = write_base(tmp_path / "base", name, torch.bfloat16)
    run_ranks(_save_on_ranks, tmp_path, world, world, ep, base, tmp_path / "checkpoints")
    out = tmp_path / "out"
    assert export_checkpoint(tmp_path / "checkpoints/step_000007", out) == torch.bfloat16
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (base / weights).read_bytes()

    ids = torch.randint(0, 320, (1, 30), generator=torch.Generator().manual_seed(1))
    logits = []
    for directory in (base, out):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        assert model.dtype == torch.bfloat16
        logits.append(model(ids).logits)
    assert torch.equal(*logits)
    text = AutoTokenizer.from_pretrained(out)("How many apples?").input_ids
    assert text == AutoTokenizer.from_pretrained(base)("How many apples?").input_ids
    assert [p.name for p in tmp_path.glob("*out*")] == ["out"]


@pytest.fixture
def checkpoint(alone, tmp_path) -> Path:
    base = write_base(tmp_path / "base", "moe-gqa-untied-normed", torch.float32)
    return save(base, tmp_path / "checkpoints", alone)


def test_it_is_what_the_run_itself_would_have_exported(alone, checkpoint, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    policy = build_policy(read_spec(base), alone, PolicyConfig(), lambda p: load_hf(p, base))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype)
        options = {"dtype": dtype, "max_shard_bytes": 30_000}
        save_hf(policy, tmp_path / name, tokenizer=Tokenizer.from_dir(base), **options)
        assert export_checkpoint(checkpoint, out / name, **options) == dtype
        assert len(list((out / name).glob("*.safetensors"))) > 2
        assert files(out / name) == files(tmp_path / name)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- refusals


def test_a_folder_with_anything_in_it_is_left_as_it_is(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export_checkpoint(checkpoint, out)  # empty
    before = files(out)
    with pytest.raises(UserError, match=r"out is not an empty folder: choose another"):
        export_checkpoint(checkpoint, out)
    assert files(out) == before
    with pytest.raises(UserError, match=r"config\.json is not an empty folder"):
        export_checkpoint(checkpoint, out / "config.json")


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "config.json", "tokenizer.json"])
def test_damage_is_refused_by_name(checkpoint, tmp_path, name):
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} does not match its SHA-256.*give another"):
        export_checkpoint(checkpoint, tmp_path / "out")
    (checkpoint / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing; give another checkpoint"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint, tmp_path):
    with small_disk(tmp_path / "disk") as disk, disk.filled(leave=50_000):
        with pytest.raises(UserError, match=rf"cannot write .*out: {disk.complaint}; choose a"):
            export_checkpoint(checkpoint, disk.folder / "out")
        assert [p.name for p in disk.folder.iterdir() if p.name != "ballast"] == []
