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

BUILTIN = "builtin"
SETS = ("tumour", "tme")
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

    A GMT file contributes all its gene sets; a table has a column ``symbol`` and, if it holds both sets, a column
    ``set`` with ``tumour`` or ``tme``. Previous symbols are brought up to date by `current`, as those of the expression
    table are; without it, where the built-in list knows them.

    Raises InputError naming the file and row for a missing file or column, an empty list, a symbol that is repeated,
    empty, or an Ensembl id.
    """
    current = current or (lambda symbol: current_symbols().get(symbol, symbol))
    return Signatures(_load(tumour, "tumour", current), _load(tme, "tme", current))


def _load(source: str, name: str, current: Callable[[str], str]) -> tuple[str, ...]:
    if source == BUILTIN:
        return tuple(sorted({gene.symbol for gene in builtin_genes() if gene.set == name}))
    path = Path(source)
    symbols = _from_gmt(path) if path.suffix == ".gmt" else _from_table(path, name)
    if not symbols:
        raise InputError(str(path), f"no gene for the {name} set.", f"list symbols, or use genes.{name}: builtin.")
    return tuple(sorted({current(symbol) for symbol in symbols}))


def _from_gmt(path: Path) -> list[str]:
    if not path.exists():
        raise InputError(str(path), "the file does not exist.", "correct its path in config.yaml, or use builtin.")
    symbols: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = [field.strip() for field in line.split("\t")]
        if not any(fields):
            continue
        where = f"{path} line {number} (gene set '{fields[0]}')"
        if len(fields) < 3:
            raise InputError(where, "no gene.", "a GMT line is: name, description, genes, separated by tabs.")
        symbols += _checked([field for field in fields[2:] if field], where)
    return symbols


def _from_table(path: Path, name: str) -> list[str]:
    rows = read_table(path, ["symbol"])
    for number, row in enumerate(rows, start=2):
        if row.get("set", name) not in SETS:
            raise InputError(f"{path} row {number}", f"set '{row['set']}' is neither tumour nor tme.", "correct it.")
    return _checked([row["symbol"] for row in rows if row.get("set", name) == name], str(path))


def _checked(symbols: list[str], where: str) -> list[str]:
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
