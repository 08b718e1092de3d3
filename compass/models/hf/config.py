"""Values out of a Hugging Face `config.json`, which people edit: one line for each that is wrong.

Every function raises `UserError` naming the key, the value and what it must be; `read_spec` says
in which file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from compass.errors import UserError
from compass.models.config import DTYPES

_ROPE_HOMES = ("rope_parameters", "rope_scaling")
"""Where transformers 5 and 4 keep what is done to rotary positions; files may have both."""
_PLAIN_ROPE_KEYS = frozenset({"rope_type", "type", "rope_theta"})


def wrong_value(key: str, value: Any, wanted: str) -> UserError:
    """The error of a value of the wrong kind, in JSON's own words."""
    return UserError(f"{key} is {json.dumps(value)}: it must be {wanted}")


def required_int(config: Mapping[str, Any], *keys: str) -> int:
    """The integer under the first of `keys` that is there."""
    found = [key for key in keys if key in config]
    given = next((key for key in found if config[key] is not None), None)
    if given is None and found:
        raise wrong_value(found[0], None, "an integer")
    if given is None:
        raise UserError(f"no {' or '.join(keys)}: it is not a complete Qwen3 config")
    if type(config[given]) is not int:
        raise wrong_value(given, config[given], "an integer")
    return config[given]


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A finite number that is not negative; `default` where there is no such key."""
    value = config.get(key, default)
    if key not in config and default is None:
        raise UserError(f"no {key}: it is not a complete Qwen3 config")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise wrong_value(key, value, "a number, 0 or more")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """true or false; `default` where there is no such key."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise wrong_value(key, value, "true or false")
    return value


def table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under `key`; an empty one where there is none, or null."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_value(key, value, "an object")
    return value


def stored_dtype(config: Mapping[str, Any]) -> str | None:
    """What the weights are written in, one of `DTYPES`; None where nothing says so."""
    for key in ("torch_dtype", "dtype"):  # of transformers 4 and 5
        value = config.get(key)
        if value is not None:
            if value not in DTYPES:
                raise wrong_value(key, value, f"one of {', '.join(DTYPES)}")
            return value
    return None


def refuse_rope_scaling(config: Mapping[str, Any]) -> None:
    """Only plain rotary embeddings are built, so whatever asks for others in either home is
    refused: left out in silence it would change every log-probability."""
    for home in _ROPE_HOMES:
        for key, value in table(config, home).items():
            if key in ("rope_type", "type") and value not in (None, "default"):
                raise UserError(
                    f"{home} asks for rope scaling {value!r}, which is not supported: only plain "
                    f"rotary embeddings; remove {home}, or give a model without scaling"
                )
        for key, value in table(config, home).items():
            if key not in _PLAIN_ROPE_KEYS and value not in (None, 1):
                raise UserError(
                    f"{home}.{key} is {json.dumps(value)}, which is not supported: only plain "
                    "rotary embeddings"
                )
    if number(config, "partial_rotary_factor", 1.0) != 1:
        raise UserError(
            f"partial_rotary_factor is {config['partial_rotary_factor']}, which is not supported: "
            "only rotary embeddings of whole heads"
        )


def rope_theta(config: Mapping[str, Any], default: float) -> float:
    """Base of the rotary frequencies, `default` where no home has one; two must be equal."""
    found = dict(_thetas(config))
    if len(set(found.values())) > 1:
        said = " and ".join(f"{key} is {value:g}" for key, value in found.items())
        raise UserError(f"{said}: make them equal, readers differ in which they take")
    theta = next(iter(found.values()), default)
    if theta == 0:
        raise wrong_value(next(iter(found)), 0, "above 0")
    return theta


def _thetas(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for home in _ROPE_HOMES:
        rope = table(config, home)
        if "rope_theta" in rope:
            yield f"{home}.rope_theta", number(rope, "rope_theta")
    if "rope_theta" in config:
        yield "rope_theta", number(config, "rope_theta")
