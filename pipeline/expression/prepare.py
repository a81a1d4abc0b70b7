"""Expression stage: read the tables, bring each to cases x genes, align them, write."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import Expression, write_expression
from pipeline.contracts.expression_tables import TableSource, table_sources
from pipeline.contracts.files import bytes_digest, digest_of
from pipeline.contracts.revisions import REVISIONS
from pipeline.expression.aliases import Aliases, read_aliases
from pipeline.expression.align import align
from pipeline.expression.case_table import CaseTable, case_table
from pipeline.expression.params import ExpressionParams
from pipeline.expression.tables import read_raw
from pipeline.signatures import BUILTIN, load_signatures

logger = logging.getLogger(__name__)


def prepare_expression(
    tables: str | Path | Sequence[Any] | Mapping[str, Any],
    out: str | Path,
    params: ExpressionParams,
    cases: Iterable[str],
    tumour: str = BUILTIN,
    tme: str = BUILTIN,
    cohorts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the expression artefact of a cohort and return the report of what was decided and counted.

    Every step looks at one case at a time, so nothing of a held-out case enters another. (The unit and the orientation
    are properties of the whole file; the report says how they were told.)

    Parameters
    ----------
    tables : one table, a list, or cohort -> table (`expression_tables.table_sources`). A table is a TSV, CSV, gzip or
        h5ad file, or a folder of STAR files named by case or sample barcode, or with GDC's sample sheet
    cases : case ids of the clinical sheet; samples of other cases are left out and counted
    tumour, tme : gene lists for the flags of the artefact; see `signatures.load_signatures`
    cohorts : cohort of a case by the clinical sheet; empty or absent where it says none

    Raises
    ------
    InputError naming the file, gene and sample for anything that cannot be used as it is.
    """
    cases = sorted(set(cases))
    sources = table_sources(tables)
    aliases = read_aliases(params.aliases)
    prepared = [_prepared(source, params, cases, aliases) for source in sources]
    of_case = _cohorts(sources, prepared, cohorts or {})
    joined = align(sources, prepared, cases)
    del prepared
    flags = load_signatures(tumour, tme, aliases.current)
    joined.report["tumour_genes_missing"] = sorted(set(flags.tumour) - set(joined.symbols))
    joined.report["tme_genes_missing"] = sorted(set(flags.tme) - set(joined.symbols))
    in_order = tuple(of_case[case] for case in joined.cases)
    settings = {key: value for key, value in asdict(params).items() if key != "aliases"}
    content = [[source.cohort, source.unit, _content(Path(source.path))] for source in sources]
    names = bytes_digest(params.aliases) if params.aliases else ""
    expression = Expression(
        cases=joined.cases,
        symbols=joined.symbols,
        values=joined.values,
        unit=joined.unit,
        raw=joined.raw,
        ensembl=joined.ensembl,
        tumour=np.isin(joined.symbols, flags.tumour),
        tme=np.isin(joined.symbols, flags.tme),
        report=joined.report,
        revision=REVISIONS["expression"],
        digest=digest_of(
            "expression", REVISIONS["expression"], settings, names, content, cases, in_order, flags.tumour, flags.tme
        ),
        cohorts=in_order,
        settings=settings,
    )
    write_expression(out, expression)
    _log(joined.report)
    return dict(joined.report)


def _prepared(source: TableSource, params: ExpressionParams, cases: Sequence[str], aliases: Aliases) -> CaseTable:
    """One table. It is read here, so that nothing else holds the numbers as they were found."""
    own = replace(params, unit=source.unit) if source.unit else params
    return case_table(read_raw(source.path, params.star_column), own, cases, aliases)


def _cohorts(sources: Sequence[TableSource], tables: Sequence[CaseTable], sheet: Mapping[str, str]) -> dict[str, str]:
    """Cohort of every case: the table's, else the sheet's. Raises InputError where they differ."""
    found = {}
    for source, table in zip(sources, tables, strict=True):
        for case in table.cases:
            listed = sheet.get(case, "")
            if source.cohort and listed and listed != source.cohort:
                raise InputError(
                    f"case {case}",
                    f"column cohort of the case sheet says '{listed}', inputs.expression has it in '{source.cohort}'.",
                    "use the same names in both, or leave the column out.",
                )
            found[case] = source.cohort or listed
    return found


def _content(path: Path) -> list[Any]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return [[file.relative_to(path).as_posix(), bytes_digest(file)] for file in files]
    return [bytes_digest(path)]


def _log(report: Mapping[str, Any], prefix: str = "expression") -> None:
    for key, value in report.items():
        if key.startswith("table "):
            _log(value, f"{prefix}: {key}")
        else:
            logger.info("%s: %s: %s", prefix, key, f"{len(value)}" if isinstance(value, list) else value)
