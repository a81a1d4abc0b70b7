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
    pace = _Pace(sum(row.status == OK for row in upstream.values()), max(1, threads))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        # one at a time stays in this thread: torch's number of threads is a setting of the thread that computes
        rows = (pool.map if threads > 1 else map)(lambda up: _run_slide(stage, up), upstream.values())
        for row in rows:
            done.append(row)
            logger.info(
                "%s: %d of %d slides%s, %s %s in %.1f s%s",
                stage.name, len(done), len(upstream), pace.after(row, upstream[row.slide_id]), row.slide_id, row.status,
                row.seconds, f" ({row.reason})" if row.reason else "",
            )  # fmt: skip
    write_batch(index_path, done)
    return done


class _Pace:
    """How fast a batch goes and how long it will take, as text for the log.

    Slides found finished cost no time and say nothing of the others, which are taken to need as long as those done now.
    """

    def __init__(self, to_do: int, threads: int) -> None:
        self._left, self._threads = to_do, threads
        self._worked, self._seconds = 0, 0.0

    def after(self, row: BatchRow, upstream: BatchRow) -> str:
        """Count a slide; empty until one was worked on."""
        self._left -= upstream.status == OK
        self._worked += row.seconds > 0
        self._seconds += row.seconds
        if not self._worked:
            return ""
        per_slide = self._seconds / self._worked / self._threads
        text = f" ({1 / per_slide:.2f} slides/s"
        return text + (f", about {duration(self._left * per_slide)} left)" if self._left else ")")


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


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
