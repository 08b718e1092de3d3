"""Hugging Face directories: transformers writes and judges them, we read and write them back."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from compass.distributed import Topology, build_topology
from compass.errors import UserError
from compass.models.config import PolicyConfig
from compass.models.context import ForwardContext
from compass.models.hf import save as hf
from compass.models.hf.save import save_hf
from compass.models.hf.stream import TensorFile
from compass.models.hf.weights import load_hf, read_spec
from compass.models.layers.attention import PackedAttention
from compass.models.parallel import PolicyView, build_policy
from compass.models.policy import Policy, build_model
from tests.distributed_run import run_ranks

_SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
_MOE = {**_SIZES, "num_hidden_layers": 3, "moe_intermediate_size": 24}
CONFIGS = {
    "moe-gqa-untied-normed": Qwen3MoeConfig(
        **_MOE,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
    "moe-mha-tied-raw-probabilities-one-dense-layer": Qwen3MoeConfig(
        **_MOE,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=6,
        num_experts_per_tok=3,
        norm_topk_prob=False,
        mlp_only_layers=[1],
        tie_word_embeddings=True,
    ),
    "moe-mqa-every-second-layer-large-theta": Qwen3MoeConfig(
        **_MOE,
        num_attention_heads=6,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=1,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-5,
    ),
    "dense-gqa-tied": Qwen3Config(
        **_SIZES,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}


def _write(config, directory: Path, dtype=torch.float32, **options):
    """A random model on disk. Norms are made uneven: at their initial 1 they would hide swaps."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    model.save_pretrained(directory, **options)
    return model


def _load(directory: Path, dtype: torch.dtype = torch.float32) -> Policy:
    policy = build_model(read_spec(directory), "cpu").to(dtype)
    load_hf(policy, directory)
    return policy


def _logits(policy: Policy, token_ids: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(token_ids))
    context = ForwardContext(attention=PackedAttention((len(rows),), "cpu"), routing=None)
    with torch.no_grad():
        return policy(token_ids, rows, context, rows)


def _stored_bytes(directory: Path) -> dict[str, tuple]:
    tensors: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        tensors |= load_file(path)
    return {
        name: (t.dtype, tuple(t.shape), t.view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


@pytest.fixture(scope="module")
def moe_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("moe")
    _write(CONFIGS["moe-gqa-untied-normed"], directory)
    return directory


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = _write(CONFIGS[name], tmp_path)
    token_ids = torch.randint(0, 97, (50,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(token_ids[None]).logits[0]
    assert expected.abs().max() > 0.1
    assert (_logits(_load(tmp_path), token_ids) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_keeps_every_byte(name, dtype, tmp_path):
    _write(CONFIGS[name], tmp_path / "in", dtype)
    save_hf(_load(tmp_path / "in", dtype), tmp_path / "out")
    assert _stored_bytes(tmp_path / "out") == _stored_bytes(tmp_path / "in")
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "in" / weights).read_bytes()
    assert read_spec(tmp_path / "out") == read_spec(tmp_path / "in")


def test_sharded_files_are_read_and_written_with_an_index(tmp_path):
    reference = _write(CONFIGS["moe-gqa-untied-normed"], tmp_path / "in", max_shard_size="40KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    save_hf(_load(tmp_path / "in"), tmp_path / "out", max_shard_bytes=30_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert _stored_bytes(tmp_path / "out") == _stored_bytes(tmp_path / "in")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        len(content) for _, _, content in _stored_bytes(tmp_path / "out").values()
    )


def test_transformers_reads_the_exported_dtype_and_config(tmp_path):
    config = CONFIGS["moe-mqa-every-second-layer-large-theta"]
    _write(config, tmp_path / "in")
    save_hf(_load(tmp_path / "in"), tmp_path / "out", dtype=torch.bfloat16)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert again.config.rope_parameters["rope_theta"] == 1e6


def test_fused_experts_are_read(moe_dir, tmp_path):
    _write(CONFIGS["moe-gqa-untied-normed"], tmp_path, save_original_format=False)
    assert any("gate_up_proj" in name for name in _stored_bytes(tmp_path))
    fused, plain = _load(tmp_path).state_dict(), _load(moe_dir).state_dict()
    assert all(torch.equal(fused[name], plain[name]) for name in plain)


def test_a_tied_checkpoint_may_carry_its_embedding_twice(tmp_path):
    _write(CONFIGS["dense-gqa-tied"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    policy = _load(tmp_path)
    assert policy.lm_head.weight is policy.tok_embeddings.weight
    assert torch.equal(policy.lm_head.weight, tensors["lm_head.weight"])


# ---- several ranks


def _rank_round_trip(rank: int, world: int, ep: int, source: Path, target: Path) -> None:
    topology = build_topology(rank, world, device=torch.device("cpu"), ep=ep)
    spec = read_spec(source)
    cfg = PolicyConfig(dtype="bfloat16")
    policy = build_policy(spec, topology, cfg, lambda p: load_hf(p, source))
    PolicyView(policy, topology).refresh(policy)
    save_hf(policy, target, topology=topology, max_shard_bytes=30_000)


@pytest.mark.parametrize(("world", "ep"), [(2, 2), pytest.param(4, 2, marks=pytest.mark.long)])
def test_sharded_policies_round_trip_byte_for_byte(world, ep, moe_dir, tmp_path):
    """Also while bfloat16 copies of the float32 weights are gathered for generation."""
    (tmp_path / "exports").mkdir()
    run_ranks(_rank_round_trip, tmp_path, world, world, ep, moe_dir, tmp_path / "exports/out")
    assert _stored_bytes(tmp_path / "exports/out") == _stored_bytes(moe_dir)
    assert [p.name for p in (tmp_path / "exports").iterdir()] == ["out"]


def _rank_events(rank: int, world: int, source: Path, target: Path) -> list[str]:
    """What an export does on this rank, in order: gather a parameter, write a file, or wait."""
    events: list[str] = []

    def noting(event: str, function):
        def noted(*args, **kwargs):
            events.append(event)
            return function(*args, **kwargs)

        return noted

    topology = build_topology(rank, world, device=torch.device("cpu"))
    policy = build_policy(read_spec(source), topology, PolicyConfig(), lambda p: load_hf(p, source))
    hf.full_tensor = noting("gather", hf.full_tensor)
    TensorFile.add = noting("write", TensorFile.add)  # type: ignore[method-assign]
    Topology.all_gather_object = noting("wait", Topology.all_gather_object)  # type: ignore[method-assign]
    save_hf(policy, target, topology=topology, max_shard_bytes=30_000)
    return events


def load_file_names(directory: Path) -> list[str]:
    return [name for path in directory.glob("*.safetensors") for name in load_file(path)]


def test_no_rank_gathers_on_while_the_main_one_writes(moe_dir, tmp_path):
    """What it had queued would grow old there, and past the timeout end the run."""
    main, other = run_ranks(_rank_events, tmp_path, 2, 2, moe_dir, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert main.count("write") == len(load_file_names(tmp_path / "out"))
    for before, after in pairwise(main):
        assert (before, after) != ("write", "gather")
    # They wait for one another as often, and in the same places.
    assert other == [event for event in main if event != "write"]
    assert ("gather", "gather") not in set(pairwise(other))


# ---- mistakes


@pytest.fixture
def broken(moe_dir, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(moe_dir, tmp_path / "model"))


def _rewrite(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_a_missing_tensor_is_named(broken):
    _rewrite(broken, lambda t: t.pop("model.layers.1.mlp.experts.5.up_proj.weight"))
    with pytest.raises(UserError, match=r"lacks 1 of .* model\.layers\.1\.mlp\.experts\.5\.up_pr"):
        _load(broken)


def test_an_unexpected_tensor_is_named(broken):
    _rewrite(broken, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(4)}))
    with pytest.raises(UserError, match=r"no place for, first model\.layers\.0\.self_attn\.q_proj"):
        _load(broken)


def test_a_wrong_shape_names_the_tensor_and_both_shapes(broken):
    _rewrite(broken, lambda t: t.update({"model.norm.weight": torch.ones(33)}))
    with pytest.raises(UserError, match=r"model\.norm\.weight has shape \[33\].*\[32\]"):
        _load(broken)


def test_nothing_is_loaded_when_one_tensor_is_wrong(broken):
    _rewrite(broken, lambda t: t.update({"model.norm.weight": torch.ones(33)}))
    policy = build_model(read_spec(broken), "cpu")
    torch.nn.init.constant_(policy.tok_embeddings.weight, 7.0)
    with pytest.raises(UserError):
        load_hf(policy, broken)
    assert (policy.tok_embeddings.weight == 7.0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.mlp.experts.5.up_proj.weight",
        "model.layers.2.mlp.gate.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_one_value_that_is_not_finite_is_named_with_its_tensor_and_file(name, value, broken):
    _rewrite(broken, lambda t: t[name].view(-1).__setitem__(17, value))
    with pytest.raises(UserError, match=rf"model\.safetensors: {name} holds .* \(1 here\)"):
        _load(broken)


def test_the_shard_and_the_fused_tensor_of_a_value_that_is_not_finite_are_named(tmp_path):
    options = {"max_shard_size": "40KB", "save_original_format": False}
    _write(CONFIGS["moe-gqa-untied-normed"], tmp_path, **options)
    name = "model.layers.2.mlp.experts.gate_up_proj"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    path = tmp_path / index["weight_map"][name]
    tensors = load_file(path)
    tensors[name][3, 5, 7] = float("nan")
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"{path.name}: {name} holds values that are not finite"):
        _load(tmp_path)


def test_a_value_too_large_for_float32_is_not_finite_there(broken):
    def enlarge(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].double()
        tensors["model.norm.weight"][3] = 1e300

    _rewrite(broken, enlarge)
    with pytest.raises(UserError, match=r"not finite in torch\.float32"):
        _load(broken)


def test_a_head_beside_the_embedding_it_is_said_to_be_tied_to_is_compared(tmp_path):
    _write(CONFIGS["dense-gqa-tied"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"][96, 31] += 1e-3
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"tie_word_embeddings true, but lm_head\.weight .* differs.*to false"
    ):
        _load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert torch.equal(_load(tmp_path).lm_head.weight, tensors["lm_head.weight"])


def test_a_tied_head_of_another_shape_is_refused(tmp_path):
    _write(CONFIGS["dense-gqa-tied"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(3, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="differs from the embedding"):
        _load(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, ["a"], {"lm_head.weight": 1}])
def test_an_index_without_a_map_of_files_is_named(weight_map, broken):
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json.* weight_map"):
        _load(broken)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_truncated_file_is_named(broken, keep):
    path = broken / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged"):
        _load(broken)


def test_a_missing_shard_is_named(tmp_path):
    _write(CONFIGS["moe-gqa-untied-normed"], tmp_path, max_shard_size="40KB")
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        _load(tmp_path)


def test_a_wrong_value_in_the_config_is_named_with_its_file(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"hidden_size": "64"}))
    with pytest.raises(
        UserError, match=r'config\.json: hidden_size is "64": it must be an integer'
    ):
        read_spec(broken)


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        read_spec(tmp_path)


def test_an_export_replaces_an_earlier_one_and_nothing_else(moe_dir, tmp_path):
    policy = _load(moe_dir)
    save_hf(policy, tmp_path / "export")
    (tmp_path / "export/stale.txt").write_text("from an earlier run")
    save_hf(policy, tmp_path / "export")
    assert not (tmp_path / "export/stale.txt").exists()

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not an earlier export"):
        save_hf(policy, tmp_path / "notes")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["thesis.txt"]
