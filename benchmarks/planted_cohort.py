"""A simulated cohort with a planted truth of three kinds: in the slides, in the genes, and in how they go together.

Every patient has four independent hidden factors, standard normal: `atypia` of the tumour cells, `stroma`, `immune`
infiltration and `evasion` of immunity. What can be seen of them:

- a slide is a lattice of tiles, tumour in some smooth region, stroma in the rest, and a fifth with lymphocytes. In half
  of the tumour tiles features shift with `atypia`; `immune` moves lymphocytes from stroma into tumour, and there are
  a few more of them. A shift of all tiles of a slide (its stain) and noise in every tile tell nothing. At half the
  magnification a tile is the mean of those it covers;
- 20 of 60 TME genes follow `stroma`, 20 others half-heartedly `immune`, 20 of 60 tumour genes `evasion`, 10 others
  faintly `atypia`; two factors without meaning run through the rest, and 80 background genes.

The burden that decides grade and survival is ``0.9 atypia + 0.9 stroma - 1.4 immune / (1 + exp(2.5 evasion))``:
infiltration protects unless it is evaded. Atypia is thus in the slides, stroma in the genes, and the third term only in
both together. Factors and terms were written down before any model was tried on them and know nothing of how a model is
made. The strengths in the slides were raised twice on one development cohort, where at first no model found them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.feature_cohort import write_folds, write_genes, write_slides
from pipeline.contracts.files import read_table, write_table
from pipeline.contracts.tasks import Task
from workflow.simulation.symbols import read_symbols, signature_flags

GRADE = Task("grade", "classification", label="grade")
SURVIVAL = Task("survival", "survival", time="days", event="event")
TASKS = (GRADE, SURVIVAL)
WIDTH = 48  # features per tile
SIGNATURE, BACKGROUND = 60, 80  # genes of each signature, and of neither
LYMPHOCYTES = 0.2  # share of tiles where infiltration is average
TERMS = ("slides", "genes", "both")


@dataclass(frozen=True)
class Truth:
    """What is hidden of each patient, float [patients] each; see the module."""

    atypia: np.ndarray
    stroma: np.ndarray
    immune: np.ndarray
    evasion: np.ndarray

    @property
    def terms(self) -> dict[str, np.ndarray]:
        """The terms of the burden by where they are to be seen."""
        both = -1.4 * self.immune / (1 + np.exp(2.5 * self.evasion))
        return {"slides": 0.9 * self.atypia, "genes": 0.9 * self.stroma, "both": both}

    @property
    def burden(self) -> np.ndarray:
        return sum(self.terms.values(), np.zeros(len(self.atypia)))


def write_planted(folder: Path, patients: int, folds: int, seed: int) -> None:
    """Write sheets, bags, expression, folds, genes and ``truth.tsv`` below `folder`. Equal arguments, equal bytes."""
    hidden, outcomes, tiles, genes = (np.random.default_rng([seed, 1000 + part]) for part in range(4))
    truth = Truth(*hidden.normal(size=(4, patients)))
    case_ids = [f"SIM-{i + 1:03d}" for i in range(patients)]
    _write_outcomes(folder / "cases.tsv", case_ids, truth.burden, outcomes)
    rows = [
        {"case_id": case, "burden": truth.burden[i], **{name: term[i] for name, term in truth.terms.items()}}
        for i, case in enumerate(case_ids)
    ]
    write_table(folder / "truth.tsv", ["case_id", "burden", *TERMS], rows)
    directions = np.linalg.qr(tiles.normal(size=(WIDTH, 4)))[0].T
    slides = {
        case: [_slide(truth.atypia[i], truth.immune[i], directions, tiles) for _ in range(1 + (i % 4 == 0))]
        for i, case in enumerate(case_ids)
    }
    write_slides(folder, slides, coarser=True)
    _write_expression(folder / "expression.h5ad", case_ids, truth, genes)
    write_folds(folder, TASKS, folds, seed)


def read_truth(folder: Path) -> dict[str, dict[str, float]]:
    """case_id -> the burden and its terms."""
    columns = ("burden", *TERMS)
    return {
        row["case_id"]: {name: float(row[name]) for name in columns}
        for row in read_table(folder / "truth.tsv", ["case_id", *columns])
    }


def _write_outcomes(path: Path, case_ids: list[str], burden: np.ndarray, rng: np.random.Generator) -> None:
    n = len(case_ids)
    score = burden + rng.normal(0, 0.5, n)
    event_time = 1000 * (rng.exponential(1, n) / np.exp(burden)) ** (1 / 1.3)
    follow_up = rng.uniform(400, 4000, n)
    rows = [
        {"case_id": case_ids[i], "grade": "high" if score[i] > np.median(score) else "low",
         "days": round(float(min(event_time[i], follow_up[i])) + 1, 1), "event": int(event_time[i] <= follow_up[i])}
        for i in range(n)
    ]  # fmt: skip
    write_table(path, ["case_id", "grade", "days", "event"], rows)


def _slide(
    atypia: float, immune: float, directions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Features [tiles, WIDTH] and cell [tiles, 2] of one slide of 48 to 96 tiles, in random order."""
    tumour_like, stroma_like, lymphocyte, atypical = directions
    width, height = rng.integers(8, 11), rng.integers(8, 11)
    lattice = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    field = gaussian_filter(rng.normal(size=(height, width)), 1.8, mode="nearest").ravel()
    kept = rng.permutation(len(lattice))[: max(48, int(len(lattice) * rng.uniform(0.6, 0.96)))]
    tumour = (field > np.quantile(field, rng.uniform(0.35, 0.65)))[kept]
    weight = np.exp(np.where(tumour, 1, -1) * 1.2 * immune)
    infiltrated = np.zeros(len(kept), bool)
    count = round(min(LYMPHOCYTES * np.exp(0.4 * immune), 0.5) * len(kept))
    infiltrated[rng.choice(len(kept), count, replace=False, p=weight / weight.sum())] = True
    features = rng.normal(size=(len(kept), WIDTH)) + rng.normal(0, 0.2, WIDTH)
    features += 2 * np.where(tumour[:, None], tumour_like, stroma_like) + 3.0 * infiltrated[:, None] * lymphocyte
    features += 2.0 * atypia * (tumour & (rng.random(len(kept)) < 0.5))[:, None] * atypical
    return features, lattice[kept]


def _write_expression(path: Path, case_ids: list[str], truth: Truth, rng: np.random.Generator) -> None:
    symbols = np.array(read_symbols(10**6))
    is_tumour, is_tme = signature_flags(symbols)
    pools = (is_tumour & ~is_tme, is_tme & ~is_tumour, ~is_tumour & ~is_tme)
    counts = (SIGNATURE, SIGNATURE, BACKGROUND)
    chosen = [rng.permutation(np.flatnonzero(p))[:n] for p, n in zip(pools, counts, strict=True)]
    n = len(case_ids)
    idle = rng.normal(size=(2, n))
    seen_immune = 0.5 * truth.immune + np.sqrt(1 - 0.5**2) * rng.normal(size=n)
    seen_atypia = 0.3 * truth.atypia + np.sqrt(1 - 0.3**2) * rng.normal(size=n)
    programmes = [
        *[truth.evasion] * 20, *[seen_atypia] * 10, *[idle[0]] * (SIGNATURE - 30),
        *[truth.stroma] * 20, *[seen_immune] * 20, *[idle[1]] * (SIGNATURE - 40),
        *[idle[k % 2] for k in range(BACKGROUND)],
    ]  # fmt: skip
    loading = rng.uniform(0.2, 0.7, len(programmes)) * rng.choice([1, 1, 1, -1], len(programmes))
    values = 6 + loading * np.stack(programmes, axis=1) + rng.normal(size=(n, len(programmes)))
    order = np.argsort(symbols[np.concatenate(chosen)])
    where = np.concatenate(chosen)[order]
    write_genes(path, case_ids, symbols[where], values[:, order], is_tumour[where], is_tme[where])
