"""Out-of-fold predictions of one experiment on one task: a row per case (standard library only).

Classification: ``case_id, fold, p_<class> ..., label, predicted``. Survival: ``case_id, fold, risk, survival_1 ..,
edge_1 .., time, event``; `survival_k` is the probability to outlive `edge_k`, in the task's unit, and both are empty
beyond a fold's number of intervals. Both end in ``checkpoint`` (digest of the fold's) and ``format_version``.
A second table beside it, ``<name>_left_out.tsv``, lists the cases of the task without a prediction, with the reason.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import check_version, read_table, write_table

KIND = "predictions"
FORMAT_VERSION = 1
LEFT_OUT_COLUMNS = ("case_id", "fold", "reason")


@dataclass(frozen=True)
class ClassPrediction:
    """`probability` is in the order of the table's classes; `label` is the true class, "" where unknown."""

    case_id: str
    fold: int
    probability: tuple[float, ...]
    label: str
    predicted: str
    checkpoint: str = ""


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


@dataclass(frozen=True)
class Predictions:
    """All rows of one table, sorted by case and fold. `classes` is empty for survival."""

    classes: tuple[str, ...]
    rows: tuple[ClassPrediction | SurvivalPrediction, ...]


@dataclass(frozen=True)
class LeftOut:
    """A case of the task that an experiment could not predict, the fold that holds it out, and why."""

    case_id: str
    fold: int
    reason: str


def left_out_path(path: str | Path) -> Path:
    """Where the cases without a prediction are listed."""
    path = Path(path)
    return path.with_name(f"{path.stem}_left_out.tsv")


def write_class_predictions(path: str | Path, classes: Sequence[str], rows: Iterable[ClassPrediction]) -> None:
    columns = ["case_id", "fold", *(f"p_{name}" for name in classes), "label", "predicted"]
    table = [
        {
            "case_id": row.case_id,
            "fold": row.fold,
            **{f"p_{name}": p for name, p in zip(classes, row.probability, strict=True)},
            "label": row.label,
            "predicted": row.predicted,
            "checkpoint": row.checkpoint,
            "format_version": FORMAT_VERSION,
        }
        for row in sorted(rows, key=lambda row: (row.case_id, row.fold))
    ]
    write_table(path, [*columns, "checkpoint", "format_version"], table)


def write_survival_predictions(path: str | Path, rows: Iterable[SurvivalPrediction]) -> None:
    rows = sorted(rows, key=lambda row: (row.case_id, row.fold))
    bins = max((len(row.survival) for row in rows), default=1)
    numbers = range(1, bins + 1)
    columns = ["case_id", "fold", "risk", *(f"survival_{k}" for k in numbers), *(f"edge_{k}" for k in numbers)]
    table = [
        {
            "case_id": row.case_id,
            "fold": row.fold,
            "risk": row.risk,
            **{f"survival_{k}": value for k, value in enumerate(row.survival, start=1)},
            **{f"edge_{k}": value for k, value in enumerate(row.edges, start=1)},
            "time": row.time,
            "event": row.event,
            "checkpoint": row.checkpoint,
            "format_version": FORMAT_VERSION,
        }
        for row in rows
    ]
    write_table(path, [*columns, "time", "event", "checkpoint", "format_version"], table)


def read_predictions(path: str | Path) -> Predictions:
    """Read either table. Raises FormatError for an unknown version, a repeated case or a field that is no number."""
    records = read_table(path, ["case_id", "fold", "checkpoint", "format_version"])
    for record in records:
        check_version(path, KIND, FORMAT_VERSION, KIND, int(record["format_version"] or 0))
    columns = _columns(path)
    classes = tuple(name[2:] for name in columns if name.startswith("p_"))
    try:
        rows = tuple(_class_row(r, classes) if classes else _survival_row(r) for r in records)
    except (KeyError, ValueError) as error:
        raise FormatError(f"{path}: {error}. Fix: delete it and rerun predict_cases.") from error
    if len({row.case_id for row in rows}) != len(rows):
        raise FormatError(f"{path}: a case occurs twice. Fix: delete it and rerun predict_cases.")
    return Predictions(classes, rows)


def _columns(path: str | Path) -> list[str]:
    with open(path, newline="", encoding="utf-8-sig") as handle:
        return next(csv.reader(handle, delimiter="\t"))


def _class_row(record: dict[str, str], classes: Sequence[str]) -> ClassPrediction:
    probability = tuple(float(record[f"p_{name}"]) for name in classes)
    return ClassPrediction(
        record["case_id"], int(record["fold"]), probability, record["label"], record["predicted"], record["checkpoint"]
    )


def _survival_row(record: dict[str, str]) -> SurvivalPrediction:
    def series(name: str) -> tuple[float, ...]:
        texts = [value for key, value in record.items() if key.startswith(f"{name}_")]
        return tuple(float(text) for text in texts if text)

    return SurvivalPrediction(
        record["case_id"],
        int(record["fold"]),
        float(record["risk"]),
        series("survival"),
        series("edge"),
        float(record["time"]) if record["time"] else None,
        int(record["event"]) if record["event"] else None,
        record["checkpoint"],
    )


def write_left_out(path: str | Path, rows: Iterable[LeftOut]) -> None:
    ordered = sorted(rows, key=lambda row: (row.case_id, row.fold))
    write_table(path, LEFT_OUT_COLUMNS, [vars(row) for row in ordered])


def read_left_out(path: str | Path) -> list[LeftOut]:
    return [LeftOut(r["case_id"], int(r["fold"]), r["reason"]) for r in read_table(path, LEFT_OUT_COLUMNS)]
