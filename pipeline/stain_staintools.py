"""staintools' own Vahadane and Macenko as fit backends, made to give the same numbers every time."""

from __future__ import annotations

import threading
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.contracts.errors import InputError, SlideError
from pipeline.stain_separation import Separation, describe, optical_density

TRAINING_STEPS = 1000  #: of spams' dictionary learning; left to itself it runs for one second, however far that gets
_ALONE = threading.Lock()  # spams draws from one generator for the whole process: fits at a time would mix


def require_staintools() -> dict[str, str]:
    """The versions of staintools and spams. Raises InputError where they cannot be used."""
    try:
        import spams  # noqa: F401
        import staintools  # noqa: F401

        return {"staintools": version("staintools"), **_spams_version()}
    except ImportError as error:
        raise InputError(
            "config.yaml stain.backend",
            f"staintools cannot be used here: {error}.",
            "`pip install staintools spams-bin` (staintools does not name spams itself), or set backend: native.",
        ) from error


def _spams_version() -> dict[str, str]:
    """By the name of the distribution, of which there are two."""
    try:
        return {"spams-bin": version("spams-bin")}
    except PackageNotFoundError:
        return {"spams": version("spams")}


def fit_staintools(rgb: np.ndarray, white: np.ndarray, method: str) -> Separation:
    """Fit stained pixels uint8 [pixels, 3] by staintools' extractor of `method`; measured on them as native fits are.

    staintools takes white for 255, so pixels are scaled to that, to the nearest grey level; pixels that its mask
    (CIE L* below 80) calls background take no part. Raises SlideError where it sees nothing but background.
    """
    from staintools.miscellaneous.exceptions import TissueMaskException

    balanced = np.clip(np.rint(rgb * (255 / white)), 1, 255).astype(np.uint8)
    try:
        matrix, steps = _extract(balanced[None], method)
    except TissueMaskException as error:
        raise SlideError(f"staintools sees no tissue in {len(rgb)} stained pixels ({error}).") from error
    return describe(optical_density(rgb, white), matrix, steps)


def _extract(image: np.ndarray, method: str) -> tuple[np.ndarray, int]:
    from staintools.stain_extraction import macenko_stain_extractor, vahadane_stain_extractor

    if method == "macenko":
        return macenko_stain_extractor.MacenkoStainExtractor.get_stain_matrix(image), 0
    with _ALONE:
        spams = vahadane_stain_extractor.spams
        vahadane_stain_extractor.spams = _Repeatable(spams)
        try:
            return vahadane_stain_extractor.VahadaneStainExtractor.get_stain_matrix(image), TRAINING_STEPS
        finally:
            vahadane_stain_extractor.spams = spams


class _Repeatable:
    """spams as staintools calls it, but for a set number of steps and on one thread."""

    def __init__(self, spams: ModuleType) -> None:
        self._spams = spams

    def trainDL(self, X: np.ndarray, **settings: Any) -> np.ndarray:  # noqa: N802 - spams' name
        return self._spams.trainDL(X=np.asfortranarray(X), iter=TRAINING_STEPS, numThreads=1, **settings)
