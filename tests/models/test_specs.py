"""Model specs: sizes that are published, and config.json as transformers writes and reads it."""

import json
from dataclasses import replace

import pytest
from transformers import Qwen3Config, Qwen3MoeConfig

from compass.errors import UserError
from compass.models.policy import build_model
from compass.models.specs import SPECS, ModelSpec

MOE = Qwen3MoeConfig(
    architectures=["Qwen3MoeForCausalLM"],
    vocab_size=100,
    hidden_size=32,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=48,
    moe_intermediate_size=24,
    num_experts=8,
    num_experts_per_tok=3,
    norm_topk_prob=False,
    mlp_only_layers=[3],
    decoder_sparse_step=2,
    max_position_embeddings=256,
    initializer_range=0.05,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    tie_word_embeddings=True,
).to_dict()
# The same, in the words of transformers 4.
_V4_NAMES = {"num_experts": MOE["num_local_experts"], "rope_theta": 5e5, "torch_dtype": "bfloat16"}
MOE_V4 = {
    key: value
    for key, value in MOE.items()
    if key not in ("num_local_experts", "rope_parameters", "dtype")
} | {**_V4_NAMES, "rope_scaling": None}


@pytest.mark.parametrize("config", [MOE, MOE_V4], ids=["transformers-5", "transformers-4"])
def test_config_json_is_read(config):
    spec = ModelSpec.from_hf(json.loads(json.dumps(config)))
    assert spec == ModelSpec(
        vocab_size=100,
        hidden_size=32,
        num_layers=6,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_experts=8,
        top_k=3,
        norm_topk_prob=False,
        dense_layers=(0, 2, 3, 4),
        rope_theta=5e5,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_seq_len=256,
        init_std=0.05,
    )
    assert spec.moe_layers == (1, 5)


@pytest.mark.parametrize("name", SPECS)
def test_our_config_json_says_to_transformers_what_it_says_to_us(name, tmp_path):
    spec = SPECS[name]
    (tmp_path / "config.json").write_text(json.dumps(spec.to_hf()))
    theirs = (Qwen3MoeConfig if spec.num_experts else Qwen3Config).from_pretrained(tmp_path)
    assert ModelSpec.from_hf(spec.to_hf()) == spec
    assert ModelSpec.from_hf(theirs.to_dict()) == spec


def test_a_missing_head_dim_is_what_transformers_takes():
    del (moe := dict(MOE))["head_dim"]
    assert ModelSpec.from_hf(moe).head_dim == 32 // 4
    dense = {**moe, "architectures": ["Qwen3ForCausalLM"]}
    assert ModelSpec.from_hf(dense).head_dim == Qwen3Config().head_dim


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM; Compass builds Qwen3Moe"),
        ({"architectures": None}, r"none named \(model_type 'qwen3_moe'\)"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope scaling 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
        ({"use_sliding_window": True, "sliding_window": 128}, "sliding_window 128 is in use"),
        ({"attention_bias": True}, "attention_bias true"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "'fp8' quantised"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "only 'full_attention' is"),
        ({"num_experts_per_tok": 9}, "top_k 9 with 8 experts"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(change, complaint):
    with pytest.raises(UserError, match=complaint):
        ModelSpec.from_hf(MOE | change)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize("config", [MOE, MOE_V4, SPECS["debug"].to_hf()], ids=["5", "4", "ours"])
@pytest.mark.parametrize(
    ("home", "rope", "complaint"),
    [
        ("rope_scaling", YARN, "rope_scaling asks for rope scaling 'yarn'"),
        ("rope_parameters", YARN, "rope_parameters asks for rope scaling 'yarn'"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope scaling 'dynamic'"),
        ("rope_scaling", {"rope_type": "default", "type": "linear"}, "rope scaling 'linear'"),
        ("rope_scaling", {"factor": 4.0}, "rope_scaling.factor is 4.0, which is not supported"),
        ("rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            "rope_parameters",
            {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
            "rope_parameters.full_attention is",
        ),
    ],
)
def test_rope_scaling_is_refused_in_either_home_whatever_the_other_says(
    config, home, rope, complaint
):
    with pytest.raises(UserError, match=complaint):
        ModelSpec.from_hf(config | {home: rope})


@pytest.mark.parametrize("rope", [None, {}, {"type": "default"}, {"rope_type": "default"}])
def test_a_block_that_asks_for_plain_rotary_embeddings_changes_nothing(rope):
    assert ModelSpec.from_hf(MOE | {"rope_scaling": rope}) == ModelSpec.from_hf(MOE)


def test_two_rotary_bases_that_differ_are_refused():
    assert ModelSpec.from_hf(MOE | {"rope_theta": 5e5}).rope_theta == 5e5
    with pytest.raises(
        UserError, match=r"rope_parameters.rope_theta is 500000 and rope_theta is 1e\+06: make"
    ):
        ModelSpec.from_hf(MOE | {"rope_theta": 1e6})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"vocab_size": None}, "vocab_size is null: it must be an integer"),
        ({"num_local_experts": None}, "num_local_experts is null: it must be an integer"),
        ({"decoder_sparse_step": None}, "decoder_sparse_step is null: it must be an integer"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0: it must be at least 1"),
        ({"rope_theta": None}, "rope_theta is null: it must be a number"),
        ({"rope_theta": "1e6"}, 'rope_theta is "1e6": it must be a number'),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta is null: it must be a number"),
        ({"rope_parameters": "default"}, 'rope_parameters is "default": it must be an object'),
        ({"hidden_size": "64"}, 'hidden_size is "64": it must be an integer'),
        ({"hidden_size": 64.0}, "hidden_size is 64.0: it must be an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true: it must be an integer"),
        ({"head_dim": "16"}, 'head_dim is "16": it must be an integer'),
        ({"rms_norm_eps": "1e-6"}, 'rms_norm_eps is "1e-6": it must be a number'),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN: it must be a number"),
        ({"initializer_range": None}, "initializer_range is null: it must be a number"),
        ({"tie_word_embeddings": "false"}, 'tie_word_embeddings is "false": it must be true or'),
        ({"norm_topk_prob": None}, "norm_topk_prob is null: it must be true or false"),
        ({"mlp_only_layers": "3"}, 'mlp_only_layers is "3": it must be a list of layer numbers'),
        ({"architectures": "Qwen3MoeForCausalLM"}, "it must be a list of names"),
        ({"quantization_config": "fp8"}, 'quantization_config is "fp8": it must be an object'),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_key(change, complaint):
    with pytest.raises(UserError, match=complaint):
        ModelSpec.from_hf(MOE | change)


@pytest.mark.parametrize("key", ["vocab_size", "rms_norm_eps", "num_local_experts"])
def test_a_key_that_must_be_there_is_named(key):
    config = {name: value for name, value in MOE.items() if name != key}
    with pytest.raises(UserError, match=f"no .*{key}: it is not a complete Qwen3 config"):
        ModelSpec.from_hf(config)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"head_dim": 33}, "head_dim 33 is odd"),
        ({"top_k": 0}, "top_k 0 with 8 experts"),
        ({"dense_layers": (1, 4)}, r"dense layers \[4\] do not exist"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    ],
)
def test_sizes_that_contradict_are_refused(change, complaint):
    with pytest.raises(UserError, match=complaint):
        replace(SPECS["debug"], **change)


@pytest.mark.parametrize(
    "spec",
    [
        SPECS["debug"],
        SPECS["debug-4m"],
        SPECS["debug-dense"],
        replace(SPECS["debug"], dense_layers=(0, 2), tie_word_embeddings=True),
    ],
)
def test_parameter_count_equals_the_built_model(spec):
    assert spec.num_params.total == sum(p.numel() for p in build_model(spec).parameters())


def test_active_parameters_leave_out_the_experts_not_chosen():
    spec = SPECS["debug"]
    every = replace(spec, top_k=spec.num_experts)
    assert every.num_params.active == every.num_params.total
    one_expert = 3 * spec.hidden_size * spec.moe_intermediate_size
    difference = every.num_params.active - spec.num_params.active
    assert difference == 4 * (8 - 2) * one_expert


@pytest.mark.parametrize(
    ("name", "total", "active"),  # billions, as on the model cards
    [
        ("0.6b", 0.6, 0.6),
        ("1.7b", 1.7, 1.7),
        ("4b", 4.0, 4.0),
        ("8b", 8.2, 8.2),
        ("14b", 14.8, 14.8),
        ("32b", 32.8, 32.8),
        ("30b-a3b", 30.5, 3.35),
        ("235b-a22b", 235.1, 22.2),
    ],
)
def test_published_models_have_their_published_size(name, total, active):
    count = SPECS[name].num_params
    assert count.total / 1e9 == pytest.approx(total, abs=0.051)
    assert count.active / 1e9 == pytest.approx(active, abs=0.051)
