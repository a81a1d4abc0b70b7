"""Feature bags, expression and outcomes of a cohort, turned into padded batches with masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.batch import Batch, Targets
from models.covariates import Covariates
from models.feature_facts import facts_of
from models.survival import Intervals
from pipeline.contracts.cohort import read_cases
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.expression import read_expression
from pipeline.contracts.features import BagRecord, read_bag, read_index, read_summary
from pipeline.contracts.genes import GeneSelection
from pipeline.contracts.tasks import CLASSIFICATION, PRETRAINING, Labels

CACHE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class SlideBag:
    """Tiles of one slide: features float32 [tiles, width], coords int64 [tiles, 2] (x, y) level-0 pixels, cell int64
    [tiles, 2] (column, row) counted from the slide's first occupied column and row. With two magnifications, `coarser`
    is the bag of the coarser one and parent int64 [tiles] the row in it of each tile, -1 where there is none."""

    slide_id: str
    features: np.ndarray
    coords: np.ndarray
    cell: np.ndarray
    coarser: SlideBag | None = None
    parent: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return sum(v.nbytes for v in vars(self).values() if isinstance(v, (np.ndarray, SlideBag)))


@dataclass(frozen=True)
class Sample:
    """What a model sees as one example: a case, or one slide of it when `slide_id` is set."""

    case_id: str
    slide_id: str | None = None


class Cohort:
    """Inputs of all cases, read on demand. Bags stay in memory up to `cache_bytes`; expression is read once.

    Parameters
    ----------
    features_index : index of one encoder, None for models without slides
    magnification : the bags to take, one magnification or two; None for the coarsest
    expression : ``expression.h5ad``, None for models without genes
    cases : the clinical sheet, None for models without covariates
    magnifications : how many magnifications of each slide to take where `magnification` is None
    """

    def __init__(
        self,
        features_index: str | Path | None = None,
        magnification: float | Sequence[float] | None = None,
        expression: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        cases: str | Path | None = None,
        magnifications: int = 1,
    ) -> None:
        self._records: dict[str, list[tuple[BagRecord, ...]]] = {}  # of a slide, finest magnification first
        self._magnifications = _as_tuple(magnification)
        if features_index is not None:
            self._read_records(Path(features_index), magnifications)
        self.expression = read_expression(expression) if expression is not None else None
        self.sheet = read_cases(cases) if cases is not None else None
        self._rna_row = {case: i for i, case in enumerate(self.expression.cases)} if self.expression else {}
        self._rna_cohort = self.expression.cohort_of() if self.expression else {}
        self._cache: dict[str, SlideBag] = {}
        self._room = cache_bytes

    @property
    def magnification(self) -> float | tuple[float, ...] | None:
        """The magnification of the bags, or two of them, finest first; None without slides."""
        return self._magnifications if len(self._magnifications) > 1 else next(iter(self._magnifications), None)

    def _read_records(self, index: Path, magnifications: int) -> None:
        records = read_index(index)
        if not self._magnifications:
            coarsest = sorted({record.magnification for record in records})[:magnifications]
            self._magnifications = tuple(reversed(coarsest))
        if records and len(self._magnifications) < magnifications:
            found = named_magnification(self.magnification)
            raise InputError(str(index), f"the model reads {magnifications} magnifications, here is {found}.")
        slides: dict[str, dict[float, BagRecord]] = {}
        for record in records:
            if record.n_tiles > 0:
                slides.setdefault(record.slide_id, {})[record.magnification] = record
        for found in slides.values():
            if all(m in found for m in self._magnifications):
                chosen = tuple(found[m] for m in self._magnifications)
                self._records.setdefault(chosen[0].case_id, []).append(chosen)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """All cases with slides or genes, sorted; those of the clinical sheet where neither is read."""
        return tuple(sorted({*self._records, *self._rna_row} or set(self.sheet.rows if self.sheet else ())))

    def lacking(self, case_id: str, needs: Iterable[str], may_lack: Iterable[str] = ()) -> str:
        """Why a case cannot be used by a model that needs these modalities, or "".

        A case may be without those of `may_lack`, but not without all of `needs`.
        """
        needs = frozenset(needs)
        without = {need for need in needs & frozenset(may_lack) if self.lacking(case_id, {need})}
        needs = needs - without or needs
        absent = []
        if "slides" in needs and case_id not in self._records:
            at = named_magnification(self.magnification)
            absent.append("no usable slide" + (f" at {at}" if at else ""))
        if "genes" in needs and case_id not in self._rna_row:
            absent.append("no RNA")
        if "clinical" in needs and (self.sheet is None or case_id not in self.sheet.rows):
            absent.append("no row in the case sheet")
        return " and ".join(absent)

    def spared(self, case_id: str, needs: Iterable[str], may_lack: Iterable[str]) -> str:
        """What a model that needs these modalities does without on a case, such as "no RNA", or ""."""
        wanted = sorted(frozenset(needs) & frozenset(may_lack))
        return " and ".join(filter(None, (self.lacking(case_id, {need}) for need in wanted)))

    def slide_ids(self, case_id: str) -> tuple[str, ...]:
        """Slides of a case in the index's order (sorted by slide_id)."""
        return tuple(records[0].slide_id for records in self._records.get(case_id, ()))

    def records(self, case_id: str) -> tuple[tuple[BagRecord, ...], ...]:
        """The bags of each slide of a case, in the order of `slide_ids`; finest magnification first."""
        return tuple(self._records.get(case_id, ()))

    def slide_digests(self, case_id: str) -> list[list[str]]:
        """[slide_id, digest of its bag at each magnification] of each slide of a case."""
        return [[records[0].slide_id, *(r.digest for r in records)] for records in self._records.get(case_id, ())]

    def bags(self, case_id: str) -> list[SlideBag]:
        """All slides of a case. Raises FormatError for a damaged bag."""
        return [self._bag(records) for records in self._records.get(case_id, ())]

    def _bag(self, records: tuple[BagRecord, ...]) -> SlideBag:
        slide_id = records[0].slide_id
        if slide_id not in self._cache:
            slide = _read_slide(records)
            if slide.nbytes > self._room:
                return slide
            self._room -= slide.nbytes
            self._cache[slide_id] = slide
        return self._cache[slide_id]

    def feature_width(self, case_ids: Sequence[str]) -> int:
        """Number of features per tile, from the first case with a slide; 0 where there is none."""
        for case_id in case_ids:
            if case_id in self._records:
                return self._bag(self._records[case_id][0]).features.shape[1]
        return 0

    def feature_facts(self, case_ids: Sequence[str]) -> dict[str, Any]:
        """What the bags were made with, from the first case with a slide; empty where there is none."""
        found = next((self._records[case_id] for case_id in case_ids if case_id in self._records), None)
        return facts_of(read_summary(found[0][0].path).source) if found else {}

    def genes(self, case_ids: Sequence[str], selection: GeneSelection) -> np.ndarray:
        """Standardised expression, float32 [cases, genes of the selection]. Raises InputError for another unit."""
        assert self.expression is not None
        if self.expression.unit != selection.unit:
            raise InputError(
                f"genes of task {selection.task}, fold {selection.fold}",
                f"they were fitted on expression in '{selection.unit}', this table is in '{self.expression.unit}'.",
                "give expression in the same unit.",
            )
        rows = [self._rna_row[case_id] for case_id in case_ids]
        cohorts = [self._rna_cohort[case_id] for case_id in case_ids]
        values, symbols = self.expression.values, self.expression.symbols
        selection = selection.with_own_centres(values, symbols, [*self._rna_cohort.values()], cohorts)
        return selection.apply(values[rows], symbols, cohorts)

    def clinical(self, case_ids: Sequence[str]) -> list[dict[str, str]]:
        """Rows of the clinical sheet, column -> text."""
        assert self.sheet is not None
        return [self.sheet.rows[case_id] for case_id in case_ids]


def _as_tuple(magnification: float | Sequence[float] | None) -> tuple[float, ...]:
    if magnification is None:
        return ()
    return tuple(magnification) if isinstance(magnification, Sequence) else (magnification,)


def named_magnification(magnification: float | Sequence[float] | None) -> str:
    """``20x and 10x``, for messages."""
    return " and ".join(f"{m:g}x" for m in _as_tuple(magnification))


def _read_slide(records: tuple[BagRecord, ...]) -> SlideBag:
    """One slide's bag, with that of the next coarser magnification where there are two records."""
    record, *coarser = records
    bag = read_bag(record.path)
    cell = bag.cell.astype(np.int64)
    slide = SlideBag(record.slide_id, bag.features, bag.coords.astype(np.int64), cell - cell.min(axis=0))
    if not coarser:
        return slide
    below = [m for m in bag.source.slide_magnifications if m < record.magnification]
    if below and max(below) != coarser[0].magnification:
        raise InputError(
            f"slide '{record.slide_id}'",
            f"the tiles of {named_magnification(record.magnification)} lie in those of {max(below):g}x,"
            f" not of {named_magnification(coarser[0].magnification)}.",
            "choose two magnifications that follow each other in tiles.magnifications.",
        )
    parents = _read_slide(tuple(coarser))
    if len(bag.parent) and bag.parent.max() >= len(parents.features):
        raise FormatError(f"{record.path}: names parents that {coarser[0].path} lacks. Fix: rerun embed_tiles.")
    return replace(slide, coarser=parents, parent=bag.parent)


def array_digest(values: np.ndarray) -> str:
    """SHA-256 of an array's shape, dtype and bytes."""
    content = f"{values.shape} {values.dtype.str} ".encode() + np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(content).hexdigest()


def fixed_length_rows(tiles: int, length: int) -> np.ndarray:
    """Rows of an ordered list of `tiles` that make a list of `length`, int64 [length] (subspace specification 2.3).

    A short list is repeated whole and then cut; a long one is thinned evenly, rounding half to even.
    """
    steps = np.arange(length)
    return (steps % tiles if tiles <= length else np.rint(steps * tiles / length)).astype(np.int64)


def samples_of(cohort: Cohort, case_ids: Sequence[str], per_slide: bool) -> list[Sample]:
    """One sample per case, or per slide in reference mode; a case without slides is one sample too."""
    if not per_slide:
        return [Sample(case_id) for case_id in case_ids]
    return [Sample(case_id, slide_id) for case_id in case_ids for slide_id in cohort.slide_ids(case_id) or (None,)]


class Collator:
    """Makes batches of samples for one model and fold.

    Parameters
    ----------
    cohort : where inputs come from
    needs : modalities to load, of "slides", "genes" and "clinical"
    selection, groups : the fold's genes and the groups of them that the model reads
    fixed_length : None for all tiles of a case; else each slide is resampled to so many (reference mode)
    covariates : the fold's encoding of the clinical sheet
    """

    def __init__(
        self,
        cohort: Cohort,
        needs: Iterable[str],
        selection: GeneSelection | None = None,
        groups: Sequence[str] = (),
        fixed_length: int | None = None,
        covariates: Covariates | None = None,
    ) -> None:
        self.cohort = cohort
        self.covariates = covariates
        self.needs = frozenset(needs)
        self.selection = selection
        self.groups = tuple(groups)
        self.fixed_length = fixed_length

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        case_ids = tuple(sample.case_id for sample in samples)
        has_slides, has_genes = (
            torch.tensor([need in self.needs and not self.cohort.lacking(case_id, {need}) for case_id in case_ids])
            for need in ("slides", "genes")
        )
        batch = Batch(
            case_ids,
            has_slides,
            has_genes,
            **(self._slides(samples) if bool(has_slides.any()) else {}),
            genes=self._genes(case_ids) if "genes" in self.needs else {},
            clinical=self._clinical(case_ids) if "clinical" in self.needs else None,
        )
        return batch

    def _genes(self, case_ids: tuple[str, ...]) -> dict[str, torch.Tensor]:
        assert self.selection is not None
        known = [not self.cohort.lacking(case_id, {"genes"}) for case_id in case_ids]
        values = np.zeros((len(case_ids), len(self.selection.genes)), np.float32)
        if any(known):
            values[known] = self.cohort.genes(
                [c for c, has in zip(case_ids, known, strict=True) if has], self.selection
            )
        return {group: torch.from_numpy(values[:, self.selection.columns(group)]) for group in self.groups}

    def _clinical(self, case_ids: tuple[str, ...]) -> torch.Tensor:
        assert self.covariates is not None
        return torch.from_numpy(self.covariates.encoded(self.cohort.clinical(case_ids)))

    def _slides(self, samples: Sequence[Sample]) -> dict[str, Any]:
        bags = [self._bags_of(sample) for sample in samples]
        arrays: dict[str, Any] = _tiles(bags)
        if next(bag for sample in bags for bag in sample).coarser is not None:
            whose = [sample.case_id for sample in samples]
            present = torch.full((len(samples),), True)
            coarser = [[bag.coarser for bag in sample if bag.coarser is not None] for sample in bags]
            arrays["coarser"] = Batch(tuple(whose), present, ~present, **_tiles(coarser))
            arrays["parent"] = _parents(bags, arrays["mask"].shape)
        return arrays

    def _bags_of(self, sample: Sample) -> list[SlideBag]:
        bags = [b for b in self.cohort.bags(sample.case_id) if sample.slide_id in (None, b.slide_id)]
        return [_resampled(bag, self.fixed_length) for bag in bags] if self.fixed_length else bags


def _tiles(bags: Sequence[Sequence[SlideBag]]) -> dict[str, torch.Tensor]:
    """Tiles of samples, each a list of slides, padded to the longest; a sample may have none, but not all."""
    longest = max(sum(len(bag.features) for bag in sample) for sample in bags)
    width = next(bag for sample in bags for bag in sample).features.shape[1]
    shape = (len(bags), longest)
    features, mask = np.zeros((*shape, width), np.float32), np.zeros(shape, bool)
    slide, cell, coords = np.full(shape, -1), np.zeros((*shape, 2), np.int64), np.zeros((*shape, 2), np.int64)
    for row, sample in enumerate(bags):
        start = 0
        for number, bag in enumerate(sample):
            if bag.features.shape[1] != width:
                raise InputError(
                    f"features of slide '{bag.slide_id}'",
                    f"{bag.features.shape[1]} features per tile, but {width} in others of the same encoder.",
                    "delete the features of this encoder and rerun embed_tiles.",
                )
            here = (row, slice(start, start + len(bag.features)))
            features[here], mask[here], slide[here] = bag.features, True, number
            cell[here], coords[here] = bag.cell, bag.coords
            start += len(bag.features)
    arrays = {"features": features, "mask": mask, "slide": slide, "cell": cell, "coords": coords}
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def _parents(bags: Sequence[Sequence[SlideBag]], shape: tuple[int, ...]) -> torch.Tensor:
    """Position of each tile's parent among the coarser tiles of its sample, int64 `shape`, -1 where there is none."""
    parents = np.full(shape, -1, np.int64)
    for row, sample in enumerate(bags):
        start = coarser = 0
        for bag in sample:
            assert bag.parent is not None and bag.coarser is not None
            parents[row, start : start + len(bag.parent)] = np.where(bag.parent < 0, -1, bag.parent + coarser)
            start, coarser = start + len(bag.parent), coarser + len(bag.coarser.features)
    return torch.from_numpy(parents)


def _resampled(bag: SlideBag, length: int) -> SlideBag:
    """Reference mode: tiles by column, then row, repeated or thinned to `length`; nothing links two magnifications."""
    order = np.lexsort((bag.coords[:, 1], bag.coords[:, 0]))
    rows = order[fixed_length_rows(len(order), length)]
    coarser = None if bag.coarser is None else _resampled(bag.coarser, length)
    parent = None if bag.parent is None else np.full(length, -1)
    return SlideBag(bag.slide_id, bag.features[rows], bag.coords[rows], bag.cell[rows], coarser, parent)


def targets_of(
    case_ids: Sequence[str], labels: Labels, classes: Sequence[str] = (), intervals: Intervals | None = None
) -> Targets:
    """Targets of samples in order; `classes` and `intervals` are the fold's own."""
    if labels.task.kind == PRETRAINING:
        return Targets()
    patient = None
    if labels.patient:
        names = [labels.patient.get(c, c) for c in case_ids]
        patient = torch.from_numpy(np.unique(names, return_inverse=True)[1].astype(np.int64))
    if labels.task.kind == CLASSIFICATION:
        code = {name: number for number, name in enumerate(classes)}
        label = torch.tensor([code[labels.label[c]] for c in case_ids], dtype=torch.int64)
        return Targets(label=label, patient=patient)
    assert intervals is not None
    time = np.array([labels.time[c] for c in case_ids], dtype=np.float64)
    return Targets(
        interval=torch.from_numpy(intervals.of(time)),
        time=torch.from_numpy(time),
        event=torch.tensor([labels.event[c] for c in case_ids], dtype=torch.int64),
        patient=patient,
    )
