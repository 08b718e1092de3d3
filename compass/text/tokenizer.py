"""Text to token ids and back, and the chat template, from a Hugging Face directory.

Only `tokenizers` and `jinja2` at run time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from compass.cli import note
from compass.errors import UserError
from compass.text.chat_template import ChatTemplate
from compass.types import THINK_END, THINK_START, Message, Prompt

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""A byte of its own, as SentencePiece writes it where it has no token for a character."""
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(b for b in range(256) if b not in _PRINTABLE)
}
"""How byte-level vocabularies write bytes: the printable ones as they are, the others from U+0100
on (GPT-2's table)."""
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError naming the file, and the line if malformed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a Hugging Face directory") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): fix or copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def check_is_here(directory: Path | str) -> None:
    """Raises UserError, with the command that downloads it, for what looks like a name on a hub."""
    path = Path(directory)
    if not path.exists() and not path.is_absolute() and len(path.parts) == 2:
        raise UserError(
            f"{path} is no folder; if it is a model on the Hugging Face hub, download it first: "
            f"hf download {path} --local-dir {path.name}, and give {path.name}"
        )


class Tokenizer:
    """A byte-level or BPE tokenizer with its special tokens and chat template."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        stop_token_ids: Sequence[int],
        chat_template: str | None,
        files: Mapping[str, bytes],
        source: str,
    ) -> None:
        """`special_tokens` maps `eos_token` and the like to their text, as templates see them;
        `files` are what it was read from, by name; `source` names the tokenizer in messages."""
        self.stop_token_ids = tuple(stop_token_ids)
        """Ids that end a completion: those of generation_config.json and the tokenizer's own."""
        self._backend = backend
        self._special_tokens = dict(special_tokens)
        self._files = dict(files)
        self.source = source
        self._template: ChatTemplate | None = None
        if chat_template is not None:
            self._template = ChatTemplate(
                chat_template, special_tokens=special_tokens, source=source
            )

    @classmethod
    def from_dir(cls, directory: Path | str) -> Tokenizer:
        """Read `tokenizer.json` and, where present, the files that go with it.

        Raises UserError when tokenizer.json is missing or a file is malformed.
        """
        check_is_here(directory)
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist: give a directory with a fast tokenizer")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust binding raises bare Exception
            raise UserError(f"{path} is not a tokenizer: {error}") from None
        config = _optional_json(directory / "tokenizer_config.json")
        special_tokens = _special_tokens(
            _optional_json(directory / "special_tokens_map.json") | config, directory
        )
        return cls(
            backend,
            special_tokens=special_tokens,
            stop_token_ids=_stop_token_ids(directory, backend, special_tokens),
            chat_template=_read_template(directory, config),
            files={f: (directory / f).read_bytes() for f in _FILES if (directory / f).is_file()},
            source=str(directory),
        )

    @property
    def files(self) -> Mapping[str, bytes]:
        """What this tokenizer was read from, by name."""
        return self._files

    @property
    def digest(self) -> str:
        """SHA-256 over the files this tokenizer was read from: the same ids, the same template."""
        content = repr(sorted(self._files.items())).encode()
        return hashlib.sha256(content).hexdigest()

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def eos_token_id(self) -> int | None:
        return self._special_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._special_id("pad_token")

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; special tokens written in it become their ids. `add_special_tokens`
        adds what the tokenizer puts around a bare text (for most, nothing)."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens included."""
        return self._backend.decode(list(token_ids), skip_special_tokens=False)

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text that is under way. Those of several tokens, end to
        end, are their text, also where a character is cut in two."""
        before = self._backend.decode([self._anchor], skip_special_tokens=False)
        text = self._backend.decode([self._anchor, token_id], skip_special_tokens=False)
        if "\ufffd" not in text:
            return text.removeprefix(before).encode()
        token = self._backend.id_to_token(token_id) or ""
        if _BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        if all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        return text.removeprefix(before).encode()

    @cached_property
    def _anchor(self) -> int:
        """A token that shows as a letter, for others to come after."""
        return self.encode("a")[-1]

    def decode_completion(self, token_ids: Sequence[int]) -> str:
        """Text of what a policy wrote, without the stop token that ended it."""
        ids = list(token_ids)
        if ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        return self.decode(ids)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, **variables: Any
    ) -> str:
        """The chat template applied to `messages`; `variables` reach the template as they are.

        Raises UserError when there is no template or it refuses the conversation.
        """
        return self._chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, **variables
        )

    def prompt_text(self, prompt: Prompt) -> str:
        """What the policy reads: the rendered conversation up to the answer, or the raw text.

        Raises UserError when there is no template, when it refuses the conversation, or when it
        leaves a message or the prompt's tools out.
        """
        if prompt.raw:
            return prompt.messages[0]["content"]
        self._chat_template.check_roles(prompt.messages)
        text = self.render(prompt.messages, add_generation_prompt=True, tools=prompt.tools)
        if prompt.tools and text == self.render(prompt.messages, add_generation_prompt=True):
            raise UserError(
                f"the chat template of {self.source} leaves `tools` out, so that the policy would "
                "never see them; use a template that writes them, or put them into a message"
            )
        return text

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of `prompt_text`: those that generation starts from. Raises as it does."""
        return self.encode(self.prompt_text(prompt), add_special_tokens=prompt.raw)

    def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """`encode` of many texts at once, which takes as many cores as there are."""
        encodings = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]

    def check_turn_end(self) -> None:
        """Refuse a template that ends a turn in none of the stop tokens: a policy that writes as
        the template does would run on to its longest completion each time.

        Raises UserError naming the token that ends a turn and the stop tokens there are.
        """
        end = None if self._template is None else self._template.turn_end()
        if end is None or not end.strip():  # what ends a turn is not the template's business
            return
        ids = self.encode(end)
        if not set(ids) & set(self.stop_token_ids):
            special = self._backend.get_added_tokens_decoder()
            ending = next((special[i].content for i in ids if i in special), end)
            raise UserError(
                f"the chat template of {self.source} ends a turn with {ending!r}, which is none "
                f"of the stop tokens {self.stop_tokens}: name it in eos_token of "
                "tokenizer_config.json or eos_token_id of generation_config.json, or say "
                "--allow_stop_mismatch if the model ends its turns otherwise"
            )

    @property
    def stop_tokens(self) -> list[str]:
        """The stop tokens as text."""
        return [self._backend.id_to_token(i) or f"id {i}" for i in self.stop_token_ids]

    @property
    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise UserError(
                f"{self.source} has no chat template: add chat_template.jinja to it, "
                "or feed prompts as they are with --raw"
            )
        return self._template

    def opens_thinking(self, prompt: Prompt) -> bool:
        """Whether a prompt as it is rendered ends inside `<think>`, so that what the policy writes
        begins there. A raw text does when its last word is `<think>`; of a conversation only what
        the template adds for the answer counts, not what the messages speak of."""
        if prompt.raw:
            return prompt.messages[0]["content"].rstrip().endswith(THINK_START)
        rendered = self.render(prompt.messages, add_generation_prompt=True, tools=prompt.tools)
        before = self.render(prompt.messages, add_generation_prompt=False, tools=prompt.tools)
        if not rendered.startswith(before):
            return rendered.rstrip().endswith(THINK_START)
        added = rendered[len(before) :]
        return added.rfind(THINK_START) > added.rfind(THINK_END)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        untrained: Collection[int] = (),
        last_turn_only: bool = False,
    ) -> tuple[list[int], list[bool]]:
        """A conversation for supervised training: ids, and True on what assistants write.

        Each assistant turn is encoded apart from the prompt before it, so that training sees
        the very ids that generation starts from, and is True up to and including its stop token.
        With `last_turn_only` only the last assistant turn is, and the messages `untrained` never
        are. `tools` go to the template. Nothing follows the last loss token.

        Raises UserError when there is no assistant message, when a turn has no stop token, when
        the template leaves a message out, or when it changes earlier text as the conversation
        grows.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        learned = [i for i in turns if i not in untrained]
        if not learned:
            which = "with a weight of 1" if turns else "at all"
            raise UserError(f"the conversation has no assistant message {which}: nothing to learn")
        turns = [i for i in turns if i <= learned[-1]]
        self._chat_template.check_roles(messages[: turns[-1] + 1])
        token_ids: list[int] = []
        loss_mask: list[bool] = []
        done = ""
        for i in turns[-1:] if last_turn_only else turns:
            prompt = self.render(messages[:i], add_generation_prompt=True, tools=tools)
            through = self.render(messages[: i + 1], add_generation_prompt=False, tools=tools)
            if not prompt.startswith(done):
                raise UserError(
                    f"the chat template of {self.source} changes the turns before message {i} "
                    "once it is there: train on the last turn only, with a row for each turn"
                )
            if not through.startswith(prompt):
                raise UserError(
                    f"the chat template of {self.source} starts generation after "
                    f"{prompt[-40:]!r}, but renders message {i} otherwise: write that message "
                    "as the policy would continue, or change the template"
                )
            context = self.encode(prompt[len(done) :])
            turn = self.encode(through[len(prompt) :])
            end = self._turn_end(turn, i)
            token_ids += context + turn
            loss_mask += [False] * len(context) + [i not in untrained] * end
            loss_mask += [False] * (len(turn) - end)
            done = through
        length = len(token_ids) - len(turn) + end
        return token_ids[:length], loss_mask[:length]

    def _turn_end(self, turn: list[int], message: int) -> int:
        ends = [position for position, token in enumerate(turn) if token in self.stop_token_ids]
        if not ends:
            raise UserError(
                f"the assistant's text in message {message} ends in none of the stop tokens "
                f"{list(self.stop_token_ids)} of {self.source}: set eos_token in "
                "tokenizer_config.json to the token its chat template ends a turn with"
            )
        return ends[-1] + 1

    def _special_id(self, name: str) -> int | None:
        token = self._special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)


def check_stop_tokens(tokenizer: Tokenizer, is_main: bool, *, raw: bool, unchecked: bool) -> None:
    """Make sure that completions can end, or say that they cannot.

    Args:
        is_main: this rank says it.
        raw: prompts go without the chat template, so that it ends no turn.
        unchecked: the user knows that turns end otherwise than the template's.

    Raises:
        UserError: `Tokenizer.check_turn_end` does.
    """
    if not raw and not unchecked:
        tokenizer.check_turn_end()
    if not tokenizer.stop_token_ids and is_main:
        note(
            "the tokenizer names no stop token: every completion will be max_completion_tokens "
            "long; name one in eos_token of tokenizer_config.json"
        )


def check_vocab(tokenizer: Tokenizer, model_vocab_size: int) -> None:
    """Raises UserError when the tokenizer has ids that the model has no embedding for.
    Fewer ids than embeddings is usual: models round their vocabulary up."""
    if tokenizer.vocab_size > model_vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model's vocabulary "
            f"is {model_vocab_size}: use the tokenizer that belongs to this model"
        )


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _special_tokens(config: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Token texts; files write them as strings or as `{"content": ...}`."""
    found: dict[str, str] = {}
    for name in _SPECIAL_TOKENS:
        token = config.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None and not isinstance(token, str):
            raise UserError(
                f"{directory / 'tokenizer_config.json'}: {name} is {token!r}; it must be the text "
                "of a token"
            )
        if token is not None:
            found[name] = token
    return found


def _stop_token_ids(
    directory: Path, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]
) -> list[int]:
    generation = directory / "generation_config.json"
    config = generation if generation.is_file() else directory / "config.json"
    written = _optional_json(config).get("eos_token_id")
    ids = list(written) if isinstance(written, list) else [written]
    if not all(i is None or (type(i) is int and i >= 0) for i in ids):
        raise UserError(f"{config}: eos_token_id is {written!r}; it must be a token id or a list")
    if "eos_token" in special_tokens:
        ids.append(backend.token_to_id(special_tokens["eos_token"]))
    return list(dict.fromkeys(i for i in ids if i is not None))


def _read_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from None
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in named}.get("default")
    if template is not None and not isinstance(template, str):
        raise UserError(
            f"{directory / 'tokenizer_config.json'}: chat_template is a "
            f"{type(template).__name__}; it must be text, or a list of name and template"
        )
    return template
