"""How far a batch of slides is, how fast it goes and how long it will take, in words for the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

EVERY_SECONDS = 30.0


class Progress:
    """Counts slides, and tiles where there are any. Slides to come are taken to be like those worked on so far.

    Parameters
    ----------
    label : what the lines begin with
    due : of each slide of the batch in order, whether an earlier stage left it anything to do
    clock : seconds that the work has taken
    """

    def __init__(self, label: str, due: Sequence[bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._due, self._clock = label, due, clock
        self._started = self._reported = clock()
        self._passed = self._worked = self._tiles = 0

    def finish_slide(self, position: int, worked: bool = True, remark: str = "") -> None:
        """The slide at `position` of the batch, from 1, is done; those before it were, or needed no work.

        `worked` is False if it was found finished, which says nothing of the speed.
        """
        self._passed = position
        self._worked += worked
        self._report(remark)

    def add_tiles(self, n: int) -> None:
        self._tiles += n
        if self._clock() - self._reported >= EVERY_SECONDS:
            self._report()

    def _report(self, remark: str = "") -> None:
        self._reported = self._clock()
        logger.info("%s", f"{self}: {remark}" if remark else str(self))

    def __str__(self) -> str:
        seconds = max(self._clock() - self._started, 1e-9)
        parts = [f"{self._label}: {self._passed} of {len(self._due)} slides"]
        if self._tiles:
            parts.append(f"{self._tiles} tiles, {self._tiles / seconds:.1f} tiles/s")
        elif self._worked:
            parts.append(f"{self._worked / seconds:.2f} slides/s")
        left = sum(self._due[self._passed :])
        if self._worked and left:
            parts.append(f"about {duration(seconds / self._worked * left)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
