"""Pictures of the cases as their genes see them: principal components by label, site and cohort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.report.batch_effects import Components
from pipeline.report.figures import MUTED, Picture, drawing, png
from pipeline.report.gene_figures import palette

SHOWN = 7  #: levels of a factor with a colour of their own


def component_plot(components: Components, factors: Mapping[str, Sequence[str]], title: str = "PC") -> Picture:
    """The first two components, one panel per factor. Without shares, axes are named alone."""
    scores = components.scores
    if scores.shape[1] < 2:
        scores = np.column_stack([scores, np.zeros(len(scores))])
    one, two = ("", "") if not len(components.shares) else (f" ({s:.0%})" for s in [*components.shares, 0.0][:2])
    size = 22 if len(scores) < 300 else 8
    with drawing(3.35 * len(factors) + 0.3, 3.9, 1, len(factors), sharex=True, sharey=True) as (figure, axes):
        for panel, (name, levels) in enumerate(factors.items()):
            axis, first = axes[0, panel], 3 * panel  # colours of different factors differ
            counts = Counter(level for level in levels if level)
            common = sorted(level for level, _ in counts.most_common(SHOWN))
            rest = np.array([level not in common for level in levels], dtype=bool)
            if rest.any():
                more = len(counts) - len(common)
                label = f"{more} more ({rest.sum()})" if more else f"unknown ({rest.sum()})"
                axis.scatter(*scores[rest, :2].T, s=size, color="#c3c9d0", linewidths=0, alpha=0.8, label=label)
            for k, level in enumerate(common):
                here = np.array([found == level for found in levels], dtype=bool)
                axis.scatter(
                    *scores[here, :2].T,
                    s=size,
                    color=palette(first + k),
                    linewidths=0.4,
                    edgecolors="white",
                    alpha=0.9,
                    label=f"{level} ({counts[level]})",
                )
            axis.set(title=name, xlabel=f"{title}1{one}")
            if len(components.shares):  # elsewhere, 0 is no place of its own
                axis.axhline(0, color=MUTED, linewidth=0.4, zorder=0)
                axis.axvline(0, color=MUTED, linewidth=0.4, zorder=0)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, handletextpad=0.1, columnspacing=0.8)
        axes[0, 0].set_ylabel(f"{title}2{two}")
        return png(figure)
