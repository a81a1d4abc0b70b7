"""Predict cases with trained checkpoints: every case by the model that never saw it, or any case by one model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from models.batch import Batch
from models.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint
from models.covariates import check_columns
from models.data import Cohort, Collator, Sample, named_magnification, samples_of
from models.experiment import Experiment, Inputs
from models.feature_facts import check_same
from models.fold_mean import mean_over_folds
from models.folds import usable_cases
from models.metrics import softmax
from models.model import Model, fixed_length, restored
from models.registry import SLIDES, model_class
from models.train import open_cohort, use_device
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.predictions import (
    CASE,
    ENSEMBLE,
    SLIDE,
    ClassPrediction,
    LeftOut,
    Prediction,
    SlidePrediction,
    SurvivalPrediction,
    left_out_path,
    write_left_out,
    write_predictions,
    write_slide_predictions,
)
from pipeline.contracts.splits import TEST, read_splits
from pipeline.contracts.tasks import Labels, Task, read_labels
from pipeline.contracts.training import OK, read_folds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseOutcome:
    """What one checkpoint says of one case.

    `probability` is [classes] in the order of the checkpoint's classes. For survival, `risk` is higher for an earlier
    event and `survival` [bins] holds at the ends of the checkpoint's intervals. The other kind's fields are None.
    `lacking` names what it was predicted without, though the model can read it. `slides` says the same of each slide
    alone, by slide_id, where that was asked for.
    """

    case_id: str
    probability: np.ndarray | None = None
    risk: float | None = None
    survival: np.ndarray | None = None
    lacking: str = ""
    slides: dict[str, CaseOutcome] = field(default_factory=dict)


def predict_folds(
    experiment: Experiment,
    task: Task,
    inputs: Inputs,
    models_dir: str | Path,
    out: str | Path,
    threads: int = 1,
    device: str = "auto",
    slides_out: str | Path | None = None,
    external_out: str | Path | None = None,
) -> list[LeftOut]:
    """Write the out-of-fold predictions of one experiment, and beside them the cases left out, which are returned.

    Reads the checkpoints of the trained folds, the feature bags, the expression and the labels. A class that a fold's
    training cases lacked gets probability 0 there.

    Parameters
    ----------
    slides_out : where the predictions of the slides of these cases go; without a row where the model reads no slide
    external_out : where the cases of external cohorts go, predicted by every fold's model and by the mean of them

    Raises
    ------
    FormatError
        A checkpoint is not the one that the training index names.
    """
    where = use_device(device, threads)
    inputs.check(experiment)
    labels = read_labels(inputs.cases, task)
    splits = read_splits(inputs.splits)
    cohort = open_cohort(experiment, inputs)
    rows: list[Prediction] = []
    slides: list[SlidePrediction] = []
    left_out: list[LeftOut] = []
    known = set(labels.cases)
    outside = External([c for c in splits.external if c in known] if external_out else [])
    for fold in read_folds(Path(models_dir) / "index.tsv"):
        held_out = [c for c in splits.cases(fold.fold, TEST) if c in known]
        if fold.status != OK:
            left_out += [LeftOut(c, fold.fold, f"fold {fold.fold} was not trained: {fold.reason}") for c in held_out]
            continue
        path = Path(models_dir) / f"fold{fold.fold}" / CHECKPOINT
        checkpoint = read_checkpoint(path)
        if checkpoint.digest != fold.digest:
            raise FormatError(f"{path}: not the checkpoint that index.tsv names. Fix: rerun train_model.")
        outcomes, lost = predict_cases(checkpoint, cohort, held_out, where, slides=slides_out is not None)
        left_out += [LeftOut(case_id, fold.fold, reason) for case_id, reason in lost.items()]
        rows += [_row(outcome, checkpoint, labels) for outcome in outcomes]
        slides += [slide for outcome in outcomes for slide in _slide_rows(outcome, checkpoint, labels)]
        if outside.case_ids:
            outcomes, lost = predict_cases(checkpoint, cohort, outside.case_ids, where)
            outside.add([_row(outcome, checkpoint, labels) for outcome in outcomes], lost)
    write_predictions(out, labels.classes, rows)
    write_left_out(left_out_path(out), left_out)
    if slides_out is not None:
        write_slide_predictions(slides_out, labels.classes, slides)
    if external_out is not None:
        outside.write(external_out, labels.classes)
    logger.info("%s on %s: %d cases predicted, %d left out", experiment.name, task.name, len(rows), len(left_out))
    return left_out


class External:
    """What the folds' models say of cases of external cohorts."""

    def __init__(self, case_ids: Sequence[str]) -> None:
        self.case_ids = case_ids
        self._rows: dict[str, list[Prediction]] = {}
        self._lost: dict[str, str] = {}

    def add(self, rows: Sequence[Prediction], lost: dict[str, str]) -> None:
        """One fold's predictions, and the reasons for cases without one."""
        for row in rows:
            self._rows.setdefault(row.case_id, []).append(row)
        self._lost |= lost

    def write(self, path: str | Path, classes: Sequence[str]) -> None:
        means = [mean_over_folds(rows, classes) for rows in self._rows.values()]
        write_predictions(path, classes, [*(row for rows in self._rows.values() for row in rows), *means])
        reasons = {c: self._lost.get(c, "no fold was trained") for c in self.case_ids if c not in self._rows}
        write_left_out(left_out_path(path), [LeftOut(c, ENSEMBLE, reason) for c, reason in reasons.items()])


def predict_cases(
    checkpoint: Checkpoint,
    cohort: Cohort,
    case_ids: Sequence[str],
    device: torch.device | None = None,
    slides: bool = False,
) -> tuple[list[CaseOutcome], dict[str, str]]:
    """Predict any cases with one checkpoint, one case at a time, so that no case's numbers depend on another.

    A model of single slides (reference mode) gives a case the mean over its slides of probability, risk and survival.
    With `slides`, each slide of a case is also predicted by itself, whatever the model was trained on.

    Returns
    -------
    outcomes : of the cases that have what the model needs, in the order given
    left_out : case_id -> reason, for the others
    """
    device = device or torch.device("cpu")
    check_features(checkpoint, cohort, case_ids)
    if checkpoint.covariates is not None and cohort.sheet is not None:
        columns = [covariate.column for covariate in checkpoint.covariates.columns]
        check_columns(columns, cohort.sheet.columns, (), cohort.sheet.path)
    model = restored(checkpoint, device)
    length = fixed_length(model)
    collate = Collator(cohort, model.needs, checkpoint.selection, model.gene_groups, length, checkpoint.covariates)

    def logits_of(samples: Sequence[Sample]) -> torch.Tensor:
        return _logits(model, [collate([sample]).to(device) for sample in samples])

    outcomes, left_out = [], {}
    for case_id in case_ids:
        reason = cohort.lacking(case_id, model.needs, model.may_lack)
        if reason:
            left_out[case_id] = reason
            continue
        logits = logits_of(samples_of(cohort, [case_id], per_slide=length is not None))
        spared = cohort.spared(case_id, model.needs, model.may_lack)
        outcome = _outcome(case_id, model, checkpoint, logits, spared)
        single = [Sample(case_id, slide_id) for slide_id in cohort.slide_ids(case_id)]
        if slides and single and SLIDES in model.needs:
            # A row per slide is at hand in reference mode, and where the case has one slide.
            each = logits if len(logits) == len(single) else logits_of(single)
            parts = {
                str(sample.slide_id): _outcome(case_id, model, checkpoint, each[k : k + 1], spared)
                for k, sample in enumerate(single)
            }
            outcome = replace(outcome, slides=parts)
        outcomes.append(outcome)
    return outcomes, left_out


@torch.no_grad()
def _logits(model: Model, batches: Sequence[Batch]) -> torch.Tensor:
    """[batches, outputs]; each batch is one sample."""
    assert not any(module.training for module in model.modules())
    logits = [model(batch).logits for batch in batches]
    return torch.cat(logits if model.fits_itself else [each.float() for each in logits])


@torch.no_grad()
def _outcome(case_id: str, model: Model, checkpoint: Checkpoint, logits: torch.Tensor, lacking: str) -> CaseOutcome:
    """The mean over the rows of `logits`."""
    if checkpoint.intervals is None:
        return CaseOutcome(case_id, probability=softmax(logits).mean(axis=0), lacking=lacking)
    risk, survival = model.outcome(logits.double(), checkpoint.intervals)
    curve = survival.mean(dim=0).cpu().numpy()
    return CaseOutcome(case_id, risk=float(risk.mean()), survival=curve, lacking=lacking)


def check_features(checkpoint: Checkpoint, cohort: Cohort, case_ids: Sequence[str]) -> None:
    """Raise InputError unless the cases' features are made like those that the checkpoint was trained on."""
    no_slides = cohort.magnification is None and SLIDES in model_class(checkpoint.experiment.model).may_lack
    if not checkpoint.sizes.features or no_slides:
        return
    where = f"features for experiment '{checkpoint.experiment.name}'"
    if cohort.magnification != checkpoint.magnification:
        raise InputError(
            where,
            f"they are at {named_magnification(cohort.magnification)}, but it was trained at"
            f" {named_magnification(checkpoint.magnification)}.",
            "use the bags of the magnification that it was trained on.",
        )
    found = cohort.feature_width(case_ids)
    if found and found != checkpoint.sizes.features:
        raise InputError(
            where,
            f"{found} features per tile, but it was trained on {checkpoint.sizes.features}.",
            "use the features of the encoder that it was trained on.",
        )
    if found:
        check_same(checkpoint.features, cohort.feature_facts(case_ids), where)


def _slide_rows(outcome: CaseOutcome, checkpoint: Checkpoint, labels: Labels) -> list[SlidePrediction]:
    trained_on = SLIDE if checkpoint.experiment.params.get("fixed_length") else CASE
    return [
        SlidePrediction(slide_id, len(outcome.slides), trained_on, _row(slide, checkpoint, labels))
        for slide_id, slide in outcome.slides.items()
    ]


def _row(outcome: CaseOutcome, checkpoint: Checkpoint, labels: Labels) -> Prediction:
    case_id = outcome.case_id
    if outcome.probability is not None:
        given = dict(zip(checkpoint.classes, outcome.probability.tolist(), strict=True))
        return ClassPrediction(
            case_id,
            checkpoint.fold,
            tuple(given.get(name, 0.0) for name in labels.classes),
            labels.label[case_id],
            checkpoint.classes[int(outcome.probability.argmax())],
            checkpoint.digest,
            outcome.lacking,
        )
    assert outcome.risk is not None and outcome.survival is not None and checkpoint.intervals is not None
    return SurvivalPrediction(
        case_id,
        checkpoint.fold,
        outcome.risk,
        tuple(outcome.survival.tolist()),
        checkpoint.intervals.ends,
        labels.time[case_id],
        labels.event[case_id],
        checkpoint.digest,
        outcome.lacking,
    )


__all__ = ["CaseOutcome", "predict_cases", "predict_folds", "usable_cases"]
