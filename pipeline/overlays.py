"""What was found, drawn on a slide's thumbnail: tissue, ink and dropped pieces; tiles by reason or by number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.contracts.files import whole_file
from pipeline.contracts.tiles import TileGrid

PICTURE_PX = 1200
TISSUE, INK, DROPPED = (20, 150, 40), (220, 30, 30), (240, 140, 0)
KEPT = (20, 150, 40)
REASONS = {"pen": (220, 30, 30), "dark": (0, 0, 0), "fold": (150, 40, 200), "focus": (30, 90, 230)}
_TINT = 0.45
_LEGEND_PX = 26
_VALUE_TINT = 0.6
_STRONGEST = 0.99
_UNSIGNED = ((255, 255, 190), (250, 150, 60), (130, 0, 40))
_SIGNED = ((30, 80, 190), (255, 255, 255), (190, 20, 40))


def draw_tissue(rgb: np.ndarray, tissue: np.ndarray, ink: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """The thumbnail with tissue outlined in green, ink in red, pieces too small to be kept in orange.

    Masks are bool [rows, columns]. Returns uint8 [rows, columns, 3], at most 1200 px.
    """
    picture = shrunk(rgb, PICTURE_PX)
    height, width = picture.shape[:2]
    for mask, colour, thickness in ((dropped, DROPPED, 1), (tissue, TISSUE, 2), (ink, INK, 2)):
        # area averages, so that a piece narrower than a pixel of the picture still shows
        small = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        shown = (small > 0 if mask is dropped else small >= 0.5).astype(np.uint8)
        outlines, _ = cv2.findContours(shown, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, thickness)
    return picture


def draw_tiles(rgb: np.ndarray, dimensions: tuple[int, int], grids: dict[float, TileGrid]) -> np.ndarray:
    """The thumbnail with the tiles of the finest magnification outlined, those left out tinted by reason.

    Parameters
    ----------
    rgb : uint8 [rows, columns, 3], the whole slide
    dimensions : (width, height) of the slide, level-0 pixels

    Returns
    -------
    uint8 [rows, columns, 3], the thumbnail at most 1200 px, a legend below it
    """
    picture = shrunk(rgb, PICTURE_PX)
    if not grids:
        return picture
    magnification, grid = next(iter(grids.items()))
    tinted = picture.copy()
    for reason, cells in grid.excluded.items():
        draw_cells(tinted, grid, cells, dimensions, REASONS[reason])
    picture = cv2.addWeighted(tinted, _TINT, picture, 1 - _TINT, 0)
    draw_cells(picture, grid, grid.cell, dimensions, KEPT, pen_px=1)
    entries = [(f"{len(grid)} tiles at {magnification:g}x", KEPT)]
    entries += [(f"{len(c)} left out: {reason}", REASONS[reason]) for reason, c in grid.excluded.items() if len(c)]
    return np.vstack([picture, _legend(entries, picture.shape[1])])


def draw_cells(
    picture: np.ndarray, grid: TileGrid, cells: np.ndarray, dimensions: tuple[int, int], colour: tuple[int, ...],
    pen_px: int = cv2.FILLED, share_lines: bool = False,
) -> None:  # fmt: skip
    """Fill cells of a grid on a picture, or outline them.

    Parameters
    ----------
    picture : uint8 [rows, columns, channels] that shows the whole slide; drawn on
    cells : int [cells, 2], (column, row) on the lattice of `grid`
    dimensions : (width, height) of the slide, level-0 pixels
    pen_px : width of the outlines
    share_lines : outlines of neighbours lie on one another, not side by side
    """
    scale = np.array(picture.shape[1::-1]) / np.array(dimensions)
    near = np.rint((grid.origin + cells * grid.pitch) * scale).astype(int)
    far = np.rint((grid.origin + (cells + 1) * grid.pitch) * scale).astype(int)
    last = far if share_lines else np.maximum(far - 1, near)  # a cell shows even where it is smaller than a pixel
    for first_px, last_px in zip(near.tolist(), last.tolist(), strict=True):
        cv2.rectangle(picture, first_px, last_px, colour, pen_px)


def draw_values(
    rgb: np.ndarray, dimensions: tuple[int, int], coords: np.ndarray, size_px: tuple[float, float], values: np.ndarray,
    title: str, is_signed: bool,
) -> np.ndarray:  # fmt: skip
    """The thumbnail with tiles coloured by a number each, a legend below it.

    Not signed: from yellow (0) to dark red. Signed: blue below 0, white at 0, red above, both sides on one scale. The
    strongest colour is the 99th percentile of the sizes, lest a few tiles pale all others; the legend says so.

    Parameters
    ----------
    rgb : uint8 [rows, columns, 3], the whole slide
    dimensions : (width, height) of the slide, level-0 pixels
    coords : int [tiles, 2], upper-left corners (x, y); size_px : (width, height) of a tile, both in level-0 pixels
    values : float [tiles]
    """
    picture = shrunk(rgb, PICTURE_PX)
    scale = np.array(picture.shape[1::-1]) / np.array(dimensions)
    most = float(np.quantile(np.abs(values), _STRONGEST)) if len(values) else 0.0
    near = np.rint(coords * scale).astype(int)
    last = np.maximum(np.rint((coords + np.array(size_px)) * scale).astype(int) - 1, near)
    tinted = picture.copy()
    for first_px, last_px, colour in zip(near.tolist(), last.tolist(), _colours(values, most, is_signed), strict=True):
        cv2.rectangle(tinted, first_px, last_px, colour, cv2.FILLED)
    picture = cv2.addWeighted(tinted, _VALUE_TINT, picture, 1 - _VALUE_TINT, 0)
    shown = [-most, 0.0, most] if is_signed else [0.0, most]
    names = [f"{title} {value:.3g}" for value in shown]
    names[-1] += " and more (99th percentile)"
    names[0] += " and less" if is_signed else ""
    return np.vstack(
        [picture, _legend(list(zip(names, _colours(shown, most, is_signed), strict=True)), picture.shape[1])]
    )


def _colours(values: Sequence[float] | np.ndarray, most: float, is_signed: bool) -> list[tuple[int, ...]]:
    """RGB of each value; `most` and beyond has the strongest colour."""
    share = np.clip(np.asarray(values, float) / (most or 1.0), -1.0 if is_signed else 0.0, 1.0)
    anchors = np.array(_SIGNED if is_signed else _UNSIGNED, float)
    at = np.linspace(-1.0 if is_signed else 0.0, 1.0, len(anchors))
    channels = [np.interp(share, at, anchors[:, channel]) for channel in range(3)]
    return [tuple(colour) for colour in np.rint(np.stack(channels, axis=1)).astype(int).tolist()]


def shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """A copy, uint8 [rows, columns, 3], with its longer side at most `longest`."""
    factor = min(1.0, longest / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def write_picture(path: str | Path, rgb: np.ndarray) -> None:
    """Write a PNG, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())


def _legend(entries: list[tuple[str, tuple[int, int, int]]], width: int) -> np.ndarray:
    """One line per entry, a square of its colour before the text."""
    out = np.full((_LEGEND_PX * len(entries), width, 3), 255, np.uint8)
    for line, (text, colour) in enumerate(entries):
        top = line * _LEGEND_PX
        cv2.rectangle(out, (6, top + 6), (20, top + 20), colour, -1)
        cv2.putText(out, text, (28, top + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return out
