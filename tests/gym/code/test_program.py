"""The program is the last fenced block, as CommonMark reads it."""

from __future__ import annotations

import pytest

from compass.gym.code.program import last_block


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("```\nx = 1\n```\nand better:\n```py\nx = 2\n```\nDone.", "x = 2"),
        ("~~~python\nx = 1\n~~~", "x = 1"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```python\nx = 1", "x = 1"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\r"),
        ("```python\n```", ""),
        ("   ```python\nx = 1\n   ```", "x = 1"),
        ("```python\nx = '''\n``` no fence\n'''\n```", "x = '''\n``` no fence\n'''"),
        ("no block, `x = 1` is not one", None),
        ("```inline``` is none either", None),
        ("    ```\n    indented: a code block of another kind", None),
        ("", None),
    ],
)
def test_the_last_fenced_block_is_the_program(text: str, program: str | None) -> None:
    assert last_block(text) == program
