"""Gene families: named sets of genes, as tokens of models and for scores of cases (standard library only)."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from pipeline.contracts.errors import InputError
from pipeline.signatures import BUILTIN, SETS, builtin_genes, checked_symbols, gmt_sets

MIN_GENES = 5  #: a built-in group of fewer genes is no family

Families = dict[str, tuple[str, ...]]


def load_families(source: str, current: Callable[[str], str] | None = None) -> Families:
    """Families by name, in the file's order; the genes of each sorted.

    Parameters
    ----------
    source : a GMT file; a CSV or TSV table with a family per column (such as MCAT's ``signatures.csv``, columns of
        unequal length); or "builtin", the functional groups of the built-in lists that hold five genes or more
    current : brings symbols up to date

    Raises
    ------
    InputError for a missing or empty file, a repeated family or symbol, or an Ensembl id.
    """
    found = _builtin() if source == BUILTIN else _from_file(Path(source))
    rename = current or (lambda symbol: symbol)
    families: Families = {}
    for name, symbols in found:
        if name in families:
            raise InputError(source, f"gene family '{name}' occurs twice.", "rename one of them.")
        families[name] = tuple(sorted({rename(symbol) for symbol in symbols}))
    if not families:
        raise InputError(source, "no gene family.", "a GMT line is: name, description, genes, separated by tabs.")
    return families


def _builtin() -> list[tuple[str, list[str]]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for gene in builtin_genes():
        groups.setdefault((gene.set, gene.group), []).append(gene.symbol)
    order = sorted(groups, key=lambda key: (SETS.index(key[0]), key[1]))
    return [(f"{kind}_{group}", groups[kind, group]) for kind, group in order if len(groups[kind, group]) >= MIN_GENES]


def _from_file(path: Path) -> list[tuple[str, list[str]]]:
    if path.suffix == ".gmt":
        return gmt_sets(path)
    if not path.exists():
        raise InputError(str(path), "the file does not exist.", "correct its path in config.yaml, or use builtin.")
    with path.open(encoding="utf-8-sig", newline="") as handle:
        header, *rows = list(csv.reader(handle, delimiter="," if path.suffix == ".csv" else "\t")) or [[]]
    columns = [[row[k].strip() for row in rows if k < len(row)] for k in range(len(header))]
    return [
        (name.strip(), checked_symbols([symbol for symbol in column if symbol], f"{path} column '{name}'"))
        for name, column in zip(header, columns, strict=True)
        if name.strip()
    ]
