"""Run one stage over a batch of slides: skip what is finished and verified, record what fails, go on with the rest."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pipeline.contracts.batches import FAILED, OK, VOID, BatchRow, write_batch
from pipeline.contracts.errors import HistoweaveError, InputError, MachineError
from pipeline.pace import Pace

logger = logging.getLogger(__name__)

#: faults of the disk or the system, which would be recorded wrongly as faults of a slide
MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Void(Exception):
    """Raised by a stage: there is nothing to do for this slide and no fault either (no tissue, not H&E, ...)."""


class Stage(Protocol):
    """What `run_batch` needs of a stage. Its files are undeclared, so Snakemake never deletes finished ones."""

    name: str

    def digest(self, upstream: BatchRow) -> str:
        """Digest of the artefact that this slide must have, from the stage's parameters and `upstream.digest`."""

    def find(self, slide_id: str, digest: str) -> str | None:
        """Remark ("" for none) of a finished artefact that verifies against `digest`; None if it must be made."""

    def make(self, slide_id: str, digest: str) -> str:
        """Write the artefact whole and return a remark.

        Raises `Void`, `InputError` or `MachineError` to stop the job, or any other exception for a failed slide.
        """


def run_batch(
    stage: Stage, upstream: Mapping[str, BatchRow], index_path: str | Path, threads: int = 1
) -> list[BatchRow]:
    """Bring every slide of a batch through `stage` and write the batch's index last.

    Slides that an earlier stage lost keep that stage's verdict; remarks on the others add up from stage to stage.
    `threads` slides are worked on at a time.
    """
    done: list[BatchRow] = []
    pace = Pace(sum(row.status == OK for row in upstream.values()), max(1, threads))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        # one at a time stays in this thread: torch's number of threads is a setting of the thread that computes
        rows = (pool.map if threads > 1 else map)(lambda up: _run_slide(stage, up), upstream.values())
        for row in rows:
            done.append(row)
            speed = pace.after(row.seconds, upstream[row.slide_id].status == OK)
            logger.info(
                "%s: %d of %d slides%s, %s %s in %.1f s%s",
                stage.name, len(done), len(upstream), speed, row.slide_id, row.status, row.seconds,
                f" ({row.reason})" if row.reason else "",
            )  # fmt: skip
    write_batch(index_path, done)
    return done


def _run_slide(stage: Stage, upstream: BatchRow) -> BatchRow:
    if upstream.status != OK:
        return replace(upstream, digest="", seconds=0.0)
    started = time.monotonic()
    row = BatchRow(upstream.slide_id, upstream.case_id, OK, stage.name)
    try:
        digest = stage.digest(upstream)
        note = stage.find(row.slide_id, digest)
        is_finished = note is not None
        note = note if is_finished else stage.make(row.slide_id, digest)
        remarks = "; ".join(filter(None, [upstream.reason, note]))
        row = replace(row, reason=remarks, digest=digest)
        if is_finished:
            return row
    except (InputError, MachineError, MemoryError):
        raise  # settings or machine are at fault: every slide would fail, and a rerun must try again
    except Void as verdict:
        row = replace(row, status=VOID, reason=str(verdict))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
            raise MachineError(f"{stage.name}, slide {row.slide_id}: {error}. Fix: mend it and rerun.") from error
        if not isinstance(error, HistoweaveError):
            logger.exception("%s: %s failed unexpectedly", stage.name, row.slide_id)
        reason = str(error) if isinstance(error, HistoweaveError) else f"{type(error).__name__}: {error}"
        row = replace(row, status=FAILED, reason=reason)
    return replace(row, seconds=round(time.monotonic() - started, 3))
