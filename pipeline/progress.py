"""Says now and then how far a batch of slides is, how fast, and how long it will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

EVERY_SECONDS = 30.0


class Progress:
    """Counts slides and tiles. The time left assumes that the slides to come are like those done so far.

    Parameters
    ----------
    label : what the lines begin with
    slides : of the whole batch
    clock : seconds
    """

    def __init__(self, label: str, slides: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._slides, self._clock = label, slides, clock
        self._started = self._reported = clock()
        self._passed = self._finished = 0
        self._tiles = 0

    def finish_slide(self, position: int) -> None:
        """The slide at `position` of the batch, from 1, is done; those before it were, or needed no work."""
        self._passed = position
        self._finished += 1
        self._report()

    def add_tiles(self, n: int) -> None:
        self._tiles += n
        if self._clock() - self._reported >= EVERY_SECONDS:
            self._report()

    def _report(self) -> None:
        self._reported = self._clock()
        logger.info("%s", self)

    def __str__(self) -> str:
        seconds = max(self._clock() - self._started, 1e-9)
        text = f"{self._label}: {self._passed} of {self._slides} slides, {self._tiles} tiles, "
        text += f"{self._tiles / seconds:.1f} tiles/s"
        left = self._slides - self._passed
        if self._finished and left:
            text += f", about {_duration(seconds / self._finished * left)} left"
        return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
