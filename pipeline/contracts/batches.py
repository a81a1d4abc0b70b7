"""The index that a batch job declares: one row per slide with what became of it (standard library only)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import read_table, write_table

OK = "ok"  #: the slide's file is complete and verified
EXCLUDED = "excluded"  #: the user's sheet says so; never a failure
VOID = "void"  #: nothing to do for this slide and no fault: no tissue, no magnification that it allows, not H&E
FAILED = "failed"  #: the slide could not be processed; the workflow ends with an error unless allowed
STATUSES = (OK, EXCLUDED, VOID, FAILED)


@dataclass(frozen=True)
class BatchRow:
    """What became of one slide in one stage.

    `reason` is empty for a flawless slide, a note for an `ok` one with a remark, the cause otherwise. `stage` names the
    stage that decided, so a slide lost at `check` still says so in every later index. `digest` is the artefact's.
    `seconds` is wall time spent now, 0 for a slide that was found finished.
    """

    slide_id: str
    case_id: str
    status: str
    stage: str
    reason: str = ""
    digest: str = ""
    seconds: float = 0.0


def write_batch(path: str | Path, rows: Iterable[BatchRow]) -> None:
    rows = sorted(rows, key=lambda row: row.slide_id)
    write_table(path, [f.name for f in fields(BatchRow)], [asdict(row) for row in rows])


def read_batch(path: str | Path) -> dict[str, BatchRow]:
    """Rows by slide_id. Raises FormatError for an unknown status."""
    rows = {}
    for record in read_table(path, [f.name for f in fields(BatchRow)]):
        if record["status"] not in STATUSES:
            raise FormatError(f"{path}: unknown status '{record['status']}'. Fix: delete it and rerun its stage.")
        texts = {name: text for name, text in record.items() if name != "seconds"}
        rows[record["slide_id"]] = BatchRow(**texts, seconds=float(record["seconds"]))
    return rows
