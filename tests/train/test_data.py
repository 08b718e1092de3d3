"""SFT data: rows become masked tokens, and steps are dealt the same way on every rank."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from compass.errors import UserError
from compass.text.tokenizer import Tokenizer
from compass.train.data import SftBatches, SftExample, load_sft, pack_sft, split_step

_TEMPLATE = (
    "{% for m in messages if m.role != 'note' %}<s>{{ m.role }}:{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every byte is a token; no merges."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {char: i for i, char in enumerate(alphabet, start=2)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(
        backend,
        special_tokens={"eos_token": "</s>"},
        stop_token_ids=(1,),
        chat_template=_TEMPLATE,
        files={},
        source="toy",
    )


def _write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _learned(tokenizer: Tokenizer, example: SftExample) -> str:
    return tokenizer.decode(example.token_ids[example.loss_mask].tolist())


def _turns(*contents: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


# ---- reading


def test_messages_are_masked_to_what_the_assistant_writes(tokenizer, tmp_path):
    path = _write(tmp_path / "a.jsonl", {"messages": _turns("2+2?", "4", "and 3+3?", "6")})
    (example,) = load_sft(path, tokenizer, 100)
    assert _learned(tokenizer, example) == "4</s>6</s>"
    assert tokenizer.decode(example.token_ids.tolist()) == (
        "<s>user:2+2?</s>\n<s>assistant:4</s>\n<s>user:and 3+3?</s>\n<s>assistant:6</s>"
    )


def test_last_turn_only_learns_one_answer(tokenizer, tmp_path):
    path = _write(tmp_path / "a.jsonl", {"messages": _turns("2+2?", "4", "and 3+3?", "6")})
    (example,) = load_sft(path, tokenizer, 100, last_turn_only=True)
    assert _learned(tokenizer, example) == "6</s>"


def test_sharegpt_and_alpaca_rows_are_read(tokenizer, tmp_path):
    path = _write(
        tmp_path / "a.jsonl",
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
    )
    sharegpt, alpaca = load_sft(path, tokenizer, 500)
    assert tokenizer.decode(sharegpt.token_ids.tolist()) == "<s>user:hi</s>\n<s>assistant:hello</s>"
    assert _learned(tokenizer, alpaca) == "3</s>"
    assert tokenizer.decode(alpaca.token_ids.tolist()) == (
        "<s>user:Add.\n\n1 2</s>\n<s>assistant:3</s>"
    )


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": "hi"}, "needs messages"),
        ({"messages": [{"role": "user"}]}, r"message 0 \(user\) has the content None; it must be"),
        ({"messages": "hi"}, "role and content"),
        ({"messages": _turns("hi")}, "no assistant message"),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, "malformed conversations"),
        ({"conversations": [{"from": "human", "value": 5}]}, "malformed conversations"),
        ({"messages": _turns("hi \ud83d", "x")}, "'messages' holds .ud83d, half of a surrogate"),
        (
            {"messages": [{"role": "note", "content": "a"}, *_turns("b", "c")]},
            "leaves out message 0, whose role is 'note'; roles that work there: system, user",
        ),
        ({"instruction": "Add."}, "instruction and output"),
        ({"messages": _turns("hi", "x" * 200)}, r"\d+ tokens, more than max_len 100"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tokenizer, tmp_path, row, complaint):
    path = _write(tmp_path / "rows.jsonl", {"messages": _turns("a", "b")}, row)
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{complaint}"):
        load_sft(path, tokenizer, 100)


def test_several_files_and_globs_are_read_in_order(tokenizer, tmp_path):
    paths = [_write(tmp_path / f"{n}.jsonl", {"messages": _turns("?", n)}) for n in "abc"]
    examples = load_sft([paths[2], tmp_path / "[ab].jsonl"], tokenizer, 100)
    assert [_learned(tokenizer, e) for e in examples] == ["c</s>", "a</s>", "b</s>"]


def test_long_rows_are_left_out_only_on_request(tokenizer, tmp_path):
    long_row = {"messages": _turns("a", "b" * 200)}
    path = _write(tmp_path / "a.jsonl", long_row, {"messages": _turns("a", "b")})
    assert len(load_sft(path, tokenizer, 100, drop_long=True)) == 1
    with pytest.raises(UserError, match="every row is longer"):
        load_sft(_write(tmp_path / "b.jsonl", long_row), tokenizer, 100, drop_long=True)


# ---- packing


def _example(*pairs: tuple[int, bool]) -> SftExample:
    ids, mask = zip(*pairs, strict=True)
    return SftExample(token_ids=torch.tensor(ids), loss_mask=torch.tensor(mask))


def _numbered(count: int, length: int = 4) -> list[SftExample]:
    """Example i consists of the token i."""
    mask = [False] + [True] * (length - 1)
    return [_example(*((i, m) for m in mask)) for i in range(count)]


def test_every_loss_token_is_predicted_by_the_token_before_it():
    examples = [
        _example((5, False), (6, False), (7, True), (8, True)),
        _example((1, False), (2, True), (3, False), (4, True), (9, False)),
    ]
    packed = pack_sft(examples)
    assert packed.token_ids.tolist() == [5, 6, 7, 1, 2, 3, 4]
    assert packed.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert packed.sequence_lengths == (3, 4)
    expected = [
        (e, int(ids[t - 1]), int(ids[t]))
        for e, ids in enumerate(example.token_ids for example in examples)
        for t in range(1, len(ids))
        if examples[e].loss_mask[t]
    ]
    fed = packed.token_ids[packed.rows].tolist()
    found = zip(packed.sequence_ids.tolist(), fed, packed.targets.tolist(), strict=True)
    assert list(found) == expected
    assert packed.advantages.tolist() == [1.0] * len(expected)
    assert packed.rollout_logprobs.tolist() == [0.0] * len(expected)


@given(
    world_size=st.integers(1, 4),
    per_rank=st.integers(1, 6),
    data=st.data(),
)
def test_ranks_get_equally_many_full_enough_microbatches(world_size, per_rank, data):
    max_tokens = 20
    count = world_size * per_rank
    lengths = data.draw(st.lists(st.integers(1, max_tokens), min_size=count, max_size=count))
    ranks = split_step(lengths, world_size, max_tokens)
    assert len({len(microbatches) for microbatches in ranks}) == 1
    for rank, microbatches in enumerate(ranks):
        dealt = [i for members in microbatches for i in members]
        assert sorted(dealt) == list(range(rank, count, world_size))
        assert all(members for members in microbatches)
        assert all(sum(lengths[i] for i in members) <= max_tokens for members in microbatches)
    fullest = max(sum(lengths[r::world_size]) for r in range(world_size))
    if fullest <= max_tokens:
        assert len(ranks[0]) == 1


# ---- dealing


def _batches(examples, *, per_step=4, max_tokens=100, rank=0, world=1, shuffle=True, seed=0):
    return SftBatches(
        examples,
        num_examples_per_step=per_step,
        max_tokens_per_microbatch=max_tokens,
        rank=rank,
        world_size=world,
        shuffle=shuffle,
        seed=seed,
    )


def _dealt(step) -> list[int]:
    return [i for mb in step.microbatches for i in mb.token_ids[mb.positions == 0].tolist()]


def test_each_epoch_deals_every_example_once_in_a_new_order():
    batches = _batches(_numbered(12))
    epochs = [[i for _ in range(3) for i in _dealt(batches.next())] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    other_seed = _batches(_numbered(12), seed=1)
    assert [i for _ in range(3) for i in _dealt(other_seed.next())] != epochs[0]


def test_without_shuffling_steps_follow_the_file_and_run_on_into_the_next_epoch():
    batches = _batches(_numbered(6), shuffle=False)
    steps = [batches.next() for _ in range(3)]
    assert [_dealt(step) for step in steps] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]
    assert [step.epoch for step in steps] == [0, 0, 1]


def test_a_resumed_run_deals_what_an_uninterrupted_one_would():
    whole = _batches(_numbered(10))
    steps = [_dealt(whole.next()) for _ in range(6)]
    first = _batches(_numbered(10))
    for _ in range(3):
        first.next()
    resumed = _batches(_numbered(10))
    resumed.cursor = json.loads(json.dumps(first.cursor))
    assert [_dealt(resumed.next()) for _ in range(3)] == steps[3:]


def test_ranks_together_deal_what_one_rank_would_and_know_the_total():
    examples = [e for length in (3, 9, 4) for e in _numbered(8, length)]
    alone = _batches(examples, max_tokens=9)
    pair = [_batches(examples, max_tokens=9, rank=r, world=2) for r in range(2)]
    for _ in range(6):
        whole, shares = alone.next(), [batches.next() for batches in pair]
        assert sorted(_dealt(shares[0]) + _dealt(shares[1])) == sorted(_dealt(whole))
        assert len(shares[0].microbatches) == len(shares[1].microbatches)
        rows = sum(len(mb.rows) for share in shares for mb in share.microbatches)
        assert rows == whole.num_loss_tokens == shares[0].num_loss_tokens
        assert whole.num_examples == shares[1].num_examples == 4


def test_a_step_that_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match="num_examples_per_step 4 is not a multiple of the 3"):
        _batches(_numbered(6), world=3)


def test_an_example_that_fits_no_microbatch_is_refused():
    with pytest.raises(UserError, match=r"feeds 29 tokens.*max_tokens_per_microbatch 20"):
        _batches(_numbered(6, length=30), max_tokens=20)


@pytest.mark.parametrize("seed", [0, -1, -(2**70), 2**64, 10**999], ids=int.bit_length)
def test_a_seed_may_be_of_any_size_and_sign(seed):
    def order(seed):
        options = {"num_examples_per_step": 30, "max_tokens_per_microbatch": 1000}
        options |= {"rank": 0, "world_size": 1, "shuffle": True, "seed": seed}
        return SftBatches(_numbered(30), **options).next().microbatches[0].token_ids.tolist()

    assert order(seed) == order(seed)
    assert order(seed) != order(seed + 1)
    assert seed == 0 or order(seed) != order(-seed)
