"""Which feature files training may read: those of usable slides, of the present configuration, and complete."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.contracts import layout
from pipeline.contracts.batches import OK, BatchRow
from pipeline.contracts.errors import FormatError
from pipeline.contracts.features import BagRecord, read_summary


def collect_bags(results: str | Path, slug: str, rows: Iterable[BatchRow]) -> list[BagRecord]:
    """The bags of one encoder that training may read: every magnification of each slide whose row is ok.

    Raises FormatError when a file that the batch declared is missing, damaged or of another digest.
    """
    folder = Path(layout.features_index(results, slug)).parent
    labels = sorted(path.name for path in folder.glob("*x") if path.is_dir())
    records = []
    for row in rows:
        if row.status != OK:
            continue
        found = []
        for label in labels:
            path = folder / label / f"{row.slide_id}.h5"
            summary = read_summary(path) if path.exists() else None
            if summary is None or summary.source.digest != row.digest:
                continue  # left by an earlier configuration
            source = summary.source
            found.append(
                BagRecord(
                    row.slide_id, row.case_id, source.magnification, path, summary.n_tiles, source.um_per_px,
                    source.digest, source.weights,
                )
            )  # fmt: skip
            expected = set(source.slide_magnifications)
        if not found or {record.magnification for record in found} != expected:
            raise FormatError(
                f"{folder}: the features of slide '{row.slide_id}' are incomplete although its batch is finished."
                " Fix: rerun the embedding (--forcerun embed_tiles); finished files are kept."
            )
        records += found
    return records
