"""Stage `quality`: a page per slide, and the page that lists them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2

from pipeline.contracts import layout
from pipeline.contracts.batches import EXCLUDED, OK, STATUSES, BatchRow, read_batch
from pipeline.contracts.errors import FormatError
from pipeline.contracts.files import bytes_digest, digest_of, whole_file, write_text
from pipeline.contracts.quality import SlideQuality, read_quality, write_quality
from pipeline.contracts.revisions import REVISIONS
from pipeline.contracts.stains import StainColours
from pipeline.overlays import shrunk
from pipeline.report.pages import render_page
from pipeline.report.slide_page import read_record, slide_page, summarise
from pipeline.report.slide_pictures import QUALITY, THUMBNAIL_PX, read_overview
from pipeline.stain import StainParams
from pipeline.stain_target import read_target
from pipeline.stain_transfer import BUILTIN_TARGET


def read_stages(indexes: Mapping[str, str | Path]) -> dict[str, dict[str, BatchRow]]:
    """Rows of one batch by slide, then stage in the order of `indexes` (stage -> index file)."""
    slides: dict[str, dict[str, BatchRow]] = {}
    for stage, path in indexes.items():
        for slide_id, row in read_batch(path).items():
            slides.setdefault(slide_id, {})[stage] = row
    return slides


def to_describe(slides: Mapping[str, Mapping[str, BatchRow]]) -> dict[str, BatchRow]:
    """What `run_batch` starts from: every slide is described, lost ones too, but for those the user excluded."""
    rows = {}
    for slide_id, stages in slides.items():
        first = next(iter(stages.values()))
        rows[slide_id] = first if first.status == EXCLUDED else BatchRow(slide_id, first.case_id, OK, first.stage)
    return rows


@dataclass(frozen=True)
class QualityStage:
    """Writes ``quality/{slide_id}.html``, its thumbnail and its row of the list, of whatever is there.

    `slides` are the rows of `read_stages`; `encoders` the slugs whose features and timings are told.
    """

    results: str | Path
    slides: Mapping[str, Mapping[str, BatchRow]]
    encoders: Sequence[str] = ()
    stain: StainParams = field(default_factory=StainParams)
    is_simulated: bool = False
    name: str = "quality"

    @cached_property
    def _target(self) -> tuple[StainColours, str]:
        return (BUILTIN_TARGET, "none") if self.stain.method == "none" else read_target(self.stain, self.results)

    def digest(self, upstream: BatchRow) -> str:
        stages = self.slides[upstream.slide_id]
        rows = [[name, row.status, row.stage, row.reason, row.digest] for name, row in stages.items()]
        timings = [layout.slide_timings(self.results, slug, upstream.slide_id) for slug in self.encoders]
        times = [bytes_digest(path) for path in timings if Path(path).exists()]
        return digest_of(self.name, REVISIONS[self.name], rows, times, self._target[1], self.is_simulated)

    def find(self, slide_id: str, digest: str) -> str | None:
        """The row of the list is written last, so that it vouches for the page."""
        try:
            found = read_quality(self._path(slide_id, "json"))
        except (FileNotFoundError, FormatError):
            return None
        return "" if found.digest == digest and self._path(slide_id, "html").exists() else None

    def make(self, slide_id: str, digest: str) -> str:
        self._path(slide_id, "json").unlink(missing_ok=True)  # never beside a newer page
        record = read_record(self.results, self.slides[slide_id], self.encoders)
        overview = read_overview(self.results, slide_id) if record.tissue else None
        write_text(self._path(slide_id, "html"), slide_page(record, overview, self._target[0], self.is_simulated))
        if overview is not None:
            small = cv2.imencode(".jpg", shrunk(overview, THUMBNAIL_PX)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            with whole_file(self._path(slide_id, "jpg")) as part:
                part.write_bytes(small[1].tobytes())
        write_quality(self._path(slide_id, "json"), summarise(record, digest, overview is not None))
        return ""

    def _path(self, slide_id: str, suffix: str) -> Path:
        return Path(layout.slide_page(self.results, slide_id, suffix))


def write_slide_list(results: str | Path, batches: Iterable[str | Path], out: str | Path, is_simulated: bool) -> None:
    """Write the page that lists every slide of the batches, a link, a thumbnail and its figures each.

    Pictures lie beside their pages and load when they come into view, so the list stays small for any cohort.
    """
    rows = [row for path in batches for row in read_batch(path).values()]
    listed = [_listed(results, row) for row in sorted(rows, key=lambda row: row.slide_id)]
    magnifications = sorted(
        {label for _, quality in listed if quality for label in quality.tiles}, key=lambda x: -float(x.rstrip("x"))
    )
    statuses = [quality.status if quality else row.status for row, quality in listed]
    values: dict[str, Any] = {
        "rows": listed,
        "magnifications": magnifications,
        "counts": [(status, statuses.count(status)) for status in STATUSES if status in statuses],
        "simulated": is_simulated,
    }
    write_text(out, render_page("slide_list.html", values))


def _listed(results: str | Path, row: BatchRow) -> tuple[BatchRow, SlideQuality | None]:
    """A slide's batch row, and its figures where it has a page."""
    if row.status != OK:
        return row, None
    return row, read_quality(layout.slide_page(results, row.slide_id, "json"))
