"""Completions are those a full forward pass would give, whatever they were batched with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from compass.distributed import Topology
from compass.errors import FailedRunError, UserError
from compass.generate.config import GeneratorConfig
from compass.generate.generator import Generator
from compass.generate.sequence import Request
from compass.models.config import PolicyConfig
from compass.models.hf.weights import load_hf, read_spec
from compass.models.parallel import build_policy, init_policy, local_part
from compass.models.policy import Policy, build_model
from compass.types import Completion, SamplingParams
from tests.generate.tiny_policy import TINY, full_forward, make_policy

STOPS = (3, 5, 19, 28, 44)
SAMPLING = SamplingParams(max_completion_tokens=30, temperature=0.9, stop_token_ids=STOPS)
CONFIGS = {
    "roomy": GeneratorConfig(block_size=4),
    "one at a time": GeneratorConfig(block_size=4, max_num_seqs=1),
    "three seats, one token of prompt at a time": GeneratorConfig(
        block_size=4, max_num_seqs=3, max_tokens_per_step=4
    ),
    "starved of blocks": GeneratorConfig(block_size=4, num_blocks=16, max_tokens_per_step=300),
    "blocks of one": GeneratorConfig(block_size=1, num_blocks=75),
    "blocks of sixteen": GeneratorConfig(),
}


def make_requests(sampling: SamplingParams = SAMPLING) -> list[Request]:
    return [
        Request(
            prompt_id=f"p{i}",
            prompt_token_ids=[(7 * i + 3 * j) % 61 for j in range(length)],
            num_samples=num_samples,
            sampling=sampling,
        )
        for i, (length, num_samples) in enumerate([(5, 6), (1, 2), (33, 4), (8, 1), (12, 5)])
    ]


def collect(
    policy: Policy, topology: Topology, config: GeneratorConfig, requests: list[Request], seed=0
) -> dict[tuple[str, int], Completion]:
    completions = list(Generator(policy, config, topology).generate(requests, seed=seed))
    by_sample = {(c.prompt_id, c.sample): c for c in completions}
    assert len(by_sample) == len(completions)
    return by_sample


@pytest.fixture(scope="module")
def reference(policy, topology) -> dict[tuple[str, int], Completion]:
    """Every sample generated alone, by a request of its own."""
    found = {}
    for request in make_requests():
        for sample in range(request.num_samples):
            alone = replace(request, num_samples=1, first_sample=sample)
            found |= collect(policy, topology, CONFIGS["roomy"], [alone])
    return found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_completion_is_the_same_whatever_the_batch_it_ran_in(
    config, reverse, policy, topology, reference
) -> None:
    requests = make_requests()[:: -1 if reverse else 1]
    got = collect(policy, topology, config, requests)
    assert got.keys() == reference.keys()
    for name, completion in got.items():
        assert list(completion.token_ids) == list(reference[name].token_ids)
        assert completion.finish_reason == reference[name].finish_reason
        assert torch.equal(completion.routed_experts, reference[name].routed_experts)
        torch.testing.assert_close(completion.logprobs, reference[name].logprobs, rtol=0, atol=1e-5)


def test_the_batches_compared_are_really_different(policy, topology, reference) -> None:
    generator = Generator(policy, CONFIGS["starved of blocks"], topology)
    assert len(list(generator.generate(make_requests(), seed=0))) == 18
    assert generator.num_preemptions > 3
    lengths = {len(c.token_ids) for c in reference.values()}
    assert len(lengths) > 5
    assert {c.finish_reason for c in reference.values()} == {"stop", "length"}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logprobs_and_routes_are_those_of_a_full_forward_pass(config, policy, topology) -> None:
    for completion in collect(policy, topology, config, make_requests()).values():
        prompt = list(completion.prompt_token_ids)
        tokens = prompt + list(completion.token_ids)
        logits, routes = full_forward(policy, tokens[:-1])
        expected = (logits[len(prompt) - 1 :] / 0.9).log_softmax(dim=-1)
        expected = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(completion.logprobs, expected, rtol=0, atol=1e-5)
        assert completion.routed_experts.dtype == torch.uint8
        assert torch.equal(completion.routed_experts.long(), routes)


def test_seeds_prompt_ids_and_samples_give_different_noise(policy, topology) -> None:
    request = replace(make_requests(replace(SAMPLING, stop_token_ids=()))[0], num_samples=2)
    first = collect(policy, topology, GeneratorConfig(), [request])
    renamed = collect(policy, topology, GeneratorConfig(), [replace(request, prompt_id="q")])
    reseeded = collect(policy, topology, GeneratorConfig(), [request], seed=1)
    written = [tuple(c.token_ids) for x in (first, renamed, reseeded) for c in x.values()]
    assert len(set(written)) == 6


def test_a_group_can_be_extended_later(policy, topology) -> None:
    request = make_requests()[0]
    whole = collect(policy, topology, GeneratorConfig(), [replace(request, num_samples=6)])
    head = collect(policy, topology, GeneratorConfig(), [replace(request, num_samples=4)])
    tail = collect(
        policy, topology, GeneratorConfig(), [replace(request, num_samples=2, first_sample=4)]
    )
    pieces = head | tail
    assert {k: list(c.token_ids) for k, c in whole.items()} == {
        k: list(c.token_ids) for k, c in pieces.items()
    }


def test_completions_arrive_when_they_end(policy, topology) -> None:
    long = make_requests(replace(SAMPLING, stop_token_ids=()))[0]
    short = replace(
        long, prompt_id="short", sampling=replace(long.sampling, max_completion_tokens=2)
    )
    generator = Generator(policy, GeneratorConfig(), topology)
    arrived = [c.prompt_id for c in generator.generate([long, short], seed=0)]
    assert arrived == ["short"] * 6 + ["p0"] * 6


def test_stop_token_length_and_context_end_a_completion(policy, topology) -> None:
    for completion in collect(policy, topology, GeneratorConfig(), make_requests()).values():
        *body, last = completion.token_ids
        assert not set(STOPS) & set(body)
        assert (completion.finish_reason == "stop") == (last in STOPS)
        if completion.finish_reason == "length":
            assert len(completion.token_ids) == 30
    endless = replace(SAMPLING, max_completion_tokens=1000, stop_token_ids=())
    for completion in collect(policy, topology, GeneratorConfig(), make_requests(endless)).values():
        assert len(completion.prompt_token_ids) + len(completion.token_ids) == TINY.max_seq_len
        assert completion.finish_reason == "length"


def test_new_weights_change_completions_and_their_version(topology) -> None:
    old, new = make_policy(TINY, seed=1), make_policy(TINY, seed=2)
    generator = Generator(old, GeneratorConfig(), topology, policy_version=4)
    before = {c.sample: c for c in generator.generate(make_requests()[:1], seed=0)}
    generator.load_weights(new, 5)
    after = {c.sample: c for c in generator.generate(make_requests()[:1], seed=0)}
    expected = collect(new, topology, GeneratorConfig(), make_requests()[:1])
    assert {c.policy_version for c in before.values()} == {4}
    assert {c.policy_version for c in after.values()} == {5}
    for sample, completion in after.items():
        assert list(completion.token_ids) == list(expected["p0", sample].token_ids)
        assert list(completion.token_ids) != list(before[sample].token_ids)


def test_bfloat16_generates_with_the_trainers_own_rounding(topology) -> None:
    policy = build_policy(
        TINY, topology, PolicyConfig(dtype="bfloat16"), lambda policy: init_policy(policy, 0)
    )
    generator = Generator(policy, CONFIGS["starved of blocks"], topology)
    assert generator.runner.cache.keys[0].dtype == torch.bfloat16
    for completion in generator.generate(make_requests(), seed=0):
        prompt = list(completion.prompt_token_ids)
        tokens = prompt + list(completion.token_ids)
        logits, _ = full_forward(generator.view.model, tokens[:-1])
        expected = (logits[len(prompt) - 1 :] / 0.9).log_softmax(dim=-1)
        expected = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        # Rounding differs by order of summation, and may flip a router: close on average only.
        assert (completion.logprobs - expected).abs().median() < 0.1


_HF_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize(
    "config",
    [
        Qwen3MoeConfig(**_HF_SIZES, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2),
        Qwen3Config(**_HF_SIZES),
    ],
    ids=["moe", "dense"],
)
def test_greedy_equals_transformers_greedy(config, topology, tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle = AutoModelForCausalLM.from_config(config).eval()
    oracle.save_pretrained(tmp_path)
    policy = build_model(read_spec(tmp_path), "cpu")
    load_hf(policy, tmp_path)
    greedy = SamplingParams(max_completion_tokens=24, temperature=0, stop_token_ids=(11,))
    got = collect(policy, topology, CONFIGS["starved of blocks"], make_requests(greedy))
    for request in make_requests():
        prompt = torch.tensor([list(request.prompt_token_ids)])
        expected = oracle.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=11,
            pad_token_id=0,
        )
        written = expected[0, len(request.prompt_token_ids) :].tolist()
        for sample in range(request.num_samples):
            assert list(got[request.prompt_id, sample].token_ids) == written


def test_truncated_sampling_reports_the_truncated_distribution(policy, topology) -> None:
    sampling = replace(SAMPLING, top_k=1, stop_token_ids=())
    greedy = replace(SAMPLING, temperature=0, stop_token_ids=())
    got = collect(policy, topology, GeneratorConfig(), make_requests(sampling))
    expected = collect(policy, topology, GeneratorConfig(), make_requests(greedy))
    for name, completion in got.items():
        assert list(completion.token_ids) == list(expected[name].token_ids)
        assert completion.logprobs.tolist() == [0.0] * len(completion.token_ids)


def test_nothing_asked_is_nothing_done(policy, topology) -> None:
    assert list(Generator(policy, GeneratorConfig(), topology).generate([], seed=0)) == []


def test_bad_requests_are_refused_before_the_first_step(policy, topology) -> None:
    generator = Generator(policy, CONFIGS["starved of blocks"], topology)
    good = make_requests()[0]
    too_long = replace(good, prompt_id="huge", prompt_token_ids=[1] * 64)
    generator.check_request(good)
    with pytest.raises(UserError, match="'huge' has 64 tokens, but the context is 64"):
        generator.check_request(too_long)
    with pytest.raises(UserError, match="'huge' has 64 tokens, but the context is 64"):
        generator.generate([good, too_long], seed=0)
    with pytest.raises(UserError, match=r"temperature=-1"):
        generator.generate([replace(good, sampling=replace(SAMPLING, temperature=-1))], seed=0)
    outgrows = replace(good, sampling=replace(SAMPLING, max_completion_tokens=1000))
    roomless = Generator(policy, replace(CONFIGS["starved of blocks"], num_blocks=9), topology)
    with pytest.raises(UserError, match=r"may need 63 tokens .*raise generator\.num_blocks"):
        roomless.generate([outgrows], seed=0)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"block_size": 0}, r"generator\.block_size=0 must be at least 1"),
        ({"max_num_seqs": 0}, r"generator\.max_num_seqs=0 must be at least 1"),
        ({"max_num_seqs": 300, "max_tokens_per_step": 299}, r"max_tokens_per_step=299 is below"),
    ],
)
def test_a_config_without_meaning_is_refused_by_name(fields, says) -> None:
    with pytest.raises(UserError, match=says):
        GeneratorConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_blocks": 0}, r"generator\.num_blocks=0 leaves no block"),
        ({"kv_cache_gb": 1e-9}, r"generator\.kv_cache_gb=1e-09 .* leaves no block"),
    ],
)
def test_a_cache_without_a_block_is_refused(fields, says, policy, topology) -> None:
    with pytest.raises(UserError, match=says):
        Generator(policy, GeneratorConfig(**fields), topology)


def test_the_cache_takes_its_budget_and_no_more_than_full_seats_need(policy, topology) -> None:
    sized = Generator(policy, GeneratorConfig(kv_cache_gb=1e-4), topology).runner.cache
    stored = sum(x.nbytes for x in (*sized.keys, *sized.values, sized.routes))
    assert 0.9e5 < stored <= 1e5
    capped = GeneratorConfig(max_num_seqs=3)
    assert Generator(policy, capped, topology).runner.cache.num_blocks == 3 * 64 // 16


def overflowing(topology: Topology) -> Policy:
    """Every weight is finite, and no logit."""

    def fill(policy: Policy) -> None:
        init_policy(policy, 0)
        with torch.no_grad():
            local_part(policy.lm_head.weight).fill_(3e38)

    return build_policy(TINY, topology, PolicyConfig(), fill)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_logits_that_are_not_finite_end_a_completion_and_are_named(topology, temperature) -> None:
    policy = overflowing(topology)
    generator = Generator(policy, CONFIGS["roomy"], topology)
    sampling = SamplingParams(max_completion_tokens=30, temperature=temperature, top_k=7)
    completions = list(generator.generate(make_requests(sampling), seed=0))
    assert {c.finish_reason for c in completions} == {"not_finite"}
    assert {len(c.token_ids) for c in completions} == {1}
    with pytest.raises(
        UserError,
        match=r"^prompt 'p\d', sample \d: the logits for position \d+ .* are not finite: th",
    ):
        generator.require_finite()
    generator.load_weights(policy, 7)
    with pytest.raises(FailedRunError, match="with the weights of step 7: the run diverged; go on"):
        generator.require_finite()


def test_finite_logits_are_not_complained_of(policy, topology) -> None:
    generator = Generator(policy, CONFIGS["roomy"], topology)
    completions = list(generator.generate(make_requests(), seed=0))
    assert {c.finish_reason for c in completions} <= {"stop", "length"}
    generator.require_finite()


def test_the_cache_takes_memory_only_while_completions_are_written(policy, topology) -> None:
    """And the second batch, in memory taken anew, is the first."""
    generator = Generator(policy, CONFIGS["roomy"], topology)
    generator.runner.keeps_cache = False  # as on every device but a CPU
    cache = generator.runner.cache

    def num_bytes() -> int:
        return sum(x.nbytes for x in (*cache.keys, *cache.values, cache.routes))

    batches = []
    for _ in range(2):
        written = generator.generate(make_requests(), seed=0)
        batches.append([next(written)])
        assert num_bytes() == cache.num_blocks * cache.bytes_per_block(TINY, 4, torch.float32)
        batches[-1] += written
        assert num_bytes() == 0
    first, second = ({(c.prompt_id, c.sample): tuple(c.token_ids) for c in b} for b in batches)
    assert first == second


def test_a_batch_that_is_given_up_gives_its_memory_back_too(policy, topology) -> None:
    generator = Generator(policy, CONFIGS["roomy"], topology)
    generator.runner.keeps_cache = False
    written = generator.generate(make_requests(), seed=0)
    next(written)
    written.close()
    assert not generator.runner.cache.keys


def test_on_a_cpu_the_cache_stays_where_it_is(policy, topology) -> None:
    generator = Generator(policy, CONFIGS["roomy"], topology)
    address = generator.runner.cache.keys[0].data_ptr()
    list(generator.generate(make_requests(), seed=0))
    assert generator.runner.cache.keys[0].data_ptr() == address
