"""Tasks as the config names them, and their labels in the clinical sheet (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.contracts.cohort import CaseSheet, check_id, patients_of_several, read_cases
from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.label_rules import MISSING, Who2021, label_rule

CLASSIFICATION = "classification"
SURVIVAL = "survival"
KINDS = (CLASSIFICATION, SURVIVAL)
PRETRAINING = "pretraining"
PRETRAIN = "_pretrain"  #: stands for a task's name in paths; no task of a user's can have it
TIME_UNITS = ("days", "months")


@dataclass(frozen=True)
class Task:
    """One entry of ``tasks`` in the config: `label` is a column for classification, `time` and `event` for survival.

    `label` may also be a mapping with ``rule`` and its columns, see `pipeline.contracts.label_rules`.
    Pre-training without labels is `PRETRAINING_TASK`, which no config holds.
    """

    name: str
    kind: str
    label: str | Mapping[str, Any] | None = None
    time: str | None = None
    event: str | None = None
    time_unit: str = "days"

    def __post_init__(self) -> None:
        if (self.name, self.kind) == (PRETRAIN, PRETRAINING):
            return
        check_id(str(self.name), "config.yaml tasks", "task name")
        where = f"config.yaml tasks '{self.name}'"
        if self.kind not in KINDS:
            raise InputError(
                where,
                f"kind '{self.kind}' is unknown{nearest(self.kind, KINDS)}.",
                f"use {' or '.join(KINDS)}.",
            )
        needed, foreign = (
            (("label",), ("time", "event")) if self.kind == CLASSIFICATION else (("time", "event"), ("label",))
        )
        for key in needed:
            if not getattr(self, key):
                raise InputError(
                    where,
                    f"key '{key}' is missing.",
                    f"name the column of the case sheet that holds the {key}.",
                )
        for key in foreign:
            if getattr(self, key):
                raise InputError(
                    where, f"key '{key}' does not belong to a {self.kind} task.", "remove it, or change kind."
                )
        if isinstance(self.label, Mapping):
            object.__setattr__(self, "label", dict(self.label))
            label_rule(self.label, where)
        if self.time_unit not in TIME_UNITS:
            raise InputError(
                where,
                f"time_unit '{self.time_unit}' is unknown{nearest(self.time_unit, TIME_UNITS)}.",
                "use days or months.",
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the case sheet that this task reads."""
        if self.rule is not None:
            return self.rule.columns
        return tuple(name for name in (self.label, self.time, self.event) if isinstance(name, str))

    @property
    def rule(self) -> Who2021 | None:
        """What derives the label from several columns, None where it stands in one."""
        return label_rule(self.label, f"config.yaml tasks '{self.name}'") if isinstance(self.label, dict) else None

    @property
    def label_name(self) -> str:
        """What a figure calls the label."""
        return self.name if self.rule is not None else str(self.label or "outcome")


PRETRAINING_TASK = Task(PRETRAIN, PRETRAINING)


@dataclass(frozen=True)
class Labels:
    """The labels of one task.

    Attributes
    ----------
    classes : sorted class names of the whole sheet, runs of white space made one space; empty for survival
    label : case_id -> class name (classification)
    time, event : case_id -> time in the task's unit, and 1 for an event or 0 for censored (survival)
    missing : case_id -> why the case has no label and is out of the task, in sheet order
    patient : case_id -> patient, for the cases of patients who have several in the sheet; the others are their own
    unlabelled : every case of the sheet, for pre-training
    """

    task: Task
    classes: tuple[str, ...] = ()
    label: dict[str, str] = field(default_factory=dict)
    time: dict[str, float] = field(default_factory=dict)
    event: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()
    patient: dict[str, str] = field(default_factory=dict)

    @property
    def cases(self) -> tuple[str, ...]:
        """Case ids with a label (for pre-training all of them), in sheet order."""
        return tuple(self.label or self.time or self.unlabelled)


def read_labels(cases: str | Path | CaseSheet, task: Task | Mapping[str, Any]) -> Labels:
    """Labels of `task` from the clinical sheet, cases without one listed with the reason.

    Raises
    ------
    InputError
        A column is missing; a time is not a number or negative; an event is not 0 or 1; there is no label at all, one
        single class, or no event at all. The message names the sheet, the column and the case.
    """
    sheet = cases if isinstance(cases, CaseSheet) else read_cases(cases)
    task = task if isinstance(task, Task) else Task(**task)
    if task.kind == PRETRAINING:
        return Labels(task, unlabelled=tuple(sheet.rows))
    for column in task.columns:
        if column not in sheet.columns:
            raise InputError(
                sheet.path,
                f"task '{task.name}' needs column '{column}', which is missing{nearest(column, sheet.columns)}.",
                f"add the column or correct config.yaml tasks; found: {', '.join(sheet.columns)}.",
            )
    found = _classes(sheet, task) if task.kind == CLASSIFICATION else _outcomes(sheet, task)
    return replace(found, patient=patients_of_several(sheet))


def _classes(sheet: CaseSheet, task: Task) -> Labels:
    label, missing = {}, {}
    rule = task.rule
    for case_id, row in sheet.rows.items():
        name, reason = rule.derive(row, f"{sheet.path} (case_id '{case_id}')") if rule else _class(row, task)
        if reason:
            missing[case_id] = reason
        else:
            label[case_id] = name
    classes = tuple(sorted(set(label.values())))
    if len(classes) < 2:
        found = f"only '{classes[0]}'" if classes else "no value at all"
        raise InputError(
            sheet.path,
            f"task '{task.name}' needs two classes or more in column '{', '.join(task.columns)}', found {found}.",
            "name another column, or remove the task.",
        )
    return Labels(task, classes, label=label, missing=missing)


def _class(row: Mapping[str, str], task: Task) -> tuple[str, str]:
    """(class, "") as the sheet has it, or ("", reason)."""
    name = " ".join(row[str(task.label)].split())  # as tables are written: names become columns and fields of them
    return ("", f"no {task.label}") if _unknown(name) else (name, "")


def _outcomes(sheet: CaseSheet, task: Task) -> Labels:
    assert task.time is not None and task.event is not None
    time: dict[str, float] = {}
    event: dict[str, int] = {}
    missing: dict[str, str] = {}
    for case_id, row in sheet.rows.items():
        absent = [column for column in (task.time, task.event) if _unknown(row[column])]
        if absent:
            missing[case_id] = f"no {' and no '.join(absent)}"
            continue
        where = f"{sheet.path} (case_id '{case_id}')"
        time[case_id] = _time(row[task.time], f"{where} column '{task.time}'", task.time_unit)
        event[case_id] = _event(row[task.event], f"{where} column '{task.event}'")
    if not any(event.values()):
        found = "every case is censored" if event else "no case has both values"
        raise InputError(
            sheet.path,
            f"task '{task.name}' has no event in column '{task.event}': {found}.",
            "check the coding (1 = event, 0 = censored), or remove the task.",
        )
    return Labels(task, time=time, event=event, missing=missing)


def _unknown(text: str) -> bool:
    return text.strip().casefold() in MISSING


def _time(text: str, where: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(where, f"'{text}' is not a time.", f"give the number of {unit}, or leave it empty if unknown.")
    if value < 0:
        raise InputError(where, f"the time {text} is negative.", f"give {unit} from a common start, 0 or more.")
    return value


def _event(text: str, where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value not in (0.0, 1.0):
        raise InputError(where, f"event '{text}' is not 0 or 1.", "write 1 for an event, 0 for censored.")
    return int(value)
