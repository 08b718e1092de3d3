"""What a template does to conversations: refusals of any kind, messages it leaves out, turns' ends.
(Rendering itself is judged by transformers in tests/text/test_tokenizer.py.)"""

import pytest

from compass.errors import UserError
from compass.text.chat_template import ChatTemplate

CHATML = """\
{%- for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
KNOWN_ROLES = """\
{%- for message in messages %}
    {%- if message.role in ('user', 'system') %}
{{ message.role }}: {{ message.content }}
    {%- elif message.role == 'assistant' %}
assistant: {{ message.content }}<end>
    {%- endif %}
{%- endfor %}
"""
LAST_ONLY = "{{ messages[-1].content }}"
ALTERNATING = """\
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
{{ message.content }}{{ eos_token if message.role == 'assistant' }}
{%- endfor %}
"""


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text, special_tokens={"eos_token": "</s>"}, source="DIR")


def talk(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"what {i} says"} for i, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{{ 1 // 0 }}", "failed: ZeroDivisionError: "),
        ("{{ messages[0].content | int + 'a' }}", "failed: TypeError: "),
        ("{{ {}['a'].b }}", "failed: 'dict object' has no attribute 'a'"),
        ("{{ messages[0].content.encode('ascii') }}", "failed: UnicodeEncodeError: "),
        ("{{ 'a'.index('b') }}", "failed: ValueError: "),
        ("{{ range(10 ** 9) | list }}", "failed: OverflowError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed: RecursionError: "),
        ("{{ strftime_now(3) }}", "failed: TypeError: "),
        ("{{ raise_exception('no tools') }}", "failed: no tools; change the messages"),
    ],
)
def test_whatever_a_template_raises_is_one_user_error(text, complaint):
    messages = [{"role": "user", "content": "é"}]
    with pytest.raises(UserError, match=complaint):
        template(text).render(messages, add_generation_prompt=True)


@pytest.mark.parametrize("text", ["{{ x | nothing }}", "{% for %}", "{{ " + "(" * 10_000])
def test_a_template_that_does_not_parse_is_refused(text):
    with pytest.raises(UserError, match="chat template of DIR does not parse"):
        template(text)


@pytest.mark.parametrize(
    ("text", "roles", "complaint"),
    [
        (
            KNOWN_ROLES,
            ("human",),
            "message 0, whose role is 'human'; roles that work there: system",
        ),
        (
            KNOWN_ROLES,
            ("system", "user", "gpt", "user"),
            "message 2, whose role is 'gpt'; roles that work there: system, user, assistant$",
        ),
        (LAST_ONLY, ("system", "user"), "message 0, whose role is 'system'; remove the message"),
    ],
)
def test_a_message_that_is_left_out_is_named_with_the_roles_that_work(text, roles, complaint):
    for _ in range(2):  # and not only when these roles are met first
        with pytest.raises(UserError, match=complaint):
            template(text).check_roles(talk(*roles))


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        (CHATML, ("human",)),
        (KNOWN_ROLES, ("system", "user", "assistant", "user")),
        (LAST_ONLY, ("user",)),
        # Refusing is for rendering to do, with the real messages.
        (ALTERNATING, ("user", "user")),
    ],
)
def test_messages_that_show_are_accepted(text, roles):
    template(text).check_roles(talk(*roles))


def test_a_sequence_of_roles_is_tried_once():
    chat = template(CHATML)
    rendered = []

    def count(messages, **options):
        rendered.append(messages)
        return ChatTemplate.render(chat, messages, **options)

    chat.render = count
    for _ in range(100):
        chat.check_roles(talk("system", "user"))
    assert len(rendered) == 1
    chat.check_roles(talk("user"))
    assert len(rendered) == 2


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (CHATML, "<|im_end|>\n"),
        (KNOWN_ROLES, "<end>"),
        (ALTERNATING, "</s>"),
        (LAST_ONLY, ""),
        ("{{ raise_exception('never') }}", None),
        ("always this", None),
    ],
)
def test_the_end_of_a_turn_is_what_stands_behind_an_answer(text, end):
    assert template(text).turn_end() == end
