"""Magnifications as the config names them: 20 means 0.5 um per px (standard library only)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from pipeline.contracts.errors import InputError

ROUNDING = 1e-9  #: relative slack of comparisons between computed floats
WHERE = "config.yaml tiles.magnifications"


def plain(magnification: float) -> float:
    """20 for 20.0, so that labels and folder names read ``20x``; 2.5 stays."""
    return int(magnification) if float(magnification).is_integer() else float(magnification)


def ordered(magnifications: Iterable[float]) -> tuple[float, ...]:
    """The magnifications from the finest to the coarsest.

    Raises InputError unless each is named once and divides the next finer one: a tile's parent is found by dividing its
    cell, so 20 and 7 have no common grid.
    """
    values = list(magnifications)
    if not values or not all(isinstance(m, int | float) and 0.25 <= m <= 160 for m in values):
        raise InputError(WHERE, f"{values} is not allowed.", "use numbers from 0.25 to 160, such as [20, 10].")
    if len(set(values)) != len(values):
        raise InputError(WHERE, f"{values} names one twice.", "name each once.")
    result = tuple(sorted((plain(m) for m in values), reverse=True))
    for finer, coarser in pairwise(result):
        ratio = finer / coarser
        if abs(ratio - round(ratio)) > ROUNDING * ratio:
            raise InputError(
                WHERE,
                f"{list(result)} is not allowed: {finer} / {coarser} is not a whole number, so tiles would have no"
                " parent.",
                "use magnifications of which each divides the next finer one, such as [20, 10, 5].",
            )
    return result
