"""Run one stage over a batch of slides: skip what is finished and verified, record what fails, go on with the rest."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from pipeline.contracts.batches import FAILED, OK, VOID, BatchRow, write_batch
from pipeline.contracts.errors import HistoweaveError, InputError, MachineError
from pipeline.progress import Progress

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: faults of the disk or the system, which would be recorded wrongly as faults of a slide
MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Void(Exception):
    """Raised by a stage: there is nothing to do for this slide and no fault either (no tissue, not H&E, ...)."""


class Finder(Protocol):
    """What tells a finished slide. Its files are undeclared, so Snakemake never deletes finished ones."""

    name: str

    def digest(self, upstream: BatchRow) -> str:
        """Digest of the artefact that this slide must have, from the stage's parameters and `upstream.digest`."""

    def find(self, slide_id: str, digest: str) -> str | None:
        """Remark ("" for none) of a finished artefact that verifies against `digest`; None if it must be made."""


class Stage(Finder, Protocol):
    """What `run_batch` needs of a stage."""

    def make(self, slide_id: str, digest: str) -> str:
        """Write the artefact whole and return a remark.

        Raises `Void`, `InputError` or `MachineError` to stop the job, or any other exception for a failed slide.
        """


@dataclass(frozen=True)
class Lack:
    """A slide, and for each stage (by its number) that lacks its artefact the digest that this must have.

    `position` of the slide in its batch, from 1.
    """

    slide_id: str
    digests: Mapping[int, str]
    position: int


@dataclass(frozen=True)
class Made:
    """What became of a slide in one stage: a remark, or the exception that is its own fault."""

    slide_id: str
    stage: int
    outcome: str | Exception
    digest: str
    seconds: float


def run_batch(
    stage: Stage, upstream: Mapping[str, BatchRow], index_path: str | Path, threads: int = 1
) -> list[BatchRow]:
    """Bring every slide of a batch through `stage` and write the batch's index last.

    Slides that an earlier stage lost keep that stage's verdict; remarks on the others add up from stage to stage.
    `threads` slides are worked on at a time.
    """
    threads = max(1, threads)
    done: list[BatchRow] = []
    progress = Progress(stage.name, are_due(upstream), lambda: sum(row.seconds for row in done) / threads)
    with ThreadPoolExecutor(threads) as pool:
        # one at a time stays in this thread: torch's number of threads is a setting of the thread that computes
        rows = (pool.map if threads > 1 else map)(lambda up: _run_slide(stage, up), upstream.values())
        for row in rows:
            done.append(row)
            reason = f" ({row.reason})" if row.reason else ""
            remark = f"{row.slide_id} {row.status} in {row.seconds:.1f} s{reason}"
            progress.finish_slide(len(done), row.seconds > 0, remark)
    write_batch(index_path, done)
    return done


def run_together(
    stages: Sequence[Finder],
    make_all: Callable[[Iterable[Lack]], Iterable[Made]],
    upstream: Mapping[str, BatchRow],
    index_paths: Sequence[str | Path],
) -> list[list[BatchRow]]:
    """As `run_batch`, for several stages that share the work of making; each has its own index.

    `make_all` gets, one by one and when it asks for them, the slides that lack anything, and says in any order what
    became of each. It may look ahead to the next slides while it works on one.
    """
    done: list[dict[str, BatchRow]] = [{} for _ in stages]

    def lacking() -> Iterator[Lack]:
        for position, before in enumerate(upstream.values(), start=1):
            digests = {}
            for k, stage in enumerate(stages):
                found = _looked_up(stage, before)
                if isinstance(found, BatchRow):
                    done[k][before.slide_id] = found
                else:
                    digests[k] = found
            if digests:
                yield Lack(before.slide_id, digests, position)

    for made in make_all(lacking()):
        before = upstream[made.slide_id]
        done[made.stage][made.slide_id] = _verdict(
            stages[made.stage], before, made.outcome, made.digest, made.seconds
        )  # fmt: skip
    for rows, path in zip(done, index_paths, strict=True):
        write_batch(path, rows.values())
    return [[rows[slide_id] for slide_id in upstream] for rows in done]


def are_due(upstream: Mapping[str, BatchRow]) -> list[bool]:
    """Of each slide in order, whether it came through the stage before."""
    return [row.status == OK for row in upstream.values()]


def caught(where: str, work: Callable[[], T]) -> T | Exception:
    """The result of `work`, or the exception that is one slide's own fault (or its `Void`).

    Raises InputError, MachineError and MemoryError: with them every slide would fail, and a rerun must try again.
    """
    try:
        return work()
    except (InputError, MachineError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
            raise MachineError(f"{where}: {error}. Fix: mend it and rerun.") from error
        return error


def _run_slide(stage: Stage, upstream: BatchRow) -> BatchRow:
    started = time.monotonic()
    found = _looked_up(stage, upstream)
    if isinstance(found, BatchRow):
        return found
    outcome = caught(_where(stage, upstream), lambda: stage.make(upstream.slide_id, found))
    return _verdict(stage, upstream, outcome, found, time.monotonic() - started)


def _looked_up(stage: Finder, upstream: BatchRow) -> BatchRow | str:
    """The row of a slide that needs no work, else the digest that its artefact must have."""
    if upstream.status != OK:
        return replace(upstream, digest="", seconds=0.0)
    where = _where(stage, upstream)
    digest = caught(where, lambda: stage.digest(upstream))
    if isinstance(digest, Exception):
        return _verdict(stage, upstream, digest)
    note = caught(where, lambda: stage.find(upstream.slide_id, digest))
    return digest if note is None else _verdict(stage, upstream, note, digest)


def _where(stage: Finder, upstream: BatchRow) -> str:
    return f"{stage.name}, slide {upstream.slide_id}"


def _verdict(
    stage: Finder, upstream: BatchRow, outcome: str | Exception, digest: str = "", seconds: float = 0.0
) -> BatchRow:
    """The row of a slide: `outcome` is the remark on its artefact, or why there is none."""
    row = BatchRow(upstream.slide_id, upstream.case_id, OK, stage.name, seconds=round(seconds, 3))
    if isinstance(outcome, str):
        return replace(row, reason="; ".join(filter(None, [upstream.reason, outcome])), digest=digest)
    if isinstance(outcome, Void):
        return replace(row, status=VOID, reason=str(outcome))
    if isinstance(outcome, HistoweaveError):
        return replace(row, status=FAILED, reason=str(outcome))
    logger.error("%s: %s failed unexpectedly", stage.name, row.slide_id, exc_info=outcome)
    return replace(row, status=FAILED, reason=f"{type(outcome).__name__}: {outcome}")
