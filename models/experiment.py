"""One experiment: a model, its inputs and how it is trained. Light: loads no array library until it is resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from models.params import build_config, check_range
from models.registry import GENES, SLIDES, model_class, needs
from pipeline.contracts import layout
from pipeline.contracts.cohort import check_id
from pipeline.contracts.errors import InputError


@dataclass(frozen=True)
class Experiment:
    """One entry of ``experiments`` in the config. None means the model's own default.

    Attributes
    ----------
    name : experiment id
    model : a name of `models.registry`
    encoder, magnification : the feature bags to read; None for a model without slides. A magnification of None takes
        the only one there is, or the coarsest
    epochs, batch_size, lr, weight_decay : training settings; `batch_size` counts cases
    patience : epochs without a better validation loss before training stops; 0 never stops early
    seed : of weights, shuffling and dropout (together with the fold's number), never of the split
    bins : survival intervals, at most; fewer where a fold has fewer events
    precision : "float32", or "bfloat16" for autocast on a GPU
    reference : reproduce the released code of the model's authors instead of the defects-fixed default
    init_from : reserved for pre-training
    params : the model's own hyper-parameters
    tasks, needs : filled in and used by the workflow
    """

    name: str
    model: str
    encoder: str | None = None
    magnification: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    patience: int | None = None
    seed: int = 0
    bins: int = 4
    precision: str = "float32"
    reference: bool = False
    init_from: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] | None = None
    needs: Sequence[str] | None = None

    def __post_init__(self) -> None:
        where = f"config.yaml experiments '{self.name}'"
        check_id(str(self.name), "config.yaml experiments", "experiment name")
        needs(self.model, where)
        for key, least in (("epochs", 1), ("batch_size", 1), ("patience", 0)):
            if getattr(self, key) is not None:
                check_range(f"{key} of '{self.name}'", getattr(self, key), least, 100_000, integer=True)
        for key, smallest in (("lr", 1e-12), ("weight_decay", 0.0)):
            if getattr(self, key) is not None:
                check_range(f"{key} of '{self.name}'", getattr(self, key), smallest, 100)
        check_range(f"seed of '{self.name}'", self.seed, 0, 2**31 - 1, integer=True)
        check_range(f"bins of '{self.name}'", self.bins, 2, 100, integer=True)
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(where, f"precision is '{self.precision}'.", "use float32 or bfloat16.")
        if self.init_from is not None:
            raise InputError(where, "init_from is not supported yet.", "remove the key.")
        object.__setattr__(self, "params", dict(self.params or {}))

    def resolved(self, kind: str) -> Experiment:
        """The same with every default of the model written out for a task of `kind`, and `params` complete.

        Raises InputError for an unknown hyper-parameter or a reference mode that the model does not have.
        """
        model = model_class(self.model)
        where = f"config.yaml experiments '{self.name}'"
        if self.reference and model.reference_params is None:
            raise InputError(where, f"model '{self.model}' has no reference mode.", "set reference: false.")
        defaults = {**model.defaults, **model.defaults_by_kind.get(kind, {})}
        filled = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        params = {**(model.reference_params if self.reference else {}), **self.params}
        config = build_config(model.Config, params, self.model)
        return replace(self, **filled, params=asdict(config), tasks=None, needs=None)


@dataclass(frozen=True)
class Inputs:
    """Where a cohort's artefacts lie.

    Attributes
    ----------
    splits : ``splits/splits.tsv``
    cases : the clinical sheet
    features_index : index of the experiment's encoder, None without slides
    expression : ``expression.h5ad``, None without genes
    genes_dir : folder of ``fold{k}.json`` of the task, None without genes
    """

    splits: str | Path
    cases: str | Path
    features_index: str | Path | None = None
    expression: str | Path | None = None
    genes_dir: str | Path | None = None

    @classmethod
    def from_named(cls, named: Any, cases: str | Path) -> Inputs:
        """From a mapping with ``splits`` and, where used, ``features``, ``expression`` and ``genes`` (one folder's)."""
        genes = named.get("genes")
        genes = [genes] if isinstance(genes, (str, Path)) else list(genes or [])
        return cls(
            splits=named["splits"],
            cases=cases,
            features_index=named.get("features"),
            expression=named.get("expression"),
            genes_dir=Path(genes[0]).parent if genes else None,
        )

    def check(self, experiment: Experiment) -> None:
        """Raise InputError when a modality that the model needs is not given."""
        where = f"experiment '{experiment.name}'"
        wanted = needs(experiment.model)
        if SLIDES in wanted and self.features_index is None:
            raise InputError(where, f"model '{experiment.model}' needs slides, but no feature index is given.")
        if GENES in wanted and (self.expression is None or self.genes_dir is None):
            raise InputError(
                where, f"model '{experiment.model}' needs genes, but expression or gene lists are not given."
            )

    def genes_path(self, fold: int) -> Path:
        """The gene selection of one fold."""
        assert self.genes_dir is not None
        return Path(self.genes_dir) / Path(layout.genes("", "", fold)).name
