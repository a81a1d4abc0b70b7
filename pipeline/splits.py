"""Case-level folds: one assignment for all tasks, kept in a ledger that only ever grows."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.contracts.cohort import CaseSheet, external_cases, patients_of, read_cases
from pipeline.contracts.errors import InputError, nearest
from pipeline.contracts.files import write_table, write_text
from pipeline.contracts.splits import (
    COLUMNS,
    EXTERNAL,
    TEST,
    TRAIN,
    VAL,
    SplitRow,
    Splits,
    read_splits,
    write_splits,
)
from pipeline.contracts.tasks import CLASSIFICATION, Labels, Task, read_labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitParams:
    """Section ``splits`` of the config.

    Parameters
    ----------
    folds : number of folds; each case is tested in one
    seed : of the order in which cases are dealt
    validation : share of a fold's non-test cases that get the role val
    site : column of the case sheet whose values are kept whole on one side of every test set
    file : the ledger; never rewritten, only appended to
    external : values of column ``cohort`` (one or several): their cases are never trained or validated on, and tested
        by the model of every fold
    """

    folds: int = 5
    seed: int = 0
    validation: float = 0.15
    site: str | None = None
    file: str = "splits.tsv"
    external: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.folds, bool) or not isinstance(self.folds, int) or self.folds < 2:
            raise InputError("config.yaml splits.folds", f"{self.folds!r} is not a whole number from 2.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError("config.yaml splits.seed", f"{self.seed!r} is not a whole number.")
        if not 0 <= self.validation <= 0.5:
            raise InputError("config.yaml splits.validation", f"{self.validation!r} is not from 0 to 0.5.")
        if self.external is not None:
            names = (self.external,) if isinstance(self.external, str) else tuple(self.external)
            object.__setattr__(self, "external", names or None)


@dataclass(frozen=True)
class SplitNote:
    """Something about the folds that the user should know; `task`, `fold` and `role` may be empty."""

    problem: str
    task: str = ""
    fold: str = ""
    role: str = ""


@dataclass
class _Unit:
    """Cases that must not be parted: those of a patient, or of a site."""

    name: str
    cases: list[str] = field(default_factory=list)


def make_splits(
    cases: str | Path | CaseSheet,
    params: SplitParams,
    tasks: Sequence[Task | Mapping[str, Any]],
    out: str | Path,
    notes: str | Path | None = None,
) -> list[SplitNote]:
    """Deal new cases to folds, append them to the ledger `params.file`, write the folds of the sheet's
    cases to `out`.

    A case gets one role per fold: test in one fold, train or val in the others. New patients are dealt one by one, in
    an order seeded by `params.seed`, to the fold that so far has the fewest cases of the same combination of labels,
    then of each label, then of any. Within a fold the role val is dealt by quota, again per combination of labels.
    Old rows of the ledger stay as they are, also those of cases that have left the sheet; the latter are not in `out`.
    Cases of external cohorts have the role external in every fold of `out` and no say in the folds of the others; they
    are not written to the ledger, and rows that they have there from before do not count.

    Parameters
    ----------
    cases : the clinical sheet; column ``patient_id``, if there is one, groups rows of one patient
    tasks : their labels (for survival, the event) are balanced over the folds
    notes : table to which the notes are written, columns fold, role, task, problem

    Returns
    -------
    Notes on folds that lack cases, classes or events of a task, and on other remarkable things.

    Raises
    ------
    InputError for fewer patients (or sites) than folds, a ledger with another number of folds, a case in several
    test folds, a patient or a site in the test sets of several folds, a patient with several roles in one fold, and as
    `external_cases` does.
    """
    whole = cases if isinstance(cases, CaseSheet) else read_cases(cases)
    labels = [read_labels(whole, task) for task in tasks]
    external = external_cases(whole, params.external or ())
    sheet = replace(whole, rows={case: row for case, row in whole.rows.items() if case not in external})
    patients = patients_of(sheet)
    sites = _sites(sheet, patients, params)
    ledger = Path(params.file)
    old = read_splits(ledger) if ledger.exists() else Splits(())
    roles = old.roles()
    _check_ledger(str(ledger), roles, patients, sites, params)
    n_new = _deal(sheet, params, roles, patients, sites, _strata(sheet, labels), str(ledger))
    rows = [SplitRow(case, fold, roles[case][fold]) for case in sheet.rows for fold in sorted(roles[case])]
    known = {row.case_id for row in old.rows}
    _append(ledger, [row for row in rows if row.case_id not in known], bool(old.rows))
    outside = [SplitRow(case, fold, EXTERNAL) for case in external for fold in range(params.folds)]
    write_splits(out, sorted([*rows, *outside], key=lambda row: (row.fold, row.case_id)))
    found = [*_notes(Splits(tuple(rows)), labels, params), *_external_notes(external, labels)]
    if old.rows and n_new:
        found.insert(0, SplitNote(f"{n_new} new cases were appended to {ledger}."))
    freed = len(known & external.keys())
    if freed:
        found.insert(0, SplitNote(f"{freed} cases of {ledger} are of an external cohort: their rows do not count."))
    gone = sorted(known - set(whole.rows))
    if gone:
        found.insert(0, SplitNote(f"{len(gone)} cases of {ledger} are not in the sheet, such as {gone[0]}."))
    for note in found:
        logger.warning(
            "splits: %s",
            " ".join(filter(None, (note.task, note.fold and f"fold {note.fold}", note.role, note.problem))),
        )
    if notes is not None:
        write_table(notes, ("fold", "role", "task", "problem"), [asdict(note) for note in found])
    return found


def _sites(sheet: CaseSheet, patients: Mapping[str, str], params: SplitParams) -> dict[str, str]:
    """Site of each case, empty without the site option."""
    if params.site is None:
        return {}
    if params.site not in sheet.columns:
        raise InputError(
            sheet.path,
            f"column '{params.site}' of splits.site is missing{nearest(params.site, sheet.columns)}.",
            "add it, or set splits.site: null.",
        )
    sites: dict[str, str] = {}
    of_patient: dict[str, str] = {}
    for case, row in sheet.rows.items():
        site = row[params.site]
        where = f"{sheet.path} (case_id '{case}')"
        if not site:
            raise InputError(where, f"column '{params.site}' is empty.", "name the site, or set splits.site: null.")
        if of_patient.setdefault(patients[case], site) != site:
            raise InputError(
                where, f"patient '{patients[case]}' has two sites.", "give the patient one, or set splits.site: null."
            )
        sites[case] = site
    return sites


def _strata(sheet: CaseSheet, labels: Sequence[Labels]) -> dict[str, tuple[str, ...]]:
    """The label of every task ("" where unknown; the event for survival), by case."""
    return {
        case: tuple(
            task.label.get(case, "") if task.task.kind == CLASSIFICATION else str(task.event.get(case, ""))
            for task in labels
        )
        for case in sheet.rows
    }


def _check_ledger(
    where: str,
    roles: Mapping[str, Mapping[int, str]],
    patients: Mapping[str, str],
    sites: Mapping[str, str],
    params: SplitParams,
) -> None:
    if not roles:
        return
    folds = {fold for row in roles.values() for fold in row}
    if folds != set(range(params.folds)):
        raise InputError(
            where,
            f"the ledger has folds {', '.join(map(str, sorted(folds)))}, splits.folds is {params.folds}"
            f" (folds 0 to {params.folds - 1}).",
            "set splits.folds to the ledger's number, or name another splits.file for new folds.",
        )
    for case, row in roles.items():
        if len(row) != len(folds):
            lacking = ", ".join(str(fold) for fold in sorted(folds - set(row)))
            raise InputError(f"{where} case {case}", f"no role for fold {lacking}.", "give it one row per fold.")
        tests = [str(fold) for fold, role in sorted(row.items()) if role == TEST]
        if len(tests) != 1:
            raise InputError(
                f"{where} case {case}",
                f"the case has the role test in {'folds ' + ', '.join(tests) if tests else 'no fold'}.",
                "every case is tested in exactly one fold.",
            )
    _check_together(where, roles, patients, "patient")
    _check_sites(where, roles, sites)


def _check_together(where: str, roles: Mapping[str, Mapping[int, str]], patients: Mapping[str, str], what: str) -> None:
    first: dict[str, str] = {}
    for case in roles:
        if case not in patients:
            continue
        other = first.setdefault(patients[case], case)
        for fold, role in sorted(roles[case].items()):
            if roles[other][fold] != role:
                raise InputError(
                    f"{where} {what} {patients[case]}",
                    f"case {other} is {roles[other][fold]} in fold {fold}, case {case} is {role}.",
                    f"all cases of a {what} need the same role in every fold.",
                )


def _check_sites(where: str, roles: Mapping[str, Mapping[int, str]], sites: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for case, site in sites.items():
        if case not in roles:
            continue
        other = first.setdefault(site, case)
        if _test_fold(roles[case]) != _test_fold(roles[other]):
            raise InputError(
                f"{where} site {site}",
                f"case {other} is tested in fold {_test_fold(roles[other])}, case {case} in {_test_fold(roles[case])}.",
                "splits.site keeps a site in one test set: set splits.site: null, or name another splits.file.",
            )


def _test_fold(row: Mapping[int, str]) -> int:
    return next(fold for fold, role in row.items() if role == TEST)


def _deal(
    sheet: CaseSheet,
    params: SplitParams,
    roles: dict[str, dict[int, str]],
    patients: Mapping[str, str],
    sites: Mapping[str, str],
    strata: Mapping[str, tuple[str, ...]],
    ledger: str,
) -> int:
    """Give every case of the sheet without roles its roles; return how many there were."""
    new = [case for case in sheet.rows if case not in roles]
    keep = sites or patients
    n_units = len(set(keep.values()))
    if n_units < params.folds:
        raise InputError(
            sheet.path,
            f"{n_units} {'sites' if sites else 'patients'} are fewer than the {params.folds} folds of splits.folds.",
            f"set splits.folds: {n_units} or fewer{', or splits.site: null' if sites else ''}."
            if n_units > 1
            else "add cases.",
        )
    present = {case: row for case, row in roles.items() if case in strata}
    test_fold = _deal_tests(_units(new, keep), present, keep, strata, params)
    followers = {patients[case]: row for case, row in present.items()}
    for fold in range(params.folds):
        _deal_validation(fold, _units(new, patients), present, followers, test_fold, strata, params)
    for case in new:
        roles[case] = dict(sorted(present[case].items()))
    return len(new)


def _units(cases: Iterable[str], keep: Mapping[str, str]) -> list[_Unit]:
    units: dict[str, _Unit] = {}
    for case in cases:
        units.setdefault(keep[case], _Unit(keep[case])).cases.append(case)
    return list(units.values())


def _order(units: Iterable[_Unit], strata: Mapping[str, tuple[str, ...]], seed: int) -> list[_Unit]:
    """Large units first, then by labels, then by a hash of seed and name: stable under the order of the sheet."""
    return sorted(
        units,
        key=lambda unit: (
            -len(unit.cases),
            min(strata[case] for case in unit.cases),
            hashlib.sha256(f"{seed}:{unit.name}".encode()).hexdigest(),
        ),
    )


class _Tally:
    """How many cases of each combination of labels, of each single label, and in all, a group holds."""

    def __init__(self) -> None:
        self.combined: Counter[tuple[str, ...]] = Counter()
        self.single: Counter[tuple[int, str]] = Counter()
        self.total = 0

    def add(self, stratum: tuple[str, ...]) -> None:
        self.combined[stratum] += 1
        self.single.update(enumerate(stratum))
        self.total += 1

    def likeness(self, strata: Sequence[tuple[str, ...]]) -> tuple[int, int, int]:
        """How full the group is of cases like these; the group with the least should get them."""
        combined = sum(self.combined[stratum] for stratum in strata)
        single = sum(self.single[label] for stratum in strata for label in enumerate(stratum))
        return combined, single, self.total


def _deal_tests(
    units: Sequence[_Unit],
    present: Mapping[str, Mapping[int, str]],
    keep: Mapping[str, str],
    strata: Mapping[str, tuple[str, ...]],
    params: SplitParams,
) -> dict[str, int]:
    """Test fold of every new case. Cases of a known patient or site follow it."""
    tallies = [_Tally() for _ in range(params.folds)]
    known: dict[str, int] = {}
    for case, row in present.items():
        known[keep[case]] = _test_fold(row)
        tallies[known[keep[case]]].add(strata[case])
    dealt: dict[str, int] = {}
    for unit in _order(units, strata, params.seed):
        ours = [strata[case] for case in unit.cases]
        fold = known.get(unit.name)
        if fold is None:
            fold = min(range(params.folds), key=lambda k: (*tallies[k].likeness(ours), k))
        for case in unit.cases:
            dealt[case] = fold
            tallies[fold].add(strata[case])
    return dealt


def _deal_validation(
    fold: int,
    units: Sequence[_Unit],
    present: dict[str, dict[int, str]],
    followers: Mapping[str, Mapping[int, str]],
    test_fold: Mapping[str, int],
    strata: Mapping[str, tuple[str, ...]],
    params: SplitParams,
) -> None:
    """Roles of the new cases in one fold: by quota, so that val is a `validation` share of every stratum.

    A patient becomes val when the shortfalls of its stratum and of the fold, counting it in, add up to one case.
    """
    seen: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])  # cases that are not test, cases that are val
    total = [0, 0]

    def count(case: str, role: str) -> None:
        for tally in (seen[strata[case]], total):
            tally[0] += 1
            tally[1] += role == VAL

    for case, row in present.items():
        if fold in row and row[fold] != TEST:
            count(case, row[fold])
    for unit in _order(units, strata, params.seed + 1 + fold):
        if test_fold[unit.cases[0]] == fold:
            role = TEST
        elif unit.name in followers:
            role = followers[unit.name][fold]
        else:
            stratum = seen[strata[unit.cases[0]]]
            lacking = sum(params.validation * (t[0] + len(unit.cases)) - t[1] for t in (stratum, total))
            role = VAL if params.validation > 0 and lacking >= len(unit.cases) else TRAIN
        for case in unit.cases:
            present.setdefault(case, {})[fold] = role
            if role != TEST:
                count(case, role)


def _append(ledger: Path, rows: Sequence[SplitRow], exists: bool) -> None:
    """Add rows below the ledger's own text, which stays as it is; the file is replaced whole."""
    if not rows and ledger.exists():
        return
    text = ledger.read_text(encoding="utf-8-sig") if exists else ""
    delimiter = "," if ledger.suffix == ".csv" else "\t"
    header = next(csv.reader([text.splitlines()[0]], delimiter=delimiter)) if text else list(COLUMNS)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [name.strip() for name in header], delimiter=delimiter, lineterminator="\n")
    if not text:
        writer.writeheader()
    elif not text.endswith("\n"):
        buffer.write("\n")
    for row in rows:
        writer.writerow({"case_id": row.case_id, "fold": row.fold, "role": row.role})
    write_text(ledger, text + buffer.getvalue())


def _notes(splits: Splits, labels: Sequence[Labels], params: SplitParams) -> list[SplitNote]:
    """Folds whose training, validation or test set lacks cases, classes or events of a task."""
    notes = []
    for fold in range(params.folds):
        for role in (TRAIN, VAL, TEST):
            if role == VAL and params.validation == 0:
                continue
            cases = splits.cases(fold, role)
            if not cases:
                notes.append(SplitNote("no case", "", str(fold), role))
            for task in labels:
                problem = _lacking(task, cases) if cases else ""
                if problem:
                    notes.append(SplitNote(problem, task.task.name, str(fold), role))
    return notes


def _external_notes(external: Mapping[str, str], labels: Sequence[Labels]) -> Iterable[SplitNote]:
    """External cohorts that lack labels, classes or events of a task."""
    for cohort in dict.fromkeys(external.values()):
        cases = [case for case, name in external.items() if name == cohort]
        for task in labels:
            problem = _lacking(task, cases)
            if problem:
                yield SplitNote(f"{problem} in cohort {cohort}", task.task.name, "", EXTERNAL)


def _lacking(task: Labels, cases: Sequence[str]) -> str:
    labelled = [case for case in cases if case in task.label or case in task.time]
    if not labelled:
        return "no case with a label"
    if task.task.kind == CLASSIFICATION:
        absent = [name for name in task.classes if name not in {task.label[case] for case in labelled}]
        return f"no case of class {', '.join(absent)}" if absent else ""
    return "" if any(task.event[case] for case in labelled) else "no event"
