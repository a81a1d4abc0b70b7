"""Checks that the stages' parameter classes share; messages name the key in config.yaml (standard library only)."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.contracts.errors import InputError, nearest


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise InputError unless `holds`. `key` is dotted, such as ``tissue.um_per_px``; `allowed` says what fits."""
    if not holds:
        raise InputError(f"config.yaml {key}", f"{value} is not allowed.", f"use {allowed}.")


def require_choice(key: str, value: object, known: Iterable[str]) -> None:
    """Raise InputError unless `value` is one of `known`."""
    known = list(known)
    if value not in known:
        listed = ", ".join(known)
        raise InputError(
            f"config.yaml {key}", f"'{value}' is none of {listed}{nearest(str(value), known)}.", "correct it."
        )
