"""The safetensors files of a Hugging Face directory, open for reading, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from compass.errors import UserError
from compass.text.tokenizer import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """Open files and which tensor lies in which. Built by `open_weights`."""

    directory: Path
    handles: dict[Path, Any]
    """What safetensors opened, by path."""
    places: dict[str, Path]
    """Tensor name -> the file that holds it."""

    def get_slice(self, name: str) -> Any:
        """The tensor called `name`, of which only the rows that are indexed will be read."""
        return self.handles[self.places[name]].get_slice(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor called `name`, without reading it."""
        return tuple(self.get_slice(name).get_shape())


@contextmanager
def open_weights(directory: Path) -> Iterator[WeightFiles]:
    """Open every file of the model in `directory`.

    Raises:
        UserError: a file is missing, truncated or damaged.
    """
    with ExitStack() as stack:
        handles: dict[Path, Any] = {}
        places: dict[str, Path] = {}
        for path in _weight_files(directory):
            try:
                handles[path] = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise UserError(
                    f"{path} is truncated or damaged ({error}): copy or download it again"
                ) from None
            except OSError as error:
                raise UserError(f"cannot read {path}: {error}") from None
            places |= dict.fromkeys(handles[path].keys(), path)
        yield WeightFiles(directory=directory, handles=handles, places=places)


def stray_weights(directory: Path) -> str | None:
    """What to say of a directory that holds two models: shards with an index, which are read here,
    and a single file that the index does not name, which transformers reads. None: it does not."""
    single = directory / WEIGHTS
    if not (directory / INDEX).is_file() or not single.is_file() or single in _indexed(directory):
        return None
    return (
        f"{directory} holds a {WEIGHTS} beside the shards of {INDEX}: the shards are read, but "
        "transformers would read the single file; remove whichever is stale"
    )


def _weight_files(directory: Path) -> list[Path]:
    paths = _indexed(directory) if (directory / INDEX).is_file() else [directory / WEIGHTS]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path} is missing: give a directory with {WEIGHTS}, "
                f"or with {INDEX} and all the files it names"
            )
    return paths


def _indexed(directory: Path) -> list[Path]:
    """The files that the index of `directory` names."""
    index = directory / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: copy or download it again")
    if not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{index}: weight_map must give every tensor the name of a file")
    return sorted({directory / file for file in weight_map.values()})
