"""Functions as machine code: importing this module imports numba, so whoever may do without imports it late.

The code is kept on disk, so a machine compiles it once. No sum is reordered and no product fused: bytes do not depend
on the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

T = TypeVar("T")


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """`function` without the interpreter's lock, as machine code that is kept on disk where there is a place for it."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return numba.njit(nogil=True)(function)
