"""Choose and scale the genes of one fold, or of all folds of a task."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import Expression, read_expression
from pipeline.contracts.files import digest_of
from pipeline.contracts.genes import ITSELF, GeneSelection, write_genes
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.splits import TRAIN, VAL, read_splits
from pipeline.expression.aliases import read_aliases
from pipeline.expression.centring import check_label_against_cohorts, fit_centres
from pipeline.genes.elimination import eliminate, survival_classes
from pipeline.genes.lists import GeneLists, load_lists
from pipeline.genes.params import ALL, HVG, RFE_SVM, GeneParams
from pipeline.genes.variable import n_kept, variability
from pipeline.signatures import Signatures

logger = logging.getLogger(__name__)


def select_genes(
    expression: Expression,
    training_cases: Iterable[str],
    params: GeneParams,
    task: str,
    fold: int,
    lists: GeneLists | Signatures | None = None,
    validation_cases: Iterable[str] = (),
    classes: Mapping[str, str] | None = None,
    patients: Mapping[str, str] | None = None,
) -> GeneSelection:
    """Choose the genes of one fold and fit their scaling on `training_cases`; no other row is looked at.

    Variances and means are those of the normalised (log) values. Ties go to the symbol that sorts first. The digest
    covers the training cases' ids and values, the gene symbols and lists, the parameters and the stage's revision, and
    with "rfe_svm" the training cases' `classes` and `patients` (of those who have several cases): an unchanged training
    set gives an unchanged result whatever happens to other cases. Only with centring, a cohort that has validation
    cases and no training case gets its centre from `validation_cases`, under ``unseen_cohort: itself``.

    Raises
    ------
    InputError for z-scores with selection hvg, fewer than two training cases, a group of too few genes, and as
    `variability` and `eliminate` do.
    """
    cases = sorted(set(training_cases))
    where = f"genes of task {task}, fold {fold}"
    if expression.unit == "zscore" and params.selection == HVG:
        raise InputError(
            where,
            "highly variable genes cannot be chosen from z-scores: every gene has been given the same variance, and"
            " only outliers would be found.",
            "set genes.selection: all (or rfe_svm), or give counts, TPM, FPKM or log2 values.",
        )
    if len(cases) < 2:
        raise InputError(
            where,
            f"{len(cases)} training case(s) with RNA and a label: mean and standard deviation need two or more.",
            "check that case ids agree between the sheet and the expression table, or use fewer folds.",
        )
    rows = expression.rows(cases)
    values = expression.values[rows]  # the only rows that anything below sees
    lists = lists if isinstance(lists, GeneLists) else load_lists(params, signatures=lists)
    signatures = lists.signatures
    centres, centred = {}, values
    if params.centre == "cohort":
        unseen_itself = params.unseen_cohort == ITSELF
        centres, centred = fit_centres(expression, cases, validation_cases, unseen_itself, where)
    known = {case: classes[case] for case in cases if classes and case in classes}
    patient = {case: patients[case] for case in cases if patients and case in patients}
    elimination: dict[str, Any] = {}
    if params.selection == RFE_SVM:
        chosen, elimination = _eliminated(centred, cases, known, patient, expression.symbols, lists, params, where)
    elif params.selection == ALL:
        chosen = set(expression.symbols)
    else:
        chosen = _variable(centred if params.flavour == "variance" else values, rows, expression, lists, params, where)
    groups = _groups(chosen, signatures, params.both)
    for name in ("tumour", "tme") if params.selection == HVG else ():
        _refuse_small(name, groups, signatures, expression, params, where)
    genes = groups["all"]
    position = {symbol: column for column, symbol in enumerate(expression.symbols)}
    columns = [position[gene] for gene in genes]
    picked = centred[:, columns].astype(np.float64)
    return GeneSelection(
        task=task,
        fold=fold,
        genes=genes,
        groups=groups,
        mean=picked.mean(axis=0),
        std=np.maximum(picked.std(axis=0), params.std_floor),
        clip=params.clip,
        unit=expression.unit,
        scale=expression.scale,
        n_training=len(cases),
        params=asdict(params),
        revision=REVISIONS["genes"],
        digest=_digest(cases, values, expression, lists, params, centres, known, patient),
        centres={cohort: centre[columns] for cohort, centre in centres.items()},
        unseen=params.unseen_cohort,
        max_missing=params.max_missing,
        settings=dict(expression.settings),
        families=lists.families_of(genes),
        elimination=elimination,
    )


def select_genes_for_folds(
    expression: str | Path,
    splits: str | Path,
    labelled: Iterable[str],
    params: GeneParams,
    outputs: Sequence[str | Path],
    task: str,
    classes: Mapping[str, str] | None = None,
    aliases: str | Path | None = None,
    survival: Mapping[str, tuple[float, int]] | None = None,
    patients: Mapping[str, str] | None = None,
) -> None:
    """Write the genes of all folds of one task: fold k to ``outputs[k]``.

    The training cases of a fold have the role train in it, RNA, and a label for the task. `classes` are the labels of a
    classification task, `survival` time and event of each case of a survival task; `patients` names the
    patient of those cases that share one; `aliases` is the file by which the
    table's symbols, and so the gene lists', were brought up to date.

    Raises InputError as `select_genes` does, if the fold table has another number of folds, and for a label that
    follows cohorts which were standardised separately (`centring.check_label_against_cohorts`).
    """
    table = read_expression(expression)
    folds = read_splits(splits)
    external = set(folds.external)  # nothing is learnt from how their label goes with their cohort
    inside = {case: label for case, label in (classes or {}).items() if case not in external}
    check_label_against_cohorts(table, inside, task, params.centre == "cohort")
    if folds.n_folds != len(outputs):
        raise InputError(str(splits), f"{folds.n_folds} folds, expected {len(outputs)}.", "run make_splits again.")
    lists = load_lists(params, read_aliases(aliases).current)
    usable = set(labelled) & set(table.cases)
    for fold, output in enumerate(outputs):
        training = [case for case in folds.cases(fold, TRAIN) if case in usable]
        validation = [case for case in folds.cases(fold, VAL) if case in usable]
        known = survival_classes({case: survival[case] for case in training}) if survival else classes
        selection = select_genes(table, training, params, task, fold, lists, validation, known, patients)
        write_genes(output, selection)
        logger.info(
            "genes: task %s, fold %d: %d tumour, %d TME, %d in all, from %d training cases",
            task, fold, len(selection.groups["tumour"]), len(selection.groups["tme"]), len(selection.genes),
            selection.n_training,
        )  # fmt: skip


def _variable(
    values: np.ndarray, rows: np.ndarray, expression: Expression, lists: GeneLists, params: GeneParams, where: str
) -> set[str]:
    """Variable genes of the sets."""
    named = set(lists.signatures.tumour) | set(lists.signatures.tme)
    columns = [column for column, symbol in enumerate(expression.symbols) if symbol in named]
    if params.order == "hvg_then_signatures":
        columns = list(range(len(expression.symbols)))
    symbols = [expression.symbols[column] for column in columns]
    if not symbols:
        return set()
    count = n_kept(len(symbols), params.top_fraction, params.n_top, where)

    def raw() -> np.ndarray:
        return expression.raw[np.ix_(rows, columns)]

    score = variability(values[:, columns], raw, params.flavour, expression.unit, expression.scale, where)
    ranked = sorted(range(len(symbols)), key=lambda place: (-score[place], symbols[place]))
    return {symbols[place] for place in ranked[:count]} & named


def _eliminated(
    values: np.ndarray,
    cases: Sequence[str],
    classes: Mapping[str, str],
    patients: Mapping[str, str],
    symbols: Sequence[str],
    lists: GeneLists,
    params: GeneParams,
    where: str,
) -> tuple[set[str], dict[str, Any]]:
    """What the elimination leaves and the cancer genes of the table, and how it came about (JSON values)."""
    usable = [row for row, case in enumerate(cases) if case in classes]
    labels = [classes[cases[row]] for row in usable]
    patient = [patients.get(cases[row], cases[row]) for row in usable]
    found = eliminate(values[usable], labels, params.rfe_step, params.rfe_folds, where, patient)
    kept = {symbols[column] for column in found.kept}
    listed = set(lists.cancer_genes) & set(symbols)
    counts = {name: labels.count(name) for name in sorted(set(labels))}
    return kept | listed, {**found.facts(), "listed": len(listed), "added": len(listed - kept), "classes": counts}


def _groups(chosen: set[str], signatures: Signatures, both: str) -> dict[str, tuple[str, ...]]:
    """Groups in the order of the gene list: tumour, TME, then genes that are in neither group; sorted within each."""
    shared = set(signatures.both) & chosen
    tumour = set(signatures.tumour) & chosen
    tme = set(signatures.tme) & chosen
    if both in ("exclude", "tme"):
        tumour -= shared
    if both in ("exclude", "tumour"):
        tme -= shared
    rest = chosen - tumour - tme
    genes = (*sorted(tumour), *sorted(tme - tumour), *sorted(rest))
    return {
        "tumour": tuple(gene for gene in genes if gene in tumour),
        "tme": tuple(gene for gene in genes if gene in tme),
        "all": genes,
    }


def _refuse_small(
    name: str,
    groups: dict[str, tuple[str, ...]],
    signatures: Signatures,
    expression: Expression,
    params: GeneParams,
    where: str,
) -> None:
    if len(groups[name]) >= params.min_genes:
        return
    listed = signatures.tumour if name == "tumour" else signatures.tme
    present = set(listed) & set(expression.symbols)
    source = getattr(params, name)
    kept = f"n_top {params.n_top}" if params.n_top else f"top_fraction {params.top_fraction:g}"
    raise InputError(
        where,
        f"the {name} group ({source}) keeps {len(groups[name])} genes, genes.min_genes is {params.min_genes}:"
        f" {len(listed)} are listed, {len(present)} of them are in the expression table; {kept} keeps the most"
        " variable.",
        "check the symbols of the table, raise genes.top_fraction or n_top, set genes.selection: all, or give another"
        " list.",
    )


def _digest(
    cases: Sequence[str],
    values: np.ndarray,
    expression: Expression,
    lists: GeneLists,
    params: GeneParams,
    centres: Mapping[str, np.ndarray],
    classes: Mapping[str, str],
    patients: Mapping[str, str],
) -> str:
    content: list[Any] = [
        "genes",
        REVISIONS["genes"],
        REVISIONS["expression"],
        asdict(params),
        lists.signatures.tumour,
        lists.signatures.tme,
        expression.unit,
        list(cases),
        hashlib.sha256("\n".join(expression.symbols).encode()).hexdigest(),
        hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest(),
        {cohort: hashlib.sha256(centre.astype("<f8").tobytes()).hexdigest() for cohort, centre in centres.items()},
        dict(expression.settings),
        [[name, genes] for name, genes in lists.families.items()],
    ]
    if params.selection == RFE_SVM:
        content += [dict(classes), lists.cancer_genes, *([dict(patients)] if patients else [])]
    return digest_of(*content)
