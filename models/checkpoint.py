"""The checkpoint: what a fold learnt and everything that prediction needs, in one file without pickled code.

The file loads with ``torch.load(path, weights_only=True)`` and is a dictionary of
``kind, format_version, revision, digest, meta, state``; `meta` is plain JSON values, `state` maps names to tensors.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.batch import Sizes
from models.covariates import Covariates
from models.experiment import Experiment
from models.survival import Intervals
from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import canonical, check_version, whole_file
from pipeline.contracts.genes import GeneSelection
from pipeline.contracts.tasks import Task

KIND = "histoweave checkpoint"
RESUME_KIND = "histoweave training state"
FORMAT_VERSION = 1
CHECKPOINT = "checkpoint.pt"  #: its name in the folder of a fold


@dataclass(frozen=True)
class Checkpoint:
    """One trained fold.

    Attributes
    ----------
    experiment : with every default written out
    task, fold : what it was trained for
    sizes : the widths the model was built for
    classes : class names in the order of the outputs, those of the fold's training cases; empty for survival
    class_weights : one per class, from training cases
    intervals : survival intervals fitted on training cases; None for classification
    selection : genes and scaling of the fold; None without genes
    magnification : of the bags it was trained on; None without slides
    epochs, best_epoch : epochs run, and the one (from 1) whose weights these are
    notes : remarks, such as fewer intervals than asked for
    revision, digest : of the stage, and of everything that the fold's training and validation came from
    state : the model's tensors, the baseline hazard of a Cox model among them
    covariates : encoding of the clinical sheet; None for a model without it
    split : digest of the fold's training and validation cases
    features : what the bags it was trained on were made with (`models.feature_facts`); empty without slides
    """

    experiment: Experiment
    task: Task
    fold: int
    sizes: Sizes
    classes: tuple[str, ...]
    class_weights: tuple[float, ...]
    intervals: Intervals | None
    selection: GeneSelection | None
    magnification: float | tuple[float, ...] | None
    epochs: int
    best_epoch: int
    notes: tuple[str, ...]
    revision: int
    digest: str
    state: dict[str, Tensor]
    covariates: Covariates | None = None
    split: str = ""
    features: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; equal content gives equal bytes, whatever the process did before."""
    body = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        # Through text: pickling refers back to objects seen before, so equal values need equally distinct objects.
        "meta": json.loads(canonical(_meta(checkpoint))),
        "state": {name: _plain(tensor) for name, tensor in checkpoint.state.items()},
    }
    write_bytes(path, saved(body))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()


def saved(body: Mapping[str, Any]) -> bytes:
    """The bytes that ``torch.save`` writes to memory: unlike to a file, they do not contain the file's name."""
    buffer = io.BytesIO()
    torch.save(dict(body), buffer)
    return buffer.getvalue()


def write_bytes(path: str | Path, content: bytes) -> None:
    with whole_file(path) as part:
        part.write_bytes(content)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint. Raises FormatError for a missing or damaged file, an unknown version or tensors not finite."""
    body = load(path, KIND)
    try:
        meta, state = body["meta"], body["state"]
        checkpoint = Checkpoint(
            experiment=Experiment(**meta["experiment"]),
            task=Task(**meta["task"]),
            fold=meta["fold"],
            sizes=Sizes(**meta["sizes"]),
            classes=tuple(meta["classes"]),
            class_weights=tuple(meta["class_weights"]),
            intervals=_intervals(meta["intervals"]),
            selection=_selection(meta["selection"]),
            magnification=_magnification(meta["magnification"]),
            epochs=meta["epochs"],
            best_epoch=meta["best_epoch"],
            notes=tuple(meta["notes"]),
            revision=body["revision"],
            digest=body["digest"],
            state=state,
            covariates=Covariates.from_values(meta["covariates"]) if meta.get("covariates") else None,
            split=meta.get("split", ""),
            features=meta.get("features", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, repr(error)) from error
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise _damaged(path, "a tensor is not finite")
    return checkpoint


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """A file of ours, its kind and version checked. Raises FormatError."""
    try:
        body = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise _damaged(path, f"{type(error).__name__}: {error}".splitlines()[0]) from error
    if not isinstance(body, dict):
        raise _damaged(path, "not a dictionary")
    check_version(path, kind, FORMAT_VERSION, body.get("kind"), body.get("format_version"))
    return body


def _damaged(path: str | Path, problem: str) -> FormatError:
    return FormatError(f"{path}: not readable as a checkpoint ({problem}). Fix: delete it and rerun train_model.")


def _meta(checkpoint: Checkpoint) -> dict[str, Any]:
    selection = checkpoint.selection
    return {
        "experiment": {f.name: getattr(checkpoint.experiment, f.name) for f in fields(Experiment)},
        "task": {f.name: getattr(checkpoint.task, f.name) for f in fields(Task)},
        "fold": checkpoint.fold,
        "sizes": {f.name: getattr(checkpoint.sizes, f.name) for f in fields(Sizes)},
        "classes": checkpoint.classes,
        "class_weights": checkpoint.class_weights,
        "intervals": checkpoint.intervals and {"edges": checkpoint.intervals.edges, "last": checkpoint.intervals.last},
        "selection": selection and selection_values(selection),
        "covariates": checkpoint.covariates and asdict(checkpoint.covariates),
        "magnification": checkpoint.magnification,
        "epochs": checkpoint.epochs,
        "best_epoch": checkpoint.best_epoch,
        "notes": checkpoint.notes,
        "split": checkpoint.split,
        "features": dict(checkpoint.features),
    }


def _magnification(value: float | list[float] | None) -> float | tuple[float, ...] | None:
    return tuple(value) if isinstance(value, list) else value


def selection_values(selection: GeneSelection) -> dict[str, Any]:
    """A gene selection as JSON values."""
    values = {f.name: getattr(selection, f.name) for f in fields(GeneSelection)}
    return {
        **values,
        "groups": dict(selection.groups),
        "params": dict(selection.params),
        "settings": dict(selection.settings),
        "families": [[name, genes] for name, genes in selection.families.items()],  # in order, which maps lose as text
        "elimination": dict(selection.elimination),
        "centres": {name: centre.tolist() for name, centre in selection.centres.items()},
        "mean": selection.mean.tolist(),
        "std": selection.std.tolist(),
    }


def _selection(values: dict[str, Any] | None) -> GeneSelection | None:
    if values is None:
        return None
    arrays = {key: np.array(values[key], dtype=np.float64) for key in ("mean", "std")}
    groups = {name: tuple(genes) for name, genes in values["groups"].items()}
    centres = {name: np.array(centre, dtype=np.float64) for name, centre in values.get("centres", {}).items()}
    families = {name: tuple(genes) for name, genes in values.get("families", ())}
    changed = {"genes": tuple(values["genes"]), "groups": groups, "centres": centres, "families": families}
    return GeneSelection(**{**values, **arrays, **changed})


def _intervals(values: dict[str, Any] | None) -> Intervals | None:
    return None if values is None else Intervals(tuple(values["edges"]), values["last"])
