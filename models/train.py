"""Train one experiment on every fold of a task. One loop for all models; a killed run goes on to the same bytes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.batch import Batch, Targets, joined
from models.checkpoint import (
    CHECKPOINT,
    FORMAT_VERSION,
    RESUME_KIND,
    Checkpoint,
    load,
    read_checkpoint,
    saved,
    write_bytes,
    write_checkpoint,
)
from models.covariates import check_columns
from models.data import Cohort, Collator, Sample, samples_of, targets_of
from models.experiment import Experiment, Inputs
from models.folds import Fold, fold_seed, prepare_fold, read_selection
from models.losses import Objective
from models.metrics import selection_score
from models.model import Model, build_model, fixed_length, learnt
from models.registry import CLINICAL, GENES, SLIDES, model_class
from models.sources import lessons, with_lessons
from pipeline.contracts.errors import FormatError, HistoweaveError
from pipeline.contracts.files import write_table
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.splits import read_splits
from pipeline.contracts.tasks import PRETRAINING, Labels, Task, read_labels
from pipeline.contracts.training import FAILED, OK, FoldRow, write_folds

__all__ = ["Experiment", "Inputs", "TrainingError", "train_folds"]

logger = logging.getLogger(__name__)

HISTORY = "history.tsv"
LAST = "last.pt"


class TrainingError(HistoweaveError):
    """Training of a fold went wrong; recorded as the fold's reason."""


def train_folds(
    experiment: Experiment,
    task: Task,
    inputs: Inputs,
    out_dir: str | Path,
    index_path: str | Path,
    threads: int = 1,
    device: str = "auto",
) -> list[FoldRow]:
    """Train every fold, skip those whose checkpoint verifies, record those that fail, and write the index last.

    Each fold has a folder ``fold{k}`` below `out_dir` with ``checkpoint.pt`` and ``history.tsv``; ``last.pt``, from
    which a killed run goes on, is removed at the end. A fold that was trained before with the same digest is not
    trained again.

    Parameters
    ----------
    device : "cpu", "cuda", or "auto" for a GPU where there is one

    Raises
    ------
    InputError
        What concerns all folds: a missing input, label column, modality or hyper-parameter.
    """
    where = use_device(device, threads)
    inputs.check(experiment)
    experiment = experiment.resolved(task.kind)
    labels = read_labels(inputs.cases, task)
    splits = read_splits(inputs.splits)
    cohort = open_cohort(experiment, inputs)
    if cohort.sheet is not None:
        check_columns(experiment.params["columns"], cohort.sheet.columns, task.columns, cohort.sheet.path)
    rows = []
    for number in range(splits.n_folds):
        started = time.monotonic()
        folder = Path(out_dir) / f"fold{number}"
        try:
            needs_genes = GENES in model_class(experiment.model).needs
            selection = read_selection(inputs.genes_path(number)) if needs_genes else None
            fold = prepare_fold(number, experiment, labels, splits, cohort, selection, inputs)
            checkpoint = finished(folder, fold.digest)
            seconds = 0.0
            if checkpoint is None:
                checkpoint = train_fold(fold, experiment, labels, cohort, folder, where)
                seconds = round(time.monotonic() - started, 3)
            row = FoldRow(
                number, OK, "; ".join(checkpoint.notes), fold.digest, len(fold.train), len(fold.val),
                checkpoint.epochs, checkpoint.best_epoch, seconds,
            )  # fmt: skip
        except HistoweaveError as error:  # anything else is no verdict on the data: the job stops, a rerun goes on
            (folder / CHECKPOINT).unlink(missing_ok=True)  # it belongs to other inputs
            row = FoldRow(number, FAILED, str(error), seconds=round(time.monotonic() - started, 3))
        logger.info("%s on %s: fold %d %s %s", experiment.name, task.name, number, row.status, row.reason)
        rows.append(row)
    write_folds(index_path, rows)
    return rows


def use_device(device: str, threads: int) -> torch.device:
    """Set torch's threads and determinism, and return the device. On a GPU equality is to rounding only."""
    torch.set_num_threads(max(1, threads))
    chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    torch.use_deterministic_algorithms(chosen.type == "cpu")
    return chosen


def open_cohort(experiment: Experiment, inputs: Inputs) -> Cohort:
    """The inputs that the experiment's model or its teacher reads, and no others."""
    model = model_class(experiment.model)
    return Cohort(
        inputs.features_index if SLIDES in model.needs else None,
        experiment.magnification,
        inputs.expression if GENES in model.needs or experiment.init_from else None,
        cases=inputs.cases if CLINICAL in model.needs else None,
        magnifications=model.magnifications,
    )


def finished(folder: Path, digest: str) -> Checkpoint | None:
    """The fold's checkpoint if it is whole and was made from exactly these inputs, else None."""
    if not (folder / CHECKPOINT).exists() or not (folder / HISTORY).exists():
        return None
    try:
        checkpoint = read_checkpoint(folder / CHECKPOINT)
    except FormatError:
        return None
    return checkpoint if checkpoint.digest == digest else None


@dataclass
class Progress:
    """Where training stands after an epoch: what ``last.pt`` holds beside model, optimiser and random states."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    best_state: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def train_fold(
    fold: Fold, experiment: Experiment, labels: Labels, cohort: Cohort, folder: Path, device: torch.device
) -> Checkpoint:
    """Train one fold from the start, or from its ``last.pt``, and write its history and checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    seed = fold_seed(experiment.seed, fold.number)
    torch.manual_seed(seed)
    model = build_model(experiment, fold.sizes).to(device)
    if fold.sources.weights is not None:
        model.start(fold.sources.weights.state)
    data = FoldData(fold, model, labels, cohort, experiment.batch_size or 1, device)
    notes = list(fold.notes)
    if model.fits_itself:
        validation = data.condensed(data.val, model) if data.val else None
        history, remarks = model.fit(*data.condensed(data.train, model), validation)
        notes += remarks
        rows = [{"epoch": n, **row} for n, row in enumerate(history, start=1)]
        progress = Progress(1, 1, best_state=model.state_dict(), history=rows)
    else:
        progress = run_epochs(model, data, experiment, seed, folder / LAST, device)
    checkpoint = Checkpoint(
        experiment, labels.task, fold.number, fold.sizes, fold.classes, fold.class_weights, fold.intervals,
        fold.selection, cohort.magnification, progress.epoch, progress.best_epoch, tuple(notes),
        REVISIONS["models"], fold.digest, {**model.state_dict(), **progress.best_state}, fold.covariates, fold.split,
        cohort.feature_facts(fold.train),
    )  # fmt: skip
    columns = list(dict.fromkeys(key for row in progress.history for key in row))
    write_table(folder / HISTORY, columns, progress.history)
    write_checkpoint(folder / CHECKPOINT, checkpoint)
    (folder / LAST).unlink(missing_ok=True)
    return checkpoint


class FoldData:
    """Batches of one fold's training and validation samples, moved to the device."""

    def __init__(
        self, fold: Fold, model: Model, labels: Labels, cohort: Cohort, batch_size: int, device: torch.device
    ) -> None:
        self.fold, self.labels, self.batch_size, self.device = fold, labels, batch_size, device
        length = fixed_length(model)
        self.collate = Collator(cohort, model.needs, fold.selection, model.gene_groups, length, fold.covariates)
        self.train = samples_of(cohort, fold.train, per_slide=length is not None)
        self.val = samples_of(cohort, fold.val, per_slide=length is not None)
        teacher = fold.sources.teacher
        self.lessons = lessons(teacher, cohort, self.train, device) if teacher else {}
        self.model = model
        self._encoded: dict[Sample, Batch] = {}

    def whole(self, samples: Sequence[Sample]) -> tuple[Batch, Targets]:
        """All samples as one batch."""
        if self.model.encodes_once:
            return joined([self.encoded(sample) for sample in samples]), self.targets(samples)
        batch = replace(self.collate(samples), **with_lessons(samples, self.lessons))
        return batch.to(self.device), self.targets(samples)

    @torch.no_grad()
    def encoded(self, sample: Sample) -> Batch:
        """What the frozen part of a model makes of a sample, computed once, each sample by itself."""
        if sample not in self._encoded:
            self._encoded[sample] = self.model.condensed(self.collate([sample]).to(self.device))
        return self._encoded[sample]

    def targets(self, samples: Sequence[Sample]) -> Targets:
        case_ids = [sample.case_id for sample in samples]
        return targets_of(case_ids, self.labels, self.fold.classes, self.fold.intervals).to(self.device)

    def condensed(self, samples: Sequence[Sample], model: Model) -> tuple[Batch, Targets]:
        """All samples as one batch of what the model's `fit` needs, a few bags in memory at a time."""
        if SLIDES not in model.needs:
            return self.whole(samples)
        parts = [model.condensed(batch) for batch, _ in self.batches(samples, range(len(samples)))]
        return joined(parts), self.targets(samples)

    def batches(self, samples: Sequence[Sample], order: Sequence[int]) -> Iterator[tuple[Batch, Targets]]:
        """Batches in `order`; the last one may be smaller, none is dropped."""
        for start in range(0, len(order), self.batch_size):
            yield self.whole([samples[i] for i in order[start : start + self.batch_size]])


def run_epochs(
    model: Model, data: FoldData, experiment: Experiment, seed: int, last: Path, device: torch.device
) -> Progress:
    """The training loop: Adam, falling rate, selection by the validation loss, and a state to go on from."""
    assert experiment.epochs and experiment.lr is not None and experiment.weight_decay is not None
    weights = torch.tensor(data.fold.class_weights, device=device) if data.fold.class_weights else None
    objective = Objective(data.fold.sizes.kind, weights)
    smoothed = Objective(data.fold.sizes.kind, weights, model.label_smoothing)
    chosen = torch.optim.AdamW if model.decoupled_decay else torch.optim.Adam
    optimiser = chosen(
        (p for p in model.parameters() if p.requires_grad),
        lr=experiment.lr,
        weight_decay=experiment.weight_decay,
        fused=True,
    )
    steps = -(-len(data.train) // data.batch_size)
    shuffle = torch.Generator().manual_seed(seed)
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=experiment.precision == "bfloat16" and device.type == "cuda"
    )
    if experiment.precision == "bfloat16" and device.type != "cuda":
        logger.warning("%s: precision bfloat16 is for GPUs; this training is in float32", experiment.name)
    progress = resume(last, data.fold.digest, model, optimiser, shuffle, device)
    while progress.epoch < experiment.epochs and not exhausted(progress, experiment.patience or 0):
        rates = learning_rates(experiment, model.warmup_epochs, progress.epoch, steps)
        order = torch.randperm(len(data.train), generator=shuffle).tolist()
        losses = train_epoch(model, smoothed, data.batches(data.train, order), optimiser, rates, autocast)
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "lr": max(rates),
            **losses,
            "val_loss": None,
            "val_score": None,
        }
        if data.val:
            with autocast:
                check = validate_pretraining if objective.kind == PRETRAINING else validate
                row["val_loss"], row["val_score"] = check(model, objective, data)
        for key in ("loss", "val_loss"):
            if row[key] is not None and not math.isfinite(row[key]):
                raise TrainingError(f"{key} is {row[key]} in epoch {row['epoch']}: lower lr, or check the inputs.")
        progress.epoch += 1
        # Without validation cases the last epoch is kept: training loss must not choose.
        better = row["val_loss"] is None or row["val_loss"] < progress.best_loss
        if better:
            progress.best_epoch, progress.best_loss = progress.epoch, row["val_loss"] or 0.0
            progress.best_state = {k: v.detach().cpu().clone() for k, v in learnt(model).items()}
        row["best"] = int(better)
        progress.history.append(row)
        write_bytes(last, saved(resumable(data.fold.digest, progress, model, optimiser, shuffle, device)))
        logger.info(
            "epoch %d of %d: %s", progress.epoch, experiment.epochs, {k: v for k, v in row.items() if v is not None}
        )
    return progress


def exhausted(progress: Progress, patience: int) -> bool:
    """True once `patience` epochs have passed without a better validation loss; never for a patience of 0."""
    return bool(patience) and progress.epoch - progress.best_epoch >= patience


def learning_rates(experiment: Experiment, warmup_epochs: int, epoch: int, steps: int) -> list[float]:
    """The learning rate of each of the `steps` of an epoch (from 0).

    Without warm-up, a cosine falls from epoch to epoch. With it, the rate rises from 0 step by step over the first
    epochs and falls by half a cosine to 0 after the last step.
    """
    assert experiment.epochs and experiment.lr is not None
    if not warmup_epochs:
        return [experiment.lr * (1 + math.cos(math.pi * epoch / experiment.epochs)) / 2] * steps
    warmup, total = warmup_epochs * steps, experiment.epochs * steps
    return [experiment.lr * warmup_cosine(step, warmup, total) for step in range(epoch * steps, (epoch + 1) * steps)]


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the learning rate, 0 to 1: up along a line, down along half a cosine."""
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def train_epoch(
    model: Model,
    objective: Objective,
    batches: Iterator[tuple[Batch, Targets]],
    optimiser: torch.optim.Optimizer,
    rates: Sequence[float],
    autocast: AbstractContextManager[Any],
) -> dict[str, float]:
    """One pass over the training samples.

    `autocast` is entered for each forward pass anew, since it keeps the weights it rounded until it is left.

    Returns the mean over batches of the total loss, of each of its parts, and of what the model records beside them.
    """
    model.train()
    sums: dict[str, float] = {}
    count = 0
    for (batch, targets), rate in zip(batches, rates, strict=True):
        assert model.training
        for group in optimiser.param_groups:
            group["lr"] = rate
        with autocast:
            outputs = model(batch)
        parts = dict(outputs.losses)
        if objective.kind != PRETRAINING:
            task_losses = [objective(logits.float(), targets) for logits in outputs.branches or (outputs.logits,)]
            parts = {"task_loss": torch.stack([total / weight for total, weight in task_losses]).sum(), **parts}
        loss = torch.stack([part.float() for part in parts.values()]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        model.edit_gradients(outputs, targets)
        optimiser.step()
        model.constrain()
        for name, value in {"loss": loss, **parts, **outputs.logged}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        count += 1
    return {name: value / count for name, value in sums.items()}


@torch.no_grad()
def validate(model: Model, objective: Objective, data: FoldData) -> tuple[float, float | None]:
    """Task loss over all validation samples, and AUC or C-index for the record (None where undefined)."""
    model.eval()
    assert not any(module.training for module in model.modules())
    total, weight, logits = 0.0, 0.0, []
    for batch, targets in data.batches(data.val, range(len(data.val))):
        output = model(batch).logits.float()
        top, bottom = objective(output, targets)
        total, weight = total + float(top), weight + float(bottom)
        logits.append(output.cpu())
    case_ids = [sample.case_id for sample in data.val]
    targets = targets_of(case_ids, data.labels, data.fold.classes, data.fold.intervals)
    return total / weight, selection_score(torch.cat(logits), targets)


@torch.no_grad()
def validate_pretraining(model: Model, objective: Objective, data: FoldData) -> tuple[float, None]:
    """Mean over the validation samples of their batch's loss, with the same random masks in every epoch."""
    model.eval()
    assert not any(module.training for module in model.modules())
    total = 0.0
    with torch.random.fork_rng([data.device] if data.device.type == "cuda" else []):
        torch.manual_seed(data.fold.number)
        for batch, _ in data.batches(data.val, range(len(data.val))):
            total += len(batch) * sum(float(loss) for loss in model(batch).losses.values())
    return total / len(data.val), None


def resumable(
    digest: str,
    progress: Progress,
    model: Model,
    optimiser: torch.optim.Optimizer,
    shuffle: torch.Generator,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that the next epoch depends on."""
    return {
        "kind": RESUME_KIND,
        "format_version": FORMAT_VERSION,
        "digest": digest,
        "progress": vars(progress),
        "model": learnt(model),
        "optimiser": optimiser.state_dict(),
        "shuffle": shuffle.get_state(),
        "random": torch.get_rng_state(),
        "random_gpu": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def resume(
    last: Path,
    digest: str,
    model: Model,
    optimiser: torch.optim.Optimizer,
    shuffle: torch.Generator,
    device: torch.device,
) -> Progress:
    """Load ``last.pt`` if it is whole and of the same inputs; else begin anew."""
    if not last.exists():
        return Progress()
    try:
        body = load(last, RESUME_KIND)
    except FormatError as error:
        logger.warning("%s; training starts anew", error)
        return Progress()
    if body["digest"] != digest:
        return Progress()
    model.load_state_dict({**model.state_dict(), **body["model"]})
    optimiser.load_state_dict(body["optimiser"])
    shuffle.set_state(body["shuffle"])
    torch.set_rng_state(body["random"])
    if device.type == "cuda" and body["random_gpu"] is not None:
        torch.cuda.set_rng_state(body["random_gpu"], device)
    progress = Progress(**body["progress"])
    logger.info("going on after epoch %d", progress.epoch)
    return progress
