"""Plots as data URIs, in one restrained matplotlib style."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.pictures import Picture, data_uri

COLOURS = ("#2f6690", "#c8742c", "#3f8a64", "#7a5aa6", "#b0394a", "#6b7280", "#1b998b", "#9c6644")
INK, MUTED, RULE = "#1f2937", "#6b7280", "#d7dce2"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def drawing(
    width: float, height: float, rows: int = 1, columns: int = 1, **grid: object
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure (inches) in the report's style and its axes, [rows, columns]."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        yield figure, figure.subplots(rows, columns, squeeze=False, **grid)


def png(figure: Figure) -> Picture:
    """The figure as a PNG, two pixels per CSS pixel. Call inside `drawing`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=192, metadata={"Software": None})
    return Picture(data_uri("png", buffer.getvalue()), round(96 * figure.get_figwidth()))


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def intervals(
    axes: Axes,
    names: list[str],
    values: list[float],
    lows: list[float],
    highs: list[float],
    reference: float | None,
) -> None:
    """A dot with its interval per row, the first on top; a dashed line at `reference`; no bar for a NaN interval."""
    rows = np.arange(len(names))[::-1]
    for row, value, low, high in zip(rows, values, lows, highs, strict=True):
        if np.isfinite([low, high]).all():
            axes.plot([low, high], [row, row], color=COLOURS[0], linewidth=2.2, alpha=0.45, solid_capstyle="round")
        axes.plot([value], [row], "o", color=COLOURS[0], markersize=6)
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(rows, names, color=INK)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
