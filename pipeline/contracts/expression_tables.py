"""Which expression tables ``inputs.expression`` names: one, a list, or one per cohort (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.contracts.errors import InputError

WHERE = "config.yaml inputs.expression"


@dataclass(frozen=True)
class TableSource:
    """One table. `cohort` is the cohort of all its cases, "" where the case sheet says it; `unit` what its numbers are,
    "" where ``expression.unit`` says it."""

    path: str
    cohort: str = ""
    unit: str = ""

    @property
    def name(self) -> str:
        """How messages and reports call the table."""
        return self.cohort or Path(self.path).name


def table_sources(value: str | Path | Sequence[Any] | Mapping[str, Any] | None) -> tuple[TableSource, ...]:
    """The tables of a config value: a path, a list of tables, or cohort -> table; a table is a path or
    ``{path: ..., unit: ...}``.

    Raises InputError for a table without a path and for a path that is named twice.
    """
    if value is None:
        return ()
    if isinstance(value, str | Path):
        return (TableSource(str(value)),)
    entries = value.items() if isinstance(value, Mapping) else (("", entry) for entry in value)
    sources = tuple(_source(str(cohort), entry) for cohort, entry in entries)
    paths = [source.path for source in sources]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(WHERE, f"'{path}' is named twice.", "name each table once.")
    return sources


def _source(cohort: str, entry: Any) -> TableSource:
    if isinstance(entry, str | Path):
        return TableSource(str(entry), cohort)
    if not isinstance(entry, Mapping) or not entry.get("path"):
        raise InputError(
            f"{WHERE} {cohort}".strip(), "a table has no path.", "give its path, or {path: ..., unit: ...}."
        )
    return TableSource(str(entry["path"]), cohort, str(entry.get("unit") or ""))
