"""Exceptions that say what is wrong, where, and how to mend it (standard library only)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches


class HistoweaveError(ValueError):
    """Any failure that the user can act on. Its text is the whole message: no traceback is needed to understand it."""

    def __reduce__(self) -> tuple[Callable[..., HistoweaveError], tuple[type, str]]:
        """As its class and text, so that it passes from one process to another whatever its arguments were."""
        return _rebuilt, (type(self), str(self))


def _rebuilt(kind: type[HistoweaveError], text: str) -> HistoweaveError:
    error = kind.__new__(kind)
    error.args = (text,)
    return error


class InputError(HistoweaveError):
    """A file, row or id of the user's that cannot be used as it is.

    Parameters
    ----------
    where : the file, row or id at fault, such as ``slides.tsv row 7 (slide_id 'a1')``
    problem : what was found and what was expected
    fix : how to mend it
    """

    def __init__(self, where: str, problem: str, fix: str = "") -> None:
        super().__init__(f"{where}: {problem}" + (f" Fix: {fix}" if fix else ""))


class SlideError(HistoweaveError):
    """A slide that cannot be used. Batches record the text as the slide's reason and go on."""


class MachineError(HistoweaveError):
    """The machine is at fault, not the data: a full disk, a lost GPU. The job stops, so that a rerun tries again."""


class FormatError(HistoweaveError):
    """An artefact of ours that is damaged, of another kind, or of an unknown format version."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` when something similar is known, else an empty string."""
    match = get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""
