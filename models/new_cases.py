"""Predict the cases of another run with the models of all folds: their mean, and how far they differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint
from models.data import Cohort
from models.fold_mean import mean_survival
from models.predict import CaseOutcome, predict_cases
from models.registry import CLINICAL, GENES, SLIDES, model_class
from models.train import use_device
from pipeline.contracts import layout
from pipeline.contracts.cohort import read_cases
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.files import write_table
from pipeline.contracts.predictions import LeftOut, left_out_path, write_left_out
from pipeline.contracts.training import OK, read_folds

logger = logging.getLogger(__name__)

FIRST_COLUMNS = ("case_id", "models", "lacking")
ALL_FOLDS = -1  #: stands for the fold of a case that no fold's model could predict


def predict_new_cases(
    models: str | Path, results: str | Path, out: str | Path, cases: str | Path | None = None, device: str = "auto"
) -> list[LeftOut]:
    """Write a row per case of a run that none of the models was trained on, and return the cases left out.

    Probabilities, risks and survival are means over the folds' models; ``sd_...`` are standard deviations between them
    (divided by their number, 0 for one). Survival curves are averaged by `models.fold_mean.mean_survival`. Folds that
    were not trained are left out; column ``models`` counts the others, and ``lacking`` names what a case was predicted
    without, though the model can read it.

    Parameters
    ----------
    models : folder of an experiment, ``results/models/{task}/{experiment}`` of the run that trained it
    results : ``results`` of the run with the new cases; features of the same encoder, expression where genes are read
    cases : its clinical sheet: cases in it without usable input are listed, and clinical columns are read from it
    device : "cpu", "cuda", or "auto" for a GPU where there is one

    Raises
    ------
    InputError
        No trained fold, an input that the run lacks, or features, genes or columns unlike those of training.
    FormatError
        A damaged file, or a checkpoint that is not the one that the models' index names.
    """
    where = use_device(device, 1)
    checkpoints = trained_folds(Path(models))
    cohort = open_new(checkpoints[0], Path(results), cases)
    wanted = sorted({*cohort.case_ids, *(read_cases(cases).rows if cases else ())})
    outcomes: dict[str, list[CaseOutcome]] = {}
    lost: dict[str, str] = {}
    for checkpoint in checkpoints:
        found, reasons = predict_cases(checkpoint, cohort, wanted, where)
        lost |= reasons
        for outcome in found:
            outcomes.setdefault(outcome.case_id, []).append(outcome)
    rows = [mean_row(case_id, parts, checkpoints) for case_id, parts in sorted(outcomes.items())]
    write_table(out, columns_of(checkpoints), rows)
    left_out = [LeftOut(case_id, ALL_FOLDS, reason) for case_id, reason in sorted(lost.items())]
    write_left_out(left_out_path(out), left_out)
    logger.info("%d cases predicted by %d models, %d left out", len(rows), len(checkpoints), len(left_out))
    return left_out


def trained_folds(models: Path) -> list[Checkpoint]:
    """Checkpoints of the folds that were trained. Raises as `predict_new_cases`."""
    index = models / "index.tsv"
    if not index.exists():
        raise InputError(
            str(models), "no index.tsv in it.", "name results/models/{task}/{experiment} of a finished run."
        )
    checkpoints = []
    for row in read_folds(index):
        if row.status != OK:
            logger.warning("fold %d was not trained: %s", row.fold, row.reason)
            continue
        path = models / f"fold{row.fold}" / CHECKPOINT
        checkpoints.append(read_checkpoint(path))
        if checkpoints[-1].digest != row.digest:
            raise FormatError(f"{path}: not the checkpoint that index.tsv names. Fix: rerun train_model.")
    if not checkpoints:
        raise InputError(str(index), "no fold was trained.", "see the reasons in it.")
    return checkpoints


def open_new(checkpoint: Checkpoint, results: Path, cases: str | Path | None) -> Cohort:
    """The inputs that the model reads, of the run with the new cases."""
    experiment = checkpoint.experiment
    model = model_class(experiment.model)
    paths = {
        SLIDES: layout.features_index(results, str(experiment.encoder)),
        GENES: layout.expression(results),
    }
    given = {key: path for key, path in paths.items() if key in model.needs and Path(path).exists()}
    absent = sorted({key for key in paths if key in model.needs} - set(given))
    if any(key not in model.may_lack for key in absent) or (absent and not given):
        fix = "run `snakemake features expression` there, with the encoder and settings of the training run."
        raise InputError(paths[absent[0]], f"it does not exist; the model '{experiment.model}' reads {absent[0]}.", fix)
    if CLINICAL in model.needs and cases is None:
        raise InputError(f"model '{experiment.model}'", "it reads clinical columns.", "name the sheet with --cases.")
    sheet = cases if CLINICAL in model.needs else None
    magnification = checkpoint.magnification if SLIDES in given else None
    return Cohort(given.get(SLIDES), magnification, given.get(GENES), cases=sheet, magnifications=model.magnifications)


def columns_of(checkpoints: Sequence[Checkpoint]) -> list[str]:
    if checkpoints[0].intervals is None:
        classes = classes_of(checkpoints)
        return [*FIRST_COLUMNS, "predicted", *(f"p_{c}" for c in classes), *(f"sd_{c}" for c in classes)]
    ends = range(1, len(checkpoints[0].intervals.ends) + 1)
    return [*FIRST_COLUMNS, "risk", "sd_risk", *(f"survival_{k}" for k in ends), *(f"edge_{k}" for k in ends)]


def classes_of(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Every class that a fold was trained on, in the order of the folds' classes."""
    return sorted({name for checkpoint in checkpoints for name in checkpoint.classes})


def mean_row(case_id: str, outcomes: Sequence[CaseOutcome], checkpoints: Sequence[Checkpoint]) -> Mapping[str, Any]:
    """One case's row, of the outcomes that the checkpoints gave it, in their order."""
    row: dict[str, Any] = {"case_id": case_id, "models": len(outcomes), "lacking": outcomes[0].lacking}
    if checkpoints[0].intervals is None:
        classes = classes_of(checkpoints)
        given = [dict(zip(c.classes, o.probability, strict=True)) for c, o in zip(checkpoints, outcomes, strict=True)]
        table = np.array([[fold.get(name, 0.0) for name in classes] for fold in given], dtype=np.float64)
        mean, sd = table.mean(axis=0), table.std(axis=0)
        row["predicted"] = classes[int(mean.argmax())]
        return row | {f"p_{c}": p for c, p in zip(classes, mean.tolist(), strict=True)} | {
            f"sd_{c}": s for c, s in zip(classes, sd.tolist(), strict=True)
        }  # fmt: skip
    edges = [c.intervals.ends for c in checkpoints if c.intervals is not None]
    curve = mean_survival(edges, [o.survival for o in outcomes if o.survival is not None])
    risks = np.array([outcome.risk for outcome in outcomes], dtype=np.float64)
    return row | {"risk": float(risks.mean()), "sd_risk": float(risks.std())} | {
        **{f"survival_{k}": value for k, value in enumerate(curve, start=1)},
        **{f"edge_{k}": value for k, value in enumerate(edges[0], start=1)},
    }  # fmt: skip
