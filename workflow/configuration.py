"""Check config.yaml before anything runs: closed schema, defaults, and the choices that must fit each other."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from models.experiment import Experiment, check_sources
from models.registry import FAMILIES, entry, needs
from pipeline.contracts.cohort import CaseSheet, Slide, check_unique, external_cases
from pipeline.contracts.encoders import IMPORTED
from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.expression_tables import table_sources
from pipeline.contracts.layout import RESULTS
from pipeline.contracts.magnifications import ordered
from pipeline.contracts.stain_targets import target_kind
from pipeline.contracts.tasks import PRETRAIN, Task, read_labels
from pipeline.encoder_table import completed
from pipeline.splits import SplitParams

SCHEMA_PATH = Path(__file__).parent / "schemas" / "config.schema.yaml"


def schema() -> dict[str, Any]:
    return yaml.safe_load(SCHEMA_PATH.read_text(encoding="utf-8"))


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """Return `config` with every default filled in. Raises InputError that names the key, the fault and the fix."""
    rules = schema()
    config = deepcopy(dict(config))
    _fill(config, rules)
    errors = sorted(Draft202012Validator(rules).iter_errors(config), key=lambda e: list(map(str, e.path)))
    if errors:
        raise _explain(errors[0])
    _check_inputs(config["inputs"])
    config["encoders"] = [completed(encoder) for encoder in config["encoders"]]
    _check_names(config)
    config["tiles"]["magnifications"] = list(ordered(config["tiles"]["magnifications"]))
    for encoder in config["encoders"]:
        _check_encoder(encoder)
    for task in config["tasks"]:
        Task(**task)
    for experiment in config["experiments"]:
        _resolve_experiment(experiment, config)
    check_sources([Experiment(**x) for x in config["experiments"]], [task["name"] for task in config["tasks"]])
    _check_centring(config)
    _check_aliases(config["expression"]["aliases"])
    units = {config["expression"]["unit"], *(source.unit for source in table_sources(config["inputs"]["expression"]))}
    if "zscore" in units and config["genes"]["selection"] == "hvg":
        raise InputError(
            "config.yaml genes.selection",
            "'hvg' is meaningless on z-scores: every gene has unit variance already, so it would pick outliers.",
            "set genes.selection to all, or give expression before standardisation.",
        )
    return config


def _fill(value: Any, rules: dict[str, Any]) -> None:
    """Write the schema's defaults into missing keys, depth first."""
    if isinstance(value, dict):
        for key, rule in rules.get("properties", {}).items():
            if key not in value and "default" in rule:
                value[key] = deepcopy(rule["default"])
            if key in value:
                _fill(value[key], rule)
    elif isinstance(value, list):
        for item in value:
            _fill(item, rules.get("items", {}))


def _explain(error: ValidationError) -> InputError:
    where = "config.yaml " + ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        return InputError(
            f"{where.strip()}{'.' if error.absolute_path else ' '}{unknown}",
            f"unknown key{nearest(unknown, known)}.",
            f"known keys here are {', '.join(known)}.",
        )
    advice = error.schema.get("description", "") if isinstance(error.schema, dict) else ""
    return InputError(where.strip(), f"{error.message}.", advice)


def _check_inputs(inputs: dict[str, Any]) -> None:
    first_steps = (
        "write the sheets with `histoweave init FOLDER_OF_SLIDES`, or name yours in config.yaml;"
        " `make demo` shows a complete example."
    )
    paths = [(key, inputs[key]) for key in ("cases", "slides")]
    paths += [("expression", source.path) for source in table_sources(inputs["expression"])]
    for key, path in paths:
        if path and not Path(path).exists():
            raise InputError(f"config.yaml inputs.{key}", f"'{path}' does not exist.", first_steps)
    if not inputs["slides"] and not inputs["expression"]:
        raise InputError("config.yaml inputs", "neither slides nor expression is given.", first_steps)


def _check_names(config: dict[str, Any]) -> None:
    for section, key in (("tasks", "name"), ("experiments", "name"), ("encoders", "slug")):
        check_unique((entry[key] for entry in config[section]), f"config.yaml {section}", key)
    names = {experiment["name"].casefold() for experiment in config["experiments"]}
    for experiment in config["experiments"]:
        for part in ("left_out", "slides", "external", "external_left_out"):
            if f"{experiment['name']}_{part}".casefold() in names:
                where = f"config.yaml experiments '{experiment['name']}_{part}'"
                raise InputError(
                    where, f"a table of experiment '{experiment['name']}' has this name.", "choose another."
                )


def _resolve_experiment(experiment: dict[str, Any], config: dict[str, Any]) -> None:
    """Fill in the model's modalities, encoder and magnification; refuse what this cohort cannot feed."""
    where = f"config.yaml experiments '{experiment['name']}'"
    experiment["needs"] = sorted(needs(experiment["model"], where))
    for modality, key in (("slides", "slides"), ("genes", "expression")):
        if modality in experiment["needs"] and not config["inputs"][key]:
            raise InputError(
                where,
                f"model '{experiment['model']}' needs {modality}, but inputs.{key} is not given.",
                f"give inputs.{key}, or remove the experiment.",
            )
    if "slides" in experiment["needs"]:
        slugs = [encoder["slug"] for encoder in config["encoders"]]
        experiment["encoder"] = _one_of(experiment["encoder"], slugs, f"{where} encoder")
        magnifications = config["tiles"]["magnifications"]
        choose = _one_of if entry(experiment["model"]).magnifications == 1 else _pair_of
        experiment["magnification"] = choose(experiment["magnification"], magnifications, f"{where} magnification")
    cut = experiment["params"].get("cut", FAMILIES if entry(experiment["model"]).by_families else None)
    if cut == FAMILIES and not config["genes"]["families"]:
        raise InputError(
            where,
            f"model '{experiment['model']}' makes a token of each gene set, but genes.families is not given.",
            "name a GMT file of pathways there, or builtin; or cut the gene list instead, with params: {cut: equal}.",
        )
    if entry(experiment["model"]).task_free:
        if experiment["tasks"] not in (None, [PRETRAIN]):
            raise InputError(
                f"{where} tasks", f"model '{experiment['model']}' learns without a task, once for all.", "leave it out."
            )
        experiment["tasks"] = [PRETRAIN]
    if isinstance(experiment["init_from"], str):
        experiment["init_from"] = [experiment["init_from"]]
    unknown = sorted(set(experiment["tasks"] or ()) - {task["name"] for task in config["tasks"]})
    if unknown and not entry(experiment["model"]).task_free:
        known = [task["name"] for task in config["tasks"]]
        raise InputError(f"{where} tasks", f"unknown task '{unknown[0]}'{nearest(unknown[0], known)}.")


def _pair_of(given: Any, known: list[float], where: str) -> list[float]:
    """Two magnifications that follow each other in `known`, which is finest first; the first two for None."""
    pairs = [list(pair) for pair in pairwise(known)]
    if not pairs:
        raise InputError(where, "the model reads two magnifications.", "give two in tiles.magnifications.")
    wanted = pairs[0] if given is None else sorted(given, reverse=True) if isinstance(given, list) else given
    if wanted not in pairs:
        listed = " or ".join(str(pair) for pair in pairs)
        raise InputError(where, f"{given} are not two that follow each other.", f"use {listed}.")
    return wanted


def _check_encoder(encoder: dict[str, Any]) -> None:
    where = f"config.yaml encoders '{encoder['slug']}'"
    if (encoder["weights"] in ("file", IMPORTED)) != bool(encoder["path"]):
        raise InputError(where, "path and weights: file go together.", "give both, or neither; imported has one too.")
    if encoder["weights"] == IMPORTED:
        if not (Path(encoder["path"]) / "index.tsv").is_file():
            problem = f"'{encoder['path']}' holds no imported features."
            raise InputError(f"{where} path", problem, "write it with `histoweave import`.")
        return
    if encoder["path"] and not Path(encoder["path"]).is_file():
        raise InputError(f"{where} path", f"'{encoder['path']}' does not exist.", "name a state dict on disk.")


def _check_target(target: str, slide_ids: list[str]) -> None:
    where = "config.yaml stain.target"
    if target_kind(target, slide_ids) in ("builtin", "cohort", "slide"):
        return
    if Path(target).resolve().is_relative_to(Path(RESULTS).resolve()):
        raise InputError(where, f"'{target}' is a result of this very workflow.", "copy it beside your sheets first.")
    if not Path(target).is_file():
        raise InputError(
            where,
            f"'{target}' is neither builtin, cohort, a slide of the sheet nor a file{nearest(target, slide_ids)}.",
            "correct it.",
        )


def _check_centring(config: dict[str, Any]) -> None:
    """An external cohort has no training cases, so it cannot be centred as the others are."""
    genes = config["genes"]
    if config["splits"]["external"] and genes["centre"] == "cohort" and genes["unseen_cohort"] == "refuse":
        raise InputError(
            "config.yaml genes.unseen_cohort",
            "genes are centred per cohort, but splits.external names one without training cases.",
            "set unseen_cohort: itself, which centres it on its own cases, or genes.centre: none.",
        )


def _check_aliases(path: str | None) -> None:
    if path and not Path(path).is_file():
        where = "config.yaml expression.aliases"
        raise InputError(where, f"'{path}' does not exist.", "name HGNC's hgnc_complete_set.txt, or set null.")


def check_cohort(config: dict[str, Any], slides: list[Slide], cases: CaseSheet) -> None:
    """What the sheets alone can show before any job: labels of every task, and that slides and cases meet.

    Raises InputError for an unusable label column, external cohorts that are not there or share a patient with others,
    a slide sheet without a row, or sheets that share no case.
    """
    external_cases(cases, SplitParams(**config["splits"]).external or ())
    for task in config["tasks"]:
        read_labels(cases, task)
    if not config["inputs"]["slides"]:
        return
    path = config["inputs"]["slides"]
    if not slides:
        raise InputError(path, "the slide sheet has no row.", "add slides, or set inputs.slides to null.")
    _check_target(config["stain"]["target"], [slide.slide_id for slide in slides])
    if all(slide.exclude for slide in slides):
        raise InputError(
            path,
            f"every slide is excluded; the first: {slides[0].exclude}.",
            "correct the `exclude` column, or inputs.slide_types and inputs.keep_normal in config.yaml.",
        )
    if not any(slide.case_id in cases.rows for slide in slides):
        raise InputError(
            path,
            f"no slide belongs to any case: slides have cases like '{slides[0].case_id}', {cases.path} has"
            f" '{next(iter(cases.rows), 'no row')}'.",
            "use the same case ids in both sheets.",
        )


def _one_of(value: Any, known: list[Any], where: str) -> Any:
    """`value`, or the first known one where it is null."""
    if not known:
        raise InputError(where, "nothing is configured to choose from.", "add an entry, or remove the experiment.")
    if value is None:
        return known[0]
    if value not in known:
        raise InputError(where, f"'{value}' is not configured; configured: {', '.join(map(str, known))}.")
    return value
