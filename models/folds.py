"""One fold of one task: its usable cases, and everything that is fitted on its training cases before training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.batch import Sizes
from models.checkpoint import selection_values
from models.covariates import Covariates, fit_covariates
from models.data import Cohort, array_digest
from models.experiment import Experiment, Inputs
from models.losses import fit_class_weights
from models.registry import CLINICAL, GENES, SLIDES, entry, model_class
from models.sources import Sources, read_sources
from models.survival import Intervals, fit_intervals
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import digest_of
from pipeline.contracts.genes import GeneSelection
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.splits import TRAIN, VAL, Splits
from pipeline.contracts.tasks import CLASSIFICATION, KINDS, SURVIVAL, Labels


@dataclass(frozen=True)
class Fold:
    """A fold that is ready to train.

    `train` and `val` are usable cases, sorted. `classes`, `class_weights` and `intervals` come from training cases;
    with a teacher, classes and intervals are those that it learnt on the same fold.
    `digest` covers exactly the inputs of the training and validation cases, and never a held-out case. `sources` are
    what the fold takes over from other experiments, and `split` is the digest of all its training and validation cases.
    """

    number: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    sizes: Sizes
    selection: GeneSelection | None
    classes: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()
    intervals: Intervals | None = None
    notes: tuple[str, ...] = field(default=())
    digest: str = ""
    covariates: Covariates | None = None
    sources: Sources = field(default_factory=Sources)
    split: str = ""


def usable_cases(
    case_ids: Sequence[str],
    labels: Labels,
    cohort: Cohort,
    needs: frozenset[str],
    may_lack: frozenset[str] = frozenset(),
) -> tuple[list[str], dict[str, str]]:
    """Cases with a label and the modalities needed, and the others with the reason, both in the order given."""
    known = set(labels.cases)
    kept, left_out = [], {}
    for case_id in case_ids:
        reason = cohort.lacking(case_id, needs, may_lack)
        if case_id not in known:
            reason = labels.missing.get(case_id, "not in the case sheet")
        if reason:
            left_out[case_id] = reason
        else:
            kept.append(case_id)
    return kept, left_out


def split_digest(splits: Splits, fold: int) -> str:
    """Digest of the training and validation cases of a fold."""
    return digest_of("split", *(list(splits.cases(fold, role)) for role in (TRAIN, VAL)))


def prepare_fold(
    number: int,
    experiment: Experiment,
    labels: Labels,
    splits: Splits,
    cohort: Cohort,
    selection: GeneSelection | None,
    inputs: Inputs | None = None,
) -> Fold:
    """Fit what is fitted before training. `experiment` is resolved; `inputs` are needed for its ``init_from``.

    Raises
    ------
    InputError
        The fold cannot be trained: no usable training case, one class only, no event, an empty gene group.
    """
    where = f"task '{labels.task.name}', fold {number}"
    model = model_class(experiment.model)
    split = split_digest(splits, number)
    sources = Sources()
    if experiment.init_from:
        assert inputs is not None
        sources = read_sources(experiment, labels.task, inputs, number, split)
    teacher = sources.teacher
    train, lost_train = usable_cases(splits.cases(number, TRAIN), labels, cohort, model.needs, model.may_lack)
    val, lost_val = usable_cases(splits.cases(number, VAL), labels, cohort, model.needs, model.may_lack)
    if not train:
        raise InputError(where, f"no training case has what model '{experiment.model}' needs.", _why(lost_train))
    notes = [*_left_out_notes({**lost_train, **lost_val}), *_lacking_notes(train + val, cohort, model.may_lack)]
    classes: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()
    intervals = None
    if labels.task.kind == CLASSIFICATION:
        classes = teacher.classes if teacher else tuple(sorted({labels.label[c] for c in train}))
        _check_known(classes, train, labels, where)
        if len(classes) < 2:
            raise InputError(where, f"all {len(train)} training cases are of class '{classes[0]}'.")
        unseen = [c for c in val if labels.label[c] not in classes]
        if unseen:
            notes.append(f"{len(unseen)} validation cases are of a class that no training case has")
            val = [c for c in val if c not in set(unseen)]
    elif labels.task.kind == SURVIVAL:
        time = np.array([labels.time[c] for c in train])
        event = np.array([labels.event[c] for c in train])
        if not event.any():
            raise InputError(where, f"none of the {len(train)} training cases has an event.")
        intervals = (teacher and teacher.intervals) or fit_intervals(time, event, experiment.bins)
        if len(intervals) < experiment.bins:
            few = f"{len(intervals)} survival interval{'s' * (len(intervals) > 1)} instead of {experiment.bins}"
            notes.append(f"{few}: {int(event.sum())} training cases with an event")
    if experiment.params.get("shots"):
        drawn = few_shots(train, labels, classes or intervals, experiment.params["shots"], number, experiment.seed)
        notes.append(f"{experiment.params['shots']} shots: {len(drawn)} of {len(train)} training cases")
        train = drawn
    if classes:
        codes = np.array([classes.index(labels.label[c]) for c in train])
        class_weights = tuple(float(w) for w in fit_class_weights(codes, len(classes)))
    if not val:
        notes.append("no validation case: the last epoch is kept")
    covariates = None
    if CLINICAL in model.needs:
        columns, categorical = experiment.params["columns"], experiment.params["categorical"]
        covariates = fit_covariates(cohort.clinical(train), columns, categorical)
        lacking = [c.column for c in covariates.columns if c.unknown]
        if lacking:
            notes.append(f"unknown for some training cases: {', '.join(lacking)}")
    for need in sorted(model.may_lack):
        if all(reasons := [cohort.lacking(case_id, {need}) for case_id in train]):
            raise InputError(where, f"{reasons[0]} in any training case, and the model has to learn from some.")
    sizes = Sizes(
        features=cohort.feature_width(train) if SLIDES in model.needs else 0,
        genes=_gene_sizes(selection, model.gene_groups, where),
        outputs=len(classes) or len(intervals or ()),
        kind=labels.task.kind,
        clinical=covariates.width if covariates else 0,
        families=[c.tolist() for c in selection.family_columns().values()]
        if selection and GENES in model.needs
        else [],
    )
    fold = Fold(
        number, tuple(train), tuple(val), sizes, selection, classes, class_weights, intervals, tuple(notes),
        covariates=covariates, sources=sources, split=split,
    )  # fmt: skip
    _check_sources(fold, cohort, where)
    return Fold(**{**vars(fold), "digest": _digest(fold, experiment, labels, cohort)})


def fold_seed(seed: int, fold: int) -> int:
    """A seed of its own for every fold, 0 to 2^63 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{fold}".encode()).digest()[:8], "big") >> 1


def few_shots(
    cases: Sequence[str], labels: Labels, groups: Sequence[str] | Intervals | None, shots: int, fold: int, seed: int
) -> list[str]:
    """`shots` cases of each class, or of each survival interval, without replacement; sorted.

    Raises InputError where a group has fewer.
    """
    if isinstance(groups, Intervals):
        of = dict(zip(cases, groups.of(np.array([labels.time[c] for c in cases])).tolist(), strict=True))
        names: Sequence[Any] = range(len(groups))
    else:
        of, names = {c: labels.label[c] for c in cases}, groups or ()
    rng = np.random.default_rng(fold_seed(seed, fold))
    drawn: list[str] = []
    for name in names:
        members = sorted(c for c in cases if of[c] == name)
        if len(members) < shots:
            what = f"survival interval {name + 1}" if isinstance(groups, Intervals) else f"class '{name}'"
            raise InputError(
                f"task '{labels.task.name}', fold {fold}",
                f"{what} has {len(members)} training case{'s' * (len(members) != 1)}, fewer than the {shots} shots.",
                "ask for fewer shots, or fewer bins.",
            )
        drawn += rng.choice(members, shots, replace=False).tolist()
    return sorted(drawn)


def _check_known(classes: Sequence[str], train: Sequence[str], labels: Labels, where: str) -> None:
    unknown = [c for c in train if labels.label[c] not in classes]
    if unknown:
        raise InputError(
            where,
            f"{len(unknown)} training cases are of a class that the teacher's lacked: '{labels.label[unknown[0]]}'.",
            "give the teacher cases of that class, or train without it.",
        )


def _check_sources(fold: Fold, cohort: Cohort, where: str) -> None:
    """Raise InputError where a source reads or predicts anything else than the fold does."""
    start, teacher = fold.sources.weights, fold.sources.teacher
    for source in (s for s in (start, teacher) if s is not None):
        pairs: list[tuple[str, Any, Any]] = [
            ("magnification", cohort.magnification, source.magnification),
            ("features per tile", fold.sizes.features, source.sizes.features),
        ]
        if source is start and fold.selection is not None:
            own, other = (x and x.digest for x in (fold.selection, source.selection))
            pairs.append(("genes and their scaling", own, other))
        if not entry(source.experiment.model).task_free:
            pairs.append(("outputs", fold.sizes.outputs, source.sizes.outputs))
            pairs.append(("classes", fold.classes, source.classes))
        for what, own, other in pairs:
            if own != other:
                raise InputError(where, f"{what}: {own}, but {other} in '{source.experiment.name}' of init_from.")


def _why(left_out: dict[str, str]) -> str:
    return "; ".join(_left_out_notes(left_out)) or "its training part is empty."


def _left_out_notes(left_out: dict[str, str]) -> list[str]:
    counts: dict[str, int] = {}
    for reason in left_out.values():
        counts[reason] = counts.get(reason, 0) + 1
    return [f"{n} case{'s' * (n > 1)} left out: {reason}" for reason, n in sorted(counts.items())]


def _lacking_notes(cases: Sequence[str], cohort: Cohort, may_lack: frozenset[str]) -> list[str]:
    """Cases that the model takes although they are without something."""
    found = ((case_id, cohort.lacking(case_id, {need})) for need in sorted(may_lack) for case_id in cases)
    reasons = {case_id: reason for case_id, reason in found if reason}  # nobody lacks all
    return [note.replace("left out", "taken all the same") for note in _left_out_notes(reasons)]


def _gene_sizes(selection: GeneSelection | None, groups: Sequence[str], where: str) -> dict[str, int]:
    sizes = {}
    for group in groups:
        assert selection is not None
        sizes[group] = len(selection.groups[group])
        if not sizes[group]:
            raise InputError(
                where,
                f"the gene selection has no gene of the group '{group}'.",
                "give gene lists that share symbols with the expression table (config.yaml genes).",
            )
    return sizes


def _digest(fold: Fold, experiment: Experiment, labels: Labels, cohort: Cohort) -> str:
    settings = {k: v for k, v in asdict(experiment).items() if k != "name"}
    cases = [*fold.train, *fold.val]
    outcome = None
    if labels.task.kind in KINDS:
        outcome = [labels.label.get(c) or [labels.time[c], labels.event[c]] for c in cases]
    needs = model_class(experiment.model).needs
    genes = None
    if GENES in needs:
        assert fold.selection is not None
        measured = [c for c in cases if not cohort.lacking(c, {GENES})]
        genes = [selection_values(fold.selection), array_digest(cohort.genes(measured, fold.selection))]
    slides = [cohort.slide_digests(c) for c in cases] if SLIDES in needs else None
    clinical = None
    if fold.covariates is not None:
        columns = [covariate.column for covariate in fold.covariates.columns]
        clinical = [[row[column] for column in columns] for row in cohort.clinical(cases)]
    return digest_of(
        "models", REVISIONS["models"], settings, asdict(labels.task), fold.number, fold.train, fold.val,
        outcome, genes, slides, clinical, fold.notes, cohort.magnification, *_taken_over(fold, cohort),
        *([fold.intervals.edges] if experiment.params.get("shots") and fold.intervals else []),
        *([{c: labels.patient[c] for c in cases if c in labels.patient}] if labels.patient else []),
        *[[cohort.lacking(c, {need}) for c in cases] for need in sorted(model_class(experiment.model).may_lack)],
    )  # fmt: skip


def _taken_over(fold: Fold, cohort: Cohort) -> list[object]:
    """What a fold's training depends on through its sources: their digests, and the genes that the teacher reads."""
    parts: list[object] = list(fold.sources.digests)
    teacher = fold.sources.teacher
    if teacher is not None and teacher.selection is not None:
        read = [c for c in fold.train if not cohort.lacking(c, {GENES})]
        parts += [read, array_digest(cohort.genes(read, teacher.selection))]
    return parts


def read_selection(path: Path) -> GeneSelection:
    """The gene selection of one fold. Raises InputError where the stage left none."""
    from pipeline.contracts.genes import read_genes

    if not path.exists():
        raise InputError(str(path), "the genes of this fold do not exist.", "run select_genes, or see its log.")
    return read_genes(path)
