"""Does a JPEG stream hold all of its picture? Decoders fill what is missing and say nothing that reaches us.

A flipped bit in the entropy-coded data lets the decoder lose its place. Mostly it finds it again, and a few blocks or a
shade are wrong, which nobody can tell. Where blocks were swallowed, the data end before the picture does. To see that,
the stream is made to claim one more row of blocks: its first block is then decoded from what is left of a sound stream
(a few padding bits, never a plain block), or is plain grey, since the decoder had run out before.

Reference: ITU-T T.81, annexes B.2.2 (frame header) and F.2 (decoding); libjpeg fills in zero coefficients.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK_ROWS = 8
_BASELINE, _EXTENDED, _SCAN = 0xC0, 0xC1, 0xDA
_GREY = 128


class Taller(NamedTuple):
    """A stream that claims `BLOCK_ROWS` more rows than its picture has; `width` is that of its first block."""

    stream: bytes
    width: int


def taller(stream: bytes, height: int) -> Taller | None:
    """`stream` of a picture of `height` rows with one row of blocks more.

    None where that would change other pixels or cannot be told: chroma of fewer rows, progressive streams, a height of
    broken blocks, another height than `height`.
    """
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker in (_BASELINE, _EXTENDED):
            sampling = stream[at + 11 : at + 2 + length : 3]
            fits = int.from_bytes(stream[at + 5 : at + 7], "big") == height and height % BLOCK_ROWS == 0
            if not fits or not sampling or any(factors & 15 != 1 for factors in sampling):
                return None
            claimed = (height + BLOCK_ROWS).to_bytes(2, "big")
            return Taller(stream[: at + 5] + claimed + stream[at + 7 :], 8 * max(factors >> 4 for factors in sampling))
        if marker == _SCAN:
            return None
        at += 2 + length
    return None


def ran_out(pixels: np.ndarray, height: int, width: int) -> bool:
    """Is the first block below `height` rows plain grey, as if the data had ended above it?

    A sound picture that ends in plain grey looks the same: this is a suspicion.
    """
    return bool((pixels[height:, :width] == _GREY).all())
