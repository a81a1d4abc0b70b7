"""Columns of the clinical sheet as numbers: fitted on a fold's training cases, stored with its model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.tasks import MISSING

Rows = Sequence[Mapping[str, str]]  #: the columns of one case each, as in the sheet


@dataclass(frozen=True)
class Covariate:
    """One column of the sheet.

    Attributes
    ----------
    categories : known values, sorted, each of which gets an indicator; empty for a number
    mean, std : of the numbers; an unknown one becomes the mean
    unknown : whether some training case lacks the value, which then has an indicator of its own
    """

    column: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    unknown: bool = False

    @property
    def width(self) -> int:
        return (len(self.categories) or 1) + self.unknown

    def encoded(self, values: Sequence[str]) -> np.ndarray:
        """float32 [cases, width]. A category not known from training has no indicator set."""
        known = [_known(value) for value in values]
        if self.categories:
            columns = [[float(value == category) for value in values] for category in self.categories]
        else:
            numbers = [number(v, self.column) if k else self.mean for v, k in zip(values, known, strict=True)]
            columns = [[(x - self.mean) / self.std for x in numbers]]
        if self.unknown:
            columns.append([float(not k) for k in known])
        return np.array(columns, dtype=np.float32).reshape(self.width, len(values)).T


@dataclass(frozen=True)
class Covariates:
    """All columns of a fold's model, in order."""

    columns: tuple[Covariate, ...]

    @property
    def width(self) -> int:
        return sum(covariate.width for covariate in self.columns)

    def encoded(self, rows: Rows) -> np.ndarray:
        """float32 [cases, width]. Raises InputError for a text in a column of numbers."""
        return np.hstack([c.encoded([row[c.column] for row in rows]) for c in self.columns])

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Covariates:
        """From `asdict`, through JSON."""
        columns = ({**each, "categories": tuple(each["categories"])} for each in values["columns"])
        return cls(tuple(Covariate(**each) for each in columns))


def fit_covariates(rows: Rows, columns: Sequence[str], categorical: Sequence[str]) -> Covariates:
    """Learn the encoding from training cases. A column is of numbers if all its values are, unless it is `categorical`.

    Raises InputError for a column without any value.
    """
    return Covariates(tuple(_fitted([row[c] for row in rows], c, c in categorical) for c in columns))


def _fitted(values: Sequence[str], column: str, categorical: bool) -> Covariate:
    known = [value for value in values if _known(value)]
    if not known:
        raise InputError(f"column '{column}' of the case sheet", "no training case has a value.", "leave it out.")
    unknown = len(known) < len(values)
    if categorical or not all(_is_number(value) for value in known):
        return Covariate(column, categories=tuple(sorted(set(known))), unknown=unknown)
    numbers = np.array([float(value) for value in known])
    return Covariate(column, mean=float(numbers.mean()), std=float(numbers.std()) or 1.0, unknown=unknown)


def check_columns(columns: Sequence[str], known: Sequence[str], labels: Sequence[str], sheet: str) -> None:
    """Raise InputError for a column that the sheet lacks, or that is the task's own label."""
    for column in columns:
        if column not in known:
            problem = f"has no column '{column}'{nearest(column, known)}, a covariate of the clinical model."
            raise InputError(sheet, problem, f"name others in params.columns; found: {', '.join(known)}.")
        if column in labels:
            problem = f"'{column}' is what the task predicts, so it cannot be a covariate."
            raise InputError("config.yaml experiments params", problem, "take it out of columns, or out of the task.")


def number(text: str, column: str) -> float:
    """The number in a cell. Raises InputError for a text."""
    if not _is_number(text):
        raise InputError(
            f"column '{column}' of the case sheet",
            f"'{text}' is not a number, but all values of the training cases were.",
            "correct it, or list the column in the model's params.categorical.",
        )
    return float(text)


def _known(text: str) -> bool:
    return text.strip().casefold() not in MISSING


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
