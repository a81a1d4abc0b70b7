"""Simulated cases: two hidden factors per patient, the outcomes that follow, and the list of slides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from pipeline.contracts.errors import InputError

SITES = ("north", "south")
GRADES = ("G2", "G3")


@dataclass(frozen=True)
class SimulationParams:
    """What to simulate. Equal parameters give equal bytes.

    `patients` is the number of cases (at least 6), `size_px` the mean side of a slide at 0.5 um per pixel
    (pixels), `genes` how many of the symbols in ``symbols.tsv`` are measured.
    """

    patients: int = 24
    seed: int = 0
    size_px: int = 2304
    genes: int = 3000

    def __post_init__(self) -> None:
        for name, low, high in (
            ("patients", 6, 999),
            ("seed", 0, 2**31),
            ("size_px", 512, 16384),
            ("genes", 50, 10**5),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"simulation {name}", f"{value!r} is not a whole number from {low} to {high}.")


@dataclass(frozen=True)
class SimulatedCase:
    """One patient. `tumour` and `tme` are the hidden factors (standard normal), times are in days."""

    case_id: str
    site: str
    age: int
    tumour: float
    tme: float
    grade: str
    time_days: int
    event: int


@dataclass(frozen=True)
class SimulatedSlide:
    """One slide and what is odd about it.

    `kind` is ``plain``, ``pen`` (marker on glass and tissue), ``untagged`` (um per pixel in the sheet
    only), ``artefacts`` (a fold, and a third of the width out of focus), ``blank`` (no tissue), ``blurred``
    (excluded in the sheet) or ``truncated`` (a damaged file, which the sheet does not tell).
    """

    slide_id: str
    case_id: str
    um_per_px: float
    kind: str = "plain"


def simulate_cases(params: SimulationParams) -> list[SimulatedCase]:
    """Draw the patients.

    Hazard is ``exp(0.9 tumour + 0.9 tme)`` on a Weibull baseline of shape 1.3; times are censored by a
    uniform end of follow-up. The grade is the upper half of ``tumour + 0.6 tme`` plus a little noise, so
    both classes are equally large.
    """
    rng = np.random.default_rng([params.seed, 1])
    n = params.patients
    tumour = _spread(rng, n)
    tme = min((_spread(rng, n) for _ in range(50)), key=lambda drawn: abs(np.corrcoef(tumour, drawn)[0, 1]))
    grade_score = tumour + 0.6 * tme + rng.normal(0, 0.3, n)
    is_high = grade_score > np.median(grade_score)
    event_time = 1100 * (rng.exponential(1, n) / np.exp(0.9 * tumour + 0.9 * tme)) ** (1 / 1.3)
    follow_up = rng.uniform(500, 3000, n)
    time_days = np.maximum(1, np.rint(np.minimum(event_time, follow_up))).astype(int)
    age = np.clip(np.rint(rng.normal(58, 11, n)), 21, 90).astype(int)
    return [
        SimulatedCase(
            case_id=f"SIM-{i + 1:03d}",
            site=SITES[i % len(SITES)],
            age=int(age[i]),
            tumour=float(tumour[i]),
            tme=float(tme[i]),
            grade=GRADES[int(is_high[i])],
            time_days=int(time_days[i]),
            event=int(event_time[i] <= follow_up[i]),
        )
        for i in range(n)
    ]


def _spread(rng: np.random.Generator, n: int) -> np.ndarray:
    """Standard normal values, near its quantiles so that a small cohort spans the range, in random order."""
    return rng.permutation(norm.ppf((np.arange(n) + rng.uniform(0.2, 0.8, n)) / n))


def list_slides(cases: list[SimulatedCase]) -> list[SimulatedSlide]:
    """One slide per case, a second one for about every third case, with the oddities on fixed cases."""
    first = {2: "pen", 3: "untagged", 6: "artefacts"}
    second = {0: "truncated", 3: "blurred", 5: "blank"}
    slides = []
    for i, case in enumerate(cases):
        um_per_px = 0.25 if i in (1, 4) else 0.5
        slides.append(SimulatedSlide(f"{case.case_id}-A", case.case_id, um_per_px, first.get(i, "plain")))
        if i % 3 == 0 or i in second:
            slides.append(SimulatedSlide(f"{case.case_id}-B", case.case_id, 0.5, second.get(i, "plain")))
    return slides
