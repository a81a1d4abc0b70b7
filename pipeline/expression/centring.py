"""Centring per cohort, fitted on training cases, and the labels for which cohorts must not be centred at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import Expression

MIN_CASES = 2  #: training cases that a cohort's centre needs
FEW_CASES = 20  #: a smaller group says nothing of how it was standardised
CENTRED = 0.1  #: median over genes of |mean| / standard deviation below which a cohort is taken for centred
CHANCE = 1.5  #: or this many standard errors, which part of a centred cohort keeps (of a real glioma panel: 0.8 to 0.9)
EXACT = 0.15  #: standard errors far below what chance leaves to any group of a table that was standardised as a whole
FOLLOWS = 0.5  #: share of wrong guesses that knowing the cohort spares, from which on a label follows the cohort


def fit_centres(
    expression: Expression, training: Sequence[str], validation: Iterable[str], unseen_itself: bool, where: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Mean of every gene over each cohort's training cases, and the training cases centred by it.

    A cohort with validation cases only is centred on them where `unseen_itself`: test cases stay out of every centre.

    Returns
    -------
    cohort -> float64 [genes]; float64 [training cases, genes]

    Raises
    ------
    InputError for a training case without a cohort, and for a cohort with fewer than two training cases.
    """
    of_case = expression.cohort_of()
    nameless = [case for case in training if not of_case[case]]
    if nameless:
        raise InputError(
            f"{where} case {nameless[0]}",
            f"genes.centre: cohort, but {len(nameless)} training cases have no cohort.",
            "fill column cohort of the case sheet, or name the tables of inputs.expression by cohort.",
        )
    groups = _groups(training, of_case)
    small = [name for name, cases in groups.items() if len(cases) < MIN_CASES]
    if small:
        raise InputError(
            f"{where} cohort {small[0]}",
            f"{len(groups[small[0]])} training case: a centre needs {MIN_CASES} or more.",
            "join it with another cohort in column cohort, use fewer folds, or set genes.centre: none.",
        )
    if unseen_itself:
        new = _groups((case for case in validation if of_case[case]), of_case)
        groups |= {name: cases for name, cases in new.items() if name not in groups}
    centres = {
        name: expression.values[expression.rows(cases)].astype(np.float64).mean(axis=0)
        for name, cases in sorted(groups.items())
    }
    values = expression.values[expression.rows(list(training))].astype(np.float64)
    for row, case in enumerate(training):
        values[row] -= centres[of_case[case]]
    return centres, values


def check_label_against_cohorts(expression: Expression, classes: Mapping[str, str], task: str, centring: bool) -> None:
    """Refuse a classification whose label follows the cohort where cohorts are, or were, standardised separately.

    Separate standardisation gives every cohort the same means: what tells the cohorts' classes apart is gone, and a
    model learns what the standardisation left (rounding, outliers, missing genes). Such tasks score near 1 and mean
    nothing.

    A label follows the cohort if knowing the cohort spares half of the wrong guesses of the commonest class (Goodman
    and Kruskal, J Am Stat Assoc 49, 732 (1954): lambda). A cohort counts as standardised separately if over its cases
    the median gene has a mean below a tenth of its standard deviation, or within 1.5 of its standard errors. Where no
    cohort is known, the classes themselves are looked at: means of 0.15 standard errors in two classes do not come by
    chance.

    Parameters
    ----------
    classes : label of the task per case; empty for survival
    centring : whether genes.centre is cohort

    Raises
    ------
    InputError with the reason and ways out.
    """
    of_case = expression.cohort_of()
    known = {case: classes[case] for case in expression.cases if case in classes}
    cohorts = {case: of_case[case] for case in known if of_case[case]}
    fix = (
        "give the cohorts on an absolute scale (counts, TPM, FPKM, log2); within one cohort z-scores are fine. If they"
        " were standardised together and are that alike, leave column cohort out."
    )
    if len(set(cohorts.values())) > 1:
        spared = _spared(cohorts, known)
        if spared >= FOLLOWS and (centring or _separate(expression, _groups(of_case, of_case))):
            how = (
                "genes.centre is cohort"
                if centring
                else "each cohort has gene means of 0: it was standardised on its own"
            )
            raise InputError(
                f"task {task}",
                f"its label follows the cohort (lambda {spared:.2f}), and {how}. The difference between the classes is"
                " gone from such data; a score would be that of an artefact.",
                "set genes.centre: none for it." if centring else fix,
            )
    elif not cohorts and _exactly_centred(expression, _groups(known, known)):
        raise InputError(
            f"task {task}",
            "two classes or more have gene means of exactly 0: each was standardised on its own. The difference between"
            " the classes is gone from such data; a score would be that of an artefact.",
            fix,
        )


def _groups(cases: Iterable[str], name_of: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(name_of[case], []).append(case)
    return groups


def _spared(cohort_of: Mapping[str, str], label_of: Mapping[str, str]) -> float:
    """Goodman and Kruskal's lambda of the label given the cohort, 0 to 1."""
    labels = [label_of[case] for case in cohort_of]
    wrong = len(labels) - max(Counter(labels).values())
    pairs = _groups(cohort_of, cohort_of)
    left = sum(len(cases) - max(Counter(label_of[case] for case in cases).values()) for cases in pairs.values())
    return (wrong - left) / wrong if wrong else 0.0


def _separate(expression: Expression, groups: Mapping[str, list[str]]) -> bool:
    """Whether every cohort that is large enough, and two at least, has gene means near 0 on its own spread."""
    large = [cases for name, cases in groups.items() if name and len(cases) >= FEW_CASES]
    return len(large) > 1 and all(
        _offset(expression, cases) < max(CENTRED, CHANCE / len(cases) ** 0.5) for cases in large
    )


def _exactly_centred(expression: Expression, groups: Mapping[str, list[str]]) -> bool:
    """Whether two classes have gene means nearer to 0 than chance would bring them."""
    large = [cases for cases in groups.values() if len(cases) >= FEW_CASES]
    return sum(_offset(expression, cases) * len(cases) ** 0.5 < EXACT for cases in large) > 1


def _offset(expression: Expression, cases: list[str]) -> float:
    """Median over genes of |mean| / standard deviation; infinite where no gene varies."""
    values = expression.values[expression.rows(cases)]
    spread = values.std(axis=0, dtype=np.float64)
    varies = spread > 0
    if not varies.any():
        return float("inf")
    return float(np.median(np.abs(values.mean(axis=0, dtype=np.float64)[varies]) / spread[varies]))
