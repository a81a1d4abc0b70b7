"""Where each artefact lies below the results folder (standard library only).

Every function takes the results root first and returns a path with POSIX separators; wildcards such as ``{batch}`` may
stand in for ids, so that the workflow rules and the package code spell each path in one place only.
"""

from __future__ import annotations

from pathlib import Path

Root = str | Path
RESULTS = "results"  #: the results root, relative to the folder that the workflow runs in


def _join(root: Root, *parts: str) -> str:
    return "/".join([str(root), *parts])


def cohort_report(root: Root, suffix: str = "tsv") -> str:
    return _join(root, "cohort", f"report.{suffix}")


def batch_index(root: Root, stage: str, batch: str) -> str:
    """`stage` is check, tissue, tiles, stain, ``features/{encoder}`` or quality."""
    return _join(root, stage, "_batches", f"{batch}.tsv")


def slide_facts(root: Root, slide_id: str) -> str:
    return _join(root, "slides", f"{slide_id}.json")


def tissue_shape(root: Root, slide_id: str) -> str:
    return _join(root, "tissue", f"{slide_id}.geojson")


def tissue_overlay(root: Root, slide_id: str) -> str:
    return _join(root, "tissue", f"{slide_id}.png")


def tiles(root: Root, slide_id: str) -> str:
    return _join(root, "tiles", f"{slide_id}.h5")


def tiles_overlay(root: Root, slide_id: str) -> str:
    return _join(root, "tiles", f"{slide_id}.png")


def stain_fit(root: Root, slide_id: str) -> str:
    return _join(root, "stain", f"{slide_id}.json")


def stain_target(root: Root) -> str:
    """What tiles are painted like, unless that is the built-in reference. No slide id begins with an underscore."""
    return _join(root, "stain", "_target", "target.json")


def cohort_stains(root: Root) -> str:
    """The median of the cohort's stains, made once: no rule declares it, so that none deletes it."""
    return _join(root, "stain", "_target", "cohort.json")


def encoder_facts(root: Root, encoder: str) -> str:
    return _join(root, "encoders", f"{encoder}.json")


def encoder_weights(root: Root, encoder: str) -> str:
    return _join(root, "encoders", f"{encoder}.safetensors")


def features(root: Root, encoder: str, magnification: str | float, slide_id: str) -> str:
    mag = magnification if isinstance(magnification, str) else f"{magnification:g}"
    return _join(root, "features", encoder, f"{mag}x", f"{slide_id}.h5")


def features_index(root: Root, encoder: str) -> str:
    return _join(root, "features", encoder, "index.tsv")


def slide_timings(root: Root, encoder: str, slide_id: str) -> str:
    return _join(root, "features", encoder, "_timings", f"{slide_id}.json")


def expression(root: Root) -> str:
    return _join(root, "expression", "expression.h5ad")


def gene_set_scores(root: Root, part: str = "") -> str:
    """`part` is "" for the scores of the cases, "sets" for what each set consists of."""
    return _join(root, "expression", f"scores{'_' + part if part else ''}.tsv")


def umap(root: Root) -> str:
    return _join(root, "expression", "umap.tsv")


def applied_genes(root: Root) -> str:
    """Folder in which the report looks for new tables that ``histoweave apply-genes`` brought through a fold."""
    return _join(root, "applied")


def splits(root: Root) -> str:
    return _join(root, "splits", "splits.tsv")


def split_notes(root: Root) -> str:
    return _join(root, "splits", "notes.tsv")


def genes(root: Root, task: str, fold: str | int) -> str:
    return _join(root, "genes", task, f"fold{fold}.json")


def models(root: Root, task: str, experiment: str) -> str:
    """Folder of one experiment; ``index.tsv`` and ``fold{k}/checkpoint.pt`` lie in it."""
    return _join(root, "models", task, experiment)


def models_index(root: Root, task: str, experiment: str) -> str:
    return _join(root, "models", task, experiment, "index.tsv")


def predictions(root: Root, task: str, experiment: str, part: str = "") -> str:
    """`part` is "", left_out, slides, external or external_left_out."""
    return _join(root, "predictions", task, f"{experiment}{'_' + part if part else ''}.tsv")


def evaluation(root: Root, task: str, part: str = "") -> str:
    return _join(root, "evaluation", f"{task}{'_' + part if part else ''}.tsv")


def slide_page(root: Root, slide_id: str, suffix: str = "html") -> str:
    """Page of one slide; beside it its thumbnail (``jpg``) and its row of the index page (``json``)."""
    return _join(root, "quality", f"{slide_id}.{suffix}")


def slide_pages(root: Root) -> str:
    """The page that lists them all; no slide is called so, since a slide's page has its own folder level."""
    return _join(root, "quality.html")


def report(root: Root) -> str:
    return _join(root, "report.html")


def verdict(root: Root) -> str:
    return _join(root, "verdict.tsv")
