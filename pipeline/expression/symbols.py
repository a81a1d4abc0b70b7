"""What the gene ids of expression tables mean: symbols, Ensembl ids, Entrez numbers, summary rows, spoilt names."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from pipeline.contracts.errors import InputError

ENSEMBL = re.compile(r"ENSG\d{6,}(\.\d+)?(_PAR_Y)?$")
#: rows that STAR, featureCounts and HTSeq add below or above the genes
SUMMARY = re.compile(
    r"(N_(unmapped|multimapping|noFeature|ambiguous)|__(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique))$"
)
SPREADSHEET_DATE = re.compile(
    r"(\d{1,2}-(Mar|Sep|Sept|Dec|Oct|Nov|Feb|Apr)|(Mar|Sep|Dec)-\d{1,2}|\d{4}-\d{2}-\d{2}.*)$"
)
OPEN_READING_FRAME = re.compile(r"C(\d+|X|Y)orf\d+$")
NO_SYMBOL = frozenset({"", "?", "-", "---", "NA", "nan", "NaN", "None", "."})
MOUSE_STYLE = re.compile(r"[A-Z][a-z0-9]*[a-z][a-z0-9]*$")


def parse_gene(text: str) -> tuple[str, str]:
    """``(symbol, Ensembl id with its version)``, each "" where the id does not say it.

    Understands ``TP53``, ``TP53|7157`` (RSEM), ``?|100133144``, ``ENSG00000141510.18`` and combinations by ``|``.
    """
    symbol = ensembl = ""
    for number, part in enumerate(part.strip() for part in text.split("|")):
        if ENSEMBL.match(part):
            ensembl = ensembl or part
        elif part in NO_SYMBOL or (number and part.isdigit()):
            continue
        elif not symbol:
            symbol = part
    return symbol, ensembl


def is_summary(text: str) -> bool:
    return SUMMARY.match(text) is not None


def is_par_y(ident: str) -> bool:
    """An Ensembl id of a gene's copy in the pseudoautosomal region of Y, as GENCODE marks it."""
    return ident.endswith("_PAR_Y")


def is_spreadsheet_date(symbol: str) -> bool:
    """A gene such as MARCH1 or SEPT2 that a spreadsheet program turned into a date."""
    return SPREADSHEET_DATE.match(symbol) is not None


def fold_case(symbols: Sequence[str], known: Set[str], where: str) -> tuple[list[str], int]:
    """Human symbols in upper case, where a table is written in lower case; and how many were changed.

    Nothing is touched in a table whose symbols are recognised as they are. All-lower-case tables are folded unless two
    different rows would become one gene. Mouse-style symbols (``Tp53``) raise: they may well be another species, and a
    change of letters does not find the human orthologue. ``C1orf112`` stays as it is.
    """
    as_is = sum(symbol in known for symbol in symbols)
    folded = [s if OPEN_READING_FRAME.match(s) else s.upper() for s in symbols]
    better = [new for new, old in zip(folded, symbols, strict=True) if new in known and old not in known]
    if len(better) <= as_is:
        return list(symbols), 0
    changed = [(old, new) for old, new in zip(symbols, folded, strict=True) if old != new]
    mouse = [old for old, _ in changed if MOUSE_STYLE.match(old)]
    if 2 * len(mouse) > len(changed):
        raise InputError(
            where,
            f"gene symbols such as '{mouse[0]}' are written as for the mouse, not as human symbols.",
            "map them to human orthologues; or, with gene lists of your own species, set expression.symbols: as_is.",
        )
    taken: dict[str, str] = {}
    for old, new in zip(symbols, folded, strict=True):
        if new and taken.setdefault(new, old) != old:
            raise InputError(
                where,
                f"genes '{taken[new]}' and '{old}' differ in upper and lower case only.",
                "give each gene one row, or set expression.symbols: as_is.",
            )
    return folded, len(changed)
