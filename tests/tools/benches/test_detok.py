"""tools/bench.py detok: its two sides, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benches.detok import write_wide_tokenizer

from compass.text.tokenizer import Tokenizer


def test_decoding_in_workers_spares_the_submitting_thread(
    figures_of: Callable[[str], dict[str, Any]],
) -> None:
    figures = figures_of(
        "detok --num-completions 12 --num-tokens 4000 --vocab-size 1000 --num-workers 1 --repeats 3"
    )
    assert figures["ratio"] > 1
    assert len(figures["cpu_seconds"]) == 3
    submit, decode = (figures[f"{way}_seconds_per_completion"] for way in ("submit", "decode"))
    assert figures["ratio"] == pytest.approx(decode / submit)
    for sides in figures["cpu_seconds"]:
        for spent in sides.values():
            assert 0 < spent["submitting_thread"] < spent["process"]


def test_every_entry_of_the_tokenizer_decodes_to_bytes_of_its_own(tmp_path: Path) -> None:
    write_wide_tokenizer(tmp_path, 600)
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.vocab_size == 600
    assert all(tokenizer.decode([token_id]) for token_id in range(600))
