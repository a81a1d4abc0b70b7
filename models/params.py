"""Checks that configuration classes share; the message names the key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pipeline.contracts.errors import InputError, nearest

WHERE = "config.yaml experiments"


def check_range(key: str, value: Any, low: float, high: float, integer: bool = False) -> None:
    """Raise InputError unless `value` is a number from `low` to `high` (a whole one if `integer`)."""
    kind = int if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "a whole number" if integer else "a number"
        raise InputError(WHERE, f"{key} is {value!r}, expected {what} from {low:g} to {high:g}.")


def check_square(key: str, value: Any) -> None:
    """Raise InputError unless `value` is a square number, of 64 at least."""
    check_range(key, value, 64, 100_000, integer=True)
    if math.isqrt(value) ** 2 != value:
        raise InputError(f"{WHERE} params", f"{key} {value} is not a square.", "use 2500, for example.")


def check_choice(key: str, value: Any, known: Iterable[Any]) -> None:
    """Raise InputError unless `value` is one of `known`."""
    known = list(known)
    if value not in known:
        listed = ", ".join(str(k) for k in known)
        raise InputError(WHERE, f"{key} is {value!r}{nearest(value, known)}.", f"use one of: {listed}.")


def build_config(config_class: type, params: Mapping[str, Any], model: str) -> Any:
    """An instance of a model's configuration class. Raises InputError for an unknown key, naming the nearest."""
    known = [f.name for f in fields(config_class)]
    for key in params:
        if key not in known:
            raise InputError(
                f"{WHERE} params",
                f"model '{model}' has no hyper-parameter '{key}'{nearest(key, known)}.",
                f"it has: {', '.join(known) or 'none'}.",
            )
    return config_class(**params)
