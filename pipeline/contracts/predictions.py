"""Predictions of one experiment on one task (standard library only).

``<name>.tsv`` is out of fold, a row per case. Classification: ``case_id, fold, p_<class> ..., label, predicted``.
Survival: ``case_id, fold, risk, survival_1 .., edge_1 .., time, event``; `survival_k` is the probability to outlive
`edge_k`, in the task's unit, and both are empty beyond a fold's number of intervals. Both end in ``lacking`` (what the
case was predicted without, though the model can read it, such as "no RNA"; empty for most), ``checkpoint`` (digest of
the fold's) and ``format_version``. Beside it lie, with the same columns:

- ``<name>_external.tsv``: the cases of external cohorts, a row per case and fold, and one whose fold is ``mean``: the
  mean of the folds' models (`models.fold_mean`);
- ``<name>_slides.tsv``: a row per slide of the cases held out, with ``slide_id``, ``n_slides`` (of the case) and
  ``trained_on``: ``slide`` where the model learnt from single slides, ``case`` where it learnt from all slides of a
  case together and sees one of them here;
- ``<name>_left_out.tsv`` and ``<name>_external_left_out.tsv``: cases of the task without a prediction, with the reason.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import check_version, read_table, write_table

KIND = "predictions"
FORMAT_VERSION = 2
LEFT_OUT_COLUMNS = ("case_id", "fold", "reason")
ENSEMBLE = -1  #: stands for the fold of a row that is the mean over folds; "mean" in files
CASE, SLIDE = "case", "slide"  #: what a model was trained on, of a `SlidePrediction`


@dataclass(frozen=True)
class ClassPrediction:
    """`probability` is in the order of the table's classes; `label` is the true class, "" where unknown."""

    case_id: str
    fold: int
    probability: tuple[float, ...]
    label: str
    predicted: str
    checkpoint: str = ""
    lacking: str = ""


@dataclass(frozen=True)
class SurvivalPrediction:
    """`risk` is higher for an earlier event; `survival` and `edges` have one entry per interval of the fold."""

    case_id: str
    fold: int
    risk: float
    survival: tuple[float, ...]
    edges: tuple[float, ...]
    time: float | None
    event: int | None
    checkpoint: str = ""
    lacking: str = ""


Prediction = ClassPrediction | SurvivalPrediction


@dataclass(frozen=True)
class SlidePrediction:
    """The prediction of one slide of a case that has `n_slides`; `trained_on` is `CASE` or `SLIDE`."""

    slide_id: str
    n_slides: int
    trained_on: str
    row: Prediction


@dataclass(frozen=True)
class Predictions:
    """All rows of one table, sorted by case and fold. `classes` is empty for survival."""

    classes: tuple[str, ...]
    rows: tuple[Prediction, ...]


@dataclass(frozen=True)
class LeftOut:
    """A case of the task that an experiment could not predict, the fold that holds it out (`ENSEMBLE` for a case of an
    external cohort), and why."""

    case_id: str
    fold: int
    reason: str


def left_out_path(path: str | Path) -> Path:
    """Where the cases without a prediction are listed."""
    path = Path(path)
    return path.with_name(f"{path.stem}_left_out.tsv")


def write_predictions(path: str | Path, classes: Sequence[str], rows: Iterable[Prediction]) -> None:
    """Sorted by case and fold; `classes` is empty for survival."""
    columns, table = _table(classes, sorted(rows, key=_place))
    write_table(path, columns, table)


def write_slide_predictions(path: str | Path, classes: Sequence[str], rows: Iterable[SlidePrediction]) -> None:
    """Sorted by case, fold and slide; `classes` is empty for survival."""
    ordered = sorted(rows, key=lambda slide: (*_place(slide.row), slide.slide_id))
    columns, table = _table(classes, [slide.row for slide in ordered])
    own = ("slide_id", "n_slides", "trained_on")
    write_table(
        path,
        [*own, *columns],
        ({**{key: getattr(s, key) for key in own}, **row} for s, row in zip(ordered, table, strict=True)),
    )


def _place(row: Prediction) -> tuple[str, bool, int]:
    """Order of the rows: by case, then by fold, the mean over folds last."""
    return row.case_id, row.fold == ENSEMBLE, row.fold


def _table(classes: Sequence[str], rows: Sequence[Prediction]) -> tuple[list[str], list[dict[str, Any]]]:
    if classes:
        return _class_table(classes, [row for row in rows if isinstance(row, ClassPrediction)])
    return _survival_table([row for row in rows if isinstance(row, SurvivalPrediction)])


def _class_table(classes: Sequence[str], rows: Sequence[ClassPrediction]) -> tuple[list[str], list[dict[str, Any]]]:
    columns = ["case_id", "fold", *(f"p_{name}" for name in classes), "label", "predicted"]
    table = [
        {
            "case_id": row.case_id,
            "fold": _fold_text(row.fold),
            **{f"p_{name}": p for name, p in zip(classes, row.probability, strict=True)},
            "label": row.label,
            "predicted": row.predicted,
            "lacking": row.lacking,
            "checkpoint": row.checkpoint,
            "format_version": FORMAT_VERSION,
        }
        for row in rows
    ]
    return [*columns, "lacking", "checkpoint", "format_version"], table


def _survival_table(rows: Sequence[SurvivalPrediction]) -> tuple[list[str], list[dict[str, Any]]]:
    bins = max((len(row.survival) for row in rows), default=1)
    numbers = range(1, bins + 1)
    columns = ["case_id", "fold", "risk", *(f"survival_{k}" for k in numbers), *(f"edge_{k}" for k in numbers)]
    table = [
        {
            "case_id": row.case_id,
            "fold": _fold_text(row.fold),
            "risk": row.risk,
            **{f"survival_{k}": value for k, value in enumerate(row.survival, start=1)},
            **{f"edge_{k}": value for k, value in enumerate(row.edges, start=1)},
            "time": row.time,
            "event": row.event,
            "lacking": row.lacking,
            "checkpoint": row.checkpoint,
            "format_version": FORMAT_VERSION,
        }
        for row in rows
    ]
    return [*columns, "time", "event", "lacking", "checkpoint", "format_version"], table


def read_predictions(path: str | Path) -> Predictions:
    """Read a table of one row per case.

    Raises FormatError for an unknown version, a repeated case or a field that is no number.
    """
    table = _read(path)
    _refuse_repeated(path, "case", [row.case_id for row in table.rows])
    return table


def read_external_predictions(path: str | Path) -> Predictions:
    """Read a table of one row per case and fold. Raises FormatError as `read_predictions` does."""
    table = _read(path)
    _refuse_repeated(path, "case and fold", [(row.case_id, row.fold) for row in table.rows])
    return table


def read_slide_predictions(path: str | Path) -> tuple[tuple[str, ...], list[SlidePrediction]]:
    """Classes and rows of a table of one row per slide. Raises FormatError as `read_predictions` does."""
    table = _read(path)
    own = read_table(path, ["slide_id", "n_slides", "trained_on"])
    _refuse_repeated(path, "slide", [record["slide_id"] for record in own])
    return table.classes, [
        SlidePrediction(record["slide_id"], int(record["n_slides"]), record["trained_on"], row)
        for record, row in zip(own, table.rows, strict=True)
    ]


def _refuse_repeated(path: str | Path, what: str, keys: Sequence[Any]) -> None:
    if len(set(keys)) != len(keys):
        raise FormatError(f"{path}: a {what} occurs twice. Fix: delete it and rerun predict_cases.")


def _read(path: str | Path) -> Predictions:
    records = read_table(path, ["case_id", "fold", "checkpoint", "format_version"])
    for record in records:
        check_version(path, KIND, FORMAT_VERSION, KIND, int(record["format_version"] or 0))
    classes = tuple(name[2:] for name in _columns(path) if name.startswith("p_"))
    try:
        rows = tuple(_class_row(r, classes) if classes else _survival_row(r) for r in records)
    except (KeyError, ValueError) as error:
        raise FormatError(f"{path}: {error}. Fix: delete it and rerun predict_cases.") from error
    return Predictions(classes, rows)


def _fold_text(fold: int) -> str:
    return "mean" if fold == ENSEMBLE else str(fold)


def _fold(text: str) -> int:
    return ENSEMBLE if text == "mean" else int(text)


def _columns(path: str | Path) -> list[str]:
    with open(path, newline="", encoding="utf-8-sig") as handle:
        return next(csv.reader(handle, delimiter="\t"))


def _class_row(record: dict[str, str], classes: Sequence[str]) -> ClassPrediction:
    probability = tuple(float(record[f"p_{name}"]) for name in classes)
    return ClassPrediction(
        record["case_id"],
        _fold(record["fold"]),
        probability,
        record["label"],
        record["predicted"],
        record["checkpoint"],
        record["lacking"],
    )


def _survival_row(record: dict[str, str]) -> SurvivalPrediction:
    def series(name: str) -> tuple[float, ...]:
        texts = [value for key, value in record.items() if key.startswith(f"{name}_")]
        return tuple(float(text) for text in texts if text)

    return SurvivalPrediction(
        record["case_id"],
        _fold(record["fold"]),
        float(record["risk"]),
        series("survival"),
        series("edge"),
        float(record["time"]) if record["time"] else None,
        int(record["event"]) if record["event"] else None,
        record["checkpoint"],
        record["lacking"],
    )


def write_left_out(path: str | Path, rows: Iterable[LeftOut]) -> None:
    ordered = sorted(rows, key=lambda row: (row.case_id, row.fold))
    write_table(path, LEFT_OUT_COLUMNS, [{**vars(row), "fold": _fold_text(row.fold)} for row in ordered])


def read_left_out(path: str | Path) -> list[LeftOut]:
    return [LeftOut(r["case_id"], _fold(r["fold"]), r["reason"]) for r in read_table(path, LEFT_OUT_COLUMNS)]
