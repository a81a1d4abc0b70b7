"""Genes of each fold: chosen and scaled on that fold's training cases, and on nothing else."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import Expression, read_expression
from pipeline.contracts.files import digest_of
from pipeline.contracts.genes import ITSELF, REFUSE, UNSEEN, GeneSelection, write_genes
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.settings import require_choice
from pipeline.contracts.splits import TRAIN, VAL, read_splits
from pipeline.expression.aliases import read_aliases
from pipeline.expression.centring import check_label_against_cohorts, fit_centres
from pipeline.signatures import BUILTIN, Signatures, load_signatures

logger = logging.getLogger(__name__)
CHOICES = {
    "selection": ("hvg", "all"),
    "order": ("signatures_then_hvg", "hvg_then_signatures"),
    "flavour": ("variance", "seurat"),
    "both": ("exclude", "keep", "tumour", "tme"),
    "centre": ("none", "cohort"),
    "unseen_cohort": UNSEEN,
}


@dataclass(frozen=True)
class GeneParams:
    """Section ``genes`` of the config.

    Parameters
    ----------
    selection : "hvg" keeps the highly variable genes of the sets; "all" keeps every gene of the table
    order : "signatures_then_hvg" takes the most variable share of the signature genes, "hvg_then_signatures" the
        signature genes among the most variable share of the transcriptome
    top_fraction : that share
    flavour : "variance" of the values, or scanpy's "seurat" (dispersion, normalised within bins of equal mean)
    tumour, tme : "builtin", or a GMT, TSV or CSV file
    both : genes in both sets stay out of both groups but in "all" ("exclude", as in the published models), stay in
        both ("keep"), or go to one ("tumour", "tme")
    min_genes : smallest size of the tumour and the TME group with "hvg"; with "all", only a model that reads an empty
        group refuses it
    std_floor : smallest standard deviation to divide by, on the scale of the values
    clip : standardised values beyond it are clipped, in standard deviations
    centre : "cohort" subtracts from every gene its mean over the training cases of the case's cohort, before genes are
        chosen by their variance and standardised
    unseen_cohort : with centring, a cohort without training cases is refused, or centred on "itself"
    max_missing : largest share of the selected genes that a new table may lack; they stand at the training mean
    """

    selection: str = "hvg"
    order: str = "signatures_then_hvg"
    top_fraction: float = 0.3
    flavour: str = "variance"
    tumour: str = BUILTIN
    tme: str = BUILTIN
    both: str = "exclude"
    min_genes: int = 5
    std_floor: float = 0.01
    clip: float = 10.0
    centre: str = "none"
    unseen_cohort: str = REFUSE
    max_missing: float = 0.1

    def __post_init__(self) -> None:
        for key, known in CHOICES.items():
            require_choice(f"genes.{key}", getattr(self, key), known)
        if not 0 < self.top_fraction <= 1:
            raise InputError("config.yaml genes.top_fraction", f"{self.top_fraction} is not in (0, 1].")
        if isinstance(self.min_genes, bool) or not isinstance(self.min_genes, int) or self.min_genes < 1:
            raise InputError("config.yaml genes.min_genes", f"{self.min_genes!r} is not a whole number from 1.")
        if not 0 <= self.max_missing < 1:
            raise InputError("config.yaml genes.max_missing", f"{self.max_missing} is not in [0, 1).")
        for key in ("std_floor", "clip"):
            if not 0 < getattr(self, key) < math.inf:
                raise InputError(f"config.yaml genes.{key}", "it must be a number above 0.")


def select_genes(
    expression: Expression,
    training_cases: Iterable[str],
    params: GeneParams,
    task: str,
    fold: int,
    signatures: Signatures | None = None,
    validation_cases: Iterable[str] = (),
) -> GeneSelection:
    """Choose the genes of one fold and fit their scaling on `training_cases`; no other row is looked at.

    Variances and means are those of the normalised (log) values. Ties go to the symbol that sorts first. The digest
    covers the training cases' ids and values, the gene symbols and lists, the parameters and the stage's revision: an
    unchanged training set gives an unchanged result whatever happens to other cases. Only with centring, a cohort that
    has validation cases and no training case gets its centre from `validation_cases`, under ``unseen_cohort: itself``.

    Raises
    ------
    InputError for z-scores with selection hvg, fewer than two training cases, or a group of too few genes.
    """
    cases = sorted(set(training_cases))
    where = f"genes of task {task}, fold {fold}"
    if expression.unit == "zscore" and params.selection == "hvg":
        raise InputError(
            where,
            "highly variable genes cannot be chosen from z-scores: every gene has been given the same variance, and"
            " only outliers would be found.",
            "set genes.selection: all, or give counts, TPM, FPKM or log2 values.",
        )
    if len(cases) < 2:
        raise InputError(
            where,
            f"{len(cases)} training case(s) with RNA and a label: mean and standard deviation need two or more.",
            "check that case ids agree between the sheet and the expression table, or use fewer folds.",
        )
    values = expression.values[expression.rows(cases)]  # the only rows that anything below sees
    signatures = signatures or load_signatures(params.tumour, params.tme)
    centres, centred = {}, values
    if params.centre == "cohort":
        unseen_itself = params.unseen_cohort == ITSELF
        centres, centred = fit_centres(expression, cases, validation_cases, unseen_itself, where)
    chosen = _choose(centred if params.flavour == "variance" else values, expression, signatures, params, where)
    groups = _groups(chosen, signatures, params.both)
    for name in ("tumour", "tme") if params.selection == "hvg" else ():
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
        digest=_digest(cases, values, expression, signatures, params, centres),
        centres={cohort: centre[columns] for cohort, centre in centres.items()},
        unseen=params.unseen_cohort,
        max_missing=params.max_missing,
        settings=dict(expression.settings),
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
) -> None:
    """Write the genes of all folds of one task: fold k to ``outputs[k]``.

    The training cases of a fold have the role train in it, RNA, and a label for the task. `classes` are the labels of a
    classification task; `aliases` is the file by which the table's symbols, and so the gene lists', were brought up to
    date.

    Raises InputError as `select_genes` does, if the fold table has another number of folds, and for a label that
    follows cohorts which were standardised separately (`centring.check_label_against_cohorts`).
    """
    table = read_expression(expression)
    check_label_against_cohorts(table, classes or {}, task, params.centre == "cohort")
    folds = read_splits(splits)
    if folds.n_folds != len(outputs):
        raise InputError(str(splits), f"{folds.n_folds} folds, expected {len(outputs)}.", "run make_splits again.")
    signatures = load_signatures(params.tumour, params.tme, read_aliases(aliases).current)
    usable = set(labelled) & set(table.cases)
    for fold, output in enumerate(outputs):
        training = [case for case in folds.cases(fold, TRAIN) if case in usable]
        validation = [case for case in folds.cases(fold, VAL) if case in usable]
        selection = select_genes(table, training, params, task, fold, signatures, validation)
        write_genes(output, selection)
        logger.info(
            "genes: task %s, fold %d: %d tumour, %d TME, %d in all, from %d training cases",
            task, fold, len(selection.groups["tumour"]), len(selection.groups["tme"]), len(selection.genes),
            selection.n_training,
        )  # fmt: skip


def _choose(
    values: np.ndarray, expression: Expression, signatures: Signatures, params: GeneParams, where: str
) -> set[str]:
    """Genes to keep: the whole table, or variable genes of the sets."""
    if params.selection == "all":
        return set(expression.symbols)
    named = set(signatures.tumour) | set(signatures.tme)
    columns = [column for column, symbol in enumerate(expression.symbols) if symbol in named]
    if params.order == "hvg_then_signatures":
        columns = list(range(len(expression.symbols)))
    symbols = [expression.symbols[column] for column in columns]
    if not symbols:
        return set()
    score = _variability(values[:, columns], params.flavour, expression.scale, where)
    ranked = sorted(range(len(symbols)), key=lambda place: (-score[place], symbols[place]))
    kept = ranked[: max(1, math.ceil(params.top_fraction * len(symbols) - 1e-9))]
    return {symbols[place] for place in kept} & named


def _variability(values: np.ndarray, flavour: str, scale: str, where: str) -> np.ndarray:
    """Score per gene, higher is more variable. `values` float32 [training cases, genes]."""
    if flavour == "variance":
        return values.astype(np.float64).var(axis=0)
    if values.min() < 0:
        raise InputError(
            where,
            "flavour seurat needs the linear values, which negative logarithms do not give back.",
            "set genes.flavour: variance.",
        )
    # scanpy compiles with numba and takes seconds to load: only this flavour pays for it.
    import anndata
    import scanpy

    table = anndata.AnnData(X=values.astype(np.float64))
    table.uns["log1p"] = {"base": 2.0 if scale == "log2" else None}
    found = scanpy.pp.highly_variable_genes(table, flavor="seurat", n_top_genes=1, inplace=False)
    return found["dispersions_norm"].fillna(-np.inf).to_numpy(dtype=np.float64)


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
    raise InputError(
        where,
        f"the {name} group ({source}) keeps {len(groups[name])} genes, genes.min_genes is {params.min_genes}:"
        f" {len(listed)} are listed, {len(present)} of them are in the expression table; top_fraction"
        f" {params.top_fraction:g} keeps the most variable.",
        "check the symbols of the table, raise genes.top_fraction, set genes.selection: all, or give another list.",
    )


def _digest(
    cases: Sequence[str],
    values: np.ndarray,
    expression: Expression,
    signatures: Signatures,
    params: GeneParams,
    centres: Mapping[str, np.ndarray],
) -> str:
    content: list[Any] = [
        "genes",
        REVISIONS["genes"],
        REVISIONS["expression"],
        asdict(params),
        signatures.tumour,
        signatures.tme,
        expression.unit,
        list(cases),
        hashlib.sha256("\n".join(expression.symbols).encode()).hexdigest(),
        hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest(),
        {cohort: hashlib.sha256(centre.astype("<f8").tobytes()).hexdigest() for cohort, centre in centres.items()},
        dict(expression.settings),
    ]
    return digest_of(*content)
