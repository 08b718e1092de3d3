"""Write a checkpoint as a Hugging Face directory, in one process and little memory.

python tools/export.py runs/rl --output my_model              (the newest checkpoint of a run)
python tools/export.py runs/rl/checkpoints/step_000040 --output my_model --dtype bfloat16
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compass.checkpoint.folder import find_checkpoint
from compass.config import parse
from compass.distributed import launch
from compass.manifest import read_manifest


@dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of `tools/export.py`."""

    source: Path
    """A checkpoint, or the folder of a run (its newest checkpoint); the first word."""
    output: Path
    """Folder to write: weights, config.json, tokenizer. It must be empty, or not there."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; `auto` is the dtype that the run's model came in."""


def main(words: list[str]) -> None:
    """Export what the first word names."""
    if words and not words[0].startswith("-"):
        words = ["--source", *words]
    cfg = parse(Config, words, description=__doc__ or "")
    checkpoint = find_checkpoint(cfg.source)
    # What builds models takes seconds to import; mistakes in flags are answered before.
    from compass.models.config import DTYPES
    from compass.models.hf.export import export_checkpoint

    asked = None if cfg.dtype == "auto" else DTYPES[cfg.dtype]
    dtype = export_checkpoint(checkpoint, cfg.output, dtype=asked)
    name = str(dtype).removeprefix("torch.")
    print(f"wrote step {read_manifest(checkpoint).step} of {checkpoint} in {name}: {cfg.output}")


if __name__ == "__main__":
    launch(lambda: main(sys.argv[1:]))
