"""What made these results: versions, revisions, encoders, digests and the configuration."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.contracts import layout
from pipeline.contracts.files import bytes_digest, digest_of
from pipeline.encoder_table import KNOWN, departures
from pipeline.report.reading import Run

PACKAGES = (
    "histoweave", "numpy", "scipy", "scanpy", "anndata", "h5py", "openslide-python", "tiffslide", "opencv-python",
    "staintools", "timm", "torch", "lifelines", "snakemake",
)  # fmt: skip


def provenance_section(run: Run) -> dict[str, Any]:
    context = run.context
    return {
        "versions": [
            ("python", platform.python_version()),
            *((name, found) for name in PACKAGES if (found := _version(name))),
        ],
        "revisions": sorted(context.revisions.items()),
        "encoders": [_encoder_row(run, encoder) for encoder in context.encoders],
        "digests": _digests(run),
        "config": json.dumps(context.config, indent=2, ensure_ascii=False, default=str),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _encoder_row(run: Run, encoder: Any) -> dict[str, Any]:
    slug = encoder["slug"]
    bags = run.bags.get(slug, [])
    used = sorted({bag.weights for bag in bags})
    digest = digest_of(sorted([bag.slide_id, bag.magnification, bag.digest] for bag in bags)) if bags else ""
    return {
        "slug": slug,
        "name": encoder.get("name", ""),
        "weights": ", ".join(used) or encoder.get("weights", "pretrained"),
        "seed": encoder.get("seed") if "random" in used or encoder.get("weights") == "random" else "",
        "remarks": _remarks(run, encoder),
        "bags": len(bags),
        "digest": digest,
    }


def _remarks(run: Run, encoder: Any) -> str:
    """Its licence, and where the tiles depart from what it is meant for."""
    known = KNOWN.get(encoder.get("preset") or "")
    tiles = run.context.config.get("tiles") or {}
    told = [f"licence {known.licence}"] if known else []
    if tiles.get("size_px") and tiles.get("magnifications"):
        told += departures(encoder, tiles["size_px"], tiles["magnifications"])
    return "; ".join(told)


def _digests(run: Run) -> list[tuple[str, str]]:
    """SHA-256 of the small artefacts that decide a run."""
    names = {"folds": layout.splits(run.results), "cohort report": layout.cohort_report(run.results)}
    for key in ("cases", "slides"):
        if run.context.inputs.get(key):
            names[f"{key} sheet"] = run.context.inputs[key]
    for task in run.context.tasks:
        names[f"evaluation of {task.name}"] = layout.evaluation(run.results, task.name)
    rows = []
    for name, path in names.items():
        try:
            rows.append((name, bytes_digest(path)))
        except FileNotFoundError:
            rows.append((name, "not there"))
    return rows


def random_encoders(run: Run) -> list[str]:
    """Slugs of encoders whose weights were drawn, by the config or by what the bags say."""
    return [
        encoder["slug"]
        for encoder in run.context.encoders
        if encoder.get("weights") == "random"
        or any(bag.weights == "random" for bag in run.bags.get(encoder["slug"], []))
    ]
