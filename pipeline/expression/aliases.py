"""Gene names of other years and of other databases: from the user's alias file, and a short built-in table.

The alias file is HGNC's (columns ``symbol``, ``prev_symbol``, ``alias_symbol``, and ``ensembl_gene_id`` where it is
there; several names separated by ``|``), https://www.genenames.org/download/, or a table with the columns ``gene_id``
and ``gene_name``, such as any GDC STAR file, which names Ensembl ids only.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table
from pipeline.expression.symbols import ENSEMBL
from pipeline.signatures import builtin_symbols, current_symbols

PATH = Path(__file__).with_name("renamed.tsv")
SYMBOL, PREVIOUS, ALIAS, IDENT = "symbol", "prev_symbol", "alias_symbol", "ensembl_gene_id"


@dataclass(frozen=True)
class Renamed:
    """Symbols of a table after renaming, in its order, and what was done, as names of the table."""

    symbols: list[str]
    previous: list[str]
    aliases: list[str]
    ambiguous: list[str]
    unknown: list[str]


@dataclass(frozen=True)
class Aliases:
    """What other names mean. A name that stands for several genes maps to "": it is never guessed.

    Parameters
    ----------
    approved : symbols that are current, and therefore never renamed
    previous, aliases : earlier symbols and synonyms -> current symbol
    ensembl : Ensembl id without its version -> symbol
    complete : whether `approved` is all there is, so that other symbols may be called unknown
    """

    approved: frozenset[str]
    previous: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    ensembl: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False

    def current(self, symbol: str) -> str:
        """The current symbol of a name; the name itself where it is current, ambiguous or unknown."""
        if symbol in self.approved:
            return symbol
        return self.previous.get(symbol, self.aliases.get(symbol, "")) or symbol

    def of_ensembl(self, ident: str) -> str:
        """The symbol of an Ensembl id, with or without version; "" where it is unknown."""
        return self.ensembl.get(ident.partition(".")[0], "")

    def rename(self, symbols: Sequence[str]) -> Renamed:
        """Bring the symbols of a table up to date.

        A current symbol stays. A previous symbol, else a synonym, becomes the symbol of the one gene that it stood for,
        unless the table has that gene under its own name. A name of several genes stays, and so do synonyms of which
        two in the table would become one gene.
        """
        present = set(symbols)
        wanted = {name: self.current(name) for name in present}
        synonyms: dict[str, list[str]] = {}
        for name, new in wanted.items():
            if new != name and name not in self.previous:
                synonyms.setdefault(new, []).append(name)
        out = Renamed([], [], [], [], [])
        for name in symbols:
            new = wanted[name]
            if new == name:
                if name not in self.approved and "" in (self.previous.get(name), self.aliases.get(name)):
                    out.ambiguous.append(name)
                elif self.complete and name not in self.approved:
                    out.unknown.append(name)
            elif new in present:
                new = name
            elif name in self.previous:
                out.previous.append(name)
            elif len(synonyms[new]) > 1:
                out.ambiguous.append(name)
                new = name
            else:
                out.aliases.append(name)
            out.symbols.append(new)
        return out


@cache
def builtin_aliases() -> Aliases:
    """Previous symbols of the built-in signature genes, and of genes that were renamed in well-known families."""
    renamed = {row["previous"]: row["symbol"] for row in read_table(PATH, ["previous", "symbol"])}
    previous = {**renamed, **current_symbols()}
    return Aliases(builtin_symbols() | frozenset(renamed.values()), previous)


def read_aliases(path: str | Path | None) -> Aliases:
    """The names of a file of the user's, and the built-in ones where it does not know a name; None for the built-in.

    Raises InputError for a missing or unreadable file and for one without the columns.
    """
    builtin = builtin_aliases()
    if path is None:
        return builtin
    rows = list(_rows(Path(path)))
    approved = frozenset(row[SYMBOL] for row in rows if row.get(SYMBOL))
    if not approved:  # Ensembl ids only
        idents = {row["gene_id"].partition(".")[0]: row["gene_name"] for row in rows if row["gene_name"]}
        return Aliases(builtin.approved, builtin.previous, ensembl=idents)
    previous, aliases = _one_meaning(rows, PREVIOUS, approved), _one_meaning(rows, ALIAS, approved)
    idents = {row[IDENT]: row[SYMBOL] for row in rows if row.get(IDENT)}
    known = approved | previous.keys() | aliases.keys()
    extra = {old: new for old, new in builtin.previous.items() if old not in known}
    return Aliases(approved, {**extra, **previous}, aliases, idents, complete=True)


def _one_meaning(rows: Iterable[Mapping[str, str]], column: str, approved: frozenset[str]) -> dict[str, str]:
    meaning: dict[str, str] = {}
    for row in rows:
        for name in (part.strip().strip('"') for part in row.get(column, "").split("|")):
            if name and name not in approved:
                meaning[name] = row[SYMBOL] if meaning.get(name, row[SYMBOL]) == row[SYMBOL] else ""
    return meaning


def _rows(path: Path) -> Iterable[dict[str, str]]:
    """Rows with only the columns that are used. HGNC's file quotes fields; some of them hold line breaks."""
    where = "config.yaml expression.aliases"
    if not path.is_file():
        raise InputError(where, f"'{path}' does not exist.", "give HGNC's hgnc_complete_set.txt, or null.")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise InputError(str(path), f"not readable as text ({error}).", "give an intact table.") from error
    lines = io.StringIO("".join(line for line in text.splitlines(keepends=True) if not line.startswith("# ")))
    reader = csv.DictReader(lines, delimiter="," if path.name.endswith((".csv", ".csv.gz")) else "\t")
    columns = {(name or "").strip().casefold(): name for name in reader.fieldnames or []}
    hgnc = {SYMBOL, PREVIOUS, ALIAS} <= columns.keys()
    wanted = (SYMBOL, PREVIOUS, ALIAS, IDENT) if hgnc else ("gene_id", "gene_name")
    if not hgnc and not set(wanted) <= columns.keys():
        raise InputError(
            str(path),
            f"it has neither the columns {SYMBOL}, {PREVIOUS}, {ALIAS} nor gene_id, gene_name; found:"
            f" {', '.join(columns) or 'an empty file'}.",
            "give HGNC's hgnc_complete_set.txt, or a table of Ensembl ids and symbols such as a GDC STAR file.",
        )
    for row in reader:
        kept = {key: (row.get(columns[key]) or "").strip() for key in wanted if key in columns}
        if hgnc or ENSEMBL.match(kept["gene_id"]):
            yield kept
