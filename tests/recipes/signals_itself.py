"""A recipe that is sent a signal at a known moment: `signals_itself.py SIGNAL MOMENT RECIPE
FLAGS...`. Not a test.

MOMENT is `generation` (its first completion has just ended) or `export` (it has begun to write).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import compass.generate.generator
import compass.models.hf.stream
from compass.config import parse
from compass.distributed import launch

number = signal.Signals[sys.argv[1]]
MOMENTS: dict[str, tuple[Any, str]] = {
    "generation": (compass.generate.generator.Generator, "_completions"),
    "export": (compass.models.hf.stream.TensorFile, "add"),
}


def signalled(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any) -> Any:
        global number
        result = function(*arguments)
        if (result or function.__name__ == "add") and number is not None:
            signal_, number = number, None
            os.kill(os.getpid(), signal_)
        return result

    return wrapper


if __name__ == "__main__":
    owner, name = MOMENTS[sys.argv[2]]
    setattr(owner, name, signalled(getattr(owner, name)))
    recipe = importlib.import_module(f"recipes.{sys.argv[3]}")
    launch(lambda: recipe.main(parse(recipe.Config, sys.argv[4:], description=recipe.__doc__)))
