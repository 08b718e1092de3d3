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
        ({"vocab_size": None}, "config.json has no vocab_size"),
        ({"num_local_experts": None}, "has no num_experts or num_local_experts"),
        ({"num_experts_per_tok": 9}, "top_k 9 with 8 experts"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(change, complaint):
    with pytest.raises(UserError, match=complaint):
        ModelSpec.from_hf(MOE | change)


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
