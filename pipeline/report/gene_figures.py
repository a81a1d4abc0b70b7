"""Pictures of the genes that were chosen: where they lie among all, how stable the choice is, and their pattern."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.patches import Patch

from pipeline.contracts.genes import GeneSelection
from pipeline.report.figures import COLOURS, INK, MUTED, RULE, Picture, colour, drawing, png

DIVERGING = LinearSegmentedColormap.from_list(
    "blue-white-orange", ["#1d4e76", "#8fb4d0", "#fbfaf8", "#e2a878", "#a4521a"]
)
RISING = LinearSegmentedColormap.from_list("white-blue", ["#f4f7fa", "#2f6690"])
TUMOUR, TME, REST = COLOURS[1], COLOURS[0], COLOURS[3]
NAMED = 8  #: genes whose symbol is written beside their dot
HEATMAP_GENES = 120


def group_of(selection: GeneSelection) -> dict[str, str]:
    """Group of every selected gene for its colour: tumour, TME, or neither and both."""
    tumour, tme = set(selection.groups["tumour"]), set(selection.groups["tme"])
    return {
        gene: "tumour" if gene in tumour - tme else "TME" if gene in tme - tumour else "other"
        for gene in selection.genes
    }


def mean_variance(values: np.ndarray, symbols: Sequence[str], selection: GeneSelection) -> Picture:
    """Every gene by its mean and standard deviation over the training cases, `values` float [training cases, genes]."""
    mean = values.mean(axis=0, dtype=np.float64)
    spread = values.std(axis=0, dtype=np.float64)
    group = group_of(selection)
    position = {symbol: k for k, symbol in enumerate(symbols)}
    with drawing(5.4, 3.5) as (figure, axes):
        axis = axes[0, 0]
        others = np.array([symbol not in group for symbol in symbols], dtype=bool)
        axis.scatter(
            mean[others],
            spread[others],
            s=3,
            color="#aab3bd",
            alpha=0.35,
            linewidths=0,
            label=f"not selected ({others.sum():,})",
        )
        for name, ink in (("other", REST), ("TME", TME), ("tumour", TUMOUR)):
            places = [position[gene] for gene, of in group.items() if of == name and gene in position]
            if places:
                axis.scatter(
                    mean[places],
                    spread[places],
                    s=8,
                    color=ink,
                    alpha=0.75,
                    linewidths=0,
                    label=f"{name} ({len(places):,})",
                )
        for k in _apart(mean, spread, [position[gene] for gene in group if gene in position]):
            axis.annotate(
                symbols[k], (mean[k], spread[k]), xytext=(4, 2), textcoords="offset points", fontsize=7, color=INK
            )
        axis.set(
            title=f"Mean and spread, fold {selection.fold}",
            xlabel=f"mean ({selection.scale})",
            ylabel="standard deviation",
        )
        axis.grid(color=RULE, linewidth=0.5)
        axis.set_axisbelow(True)
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2, handletextpad=0.2)
        return png(figure)


def _apart(x: np.ndarray, y: np.ndarray, places: Sequence[int]) -> list[int]:
    """The highest of the points `places` whose names do not lie on each other."""
    width, height = 0.16 * np.ptp(x) or 1.0, 0.045 * np.ptp(y) or 1.0
    named: list[int] = []
    for k in sorted(places, key=lambda k: (-y[k], k)):
        if all(abs(x[k] - x[n]) > width or abs(y[k] - y[n]) > height for n in named):
            named.append(k)
        if len(named) == NAMED:
            break
    return named


def jaccard(selections: Sequence[GeneSelection]) -> np.ndarray:
    """Shared over all genes of each pair of folds, float64 [folds, folds]."""
    sets = [set(selection.genes) for selection in selections]
    return np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in sets] for a in sets])


def frequencies(selections: Sequence[GeneSelection]) -> dict[str, int]:
    """In how many folds each gene was selected; often chosen ones first, then by symbol."""
    counts = Counter(gene for selection in selections for gene in selection.genes)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def stability(selections: Sequence[GeneSelection]) -> Picture:
    """Overlap of every two folds, and how many genes were chosen in how many folds."""
    shared, counts = jaccard(selections), frequencies(selections)
    groups: dict[str, str] = {}
    for selection in selections:
        groups = group_of(selection) | groups
    n = len(selections)
    with drawing(7.2, 2.9, 1, 2, width_ratios=[1, 1.35]) as (figure, axes):
        left, right = axes[0]
        left.imshow(shared, cmap=RISING, vmin=0, vmax=1)
        for i in range(n):
            for j in range(n):
                ink = "white" if shared[i, j] > 0.6 else INK
                left.text(
                    j, i, f"{shared[i, j]:.2f}", ha="center", va="center", fontsize=7.5 if n <= 6 else 5, color=ink
                )
        folds = [str(selection.fold) for selection in selections]
        left.set_xticks(range(n), folds)
        left.set_yticks(range(n), folds)
        left.tick_params(length=0)
        left.spines[:].set_visible(False)
        left.set(title="Shared genes (Jaccard)", xlabel="fold", ylabel="fold")
        bottom = np.zeros(n)
        for name, ink in (("tumour", TUMOUR), ("TME", TME), ("other", REST)):
            height = np.array([sum(groups[g] == name and c == k for g, c in counts.items()) for k in range(1, n + 1)])
            if height.any():
                right.bar(range(1, n + 1), height, 0.7, bottom=bottom, color=ink, label=name)
                bottom += height
        for k, total in enumerate(bottom, start=1):
            right.text(k, total, f"{int(total):,}", ha="center", va="bottom", fontsize=8, color=MUTED)
        right.set(title="Genes by number of folds", xlabel="folds that select the gene", ylabel="genes")
        right.set_xticks(range(1, n + 1))
        right.set_ylim(0, max(bottom.max() * 1.14, 1))
        right.grid(axis="y", color=RULE, linewidth=0.5)
        right.set_axisbelow(True)
        right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return png(figure)


def clustered(values: np.ndarray) -> np.ndarray:
    """Order of rows that puts like beside like (average linkage, correlation), int64 [rows]."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(values) < 3:
        return np.arange(len(values))
    centred = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return leaves_list(linkage(centred / np.maximum(length, 1e-12), method="average"))


def heatmap(
    values: np.ndarray,
    names: Sequence[str],
    row_groups: Sequence[str],
    labels: Sequence[str],
    title: str,
    what: str,
    order_cases: np.ndarray | None = None,
) -> Picture:
    """Rows x cases. Rows stay in the order of their groups and are clustered within each; cases by label.

    Parameters
    ----------
    values : float [cases, rows], standardised
    row_groups : group of every row
    what : what a row is, in the plural
    labels : label of every case; cases of one label lie side by side, clustered
    order_cases : another order of the cases, int [cases]
    """
    order_rows: list[int] = []
    for group in dict.fromkeys(row_groups):
        members = np.flatnonzero(np.asarray(row_groups) == group)
        order_rows += members[clustered(values[:, members].T)].tolist()
    if order_cases is None:
        parts = [np.flatnonzero(np.asarray(labels) == level) for level in sorted(set(labels))]
        order_cases = np.concatenate([part[clustered(values[part])] for part in parts])
    shown = values[np.ix_(order_cases, order_rows)].T
    kinds = sorted(set(labels))
    codes = np.array([[kinds.index(labels[k]) for k in order_cases]])
    named = len(order_rows) <= 60
    height = 1.3 + (0.135 * len(order_rows) if named else min(5.2, 0.045 * len(order_rows) + 1))
    with drawing(8.2, height, 2, 2, height_ratios=[0.14, height - 1.0], width_ratios=[0.016, 1]) as (figure, axes):
        figure.get_layout_engine().set(h_pad=0.04, w_pad=0.03, hspace=0.0, wspace=0.0)
        axes[0, 0].axis("off")
        strip, side, axis = axes[0, 1], axes[1, 0], axes[1, 1]
        strip.imshow(
            codes,
            aspect="auto",
            cmap=ListedColormap([palette(k) for k in range(len(kinds))]),
            vmin=-0.5,
            vmax=len(kinds) - 0.5,
            interpolation="nearest",
        )
        kinds_of_rows = list(dict.fromkeys(row_groups))
        inks = {"tumour": TUMOUR, "TME": TME, "other": REST}
        column = np.array([[kinds_of_rows.index(row_groups[k])] for k in order_rows])
        side.imshow(
            column,
            aspect="auto",
            cmap=ListedColormap([inks.get(g, MUTED) for g in kinds_of_rows]),
            vmin=-0.5,
            vmax=len(kinds_of_rows) - 0.5,
            interpolation="nearest",
        )
        picture = axis.imshow(
            shown,
            aspect="auto",
            cmap=DIVERGING,
            vmin=-2.5,
            vmax=2.5,
            interpolation="nearest" if shown.size < 40_000 else "antialiased",
        )
        for bare in (strip, side, axis):
            bare.set_xticks([])
            bare.set_yticks([])
            bare.spines[:].set_visible(False)
        if named:
            axis.yaxis.tick_right()
            axis.set_yticks(range(len(order_rows)), [names[k] for k in order_rows], fontsize=6.5, color=INK)
            axis.tick_params(length=0)
        strip.set_title(title)
        axis.set_xlabel(f"{len(order_cases)} cases, {len(order_rows)} {what}", color=MUTED)
        bar = figure.colorbar(picture, ax=axis, shrink=min(1.0, 1.6 / height), aspect=12, pad=0.01, extend="both")
        bar.outline.set_visible(False)
        bar.set_label("standard deviations")
        marks = [_patch(palette(k), f"{kind} ({list(labels).count(kind)})") for k, kind in enumerate(kinds)]
        marks += [_patch(inks.get(g, MUTED), f"{g} {what}") for g in kinds_of_rows if g in inks]
        figure.legend(
            handles=marks, loc="outside lower left", ncols=min(6, len(marks)), handlelength=0.9, handleheight=0.9
        )
        return png(figure)


def palette(index: int) -> str:
    """Colour of a label, site or cohort; groups of genes have their own."""
    return ("#3f8a64", "#b0394a", "#d1a32f", "#6c5b9e", "#4fa3a5", "#8c6d5a", "#c76b98", "#5b7083")[index % 8]


def elimination(selections: Sequence[GeneSelection]) -> Picture:
    """Inner accuracy by the number of genes left, a line per fold; a dot at the number that was kept."""
    with drawing(5.4, 3.0) as (figure, axes):
        axis = axes[0, 0]
        for selection in selections:
            facts = selection.elimination
            ink = colour(selection.fold)
            sizes, scores = facts["sizes"], facts["scores"]
            axis.plot(sizes, scores, color=ink, linewidth=1.3, label=f"fold {selection.fold}: {facts['kept']:,} genes")
            axis.plot([facts["kept"]], [scores[sizes.index(facts["kept"])]], "o", color=ink, markersize=6)
        axis.set_xscale("log")
        axis.set(title="Elimination: accuracy of the inner folds", xlabel="genes left", ylabel="mean accuracy")
        axis.grid(color=RULE, linewidth=0.5)
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return png(figure)


def _patch(ink: str, label: str) -> Patch:
    return Patch(color=ink, label=label)
