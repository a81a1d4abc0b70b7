"""Parts of an overview that the file does not yield: coloured like what lies around them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, label

_MARGIN_PX = 8


def fill_lost(rgb: np.ndarray, lost: np.ndarray) -> None:
    """Give each lost pixel the colour of the nearest one that is not, in place.

    Tissue around a hole of unreadable pixels thus spans it: its tiles are laid, cannot be read, and are counted. On
    glass nothing is laid.

    Parameters
    ----------
    rgb : uint8 [rows, columns, 3]
    lost : bool [rows, columns], not all True
    """
    pieces, _ = label(lost, np.ones((3, 3)))
    for place in find_objects(pieces):
        around = tuple(slice(max(part.start - _MARGIN_PX, 0), part.stop + _MARGIN_PX) for part in place)
        if lost[around].all():
            around = (slice(None), slice(None))
        nearest = distance_transform_edt(lost[around], return_distances=False, return_indices=True)
        hole = lost[around]
        rgb[around][hole] = rgb[around][nearest[0][hole], nearest[1][hole]]
