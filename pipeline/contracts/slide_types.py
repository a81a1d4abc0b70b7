"""What a TCGA barcode in a slide's name says: diagnostic or frozen, tumour or normal (standard library only)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.contracts.cohort import Slide

#: DX diagnostic (paraffin); frozen sections from the top, bottom and middle of the block
SLIDE_TYPES = ("DX", "TS", "BS", "MS")
TUMOUR_SAMPLES = range(1, 10)  #: sample type codes; 10-19 are normal tissue, 20-29 controls

#: TCGA-{site}-{participant}-{sample type}{vial}[-{portion}-{slide}]; the slide is its type and a number or letter.
#: https://docs.gdc.cancer.gov/Encyclopedia/pages/TCGA_Barcode
_BARCODE = re.compile(
    r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-(?P<sample>\d{2})[A-Z](?![A-Z0-9])"
    r"(?:-\d{2}-(?P<slide>DX|TS|BS|MS)[A-Z0-9]{0,2}(?![A-Z0-9]))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SlideType:
    """`slide` is one of `SLIDE_TYPES`, empty where the name does not say; `sample` the sample type code."""

    slide: str
    sample: int

    @property
    def is_tumour(self) -> bool:
        return self.sample in TUMOUR_SAMPLES


def slide_type(slide: Slide) -> SlideType | None:
    """Type by the TCGA barcode in the file's name, else in the slide's id; None where neither holds one."""
    found = _BARCODE.search(Path(slide.path).name) or _BARCODE.search(slide.slide_id)
    return SlideType((found["slide"] or "").upper(), int(found["sample"])) if found else None


def select_types(
    slides: Iterable[Slide], slide_types: Sequence[str] | None = None, keep_normal: bool = False
) -> list[Slide]:
    """The slides, those of an unwanted type with that as their reason to be excluded.

    Parameters
    ----------
    slide_types : those to keep, None for all; a slide whose name tells no type is kept
    keep_normal : keep slides of normal tissue and controls too

    A reason in the sheet stays as it is.
    """
    return [s if s.exclude else replace(s, exclude=_unwanted(slide_type(s), slide_types, keep_normal)) for s in slides]


def _unwanted(found: SlideType | None, types: Sequence[str] | None, keep_normal: bool) -> str:
    if found is None:
        return ""
    if types and found.slide and found.slide not in types:
        return f"TCGA slide type {found.slide} not among {', '.join(types)} (inputs.slide_types)"
    if not found.is_tumour and not keep_normal:
        return f"TCGA sample type {found.sample:02d} is not a tumour (inputs.keep_normal)"
    return ""


def count_types(slides: Iterable[Slide]) -> Counter[str]:
    """How many slides in use are of each TCGA slide type."""
    types = (slide_type(slide) for slide in slides if not slide.exclude)
    return Counter(found.slide for found in types if found and found.slide)


def mixes_preparations(counts: Counter[str]) -> bool:
    """Whether paraffin and frozen sections meet in one cohort."""
    return bool(counts["DX"]) and any(counts[kind] for kind in SLIDE_TYPES if kind != "DX")


def describe_types(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind]} {kind}" for kind in SLIDE_TYPES if counts[kind])
