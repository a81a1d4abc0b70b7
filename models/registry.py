"""Model names, what each needs, and where its class lies. Light: importing this loads no array library."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pipeline.contracts.errors import InputError, nearest

SLIDES = "slides"
GENES = "genes"
CLINICAL = "clinical"
CLINICAL_COLUMNS = ("age", "sex")  #: default of the clinical model; here for the workflow, which asks without torch


@dataclass(frozen=True)
class Entry:
    """A model as the workflow sees it.

    Attributes
    ----------
    path : ``module:Class``; the class repeats `needs` and `magnifications`, and a test holds the two together
    needs : the modalities that every case must have
    magnifications : how many magnifications of each slide it reads
    starts_from, taught_by : models that the experiments named by ``init_from`` may have: one whose weights this model
        starts from, and one that stays frozen and teaches it
    task_free : it learns without labels, once for all tasks
    is_probe : unless its hyper-parameter ``mode`` is `FINE_TUNE`, it must start from another
    """

    path: str
    needs: frozenset[str]
    magnifications: int = 1
    starts_from: frozenset[str] = frozenset()
    taught_by: frozenset[str] = frozenset()
    task_free: bool = False
    is_probe: bool = False


MODELS: dict[str, Entry] = {
    "clinical": Entry("models.clinical:Clinical", frozenset({CLINICAL})),
    "linear": Entry("models.linear:Linear", frozenset({GENES})),
    "elastic-net": Entry("models.elastic_net:ElasticNet", frozenset({GENES})),
    "snn": Entry("models.snn:Snn", frozenset({GENES})),
    "meanpool": Entry("models.meanpool:MeanPool", frozenset({SLIDES})),
    "abmil": Entry("models.abmil:Abmil", frozenset({SLIDES})),
    "transmil": Entry("models.transmil:TransMil", frozenset({SLIDES})),
    "concat": Entry("models.concat:Concat", frozenset({SLIDES, GENES})),
    "add": Entry("models.add:Add", frozenset({SLIDES, GENES})),
    "bilinear": Entry("models.bilinear:Bilinear", frozenset({SLIDES, GENES})),
    "porpoise": Entry("models.porpoise:Porpoise", frozenset({SLIDES, GENES})),
    "survpath": Entry("models.survpath:SurvPath", frozenset({SLIDES, GENES})),
    "feature-generation": Entry("models.feature_generation:FeatureGeneration", frozenset({SLIDES, GENES})),
    "ensemble": Entry("models.ensemble:Ensemble", frozenset({SLIDES, GENES})),
    "mcat": Entry("models.mcat:Mcat", frozenset({SLIDES, GENES})),
    "cmta": Entry("models.cmta:Cmta", frozenset({SLIDES, GENES})),
    "subspace": Entry("models.subspace:Subspace", frozenset({SLIDES, GENES})),
    "subspace-tokens": Entry("models.subspace_tokens:SubspaceTokens", frozenset({SLIDES, GENES})),
    "disentangled-teacher": Entry("models.disentangled_teacher:DisentangledTeacher", frozenset({SLIDES, GENES}), 2),
    "disentangled-histology": Entry("models.disentangled_teacher:HistologyTeacher", frozenset({SLIDES}), 2),
    "disentangled-student": Entry(
        "models.disentangled_student:DisentangledStudent",
        frozenset({SLIDES}),
        magnifications=2,
        starts_from=frozenset({"disentangled-student"}),
        taught_by=frozenset({"disentangled-teacher", "disentangled-histology"}),
    ),
    "mirror-pretraining": Entry(
        "models.mirror_pretraining:MirrorPretraining", frozenset({SLIDES, GENES}), task_free=True
    ),
    "mirror": Entry(
        "models.mirror:Mirror",
        frozenset({SLIDES, GENES}),
        starts_from=frozenset({"mirror-pretraining"}),
        is_probe=True,
    ),
    "tangle-pretraining": Entry(
        "models.tangle_pretraining:TanglePretraining", frozenset({SLIDES, GENES}), task_free=True
    ),
    "tangle": Entry(
        "models.tangle:Tangle", frozenset({SLIDES}), starts_from=frozenset({"tangle-pretraining"}), is_probe=True
    ),
}


def entry(name: str, where: str = "config.yaml experiments") -> Entry:
    """The entry of a model. Raises InputError for an unknown name, naming the nearest."""
    if name not in MODELS:
        raise InputError(where, f"unknown model '{name}'{nearest(name, MODELS)}.", f"use one of: {', '.join(MODELS)}.")
    return MODELS[name]


FINE_TUNE = "fine_tune"
WEIGHTS = "weights"
TEACHER = "teacher"


def role(model: str, source: str) -> str | None:
    """What an experiment with model `source` is to one with `model` whose ``init_from`` names it; None: nothing."""
    own = entry(model)
    return WEIGHTS if source in own.starts_from else TEACHER if source in own.taught_by else None


def needs(name: str, where: str = "config.yaml experiments") -> frozenset[str]:
    """The modalities that every case of this model must have, of "slides", "genes" and "clinical"."""
    return entry(name, where).needs


def model_class(name: str) -> Any:
    """The class itself; loads torch."""
    module, _, attribute = entry(name).path.partition(":")
    return getattr(import_module(module), attribute)
