"""Tumour and microenvironment (TME) genes: the built-in lists, and lists of the user's (standard library only).

`builtin.tsv` names for every gene the publication that lists it; README.md beside it gives the full references.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table

BUILTIN, NONE = "builtin", "none"
SETS = ("tumour", "tme")
BOTH = "both"  #: what a table may say of a gene that is in both sets
SYMBOL_COLUMNS = ("symbol", "gene", "Gene Symbol")  #: the last is that of the Cancer Gene Census
SET_COLUMNS = ("set", "type")
DRIVERS = "Vogelstein2013"  #: source of the built-in cancer genes
PATH = Path(__file__).with_name("builtin.tsv")
COLUMNS = ("symbol", "set", "group", "source", "previous")
ENSEMBL = re.compile(r"ENSG\d{6,}")


@dataclass(frozen=True)
class SignatureGene:
    """One row of the built-in list; `previous` are symbols that the gene had before."""

    symbol: str
    set: str
    group: str
    source: str
    previous: tuple[str, ...]


@dataclass(frozen=True)
class Signatures:
    """Symbols of both sets, sorted. A gene may be in both: what then happens is the caller's decision."""

    tumour: tuple[str, ...]
    tme: tuple[str, ...]

    @property
    def both(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.tumour) & set(self.tme)))


@cache
def builtin_genes() -> tuple[SignatureGene, ...]:
    """All rows of the built-in list."""
    return tuple(
        SignatureGene(
            row["symbol"],
            row["set"],
            row["group"],
            row["source"],
            tuple(name.strip() for name in row["previous"].split(";") if name.strip()),
        )
        for row in read_table(PATH, COLUMNS)
    )


@cache
def builtin_symbols() -> frozenset[str]:
    """Every current symbol of the built-in list."""
    return frozenset(gene.symbol for gene in builtin_genes())


@cache
def current_symbols() -> Mapping[str, str]:
    """Previous symbol -> current symbol, for the genes of the built-in list."""
    return {old: gene.symbol for gene in builtin_genes() for old in gene.previous}


def load_signatures(
    tumour: str = BUILTIN, tme: str = BUILTIN, current: Callable[[str], str] | None = None
) -> Signatures:
    """Both gene sets, each "builtin" or the path of a GMT, TSV or CSV file of the user's.

    A GMT file contributes all its gene sets; a table has a column ``symbol`` (or ``gene``) and, if it holds both sets,
    a column ``set`` (or ``type``) with ``tumour``, ``tme`` or ``both``. Previous symbols are brought up to date by
    `current`, as those of the expression table are; without it, where the built-in list knows them.

    Raises InputError naming the file and row for a missing file or column, an empty list, a symbol that is repeated,
    empty, or an Ensembl id.
    """
    current = current or _builtin_current
    return Signatures(_load(tumour, "tumour", current), _load(tme, "tme", current))


def load_cancer_genes(source: str = BUILTIN, current: Callable[[str], str] | None = None) -> tuple[str, ...]:
    """Cancer genes, sorted: "builtin" (the driver genes of Vogelstein et al. 2013), "none", or a file as above."""
    if source == NONE:
        return ()
    if source == BUILTIN:
        return tuple(sorted({gene.symbol for gene in builtin_genes() if DRIVERS in gene.source.split("; ")}))
    return _from_file(Path(source), "", "cancer_genes", current or _builtin_current)


def gmt_sets(path: Path) -> list[tuple[str, list[str]]]:
    """Names and symbols of the gene sets of a GMT file, in its order. Raises InputError."""
    if not path.exists():
        raise InputError(str(path), "the file does not exist.", "correct its path in config.yaml, or use builtin.")
    sets = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = [field.strip() for field in line.split("\t")]
        if not any(fields):
            continue
        where = f"{path} line {number} (gene set '{fields[0]}')"
        if len(fields) < 3:
            raise InputError(where, "no gene.", "a GMT line is: name, description, genes, separated by tabs.")
        sets.append((fields[0], checked_symbols([field for field in fields[2:] if field], where)))
    return sets


def checked_symbols(symbols: list[str], where: str) -> list[str]:
    """`symbols` themselves. Raises InputError for one that is empty, repeated, or an Ensembl id."""
    seen: set[str] = set()
    for symbol in symbols:
        if not symbol:
            raise InputError(where, "a symbol is empty.", "delete the row.")
        if symbol in seen:
            raise InputError(where, f"symbol '{symbol}' occurs twice.", "keep one of them.")
        if ENSEMBL.match(symbol):
            raise InputError(where, f"'{symbol}' is an Ensembl id.", "give gene symbols, such as TP53.")
        seen.add(symbol)
    return symbols


def _builtin_current(symbol: str) -> str:
    return current_symbols().get(symbol, symbol)


def _load(source: str, name: str, current: Callable[[str], str]) -> tuple[str, ...]:
    if source == BUILTIN:
        return tuple(sorted({gene.symbol for gene in builtin_genes() if gene.set == name}))
    return _from_file(Path(source), name, name, current)


def _from_file(path: Path, name: str, key: str, current: Callable[[str], str]) -> tuple[str, ...]:
    gmt = path.suffix == ".gmt"
    symbols = [gene for _, genes in gmt_sets(path) for gene in genes] if gmt else _from_table(path, name)
    if not symbols:
        raise InputError(str(path), f"no gene for genes.{key}.", f"list symbols, or use genes.{key}: builtin.")
    return tuple(sorted({current(symbol) for symbol in symbols}))


def _from_table(path: Path, name: str) -> list[str]:
    """Symbols of the set `name`; all of the table where it is "", or where the table does not tell sets apart."""
    rows = read_table(path)
    columns = rows[0].keys() if rows else ()
    symbol = next((column for column in SYMBOL_COLUMNS if column in columns), "symbol")
    if symbol not in columns:
        read_table(path, [symbol])  # says what the table has instead
        return []
    of_set = next((column for column in SET_COLUMNS if column in columns), "") if name else ""
    if not of_set:
        return checked_symbols([row[symbol] for row in rows], str(path))
    for number, row in enumerate(rows, start=2):
        if row[of_set] not in (*SETS, BOTH):
            where = f"{path} row {number}"
            raise InputError(where, f"{of_set} '{row[of_set]}' is neither tumour nor tme nor both.", "correct it.")
    return checked_symbols([row[symbol] for row in rows if row[of_set] in (name, BOTH)], str(path))
