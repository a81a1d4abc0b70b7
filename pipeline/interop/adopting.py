"""Take imported bags into a run: the stage that stands in for the embedding of an imported encoder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.contracts import layout
from pipeline.contracts.batches import BatchRow
from pipeline.contracts.errors import SlideError
from pipeline.contracts.features import BagRecord, read_index, verify_bag
from pipeline.contracts.files import read_table, whole_file
from pipeline.interop.importing import TABLE


@dataclass(frozen=True)
class AdoptionStage:
    """Puts a slide's bags of the imported `folder` under ``features/{slug}/`` of the results, without reading a slide.

    Files are linked where the file system can, else copied. A slide that the import did not bring fails with the
    import's reason.
    """

    results: str | Path
    slug: str
    folder: str | Path
    name: str = "features"

    @cached_property
    def _records(self) -> dict[str, list[BagRecord]]:
        records: dict[str, list[BagRecord]] = {}
        for record in read_index(Path(self.folder) / "index.tsv"):
            records.setdefault(record.slide_id, []).append(record)
        return records

    @cached_property
    def _reasons(self) -> dict[str, str]:
        rows = read_table(Path(self.folder) / TABLE, ["slide_id", "magnification", "status", "reason"])
        reasons: dict[str, list[str]] = {}
        for row in rows:
            reasons.setdefault(row["slide_id"], []).append(f"{row['magnification']}x {row['status']}: {row['reason']}")
        return {slide_id: "; ".join(texts) for slide_id, texts in reasons.items()}

    def digest(self, upstream: BatchRow) -> str:
        """The bags' own: nothing of this run enters them. Raises SlideError for a slide without any."""
        records = self._records.get(upstream.slide_id)
        if not records:
            why = self._reasons.get(upstream.slide_id, "the import did not list it")
            raise SlideError(f"no imported features in {self.folder} ({why})")
        return records[0].digest

    def find(self, slide_id: str, digest: str) -> str | None:
        records = self._records[slide_id]
        return "" if all(verify_bag(self._path(record), digest) for record in records) else None

    def make(self, slide_id: str, digest: str) -> str:
        for record in self._records[slide_id]:
            if verify_bag(record.path, digest) is None:
                raise SlideError(f"{record.path} is damaged or of another import. Fix: run histoweave import again")
            _link(record.path, Path(self._path(record)))
        return ""

    def _path(self, record: BagRecord) -> str:
        return layout.features(self.results, self.slug, record.magnification, record.slide_id)


def _link(source: Path, target: Path) -> None:
    """Give `source` a second name, whole; a copy where it lies on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
        os.replace(part, target)
    except OSError:
        with whole_file(target) as copy:
            shutil.copyfile(source, copy)
