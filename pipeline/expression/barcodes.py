"""From the sample ids of an expression table to the cases of the sheet, TCGA barcodes understood."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.contracts.slide_types import TUMOUR_SAMPLES

#: TCGA-{site}-{participant}[-{sample type}{vial}[-{rest}]]; https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode
BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?:-(\d{2})[A-Z]?(?:-.*)?)?$", re.IGNORECASE)


@dataclass
class SampleMatch:
    """Which columns of a table belong to which case.

    `columns` maps a case to the positions of its samples, first choice first: sorted by id, so the primary tumour (01)
    comes before a recurrence (02), vial A before B; equal ids keep the order of the table.
    """

    columns: dict[str, list[int]] = field(default_factory=dict)
    normal: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


def barcode(sample: str) -> re.Match[str] | None:
    """Match a TCGA barcode; R's dots instead of hyphens are accepted."""
    return BARCODE.match(sample.replace(".", "-"))


def case_of(sample: str, cases: frozenset[str]) -> str | None:
    """The sheet's case of a sample: the same id, or for a TCGA barcode its longest prefix that the sheet knows."""
    if sample in cases:
        return sample
    if barcode(sample) is None:
        return None
    parts = sample.replace(".", "-").split("-")
    for length in range(len(parts), 2, -1):
        prefix = "-".join(parts[:length])
        for candidate in (prefix, prefix[:-1]) if length == 4 else (prefix,):  # 01A, then 01
            if candidate in cases:
                return candidate
    return None


def is_normal(sample: str) -> bool:
    """Whether a TCGA barcode names another tissue than a tumour."""
    found = barcode(sample)
    return found is not None and found.group(2) is not None and int(found.group(2)) not in TUMOUR_SAMPLES


def match_samples(samples: Sequence[str], cases: Iterable[str]) -> SampleMatch:
    """Assign every sample to a case. Normal tissue is left out unless the sheet itself names that very sample."""
    known = frozenset(cases)
    match = SampleMatch()
    for position in sorted(range(len(samples)), key=lambda p: (samples[p], p)):
        sample = samples[position]
        case = case_of(sample, known)
        if case is None:
            match.unmatched.append(sample)
        elif sample != case and is_normal(sample):
            match.normal.append(sample)
        else:
            match.columns.setdefault(case, []).append(position)
    match.columns = dict(sorted(match.columns.items()))
    return match
