"""The index that a training job declares: one row per fold with what became of it (standard library only)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import read_table, write_table

OK = "ok"
FAILED = "failed"
NUMBERS = ("fold", "n_train", "n_val", "epochs", "best_epoch")


@dataclass(frozen=True)
class FoldRow:
    """What became of one fold.

    `reason` is the cause of a failure, or remarks on a trained fold. `digest` is the checkpoint's. `epochs` were run,
    and `best_epoch` (from 1) is the one whose weights were kept. `seconds` is wall time spent now, 0 for a fold that
    was found finished.
    """

    fold: int
    status: str
    reason: str = ""
    digest: str = ""
    n_train: int = 0
    n_val: int = 0
    epochs: int = 0
    best_epoch: int = 0
    seconds: float = 0.0


def write_folds(path: str | Path, rows: Iterable[FoldRow]) -> None:
    rows = sorted(rows, key=lambda row: row.fold)
    write_table(path, [f.name for f in fields(FoldRow)], [asdict(row) for row in rows])


def read_folds(path: str | Path) -> list[FoldRow]:
    """Rows by fold. Raises FormatError for an unknown status or a field that is no number."""
    rows = []
    for record in read_table(path, [f.name for f in fields(FoldRow)]):
        try:
            numbers = {key: int(record[key]) for key in NUMBERS}
            row = FoldRow(
                status=record["status"],
                reason=record["reason"],
                digest=record["digest"],
                seconds=float(record["seconds"]),
                **numbers,
            )
        except ValueError as error:
            raise FormatError(f"{path}: {error}. Fix: delete it and rerun train_model.") from error
        rows.append(row)
        if record["status"] not in (OK, FAILED):
            raise FormatError(f"{path}: unknown status '{record['status']}'. Fix: delete it and rerun train_model.")
    return rows
