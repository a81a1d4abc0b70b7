"""What every rule script does around its call: log to the rule's file, end a foreseen error without a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.contracts.errors import HistoweaveError


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Send log records to the rule's log file and to stderr; exit with status 1 on a `HistoweaveError`."""
    Path(snakemake.log[0]).parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.FileHandler(snakemake.log[0], mode="w"), logging.StreamHandler(sys.stderr)],
        force=True,
    )
    logging.captureWarnings(True)
    try:
        yield
    except HistoweaveError as error:
        logging.error("%s: %s", snakemake.rule, error)
        sys.exit(1)
    except Exception:
        logging.exception("%s: unexpected error; please report it with this log", snakemake.rule)
        sys.exit(1)
