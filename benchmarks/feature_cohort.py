"""Writes a simulated cohort at feature level through the contracts, so that the code of a real cohort trains on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from models.experiment import Inputs
from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.features import Bag, BagRecord, BagSource, write_bag, write_index
from pipeline.contracts.tasks import PRETRAINING_TASK, Task, read_labels
from pipeline.genes import GeneParams, select_genes_for_folds
from pipeline.splits import SplitParams, make_splits

MAGNIFICATION, COARSER = 20, 10
TILE_PX = 224


def write_slides(
    folder: Path, cases: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], coarser: bool = False
) -> None:
    """Bags and their index below ``folder/features``.

    Parameters
    ----------
    cases : case_id -> its slides, each features float [tiles, width] and cell int [tiles, 2] (column, row). The first
        slide has the case's name, the others end in ``-2``, ``-3`` and so on
    coarser : also write bags of half the magnification; a tile there is the mean of those it covers, up to four
    """
    records = []
    for case_id, slides in cases.items():
        for number, (features, cell) in enumerate(slides, start=1):
            slide_id = case_id if number == 1 else f"{case_id}-{number}"
            size = (cell.max(axis=0) + 1) * TILE_PX
            parent = np.full(len(cell), -1)
            if coarser:
                means, places, parent = _halved(features, cell)
                records.append(
                    _write(folder, case_id, _bag(slide_id, means, places, np.full(len(places), -1), size, COARSER))
                )
            records.append(_write(folder, case_id, _bag(slide_id, features, cell, parent, size, MAGNIFICATION)))
    write_index(folder / "features" / "index.tsv", records)


def _halved(features: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features and cell of the tiles twice as wide, and the row there of every tile here."""
    places, parent = np.unique(cell // 2, axis=0, return_inverse=True)
    parent = parent.reshape(-1)
    sums = np.zeros((len(places), features.shape[1]))
    np.add.at(sums, parent, features)
    return sums / np.bincount(parent)[:, None], places, parent


def _write(folder: Path, case_id: str, bag: Bag) -> BagRecord:
    source = bag.source
    path = folder / "features" / f"{source.magnification:g}x" / f"{source.slide_id}.h5"
    write_bag(path, bag)
    return BagRecord(
        source.slide_id, case_id, source.magnification, path, len(bag.features), source.um_per_px, "simulated", "random"
    )


def _bag(
    slide_id: str, features: np.ndarray, cell: np.ndarray, parent: np.ndarray, size: np.ndarray, magnification: float
) -> Bag:
    width, um = TILE_PX * MAGNIFICATION // int(magnification), 0.5 * MAGNIFICATION / magnification
    source = BagSource(
        slide_id=slide_id, encoder="simulated", encoder_name="simulated", weights="random", weights_digest="",
        magnification=magnification, size_px=TILE_PX, size_level0_px=(float(width), float(width)), um_per_px=um,
        achieved_um_per_px=(um, um), level0_um_per_px=(0.5, 0.5), level0_magnification=MAGNIFICATION,
        level0_size_px=tuple(int(x) for x in size), stain="none", savetodir="", revision=1, digest="simulated",
    )  # fmt: skip
    whole, none = np.ones(len(cell), np.float32), np.zeros((0, 2), np.int32)
    return Bag(
        features.astype(np.float32), cell.astype(np.int64) * width, cell.astype(np.int32), parent.astype(np.int64),
        whole, none, source,
    )  # fmt: skip


def write_genes(
    path: Path,
    case_ids: Sequence[str],
    symbols: np.ndarray,
    values: np.ndarray,
    is_tumour: np.ndarray,
    is_tme: np.ndarray,
) -> None:
    """An expression table in log2: values float [cases, genes]; symbols, is_tumour, is_tme [genes]."""
    names, values = tuple(symbols.tolist()), values.astype(np.float32)
    blank = ("",) * len(names)
    write_expression(path, Expression(tuple(case_ids), names, values, "log2", values, blank, is_tumour, is_tme))


def write_folds(folder: Path, tasks: Sequence[Task], folds: int, seed: int) -> None:
    """Patient folds by the ledger, and of every task, pre-training and fold all genes, scaled on the training cases."""
    params = SplitParams(folds=folds, seed=seed, file=str(folder / "ledger.tsv"))
    make_splits(folder / "cases.tsv", params, tasks, folder / "splits.tsv")
    for task in (*tasks, PRETRAINING_TASK):
        outputs = [folder / "genes" / task.name / f"fold{k}.json" for k in range(folds)]
        labelled = read_labels(folder / "cases.tsv", task).cases
        genes = GeneParams(selection="all")
        select_genes_for_folds(folder / "expression.h5ad", folder / "splits.tsv", labelled, genes, outputs, task.name)


def inputs_of(folder: Path, task: Task) -> Inputs:
    """Where training finds what was written."""
    return Inputs(
        folder / "splits.tsv", folder / "cases.tsv", folder / "features" / "index.tsv", folder / "expression.h5ad",
        folder / "genes" / task.name,
    )  # fmt: skip
