"""The gene symbols that the simulated table measures, and which of them follow the hidden factors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import pipeline
from pipeline.contracts.files import read_table

SYMBOLS_PATH = Path(__file__).with_name("symbols.tsv")
SIGNATURES_PATH = Path(pipeline.__file__).parent / "signatures" / "builtin.tsv"


def read_symbols(limit: int, path: Path = SYMBOLS_PATH) -> list[str]:
    """The first `limit` symbols of the list, in its order, each once."""
    return list(dict.fromkeys(row["symbol"] for row in read_table(path, ["symbol"])))[:limit]


def signature_flags(symbols: Sequence[str], path: Path = SIGNATURES_PATH) -> tuple[np.ndarray, np.ndarray]:
    """bool [genes] twice: member of the built-in tumour list, member of the built-in TME list."""
    rows = read_table(path, ["symbol", "set"])
    tumour, tme = (
        np.isin(symbols, [row["symbol"] for row in rows if row["set"] == name]) for name in ("tumour", "tme")
    )
    return tumour, tme
