"""Writes a simulated cohort at feature level through the contracts, so that the code of a real cohort trains on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from models.experiment import Inputs
from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.features import Bag, BagRecord, BagSource, write_bag, write_index
from pipeline.contracts.tasks import Task, read_labels
from pipeline.genes import GeneParams, select_genes_for_folds
from pipeline.splits import SplitParams, make_splits

MAGNIFICATION = 20
TILE_PX = 224


def write_slides(folder: Path, cases: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> None:
    """Bags and their index below ``folder/features``.

    Parameters
    ----------
    cases : case_id -> its slides, each features float [tiles, width] and cell int [tiles, 2] (column, row). The first
        slide has the case's name, the others end in ``-2``, ``-3`` and so on
    """
    records = []
    for case_id, slides in cases.items():
        for number, (features, cell) in enumerate(slides, start=1):
            slide_id = case_id if number == 1 else f"{case_id}-{number}"
            path = folder / "features" / "20x" / f"{slide_id}.h5"
            write_bag(path, _bag(slide_id, features.astype(np.float32), cell.astype(np.int32)))
            records.append(BagRecord(slide_id, case_id, MAGNIFICATION, path, len(features), 0.5, "simulated", "random"))
    write_index(folder / "features" / "index.tsv", records)


def _bag(slide_id: str, features: np.ndarray, cell: np.ndarray) -> Bag:
    n = len(features)
    size = tuple(int(x) for x in (cell.max(axis=0) + 1) * TILE_PX)
    source = BagSource(
        slide_id=slide_id, encoder="simulated", encoder_name="simulated", weights="random", weights_digest="",
        magnification=MAGNIFICATION, size_px=TILE_PX, size_level0_px=(float(TILE_PX), float(TILE_PX)), um_per_px=0.5,
        achieved_um_per_px=(0.5, 0.5), level0_um_per_px=(0.5, 0.5), level0_magnification=20, level0_size_px=size,
        stain="none", savetodir="", revision=1, digest="simulated",
    )  # fmt: skip
    empty, ones = np.zeros((0, 2), np.int32), np.ones(n, np.float32)
    return Bag(features, cell.astype(np.int64) * TILE_PX, cell, np.full(n, -1, np.int64), ones, empty, source)


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
    """Patient folds by the ledger, and of every task and fold all genes, scaled on the training cases."""
    params = SplitParams(folds=folds, seed=seed, file=str(folder / "ledger.tsv"))
    make_splits(folder / "cases.tsv", params, tasks, folder / "splits.tsv")
    for task in tasks:
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
