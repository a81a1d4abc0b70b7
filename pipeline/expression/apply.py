"""A new expression table through a fold's fitted genes: what a model of that fold takes as input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.files import write_json, write_table
from pipeline.contracts.genes import APPLIED_KIND, APPLIED_VERSION, GeneSelection, read_genes
from pipeline.expression.aliases import Aliases, read_aliases
from pipeline.expression.barcodes import barcode
from pipeline.expression.case_table import case_table, some
from pipeline.expression.orientation import GENES_IN_ROWS, SAMPLES_IN_ROWS
from pipeline.expression.params import ExpressionParams
from pipeline.expression.raw_table import RawTable
from pipeline.expression.symbols import parse_gene
from pipeline.expression.tables import read_raw


@dataclass(frozen=True)
class AppliedGenes:
    """Inputs of a new table's cases.

    Parameters
    ----------
    cases : case ids, sorted; TCGA barcodes are cut to the patient
    genes : as in the selection
    values : float32 [cases, genes], centred, standardised and clipped
    report : what was decided and counted, the imputed genes among it
    missing : selected genes that the table lacks, all of them; they stand at the training mean
    """

    cases: tuple[str, ...]
    genes: tuple[str, ...]
    values: np.ndarray
    report: dict[str, Any]
    missing: tuple[str, ...] = ()


def apply_genes(
    genes: str | Path, table: str | Path, out: str | Path, unit: str = "", cohort: str = "", aliases: str | None = None
) -> AppliedGenes:
    """Write the inputs of a new table as a TSV (case_id, then a column per gene), and beside it ``{out}.json`` with the
    report and ``{out}.missing.tsv`` with the selected genes that it lacks. See `apply_selection`."""
    selection = read_genes(genes)
    params = ExpressionParams(**selection.settings)
    applied = apply_selection(selection, read_raw(table, params.star_column), unit, cohort, read_aliases(aliases))
    rows = [
        {"case_id": case, **dict(zip(applied.genes, values, strict=True))}  # float32: text that reads back to the bit
        for case, values in zip(applied.cases, applied.values, strict=True)
    ]
    write_table(out, ["case_id", *applied.genes], rows)
    _write_missing(f"{out}.missing.tsv", selection, applied.missing)
    body = {"genes_digest": selection.digest, "report": applied.report}
    write_json(f"{out}.json", APPLIED_KIND, APPLIED_VERSION, body)
    return applied


def apply_selection(
    selection: GeneSelection, raw: RawTable, unit: str = "", cohort: str = "", aliases: Aliases | None = None
) -> AppliedGenes:
    """Read a new table as the training table was read, and bring it through the fold's transformation.

    Every sample is a case of its own, but that of TCGA barcodes normal tissue is left out and a patient's samples
    become one by the training table's rule. Which way round the table lies is told by the selected genes.

    Parameters
    ----------
    unit : what the numbers are; by default taken for that of the training table, which they must not contradict
    cohort : of all cases, where genes are centred per cohort

    Raises
    ------
    InputError for another unit than the training table's, for more missing genes than the selection allows, for a
    cohort without a centre, and as `case_table.case_table` does.
    """
    aliases = aliases or read_aliases(None)
    where = raw.path
    if unit and unit != selection.unit:
        raise InputError(
            where,
            f"it is in {unit}, but the genes of task {selection.task}, fold {selection.fold} were fitted on"
            f" {selection.unit}.",
            f"give it in {selection.unit}, or fit on {unit}.",
        )
    raw = _genes_in_rows(raw, selection, aliases)
    if raw.unit and raw.unit != selection.unit:
        raise InputError(where, f"the file says {raw.unit}, but training used {selection.unit}.", "give the same unit.")
    params = replace(
        ExpressionParams(**selection.settings), unit=selection.unit, common_unit=None, orientation=GENES_IN_ROWS
    )
    found = case_table(raw, params, sorted({_case(sample) for sample in raw.columns}), aliases)
    report = {key: value for key, value in found.report.items() if key not in ("cases_without_rna", "unit_told_by")}
    report["genes_selected"] = len(selection.genes)
    missing = selection.missing(found.symbols)
    report["genes_at_the_training_mean"] = some(missing)
    cohorts = [cohort] * len(found.cases)
    if selection.centres:
        report["cohort"], report["cohort_is_new"] = cohort, cohort not in selection.centres
    fitted = selection.with_own_centres(found.values, found.symbols, cohorts, [cohort])
    values = fitted.apply(found.values, found.symbols, cohorts)
    return AppliedGenes(found.cases, selection.genes, values, report, missing)


def _write_missing(path: str, selection: GeneSelection, missing: Sequence[str]) -> None:
    """A row per missing gene: the groups it is in, and its mean and standard deviation over the training cases."""
    position = {gene: column for column, gene in enumerate(selection.genes)}
    rows = [
        {
            "gene": gene,
            "groups": ";".join(name for name, genes in selection.groups.items() if gene in genes and name != "all"),
            "training_mean": f"{selection.mean[position[gene]]:.6g}",
            "training_std": f"{selection.std[position[gene]]:.6g}",
        }
        for gene in missing
    ]
    write_table(path, ["gene", "groups", "training_mean", "training_std"], rows)


def _case(sample: str) -> str:
    found = barcode(sample)
    return found.group(1) if found else sample


def _genes_in_rows(raw: RawTable, selection: GeneSelection, aliases: Aliases) -> RawTable:
    """The table with genes in rows. Raises InputError where neither rows nor columns name a selected gene."""
    selected = frozenset(selection.genes)
    named = [texts for name, texts in raw.annotations.items() if name != "case_id"]
    counts = {
        GENES_IN_ROWS: max(_known(ids, selected, aliases) for ids in (raw.rows, *named)),
        SAMPLES_IN_ROWS: _known(raw.columns, selected, aliases),
    }
    if not any(counts.values()):
        raise InputError(
            raw.path,
            f"no row and no column is one of the {len(selected)} selected genes ({', '.join(selection.genes[:3])}).",
            "give gene symbols, or name an alias file for Ensembl ids.",
        )
    return raw if counts[GENES_IN_ROWS] >= counts[SAMPLES_IN_ROWS] else raw.transposed()


def _known(ids: Sequence[str], selected: frozenset[str], aliases: Aliases) -> int:
    parsed = (parse_gene(name) for name in ids)
    symbols = (aliases.current(symbol) if symbol else aliases.of_ensembl(ident) for symbol, ident in parsed)
    return sum(symbol in selected or symbol.upper() in selected for symbol in symbols)
