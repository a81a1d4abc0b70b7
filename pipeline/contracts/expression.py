"""The expression artefact: one AnnData file (h5ad), cases x genes (numpy, pandas and anndata only)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import check_version, whole_file

KIND = "histoweave expression"
FORMAT_VERSION = 2

#: what the values of a table may be; `expected_counts` are RSEM's, which need not be whole numbers
UNITS = ("counts", "expected_counts", "tpm", "fpkm", "fpkm_uq", "linear", "log2", "zscore")
COMPRESSED_VALUES = 20_000_000  #: larger matrices are stored as they are: compressing takes longer than reading them
#: the scale of `values`, by unit: natural log(1 + x), or kept as it came
SCALES = {
    "counts": "log1p", "expected_counts": "log1p", "tpm": "log1p", "fpkm": "log1p", "fpkm_uq": "log1p",
    "linear": "log1p", "log2": "log2", "zscore": "zscore",
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """Expression of a cohort, normalised case by case: no value depends on another case.

    Parameters
    ----------
    cases : ids of the case sheet, sorted, each once
    symbols : gene symbols, sorted, each once
    values : float32 [cases, genes], on the scale ``SCALES[unit]``
    unit : what the user's table holds, one of `UNITS`
    raw : float32 [cases, genes], the table's values before normalisation and clipping (counts up to 2^24 are exact)
    ensembl : Ensembl id with its version per gene, "" where unknown
    tumour, tme : bool [genes], membership in the signature lists
    report : what was counted, dropped, folded and clipped on the way (JSON values)
    revision : revision of the stage that made it
    digest : digest of everything it came from
    cohorts : cohort of each case, "" where unknown; empty stands for all unknown
    settings : the parameters of the stage, with which a new table is brought to the same scale
    """

    cases: tuple[str, ...]
    symbols: tuple[str, ...]
    values: np.ndarray
    unit: str
    raw: np.ndarray
    ensembl: tuple[str, ...]
    tumour: np.ndarray
    tme: np.ndarray
    report: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 0
    digest: str = ""
    cohorts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> str:
        return SCALES[self.unit]

    def rows(self, cases: list[str] | tuple[str, ...]) -> np.ndarray:
        """Row of each case, int64 [cases]. Raises KeyError for a case without RNA."""
        index = {case: row for row, case in enumerate(self.cases)}
        return np.array([index[case] for case in cases], dtype=np.int64)

    def cohort_of(self) -> dict[str, str]:
        """Cohort of every case, "" where unknown."""
        return dict(zip(self.cases, self.cohorts or ("",) * len(self.cases), strict=True))


def write_expression(path: str | Path, expression: Expression) -> None:
    """Write the artefact. The same content gives the same bytes: nothing in the file carries a date."""
    import anndata  # a second to load: only the jobs that write or read the file pay for it
    import pandas

    table = anndata.AnnData(
        X=np.ascontiguousarray(expression.values, dtype=np.float32),
        obs=pandas.DataFrame(
            {"cohort": np.array([*expression.cohort_of().values()], dtype=object)},
            index=pandas.Index(list(expression.cases), dtype=object, name="case_id"),
        ),
        var=pandas.DataFrame(
            {
                "symbol": np.array(expression.symbols, dtype=object),
                "ensembl": np.array(expression.ensembl, dtype=object),
                "tumour": np.asarray(expression.tumour, dtype=bool),
                "tme": np.asarray(expression.tme, dtype=bool),
            },
            index=pandas.Index(list(expression.symbols), dtype=object, name="gene"),
        ),
        layers={"raw": np.ascontiguousarray(expression.raw, dtype=np.float32)},
        uns={
            "unit": expression.unit,
            "scale": expression.scale,
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "revision": expression.revision,
            "digest": expression.digest,
            "settings": json.dumps(expression.settings, sort_keys=True, ensure_ascii=False),
            "report": json.dumps(expression.report, sort_keys=True, ensure_ascii=False),
        },
    )
    small = expression.values.size <= COMPRESSED_VALUES
    with whole_file(path) as part:
        table.write_h5ad(part, **({"compression": "gzip", "compression_opts": 1} if small else {}))


def read_expression(path: str | Path) -> Expression:
    """Read what `write_expression` wrote.

    Raises FormatError for a damaged file, another kind of h5ad, an unknown version, repeated ids or values that are
    not finite.
    """
    import anndata

    try:
        table = anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many types for a damaged file
        raise FormatError(
            f"{path}: not readable as h5ad ({error}). Fix: delete it and rerun prepare_expression."
        ) from error
    uns = table.uns
    check_version(path, KIND, FORMAT_VERSION, uns.get("kind"), _int(uns.get("format_version")))
    values = np.asarray(table.X, dtype=np.float32)
    if not _all_finite(values) or not table.obs_names.is_unique or not table.var_names.is_unique:
        raise FormatError(f"{path}: values are not finite or ids repeat. Fix: delete it and rerun prepare_expression.")
    return Expression(
        cases=tuple(table.obs_names),
        symbols=tuple(table.var_names),
        values=values,
        unit=str(uns["unit"]),
        raw=np.asarray(table.layers["raw"]),
        ensembl=tuple(table.var["ensembl"].astype(str)),
        tumour=table.var["tumour"].to_numpy(dtype=bool),
        tme=table.var["tme"].to_numpy(dtype=bool),
        report=json.loads(uns["report"]),
        revision=int(uns["revision"]),
        digest=str(uns["digest"]),
        cohorts=tuple(table.obs["cohort"].astype(str)),
        settings=json.loads(uns["settings"]),
    )


def _all_finite(values: np.ndarray, rows: int = 256) -> bool:
    """By blocks of rows: no temporary of the size of the matrix."""
    return all(np.isfinite(values[start : start + rows]).all() for start in range(0, len(values), rows))


def _int(value: Any) -> int | None:
    return None if value is None else int(value)
