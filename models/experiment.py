"""One experiment: a model, its inputs and how it is trained. Light: loads no array library until it is resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from models.params import build_config, check_choice, check_range
from models.registry import FINE_TUNE, GENES, SLIDES, entry, model_class, needs, role
from pipeline.contracts import layout
from pipeline.contracts.cohort import check_id
from pipeline.contracts.errors import InputError, nearest


@dataclass(frozen=True)
class Experiment:
    """One entry of ``experiments`` in the config. None means the model's own default.

    Attributes
    ----------
    name : experiment id
    model : a name of `models.registry`
    encoder, magnification : the feature bags to read; None for a model without slides. A model of two magnifications
        takes a pair, finest first. A magnification of None takes the coarsest there are
    epochs, batch_size, lr, weight_decay : training settings; `batch_size` counts cases
    patience : epochs without a better validation loss before training stops; 0 never stops early
    seed : of weights, shuffling and dropout (together with the fold's number), never of the split
    bins : survival intervals, at most; fewer where a fold has fewer events
    precision : "float32", or "bfloat16" for autocast on a GPU
    reference : reproduce the released code of the model's authors instead of the defects-fixed default
    init_from : experiments that come before this one, fold by fold: one whose weights it starts from, one that
        teaches it, see `models.registry`; a name or several
    params : the model's own hyper-parameters; ``preset`` stands for one of the model's `presets`
    tasks, needs : filled in and used by the workflow
    """

    name: str
    model: str
    encoder: str | None = None
    magnification: float | Sequence[float] | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    patience: int | None = None
    seed: int = 0
    bins: int = 4
    precision: str = "float32"
    reference: bool = False
    init_from: str | Sequence[str] | None = None
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
        sources = (self.init_from,) if isinstance(self.init_from, str) else tuple(self.init_from or ())
        object.__setattr__(self, "init_from", sources or None)
        if self.magnification is not None and not isinstance(self.magnification, (int, float)):
            object.__setattr__(self, "magnification", tuple(self.magnification))
        object.__setattr__(self, "params", dict(self.params or {}))
        if entry(self.model).is_probe and not sources and self.params.get("mode") != FINE_TUNE:
            fitting = " or ".join(sorted(entry(self.model).starts_from))
            raise InputError(
                where,
                f"a linear probe '{self.model}' needs trained encoders.",
                f"set init_from to an experiment of {fitting}, or params: {{mode: {FINE_TUNE}}}.",
            )

    def resolved(self, kind: str) -> Experiment:
        """The same with every default of the model written out for a task of `kind`, and `params` complete.

        Raises InputError for an unknown hyper-parameter or a reference mode that the model does not have.
        """
        model = model_class(self.model)
        where = f"config.yaml experiments '{self.name}'"
        if self.reference and model.reference_params is None:
            raise InputError(where, f"model '{self.model}' has no reference mode.", "set reference: false.")
        started = model.defaults_when_started if self.init_from else {}
        own = dict(self.params)
        preset = own.pop("preset", None)
        if preset is not None:
            check_choice(f"params.preset of '{self.name}'", preset, model.presets)
            own = {**model.presets[preset], **own}
        params = {**(model.reference_params if self.reference else {}), **own}
        complete = asdict(build_config(model.Config, params, self.model))
        by_mode = model.defaults_by_mode.get(complete.get("mode"), {})
        defaults = {**model.defaults, **model.defaults_by_kind.get(kind, {}), **started, **by_mode}
        filled = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        return replace(self, **filled, params=complete, tasks=None, needs=None)


def check_sources(experiments: Sequence[Experiment], tasks: Sequence[str]) -> None:
    """Raise InputError where an ``init_from`` names what cannot come before; `tasks` are all tasks of the run."""
    known = {experiment.name: experiment for experiment in experiments}
    for experiment in experiments:
        where = f"config.yaml experiments '{experiment.name}' init_from"
        for name in experiment.init_from or ():
            if name not in known:
                raise InputError(
                    where, f"unknown experiment '{name}'{nearest(name, known)}.", "name one of this config."
                )
        _check_cycle(experiment, known, where)
        check_roles(experiment, [known[name] for name in experiment.init_from or ()])
        for name in experiment.init_from or ():
            absent = sorted(set(experiment.tasks or tasks) - set(known[name].tasks or tasks))
            if absent and not entry(known[name].model).task_free:
                raise InputError(where, f"'{name}' is not trained on task '{absent[0]}'.", "give both the same tasks.")


def _check_cycle(experiment: Experiment, known: Mapping[str, Experiment], where: str) -> None:
    seen: list[str] = []
    waiting = list(experiment.init_from or ())
    while waiting:
        name = waiting.pop()
        if name == experiment.name:
            raise InputError(where, f"'{name}' would have to be trained before itself.", "break the circle.")
        if name not in seen:
            seen.append(name)
            waiting += [source for source in known[name].init_from or () if source in known]


def check_roles(experiment: Experiment, sources: Sequence[Experiment]) -> dict[str, Experiment]:
    """Role (`models.registry.role`) -> source. Raises InputError for a source that does not fit the experiment."""
    where = f"config.yaml experiments '{experiment.name}' init_from"
    found: dict[str, Experiment] = {}
    for source in sources:
        part = role(experiment.model, source.model)
        if part is None:
            fitting = sorted(entry(experiment.model).starts_from | entry(experiment.model).taught_by)
            raise InputError(
                where,
                f"a '{experiment.model}' can do nothing with '{source.name}', a '{source.model}'.",
                f"name an experiment of {' or '.join(fitting)}." if fitting else "remove the key.",
            )
        if part in found:
            raise InputError(
                where, f"'{found[part].name}' and '{source.name}' have the same part.", "name one of them."
            )
        for key in ("encoder", "magnification"):
            own, other = getattr(experiment, key), getattr(source, key)
            if own != other:
                raise InputError(where, f"{key} is {own}, but {other} in '{source.name}'.", "give both the same.")
        found[part] = source
    return found


@dataclass(frozen=True)
class Inputs:
    """Where a cohort's artefacts lie.

    Attributes
    ----------
    splits : ``splits/splits.tsv``
    cases : the clinical sheet
    features_index : index of the experiment's encoder, None without slides
    expression : ``expression.h5ad``, None without genes
    genes_dir : folder of ``fold{k}.json`` of the task (or of pre-training, after it), None without genes
    sources : experiment named by ``init_from`` -> folder of its models for the task, or without one
    """

    splits: str | Path
    cases: str | Path
    features_index: str | Path | None = None
    expression: str | Path | None = None
    genes_dir: str | Path | None = None
    sources: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def from_named(cls, named: Any, cases: str | Path) -> Inputs:
        """From a mapping with ``splits`` and, where used, ``features``, ``expression``, ``genes`` (one folder's) and
        ``sources`` (the model indexes of other experiments)."""
        genes, sources = (_listed(named.get(key)) for key in ("genes", "sources"))
        return cls(
            splits=named["splits"],
            cases=cases,
            features_index=named.get("features"),
            expression=named.get("expression"),
            genes_dir=Path(genes[0]).parent if genes else None,
            sources={Path(index).parent.name: Path(index).parent for index in sources},
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


def _listed(paths: Any) -> list[Any]:
    return [paths] if isinstance(paths, (str, Path)) else list(paths or [])
