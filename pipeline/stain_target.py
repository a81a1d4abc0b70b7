"""The stains that tiles are painted in, as ``stain.target`` asks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pipeline.contracts import layout
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import digest_of
from pipeline.contracts.stain_targets import read_target_file
from pipeline.contracts.stains import StainColours
from pipeline.stain import StainParams
from pipeline.stain_transfer import BUILTIN_TARGET


def read_target(params: StainParams, results: str | Path) -> tuple[StainColours, str]:
    """The colours of ``stain.target`` and their digest.

    Raises InputError for a target that was not made yet, or was made for another setting.
    """
    colours = BUILTIN_TARGET if params.target == "builtin" else _made(params.target, layout.stain_target(results))
    return colours, digest_of(asdict(colours))


def _made(target: str, path: str) -> StainColours:
    try:
        found = read_target_file(path)
    except FileNotFoundError:
        found = None
    if found is None or found.asked != target:
        made = "was not made yet" if found is None else f"was made for '{found.asked}'"
        raise InputError("config.yaml stain.target", f"{path} {made}.", f"make '{target}' by rule choose_stain_target.")
    return found.colours
