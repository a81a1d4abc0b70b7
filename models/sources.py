"""What an experiment takes over from others by ``init_from``: weights to start from, and a frozen teacher's lessons.

Both come from the same fold of the same task and the same split, so that no held-out case of a fold has shaped either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint
from models.data import Cohort, Collator, Sample
from models.experiment import Experiment, Inputs, check_roles
from models.layers import full_precision
from models.model import fixed_length, restored
from models.registry import GENES, TEACHER, WEIGHTS, entry, model_class, needs
from pipeline.contracts.errors import FormatError, InputError
from pipeline.contracts.tasks import PRETRAINING_TASK, Task
from pipeline.contracts.training import OK, read_folds

Lesson = dict[str, Tensor]


@dataclass(frozen=True)
class Sources:
    """Checkpoints of one fold: `weights` of the experiment's own model, and a `teacher`."""

    weights: Checkpoint | None = None
    teacher: Checkpoint | None = None

    @property
    def digests(self) -> list[str]:
        return [checkpoint.digest for checkpoint in (self.weights, self.teacher) if checkpoint is not None]


def read_sources(experiment: Experiment, task: Task, inputs: Inputs, fold: int, split: str) -> Sources:
    """The checkpoints that a fold of a resolved experiment takes over.

    Parameters
    ----------
    split : digest of the fold's training and validation cases

    Raises
    ------
    InputError
        A source is absent, was not trained on this fold, task and split, or does not fit the experiment.
    FormatError
        A checkpoint is damaged, or not the one that its index names.
    """
    found = {name: _read(name, task, inputs, fold, split) for name in experiment.init_from or ()}
    roles = check_roles(experiment, [checkpoint.experiment for checkpoint in found.values()])
    by_role = {part: found[source.name] for part, source in roles.items()}
    weights, teacher = by_role.get(WEIGHTS), by_role.get(TEACHER)
    where = f"config.yaml experiments '{experiment.name}'"
    if weights is not None:
        for key in model_class(experiment.model).shared_params:
            own, other = (x.params[key] for x in (experiment, weights.experiment))
            if own != other:
                problem = f"{key} is {own}, but {other} in '{weights.experiment.name}' of init_from."
                raise InputError(where, problem, "give both the same.")
    if teacher is not None:
        own, other = (x.params.get("fixed_length") for x in (experiment, teacher.experiment))
        if own != other:
            problem = f"one of it and '{teacher.experiment.name}' is in reference mode ({own} and {other} tiles)."
            raise InputError(where, problem, "give both the same `reference` and fixed_length.")
        if GENES in needs(teacher.experiment.model) and inputs.expression is None:
            raise InputError(where, f"'{teacher.experiment.name}' teaches from genes, but no expression is given.")
    return Sources(weights, teacher)


def _read(name: str, task: Task, inputs: Inputs, fold: int, split: str) -> Checkpoint:
    where = f"init_from '{name}', fold {fold}"
    if name not in inputs.sources:
        raise InputError(where, "its models are not given.", "train it first.")
    folder = Path(inputs.sources[name])
    row = next((row for row in read_folds(folder / "index.tsv") if row.fold == fold), None)
    if row is None or row.status != OK:
        raise InputError(where, f"it was not trained{': ' + row.reason if row else '.'}")
    path = folder / f"fold{fold}" / CHECKPOINT
    checkpoint = read_checkpoint(path)
    if checkpoint.digest != row.digest:
        raise FormatError(f"{path}: not the checkpoint that index.tsv names. Fix: rerun train_model.")
    task = PRETRAINING_TASK if entry(checkpoint.experiment.model).task_free else task
    for what, own, other in (
        ("experiment", name, checkpoint.experiment.name),
        ("fold", fold, checkpoint.fold),
        ("task", task, checkpoint.task),
        ("split into training and held-out cases", split, checkpoint.split),
    ):
        if own != other:
            raise InputError(where, f"{path} was trained on another {what}.", "train it again, then this experiment.")
    return checkpoint


@torch.no_grad()
def lessons(
    teacher: Checkpoint, cohort: Cohort, samples: Sequence[Sample], device: torch.device
) -> dict[Sample, Lesson]:
    """What a frozen teacher says of each sample that has what it needs, on the CPU; one sample at a time."""
    model = restored(teacher, device)
    length = fixed_length(model)
    collate = Collator(cohort, model.needs, teacher.selection, model.gene_groups, length, teacher.covariates)
    taught = [sample for sample in samples if not cohort.lacking(sample.case_id, model.needs)]
    said = {sample: model.lesson(collate([sample]).to(device)) for sample in taught}
    return {sample: {name: full_precision(v[0]).cpu() for name, v in lesson.items()} for sample, lesson in said.items()}


def with_lessons(samples: Sequence[Sample], known: dict[Sample, Lesson]) -> dict[str, Tensor | dict[str, Tensor]]:
    """The fields `lesson` and `taught` of a batch of samples; nothing where there is no lesson at all."""
    if not known:
        return {}
    blank = {name: torch.zeros_like(value) for name, value in next(iter(known.values())).items()}
    rows = [known.get(sample, blank) for sample in samples]
    lesson = {name: torch.stack([row[name] for row in rows]) for name in blank}
    return {"lesson": lesson, "taught": torch.tensor([sample in known for sample in samples])}
