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
    "bilinear": {"embedding": 8},
    "transmil": {"width": 16},
    "mcat": {"width": 8, "pieces": 3},
    "cmta": {"width": 16, "pieces": 3},
}
SYMBOLS = tuple(f"G{k:02d}" for k in range(12))
GRADE = Task("grade", "classification", label="grade")
SURVIVAL = Task("survival", "survival", time="time_days", event="event")


@dataclass
class Toy:
    """The raw material of a cohort; `write` puts it on disk."""

    cases: list[str]
    rna: dict[str, np.ndarray]
    slides: dict[str, tuple[str, np.ndarray, np.ndarray]]  # slide_id -> case_id, features [N, D], cell [N, 2]
    rows: dict[str, dict[str, str]]
    splits: list[SplitRow]
    patient_columns: tuple[str, ...] = ("case_id", "grade", "time_days", "event", "age", "sex", "site")
    groups: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"tumour": SYMBOLS[:5], "tme": SYMBOLS[5:9], "all": SYMBOLS}
    )

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
        records = [self._write_slide(folder, slide_id) for slide_id in sorted(self.slides)]
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

    def _write_slide(self, folder: Path, slide_id: str) -> BagRecord:
        case_id, features, cell = self.slides[slide_id]
        n = len(features)
        digest = digest_of(features.tolist(), cell.tolist())
        source = BagSource(
            slide_id, "toy", "toy.model", "random", "w", 10.0, 224, (448.0, 448.0), 1.0, (1.0, 1.0), (0.5, 0.5), 20,
            (9000, 9000), "none", "features/toy", 1, digest,
        )  # fmt: skip
        path = folder / "features" / "10x" / f"{slide_id}.h5"
        bag = Bag(
            features.astype(np.float32), cell.astype(np.int64) * 448, cell.astype(np.int32), np.full(n, -1),
            np.ones(n, np.float32), np.zeros((0, 2), np.int32), source,
        )  # fmt: skip
        write_bag(path, bag)
        return BagRecord(slide_id, case_id, 10.0, path, n, 1.0, digest, "random")


def lattice(rng: np.random.Generator, n: int) -> np.ndarray:
    """n different cells of a random window, unequal sides, not from 0."""
    width, height = 9, 7
    chosen = rng.choice(width * height, size=n, replace=False)
    return np.stack([chosen % width + 3, chosen // width + 11], axis=1)


def make_toy(n: int = 24, folds: int = 3, seed: int = 0) -> Toy:
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
    return Toy(cases, rna, slides, rows, splits)
