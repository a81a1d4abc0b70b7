"""How fast a batch of slides goes and how long it will take, in words for the log (standard library only)."""

from __future__ import annotations


class Pace:
    """How fast a batch goes and how long it will take, as text for the log.

    Slides found finished cost no time and say nothing of the others, which are taken to need as long as those done now.
    """

    def __init__(self, to_do: int, threads: int) -> None:
        self._left, self._threads = to_do, threads
        self._worked, self._seconds = 0, 0.0

    def after(self, seconds: float, was_due: bool) -> str:
        """Count a slide that took `seconds`, 0 if nothing was to do; the text is empty until one was worked on."""
        self._left -= was_due
        self._worked += seconds > 0
        self._seconds += seconds
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
