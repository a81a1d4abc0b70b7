"""Training and validation loss per epoch, one line per fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.contracts import layout
from pipeline.contracts.files import read_table
from pipeline.report.figures import MUTED, Picture, colour, drawing, png
from pipeline.report.reading import Run


def training_curves(run: Run, task: str, experiments: list[str]) -> list[dict[str, Any]]:
    """One figure per experiment that was trained by epochs; others (closed-form fits) are left out."""
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
            figures.append({"picture": _curves(name, histories), "alt": f"training curves, {name}"})
    return figures


def _curves(title: str, histories: dict[int, list[dict[str, str]]]) -> Picture:
    with drawing(4.2, 2.7) as (figure, axes):
        axis = axes[0, 0]
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
