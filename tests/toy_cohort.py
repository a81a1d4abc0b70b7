"""A tiny paired cohort, written through the contracts, whose pieces a test may change before training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.experiment import Inputs
from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.features import Bag, BagRecord, BagSource, write_bag, write_index
from pipeline.contracts.files import digest_of, write_table
from pipeline.contracts.genes import GeneSelection, write_genes
from pipeline.contracts.splits import SplitRow, write_splits
from pipeline.contracts.tasks import Task

WIDTH = 6
SMALL_PARAMS = {
    "clinical": {"columns": ["age", "sex", "site"], "categorical": ["site"]},
    "survpath": {"width": 8, "attended": 8, "hidden": 8, "cut": "equal", "pieces": 3},
    "porpoise": {"width": 12, "hidden": 6, "embedding": 8, "reduced": 4, "fused": 8},
    "elastic-net": {"penalties": 4, "inner_folds": 3},
    "tangle-pretraining": {"width": 16},
    "mirror-pretraining": {"width": 48, "rna_mlp_ratio": 1.0, "prototypes": 48, "style_hidden": 8, "style_width": 8},
    "bilinear": {"embedding": 8},
    "transmil": {"width": 16},
    "mcat": {"width": 8, "pieces": 3},
    "cmta": {"width": 16, "pieces": 3},
    "subspace-tokens": {"width": 16},
    "tangle": {"width": 16, "mode": "fine_tune"},
    "mirror": {"width": 48, "rna_mlp_ratio": 1.0, "mode": "fine_tune"},
}
SYMBOLS = tuple(f"G{k:02d}" for k in range(12))
GRADE = Task("grade", "classification", label="grade")
SURVIVAL = Task("survival", "survival", time="time_days", event="event")


@dataclass
class Toy:
    """The raw material of a cohort; `write` puts it on disk."""

    cases: list[str]
    rna: dict[str, np.ndarray]
    slides: dict[str, tuple[str, np.ndarray, np.ndarray]]  # slide_id -> case_id, features [N, D], cell [N, 2]; at 10x
    rows: dict[str, dict[str, str]]
    splits: list[SplitRow]
    patient_columns: tuple[str, ...] = ("case_id", "grade", "time_days", "event", "age", "sex", "site")
    groups: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"tumour": SYMBOLS[:5], "tme": SYMBOLS[5:9], "all": SYMBOLS}
    )
    pair: bool = False  # write 20x beside 10x

    def write(self, folder: Path) -> Inputs:
        write_table(folder / "cases.tsv", self.patient_columns, self.rows.values())
        write_splits(folder / "splits.tsv", self.splits)
        ids = tuple(sorted(self.rna))
        values = np.array([self.rna[c] for c in ids], dtype=np.float32)
        flags = np.zeros(len(SYMBOLS), dtype=bool)
        write_expression(
            folder / "expression.h5ad",
            Expression(ids, SYMBOLS, values, "counts", values, ("",) * len(SYMBOLS), flags, flags),
        )
        for fold in sorted({row.fold for row in self.splits}):
            self._write_genes(folder / "genes" / f"fold{fold}.json", fold)
        mags = (20.0, 10.0) if self.pair else (10.0,)
        records = [self._write_slide(folder, slide_id, m) for slide_id in sorted(self.slides) for m in mags]
        write_index(folder / "features" / "index.tsv", records)
        return Inputs(
            folder / "splits.tsv", folder / "cases.tsv", folder / "features" / "index.tsv",
            folder / "expression.h5ad", folder / "genes",
        )  # fmt: skip

    def _write_genes(self, path: Path, fold: int) -> None:
        train = [r.case_id for r in self.splits if r.fold == fold and r.role == "train" and r.case_id in self.rna]
        values = np.array([self.rna[c] for c in sorted(train)], dtype=np.float32).astype(np.float64)
        write_genes(
            path,
            GeneSelection(
                "toy", fold, SYMBOLS, self.groups, values.mean(axis=0), values.std(axis=0) + 1e-3, 10.0, "counts",
                "log1p", len(train), {}, 1, digest_of(values.tolist()),
            ),
        )  # fmt: skip

    def _write_slide(self, folder: Path, slide_id: str, magnification: float) -> BagRecord:
        case_id, features, cell = self.slides[slide_id]
        parent = np.full(len(features), -1)
        if magnification == 20:
            features, cell, parent = finer(features, cell)
        n = len(features)
        digest = digest_of(features.tolist(), cell.tolist())
        source = BagSource(
            slide_id, "toy", "toy.model", "random", "w", magnification, 224, (448.0, 448.0), 1.0, (1.0, 1.0),
            (0.5, 0.5), 20, (9000, 9000), "none", "features/toy", 1, digest, 0, (20.0, 10.0) if self.pair else (10.0,),
        )  # fmt: skip
        path = folder / "features" / f"{magnification:g}x" / f"{slide_id}.h5"
        bag = Bag(
            features.astype(np.float32), cell.astype(np.int64) * 448, cell.astype(np.int32), parent,
            np.ones(n, np.float32), np.zeros((0, 2), np.int32), source,
        )  # fmt: skip
        write_bag(path, bag)
        return BagRecord(slide_id, case_id, magnification, path, n, 10 / magnification, digest, "random")


def finer(features: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, cells and parents at twice the magnification: 1 to 3 tiles in each, by its place; sorted by row."""
    parent = np.repeat(np.arange(len(cell)), 1 + cell.sum(axis=1) % 3)
    number = np.concatenate([np.arange(k) for k in np.bincount(parent)])
    inside = 2 * cell[parent] + np.stack([number % 2, number // 2], axis=1)
    order = np.lexsort((inside[:, 0], inside[:, 1]))
    shift = np.cos(np.arange(features.shape[1]) + number[:, None])
    return (features[parent] + 0.3 * shift)[order], inside[order], parent[order]


def lattice(rng: np.random.Generator, n: int) -> np.ndarray:
    """n different cells of a random window, unequal sides, not from 0."""
    width, height = 9, 7
    chosen = rng.choice(width * height, size=n, replace=False)
    return np.stack([chosen % width + 3, chosen // width + 11], axis=1)


def make_toy(n: int = 24, folds: int = 3, seed: int = 0, pair: bool = False) -> Toy:
    """Grade (three classes) shows in genes 0-2 and feature 0; survival follows gene 3. Some cases have two slides."""
    rng = np.random.default_rng(seed)
    cases = [f"C{k:02d}" for k in range(n)]
    grade = {c: k % 3 for k, c in enumerate(cases)}
    rna = {c: rng.normal(size=len(SYMBOLS)) + 3 * np.eye(len(SYMBOLS))[grade[c]] for c in cases}
    slides = {}
    for k, c in enumerate(cases):
        for s in range(1 + (k % 4 == 0)):
            tiles = int(rng.integers(3, 9))
            features = rng.normal(size=(tiles, WIDTH)) + 2 * grade[c] * np.eye(WIDTH)[0]
            slides[f"{c}-S{s}"] = (c, features, lattice(rng, tiles))
    rows = {
        c: {
            "case_id": c,
            "grade": f"G{grade[c] + 2}",
            "time_days": str(round(float(np.exp(4 - rna[c][3] + 0.1 * rng.normal())), 2)),
            "event": str(int(k % 3 != 1)),
            "age": "" if k % 8 == 5 else str(30 + 10 * grade[c] + k % 7),
            "sex": "fm"[k % 2],
            "site": str(k % 3),
        }
        for k, c in enumerate(cases)
    }
    splits = []
    for f in range(folds):
        for k, c in enumerate(cases):
            held_out, next_out = (k // 3) % folds == f, (k // 3) % folds == (f + 1) % folds
            role = "test" if held_out else "val" if next_out and (k // 3 + k) % 3 == 0 else "train"
            splits.append(SplitRow(c, f, role))
    return Toy(cases, rna, slides, rows, splits, pair=pair)
