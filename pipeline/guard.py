"""Do a batch's work in a process of its own, so that no slide can take the job down.

The libraries that decode slides are written in C: on some damaged files they abort, crash, take all memory or never
return. The job therefore forks before it touches a slide, and looks on. A process that dies or stands still costs the
slide that it was at; a new one passes over that slide and does the others. A fork takes milliseconds, and finished
slides are not made again.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.contracts.batches import BatchRow
from pipeline.contracts.errors import HistoweaveError, MachineError, SlideError

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # as the system kills when memory runs out


@dataclass(frozen=True)
class Limits:
    """What a slide may take: `seconds` of wall time, `memory_bytes` of address space on top of what the job has.

    None is no limit. The memory is for all slides that are worked on at a time.
    """

    seconds: float | None = None
    memory_bytes: int | None = None


OPENING = Limits(seconds=15 * 60, memory_bytes=8 * 2**30)  #: a new file, of which nothing is known
LOOKING = Limits(seconds=4 * 3600)  #: thumbnails and fields of a slide that opened


class Watch:
    """What the work in the guarded process says of itself, and what it must know of processes that died before.

    Attributes
    ----------
    lost : slide id -> why it must not be touched again: an earlier process died at it
    alone : slides must be worked on one at a time, since one of several killed an earlier process
    """

    def __init__(self, lost: Mapping[str, str], alone: bool, pipe: Connection | None = None) -> None:
        self.lost, self.alone = dict(lost), alone
        self._pipe, self._lock = pipe, threading.Lock()

    def threads(self, wanted: int) -> int:
        return 1 if self.alone else wanted

    @contextmanager
    def working(self, slide_id: str) -> Iterator[None]:
        """Say that a slide is being worked on. Raises SlideError for one that is lost."""
        if slide_id in self.lost:
            raise SlideError(self.lost[slide_id])
        self.begin(slide_id)
        try:
            yield
        finally:
            self.leave(slide_id)

    def begin(self, slide_id: str) -> None:
        self.say("begun", slide_id)

    def leave(self, slide_id: str) -> None:
        self.say("left", slide_id)

    def say(self, what: str, content: Any) -> None:
        if self._pipe is not None:
            with self._lock:
                self._pipe.send((what, content))

    def stage(self, stage: Any) -> Any:
        """`stage` for `pipeline.batches.run_batch`, its work on each slide watched."""
        return _WatchedStage(stage, self)


class _WatchedStage:
    def __init__(self, stage: Any, watch: Watch) -> None:
        self._stage, self._watch = stage, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def digest(self, upstream: BatchRow) -> str:
        """The first that is asked of a stage, and the last for a slide that is lost. Raises SlideError for that."""
        slide_id = upstream.slide_id
        if slide_id in self._watch.lost and hasattr(self._stage, "refuse"):
            self._stage.refuse(slide_id, self._watch.lost[slide_id])
        with self._watch.working(slide_id):
            return self._stage.digest(upstream)

    def find(self, slide_id: str, digest: str) -> str | None:
        with self._watch.working(slide_id):
            return self._stage.find(slide_id, digest)

    def make(self, slide_id: str, digest: str) -> str:
        with self._watch.working(slide_id):
            return self._stage.make(slide_id, digest)


UNWATCHED = Watch({}, alone=False)  #: in a process that nobody guards


def guarded(work: Callable[[Watch], None], limits: Limits = Limits()) -> None:
    """Call `work` in a process of its own, again without the slides at which it died until it comes to its end.

    Parameters
    ----------
    work : finds what an earlier call finished, and tells its Watch what it is at. It must do everything that touches a
        slide or starts threads, and nothing that this process needs.

    Raises
    ------
    HistoweaveError, MemoryError : as `work` raised it
    MachineError : the process was killed from outside twice at one slide, or died while it was at none
    """
    if not hasattr(os, "fork"):
        return work(UNWATCHED)
    guard = _Guard(limits)
    while not guard.is_done:
        guard.run(work)
    return None


@dataclass
class _Guard:
    limits: Limits
    lost: dict[str, str] = field(default_factory=dict)
    alone: bool = False
    is_done: bool = False
    deaths: Counter[str] = field(default_factory=Counter)

    def run(self, work: Callable[[Watch], None]) -> None:
        """One process, until it has done its work or has ended otherwise."""
        ours, theirs = multiprocessing.Pipe(duplex=False)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            ours.close()
            _work(work, Watch(self.lost, self.alone, theirs), self.limits, parent)
        theirs.close()
        begun: dict[str, float] = {}
        try:
            late, error = self._listen(ours, begun)
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)  # it has ended, stands still, or this job is being stopped
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            ours.close()
        if error is not None:
            raise error
        if late:
            self._lose(late, f"it took longer than {self.limits.seconds:g} s")
        elif not self.is_done:
            self._blame(list(begun), code)

    def _listen(self, pipe: Connection, begun: dict[str, float]) -> tuple[str, Exception | None]:
        """Follow the process until it is done, has ended, or a slide takes too long.

        `begun` is kept: the slides that are worked on and since when. Returns the slide that takes too long, and the
        exception that `work` raised.
        """
        while True:
            wait = None
            if self.limits.seconds is not None and begun:
                slide_id = min(begun, key=begun.__getitem__)
                wait = begun[slide_id] + self.limits.seconds - time.monotonic()
                if wait <= 0:
                    return slide_id, None
            try:
                if not pipe.poll(wait):
                    continue
                what, content = pipe.recv()
            except (EOFError, ConnectionResetError):
                return "", None
            if what == "begun":
                begun[content] = time.monotonic()
            elif what == "left":
                begun.pop(content, None)
            elif what == "done":
                self.is_done = True
            else:
                return "", content

    def _blame(self, at: list[str], code: int) -> None:
        """Draw the consequence of a process that died at the slides `at`."""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self.deaths.update(at or [""])
        if at and len(at) == 1 and -code not in _FROM_OUTSIDE:
            self._lose(at[0], f"the library that reads it crashed ({how})")
        elif max(self.deaths[slide_id] for slide_id in at or [""]) > 2:
            where = f"at slide {', '.join(at)}" if at else "between two slides"
            raise MachineError(f"the process died {where} ({how}), three times. Fix: give the job more memory.")
        else:
            logger.warning(
                "the process died (%s) at %s; trying again, one slide at a time", how, ", ".join(at) or "none"
            )
            self.alone = True

    def _lose(self, slide_id: str, reason: str) -> None:
        logger.error("slide %s is given up: %s", slide_id, reason)
        self.lost[slide_id] = f"{reason}. Fix: copy the file again from its source, or exclude the slide in slides.tsv."


def _work(work: Callable[[Watch], None], watch: Watch, limits: Limits, parent: int) -> None:
    """What the forked process does. It never returns, so that nothing of the job runs twice."""
    try:
        _die_with(parent)
        if limits.memory_bytes is not None:
            _limit_memory(limits.memory_bytes)
        work(watch)
        watch.say("done", None)
    except (HistoweaveError, MemoryError) as error:
        watch.say("stop", error)
    except Exception:
        logger.exception("unexpected error")
        watch.say("stop", MachineError("unexpected error; please report it with this log."))
    finally:
        for flush in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
            with suppress(Exception):
                flush()
        os._exit(0)


def _die_with(parent: int) -> None:
    """A killed job must not leave a process behind that writes beside its successor."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit_memory(more: int) -> None:
    """Let this process map at most `more` bytes on top of what it has: an allocation beyond fails at once."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = mapped + more
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
