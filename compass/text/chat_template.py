"""A chat template: rendering conversations, and finding out what a template does to them.

Rendering follows what transformers documents for chat templates: a sandbox, trimmed blocks, and
`raise_exception`, `strftime_now` and `tojson`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from compass.errors import UserError
from compass.types import Message

ROLES = ("system", "user", "assistant", "tool")
"""What a role that a template drops may have been meant to be."""


class ChatTemplate:
    """One compiled template."""

    def __init__(self, text: str, *, special_tokens: Mapping[str, str], source: str) -> None:
        """`special_tokens` maps `eos_token` and the like to their text; `source` names the
        template's home in messages.

        Raises:
            UserError: the template does not parse.
        """
        self._template = _compile(text, source)
        self._special_tokens = dict(special_tokens)
        self._source = source
        self._kept: set[tuple[str, ...]] = set()
        """Sequences of roles none of which is dropped."""

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, **variables: Any
    ) -> str:
        """`messages` as text; `variables` reach the template as they are.

        Raises:
            UserError: the template fails or refuses the conversation.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **(self._special_tokens | variables),
            )
        # A template is a program from outside, which can raise whatever Python can.
        except Exception as error:
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise UserError(
                f"the chat template of {self._source} failed: {kind}{error}; change the messages, "
                "or the template"
            ) from None

    def check_roles(self, messages: Sequence[Message]) -> None:
        """Refuse a conversation of which the template would leave a message out: many templates
        skip roles they do not know without a word. Sequences of roles are tried once each.

        Raises:
            UserError: naming the message, its role and the roles that work in its place.
        """
        roles = tuple(message["role"] for message in messages)
        if roles in self._kept:
            return
        dropped = self._first_dropped(roles)
        if dropped is not None:
            working = [role for role in ROLES if self._keeps(roles, dropped, role)]
            raise UserError(
                f"the chat template of {self._source} leaves out message {dropped}, whose role is "
                f"{roles[dropped]!r}; " + _remedy(working)
            )
        self._kept.add(roles)

    def turn_end(self) -> str | None:
        """What the template writes behind an assistant's text; None where it takes no such turn."""
        texts = _marked(("user", "assistant"))
        try:
            rendered = self.render(texts, add_generation_prompt=False)
        except UserError:
            return None
        _, found, end = rendered.rpartition(texts[1]["content"])
        return end if found else None

    def _first_dropped(self, roles: tuple[str, ...]) -> int | None:
        """Index of the first message that does not show; None when all do, or when the template
        refuses such a conversation, which rendering the real one will say better."""
        messages = _marked(roles)
        try:
            text = self.render(messages, add_generation_prompt=True)
        except UserError:
            return None
        return next((i for i, m in enumerate(messages) if m["content"] not in text), None)

    def _keeps(self, roles: tuple[str, ...], place: int, role: str) -> bool:
        messages = _marked((*roles[:place], role, *roles[place + 1 :]))
        try:
            text = self.render(messages, add_generation_prompt=True)
        except UserError:
            return False
        return messages[place]["content"] in text


def _marked(roles: Sequence[str]) -> list[Message]:
    """Messages of these roles with texts that no template contains and each other do not."""
    return [{"role": role, "content": f"c0mp4ss{i}text"} for i, role in enumerate(roles)]


def _remedy(working: Sequence[str]) -> str:
    if not working:
        return "remove the message"
    return f"roles that work there: {', '.join(working)}"


class _GenerationBlock(jinja2.ext.Extension):
    """Accepts `{% generation %}...{% endgeneration %}`, which some templates put around what
    assistants write, and renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str, source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template of {source} does not parse: line {error.lineno}: {error.message}"
        ) from None
    except RecursionError:
        raise UserError(
            f"the chat template of {source} does not parse: it is nested too deeply"
        ) from None


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
