"""Labels that are derived from several columns of the clinical sheet (standard library only).

The one rule there is, ``who2021``, is the diagnosis of adult diffuse glioma after the WHO classification of 2021, as
far as four markers tell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipeline.contracts.errors import InputError, nearest

MISSING = frozenset({"", "na", "n/a", "nan"})  #: cell contents, in any case of letters, that mean "unknown"
WHO2021 = "who2021"
GLIOBLASTOMA = "glioblastoma"  #: IDH wildtype
ASTROCYTOMA_4 = "astrocytoma-g4"  #: IDH mutant, no codeletion, grade 4
ASTROCYTOMA_23 = "astrocytoma-g23"  #: IDH mutant, no codeletion, grade 2 or 3
OLIGODENDROGLIOMA = "oligodendroglioma"  #: IDH mutant, 1p/19q codeleted

_IDH = {"wt": False, "wildtype": False, "wild-type": False, "idhwt": False, "0": False,
        "mutant": True, "mut": True, "mutated": True, "idhmut": True, "1": True}  # fmt: skip
_CODEL = {"codel": True, "codeleted": True, "1": True, "non-codel": False, "noncodel": False, "0": False}
_CDKN2A = {"-2": -2, "homdel": -2, "-1": -1, "hetloss": -1, "0": 0, "1": 1, "2": 2}
_GRADE = {name: k for k, roman in ((1, "i"), (2, "ii"), (3, "iii"), (4, "iv")) for name in (f"g{k}", str(k), roman)}
ANY, HOMOZYGOUS = LOSSES = ("any", "homozygous")


@dataclass(frozen=True)
class Who2021:
    """Which columns hold the markers.

    Attributes
    ----------
    idh : WT or Mutant (also wildtype, IDHwt, IDHmut, 0 and 1)
    codel : 1p/19q, codel or non-codel (also 1 and 0)
    cdkn2a : copy number, -2 to 2 as GISTIC writes it (also homdel and hetloss)
    grade : G2, G3 or G4 (also 2 and II)
    loss : which loss of CDKN2A makes an astrocytoma grade 4: any (-1 and -2, as the disentangled system has it), or
        homozygous (-2 only, the text of the WHO)
    """

    idh: str
    codel: str
    cdkn2a: str
    grade: str
    loss: str = ANY

    @property
    def columns(self) -> tuple[str, ...]:
        return self.idh, self.codel, self.cdkn2a, self.grade

    def derive(self, row: Mapping[str, str], where: str) -> tuple[str, str]:
        """(class, "") of a case, or ("", reason) where a marker that decides is unknown.

        IDH wildtype is glioblastoma; else codeletion oligodendroglioma; else a loss of CDKN2A or grade 4 astrocytoma of
        grade 4; else astrocytoma of grade 2 or 3. A marker is asked for only where those before it leave the class
        open.
        Raises InputError for a value that means nothing to the rule.
        """
        idh = _marker(row, self.idh, _IDH, where)
        codel = _marker(row, self.codel, _CODEL, where)
        cdkn2a = _marker(row, self.cdkn2a, _CDKN2A, where)
        grade = _marker(row, self.grade, _GRADE, where)
        if idh is None:
            return "", f"no {self.idh}"
        if not idh:
            return GLIOBLASTOMA, ""
        if codel is None:
            return "", f"no {self.codel}, and IDH is mutant"
        if codel:
            return OLIGODENDROGLIOMA, ""
        lost = cdkn2a is not None and cdkn2a <= (-1 if self.loss == ANY else -2)
        if lost or grade == 4:
            return ASTROCYTOMA_4, ""
        unknown = [name for name, value in ((self.cdkn2a, cdkn2a), (self.grade, grade)) if value is None]
        if unknown:
            return "", f"no {' and no '.join(unknown)}, and the astrocytoma may be of grade 4"
        return ASTROCYTOMA_23, ""


def label_rule(values: Mapping[str, Any], where: str) -> Who2021:
    """The rule that a task's ``label: {rule: who2021, idh: ..., ...}`` asks for. Raises InputError."""
    keys = [field.name for field in fields(Who2021)]
    given = {str(key): value for key, value in values.items() if key != "rule"}
    if values.get("rule") != WHO2021:
        found = str(values.get("rule"))
        raise InputError(f"{where} label.rule", f"'{found}' is unknown{nearest(found, [WHO2021])}.", f"use {WHO2021}.")
    for key in given:
        if key not in keys:
            raise InputError(f"{where} label.{key}", f"unknown key{nearest(key, keys)}.", f"use {', '.join(keys)}.")
    for key in keys[:4]:
        if not isinstance(given.get(key), str) or not given[key]:
            raise InputError(f"{where} label.{key}", "no column is named.", "name a column of the case sheet.")
    rule = Who2021(**given)
    if rule.loss not in LOSSES:
        raise InputError(f"{where} label.loss", f"'{rule.loss}' is unknown.", f"use {' or '.join(LOSSES)}.")
    return rule


def _marker(row: Mapping[str, str], column: str, known: Mapping[str, Any], where: str) -> Any:
    """What a cell says, None where it is unknown."""
    text = row[column].strip().casefold()
    if text in MISSING:
        return None
    text = text.removesuffix(".0")
    if text not in known:
        raise InputError(
            f"{where} column '{column}'",
            f"'{row[column]}' is none of {', '.join(known)}.",
            "correct it, or leave it empty if unknown.",
        )
    return known[text]
