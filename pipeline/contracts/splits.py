"""Fold tables: a row per case and fold with its role. The user's ledger is the same format (standard library only).

A table of plain columns is its own format version: a file with other columns or roles is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.files import read_table, write_table

COLUMNS = ("case_id", "fold", "role")
TRAIN, VAL, TEST = ROLES = ("train", "val", "test")
EXTERNAL = "external"  #: role of a case of another cohort in every fold of ``splits/splits.tsv``, never in the ledger


@dataclass(frozen=True)
class SplitRow:
    """The role of one case in one fold; folds count from 0."""

    case_id: str
    fold: int
    role: str


@dataclass(frozen=True)
class Splits:
    """All rows of a fold table, in the file's order."""

    rows: tuple[SplitRow, ...]

    @property
    def n_folds(self) -> int:
        return 1 + max((row.fold for row in self.rows), default=-1)

    def cases(self, fold: int, role: str) -> list[str]:
        """Cases with a role in a fold, sorted."""
        return sorted(row.case_id for row in self.rows if row.fold == fold and row.role == role)

    @property
    def external(self) -> list[str]:
        """Cases of external cohorts, sorted: tested by the model of every fold, in no fold's training."""
        return sorted({row.case_id for row in self.rows if row.role == EXTERNAL})

    def roles(self) -> dict[str, dict[int, str]]:
        """Role by case and fold."""
        table: dict[str, dict[int, str]] = {}
        for row in self.rows:
            table.setdefault(row.case_id, {})[row.fold] = row.role
        return table


def write_splits(path: str | Path, rows: Iterable[SplitRow]) -> None:
    write_table(path, COLUMNS, [asdict(row) for row in rows])


def read_splits(path: str | Path) -> Splits:
    """Read a fold table of ours or of the user's.

    Raises InputError, naming the row, for a missing column, a fold that is not a whole number from 0, an unknown role,
    or a case with two rows in one fold.
    """
    rows, seen = [], set()
    for number, record in enumerate(read_table(path, COLUMNS), start=2):
        where = f"{path} row {number} (case_id '{record['case_id']}')"
        if not record["case_id"]:
            raise InputError(where, "case_id is empty.", "name the case or delete the row.")
        if not (record["fold"].isascii() and record["fold"].isdigit()):
            raise InputError(
                where, f"fold '{record['fold']}' is not a whole number from 0.", "number folds 0, 1, 2 ..."
            )
        if record["role"] not in (*ROLES, EXTERNAL):
            raise InputError(
                where,
                f"role '{record['role']}' is none of {', '.join(ROLES)}{nearest(record['role'], ROLES)}.",
                "correct the role.",
            )
        row = SplitRow(record["case_id"], int(record["fold"]), record["role"])
        if (row.case_id, row.fold) in seen:
            raise InputError(where, f"the case has two rows for fold {row.fold}.", "keep one of them.")
        seen.add((row.case_id, row.fold))
        rows.append(row)
    return Splits(tuple(rows))
