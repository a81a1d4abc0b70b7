"""Training and validation loss per epoch, one line per fold; of pre-training also what its loss consists of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.contracts import layout
from pipeline.contracts.files import read_table
from pipeline.report.figures import MUTED, Picture, colour, drawing, png
from pipeline.report.reading import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TRAINED = ("epoch", "lr", "loss", "val_loss", "val_score", "best")  # columns of every history


def training_curves(run: Run, task: str, experiments: list[str], terms: bool = False) -> list[dict[str, Any]]:
    """One figure per experiment that was trained by epochs; others (closed-form fits) are left out.

    With `terms`, a second panel shows everything else that the history records.
    """
    figures = []
    for name in experiments:
        folder = Path(layout.models(run.results, task, name))
        histories = {}
        for path in sorted(folder.glob("fold*/history.tsv"), key=lambda p: int(p.parent.name[4:])):
            what = f"history of {task}/{name}/{path.parent.name}"
            rows = run.attempt(what, lambda path=path: read_table(path, ["epoch"]))
            if rows and len(rows) > 1 and rows[0].get("loss"):
                histories[int(path.parent.name[4:])] = rows
        if histories:
            figures.append({"picture": _curves(name, histories, terms), "alt": f"training curves, {name}"})
    return figures


def _curves(title: str, histories: dict[int, list[dict[str, str]]], terms: bool) -> Picture:
    recorded = [c for c in next(iter(histories.values()))[0] if c not in TRAINED] if terms else []
    panels = 2 if recorded else 1
    with drawing(4.2 * panels, 2.7, 1, panels) as (figure, axes):
        axis = axes[0, 0]
        if recorded:
            _terms(axes[0, 1], recorded, list(histories.values()))
        for fold, rows in histories.items():
            for column, style in (("loss", "-"), ("val_loss", (0, (3, 2)))):
                points = [(int(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
                if points:
                    label = f"fold {fold}" if column == "loss" else None
                    x, y = zip(*points, strict=True)
                    axis.plot(x, y, linestyle=style, linewidth=1.3, color=colour(fold), label=label)
        axis.plot([], [], color=MUTED, linestyle=(0, (3, 2)), label="validation")
        axis.set(title=title, xlabel="epoch", ylabel="loss")
        axis.legend(loc="upper right", ncols=2)
        return png(figure)


def _terms(axis: Axes, columns: list[str], histories: list[list[dict[str, str]]]) -> None:
    """The mean over folds of each column by epoch, on a logarithmic scale, from which zeros are left out."""
    for number, column in enumerate(columns):
        values: dict[int, list[float]] = {}
        for rows in histories:
            for row in rows:
                if row.get(column):
                    values.setdefault(int(row["epoch"]), []).append(float(row[column]))
        points = [(epoch, sum(v) / len(v)) for epoch, v in sorted(values.items()) if sum(v) > 0]
        if points:
            axis.plot(*zip(*points, strict=True), linewidth=1.3, color=colour(number), label=column.replace("_", " "))
    axis.set(title="what it consists of, mean over folds", xlabel="epoch", yscale="log")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
