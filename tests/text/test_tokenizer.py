"""The tokenizer and chat templates, judged by transformers on the same files."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from compass.errors import UserError
from compass.gym.byte_tokenizer import byte_tokenizer
from compass.text.tokenizer import Tokenizer, check_stop_tokens, check_vocab
from compass.types import Prompt

END = "<|im_end|>"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Reasoning of earlier turns is dropped, as Qwen3's template does.
FORGETFUL = """\
{% for message in messages %}
    {% set content = message.content %}
    {% if message.role == 'assistant' and not loop.last %}
        {% set content = content.split('</think>')[-1].lstrip('\\n') %}
    {% endif %}
{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant' }}
{% endif %}
"""
# Everything transformers promises a template: loop controls, tojson, dates, tools, generation tags.
ELABORATE = """\
{{ bos_token }}{% if tools %}{{ tools | tojson(indent=2) }}{{ tools | tojson }}{% endif %}
{% for message in messages %}
  {% if message.role == 'note' %}{% continue %}{% endif %}
  {% if message.role == 'assistant' %}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
  {% else %}
{{ message.role }}: {{ message['content'] | trim }}
  {% endif %}
{% endfor %}
{{ strftime_now('%Y') }}
"""
OPENS_THINKING = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")

CHAT = [
    {"role": "system", "content": "Be terse. <b>&</b>"},
    {"role": "user", "content": "  12 + 30 = ? ราคา  "},
    {"role": "assistant", "content": "<think>\n12+30=42\n</think>\n\n42"},
]
LONGER = [*CHAT, {"role": "user", "content": "+1?"}, {"role": "assistant", "content": "43"}]


def _write(directory: Path, template: str | None, **config) -> Path:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["assistant user system 12 + 30 = 42\n\n"] * 9, trainer)
    backend.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<|endoftext|>", "__type": "AddedToken"},
        **config,
    }
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture
def chatml(tmp_path) -> Tokenizer:
    return Tokenizer.from_dir(_write(tmp_path, CHATML))


def _learned(tokenizer: Tokenizer, messages, **options) -> str:
    token_ids, loss_mask = tokenizer.encode_chat(messages, **options)
    assert len(token_ids) == len(loss_mask)
    return tokenizer.decode([t for t, learn in zip(token_ids, loss_mask, strict=True) if learn])


# ---- rendering


@pytest.mark.parametrize("prompting", [True, False])
@pytest.mark.parametrize("template", [CHATML, FORGETFUL, OPENS_THINKING, ELABORATE])
@pytest.mark.parametrize("tools", [None, [{"name": "ราคา", "parameters": {"a": "<int>"}}]])
def test_rendering_and_ids_equal_transformers(template, prompting, tools, tmp_path):
    directory = _write(tmp_path, template, bos_token="<|endoftext|>")
    oracle, ours = AutoTokenizer.from_pretrained(directory), Tokenizer.from_dir(directory)
    messages = [*CHAT, {"role": "note", "content": "n"}, *LONGER[3:]]
    options = {"tools": tools, "add_generation_prompt": prompting}
    expected = oracle.apply_chat_template(messages, tokenize=False, **options)
    assert expected
    assert ours.render(messages, **options) == expected
    ids = oracle.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    assert ours.encode(expected) == ids
    assert ours.decode(ids) == oracle.decode(ids)


def test_a_prompts_tools_reach_the_template_or_are_missed(tmp_path):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    user = ({"role": "user", "content": "Rain?"},)
    prompt = Prompt(id="p", messages=user, extra={"tools": tools})
    (tmp_path / "shows").mkdir()
    shows = Tokenizer.from_dir(_write(tmp_path / "shows", ELABORATE))
    assert '"name": "weather"' in shows.prompt_text(prompt)
    with pytest.raises(UserError, match="leaves `tools` out"):
        Tokenizer.from_dir(_write(tmp_path, CHATML)).prompt_text(prompt)


def test_a_template_file_wins_over_the_one_in_the_config(tmp_path):
    directory = _write(tmp_path, CHATML)
    (directory / "chat_template.jinja").write_text(FORGETFUL)
    oracle, ours = AutoTokenizer.from_pretrained(directory), Tokenizer.from_dir(directory)
    expected = oracle.apply_chat_template(LONGER, tokenize=False)
    assert "12+30=42" not in expected
    assert ours.render(LONGER, add_generation_prompt=False) == expected


def test_the_default_of_several_named_templates_is_used(tmp_path):
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    directory = _write(tmp_path, named)
    assert Tokenizer.from_dir(directory).render(CHAT, add_generation_prompt=True) == "yes"


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path):
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = Tokenizer.from_dir(_write(tmp_path, template))
    with pytest.raises(UserError, match="unsafe"):
        tokenizer.render(CHAT, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("template", "messages", "complaint"),
    [
        ("{{ raise_exception('roles must alternate') }}", CHAT, "roles must alternate"),
        (CHATML, [{"role": "user"}], "content"),
        (CHATML, [{"role": "user", "content": 7}], "chat template of .* failed"),
    ],
)
def test_a_refused_conversation_is_a_user_error(template, messages, complaint, tmp_path):
    tokenizer = Tokenizer.from_dir(_write(tmp_path, template))
    with pytest.raises(UserError, match=complaint):
        tokenizer.render(messages, add_generation_prompt=True)


# ---- prompts


def test_a_prompt_goes_through_the_template_unless_it_is_raw(chatml):
    prompt = Prompt(id="p", messages=tuple(CHAT[1:2]))
    assert chatml.decode(chatml.encode_prompt(prompt)).endswith("<|im_start|>assistant\n")
    raw = Prompt(id="p", messages=tuple(CHAT[1:2]), raw=True)
    assert chatml.decode(chatml.encode_prompt(raw)) == CHAT[1]["content"]


def test_no_template_suggests_raw(tmp_path):
    tokenizer = Tokenizer.from_dir(_write(tmp_path, None))
    prompt = Prompt(id="p", messages=({"role": "user", "content": "hi"},))
    with pytest.raises(UserError, match=r"no chat template.*--raw"):
        tokenizer.encode_prompt(prompt)


@pytest.mark.parametrize("text", ["12 + 30\n", "ราคา 18 บาท 🥭", "<think>\n</think>", ""])
def test_text_survives_encoding(chatml, text):
    assert chatml.decode(chatml.encode(text)) == text


def test_a_completion_loses_only_the_stop_token_that_ended_it(chatml):
    ids = chatml.encode("<|im_end|><think>42</think><|im_end|>")
    assert chatml.decode_completion(ids) == "<|im_end|><think>42</think>"
    assert chatml.decode_completion(chatml.encode("42")) == "42"


# ---- loss masks


def test_the_mask_covers_what_assistants_write_and_their_stop_tokens(chatml):
    assert _learned(chatml, LONGER) == f"{CHAT[2]['content']}<|im_end|>43<|im_end|>"
    assert _learned(chatml, LONGER, last_turn_only=True) == "43<|im_end|>"


def test_training_starts_each_turn_from_the_ids_that_generation_starts_from(chatml):
    token_ids, loss_mask = chatml.encode_chat(CHAT)
    prompt = chatml.encode_prompt(Prompt(id="p", messages=tuple(CHAT[:2])))
    assert token_ids[: len(prompt)] == prompt
    assert loss_mask == [False] * len(prompt) + [True] * (len(token_ids) - len(prompt))
    # The context of the second turn is the whole text before it, as rendered.
    token_ids, _ = chatml.encode_chat(LONGER)
    expected = chatml.render(LONGER, add_generation_prompt=False)
    assert chatml.decode(token_ids) == expected.removesuffix("\n")


def test_a_template_that_rewrites_earlier_turns_serves_one_turn_only(tmp_path):
    tokenizer = Tokenizer.from_dir(_write(tmp_path, FORGETFUL))
    with pytest.raises(UserError, match=r"changes the turns before message 4.*last turn only"):
        tokenizer.encode_chat(LONGER)
    assert _learned(tokenizer, LONGER, last_turn_only=True) == "43<|im_end|>"


def test_a_template_that_opens_the_answer_needs_answers_that_continue_it(tmp_path):
    tokenizer = Tokenizer.from_dir(_write(tmp_path, OPENS_THINKING))
    with pytest.raises(
        UserError, match=r"starts generation after '.*<think>\\n', but renders mess"
    ):
        tokenizer.encode_chat([*CHAT[:2], {"role": "assistant", "content": "42"}])
    assert _learned(tokenizer, CHAT) == "12+30=42\n</think>\n\n42<|im_end|>"


def test_a_turn_without_a_stop_token_is_refused(tmp_path):
    tokenizer = Tokenizer.from_dir(_write(tmp_path, CHATML, eos_token="<|endoftext|>"))
    with pytest.raises(UserError, match="message 2 ends in none of the stop tokens"):
        tokenizer.encode_chat(CHAT)


@pytest.mark.parametrize("generation", [None, {"eos_token_id": [0, 2]}])
@pytest.mark.parametrize(
    "template", [CHATML, FORGETFUL, OPENS_THINKING, None, "{{ messages[-1].content }}"]
)
def test_a_template_that_ends_turns_in_a_stop_token_passes(template, generation, tmp_path, capsys):
    directory = _write(tmp_path, template, eos_token="<|endoftext|>" if generation else END)
    if generation:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    check_stop_tokens(Tokenizer.from_dir(directory), True, raw=False, unchecked=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("eos_token", ["<|endoftext|>", None])
def test_a_template_that_ends_turns_in_no_stop_token_is_refused(eos_token, tmp_path):
    tokenizer = Tokenizer.from_dir(_write(tmp_path, CHATML, eos_token=eos_token))
    stops = "<.endoftext.>" if eos_token else ""
    with pytest.raises(
        UserError,
        match=rf"ends a turn with '<.im_end.>', which is none of the stop tokens \['?{stops}'?\]: "
        "name it in eos_token .*--allow_stop_mismatch",
    ):
        check_stop_tokens(tokenizer, True, raw=False, unchecked=False)
    check_stop_tokens(tokenizer, True, raw=True, unchecked=False)
    check_stop_tokens(tokenizer, True, raw=False, unchecked=True)


def test_a_tokenizer_without_a_stop_token_is_said_by_one_rank(tmp_path, capsys):
    tokenizer = Tokenizer.from_dir(_write(tmp_path, CHATML, eos_token=None))
    check_stop_tokens(tokenizer, False, raw=True, unchecked=False)
    assert capsys.readouterr() == ("", "")
    check_stop_tokens(tokenizer, True, raw=True, unchecked=False)
    said = capsys.readouterr().err
    assert said.startswith("note: the tokenizer names no stop token: every completion will be max")
    assert said.count("\n") == 1


def test_learning_a_conversation_of_which_the_template_drops_a_message_is_refused(tmp_path):
    template = "{% for m in messages if m.role != 'human' %}{{ m.content + eos_token }}{% endfor %}"
    tokenizer = Tokenizer.from_dir(_write(tmp_path, template))
    with pytest.raises(UserError, match=r"leaves out message 0, whose role is 'human'; roles that"):
        tokenizer.encode_chat([{"role": "human", "content": "2+2?"}, CHAT[2]])


def test_a_conversation_without_an_assistant_is_refused(chatml):
    with pytest.raises(UserError, match="no assistant message"):
        chatml.encode_chat(CHAT[:2])


# ---- special tokens and files


@pytest.mark.parametrize(
    ("generation", "expected"), [(None, (2,)), (0, (0, 2)), ([2, 0], (2, 0)), ([], (2,))]
)
def test_stop_tokens_are_those_of_generation_config_and_the_eos(generation, expected, tmp_path):
    directory = _write(tmp_path, CHATML)
    if generation is not None:
        content = json.dumps({"eos_token_id": generation})
        (directory / "generation_config.json").write_text(content)
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.stop_token_ids == expected
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)


def test_it_keeps_every_file_even_after_the_source_is_gone(tmp_path):
    directory = _write(tmp_path, CHATML)
    (directory / "generation_config.json").write_text('{"eos_token_id": 0}')
    (directory / "weights.bin").write_bytes(b"not a tokenizer file")
    before = {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "weights.bin"}
    tokenizer = Tokenizer.from_dir(directory)
    for path in directory.iterdir():
        path.unlink()
    assert tokenizer.files == before


def test_a_vocabulary_that_does_not_fit_the_model_names_both_sizes(chatml):
    check_vocab(chatml, chatml.vocab_size)
    check_vocab(chatml, chatml.vocab_size + 100)
    size = chatml.vocab_size
    with pytest.raises(UserError, match=rf"ids up to {size - 1}.*vocabulary is {size - 1}"):
        check_vocab(chatml, size - 1)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.json", None, r"tokenizer\.json does not exist"),
        ("tokenizer.json", "{}", r"tokenizer\.json is not a tokenizer"),
        ("tokenizer_config.json", '{\n"a": }', r"tokenizer_config\.json is not valid JSON.*line 2"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("chat_template.jinja", "{% if %}", "does not parse: line 1"),
        ("chat_template.jinja", b"caf\xe9", r"chat_template\.jinja is not UTF-8"),
        ("tokenizer_config.json", b'{"a": "\xe9"}', r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer_config.json", "[" * 100_000, r"tokenizer_config\.json is not valid JSON"),
        ("tokenizer_config.json", '{"eos_token": 2}', r"eos_token is 2; it must be the text of"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is a int; it must be"),
        ("tokenizer_config.json", '{"chat_template": {"a": ""}}', "chat_template is a dict; it"),
        ("generation_config.json", '{"eos_token_id": "2"}', r"json: eos_token_id is '2'; it must"),
        ("generation_config.json", '{"eos_token_id": [[2]]}', r"eos_token_id is \[\[2\]\]"),
    ],
)
def test_a_broken_file_is_named(name, content, complaint, tmp_path):
    directory = _write(tmp_path, CHATML)
    if content is None:
        (directory / name).unlink()
    elif isinstance(content, bytes):
        (directory / name).write_bytes(content)
    else:
        (directory / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        Tokenizer.from_dir(directory)


OPENED = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
CLOSED = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("ending", "question", "opens"),
    [
        (OPENED, "2+3?", True),
        (CLOSED, "2+3?", False),
        ("", "2+3?", False),
        ("", "Write <think> first.", False),
        (CLOSED, "Write <think> first.", False),
        (OPENED, "End with </think>", True),
    ],
)
def test_whether_the_generation_prompt_opens_thinking(ending, question, opens, tmp_path):
    tokenizer = Tokenizer.from_dir(_write(tmp_path, TURNS + ending))
    messages = ({"role": "user", "content": question},)
    assert tokenizer.opens_thinking(Prompt(id="p", messages=messages)) is opens


@pytest.mark.parametrize(
    ("text", "opens"), [("2+3? <think>\n", True), ("<think></think>2", False), ("2+3?", False)]
)
def test_a_raw_prompt_opens_thinking_with_its_last_word(text, opens, chatml):
    prompt = Prompt(id="p", messages=({"role": "user", "content": text},), raw=True)
    assert chatml.opens_thinking(prompt) is opens


# ---- pieces


def _sentencepiece_like() -> tokenizers.Tokenizer:
    """Words with a mark for the space before them, and single bytes for what it has no word for."""
    vocab = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    vocab += [("\u2581a", -1.0), ("\u2581the", -1.0), ("a", -2.0), ("b", -2.0), ("\u2581", -3.0)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()]
    )
    return tokenizer


@pytest.mark.parametrize("text", ["the baa ab", "ราคา \U0001f600 né\n\n\tthe", "<|im_end|> a"])
@pytest.mark.parametrize("make", [byte_tokenizer, _sentencepiece_like])
def test_pieces_end_to_end_are_the_text_also_where_characters_are_cut(make, text, tmp_path):
    make().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_dir(tmp_path)
    before = tokenizer.encode("a")
    ids = tokenizer.encode("a " + text)
    joined = b"".join(map(tokenizer.piece, ids[len(before) :])).decode()
    assert joined == tokenizer.decode(ids).removeprefix("a")
    assert len(joined) > 2
