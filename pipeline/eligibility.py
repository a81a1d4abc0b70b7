"""Which slides enter the first stage, as the sheets alone decide."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pipeline.contracts.batches import EXCLUDED, FAILED, OK, BatchRow
from pipeline.contracts.cohort import Slide


def sheet_verdicts(slides: Iterable[Slide], known_cases: Collection[str]) -> dict[str, BatchRow]:
    """What the sheets alone say of each slide: usable, excluded by the user, or of a case that nobody knows."""
    verdicts = {}
    for slide in slides:
        status, reason = OK, ""
        if slide.exclude:
            status, reason = EXCLUDED, slide.exclude
        elif slide.case_id not in known_cases:
            status, reason = FAILED, f"case '{slide.case_id}' is not in the clinical sheet"
        verdicts[slide.slide_id] = BatchRow(slide.slide_id, slide.case_id, status, "cohort", reason)
    return verdicts
