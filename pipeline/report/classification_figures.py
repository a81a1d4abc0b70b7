"""ROC curves and confusion matrices of out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from sklearn.metrics import roc_curve

from pipeline.report.figures import COLOURS, INK, MUTED, Picture, colour, drawing, png

RATES = np.linspace(0, 1, 201)  #: false positive rates at which curves of folds are averaged


def classification_figure(
    title: str,
    labels: Sequence[str],
    predicted: Sequence[str],
    folds: Sequence[int],
    probabilities: Mapping[str, np.ndarray],
) -> Picture:
    """ROC curves beside the confusion matrix of one experiment.

    Parameters
    ----------
    labels, predicted, folds : true class, predicted class and held-out fold of each case
    probabilities : class -> float [cases]
    """
    side = min(5.5, 2.9 + 0.15 * max(0, len(probabilities) - 4))
    with drawing(2 * side + 0.6, side, 1, 2) as (figure, axes):
        _draw_roc(axes[0, 0], np.asarray(labels), np.asarray(folds), probabilities)
        _draw_confusion(axes[0, 1], list(probabilities), labels, predicted)
        axes[0, 0].set_title(title)
        return png(figure)


def _draw_roc(axis: Axes, truth: np.ndarray, fold: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> None:
    """One curve per class, that class against the rest; for two classes the second one alone.

    Scores of different folds come from different models and share no scale, so a curve is the mean of the folds' own
    curves, each weighted by its pairs of a positive and a negative case. Folds are drawn faintly.
    """
    classes = list(probabilities)[-1:] if len(probabilities) == 2 else list(probabilities)
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for index, name in enumerate(classes):
        curves, weights = fold_curves(truth == name, probabilities[name], fold)
        if len(curves):
            axis.plot(RATES, curves.T, color=colour(index), linewidth=0.8, alpha=0.3)
            mean = np.average(curves, axis=0, weights=weights)
            axis.plot(RATES, mean, color=colour(index), linewidth=1.9, label=name)
    axis.set(xlim=(-0.01, 1), ylim=(0, 1.01), xlabel="false positive rate", ylabel="true positive rate")
    axis.set_aspect("equal")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower right")


def fold_curves(positive: np.ndarray, score: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True positive rates at `RATES` of folds that have both kinds of case, [folds, rates], and their pairs [folds]."""
    curves, weights = [], []
    for k in np.unique(fold):
        mine = fold == k
        n_positive = int(positive[mine].sum())
        pairs = n_positive * int(mine.sum() - n_positive)
        if pairs:
            false_rate, true_rate, _ = roc_curve(positive[mine], score[mine], drop_intermediate=False)
            curves.append(np.interp(RATES, false_rate, true_rate))
            weights.append(pairs)
    return np.array(curves).reshape(-1, len(RATES)), np.array(weights)


def _draw_confusion(axis: Axes, classes: Sequence[str], labels: Sequence[str], predicted: Sequence[str]) -> None:
    """Counts of cases, true class in rows, shaded by the share of the row."""
    position = {name: index for index, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for truth, guess in zip(labels, predicted, strict=True):
        counts[position[truth], position[guess]] += 1
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axis.imshow(share, cmap=_shades(), vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        dark = share[row, column] > 0.55
        axis.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else INK)
    axis.set_xticks(range(len(classes)), classes, rotation=0 if len(classes) < 5 else 60)
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _shades() -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("shades", ["#f4f6f8", COLOURS[0]])
