"""The gene artefact of one task and fold: genes, groups and scaling, fitted on that fold's training cases (JSON)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import FormatError, InputError, nearest
from pipeline.contracts.files import read_json, write_json

KIND = "histoweave genes"
FORMAT_VERSION = 1
GROUPS = ("tumour", "tme", "all")


@dataclass(frozen=True)
class GeneSelection:
    """Genes of one fold in the order in which models see them.

    Parameters
    ----------
    task, fold : what it was fitted for
    genes : symbols, each once; ``groups["all"]`` is the same list
    groups : "tumour", "tme" and "all": symbols in the order of `genes`
    mean, std : float64 [genes], of the training cases (std: population, with a floor)
    clip : standardised values are clipped to [-clip, clip]
    unit, scale : of the expression artefact it was fitted on
    n_training : number of training cases
    params : the parameters of the stage
    revision : revision of the stage
    digest : digest of the training cases' ids and values, the parameters and the revision, and of nothing else
    """

    task: str
    fold: int
    genes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    mean: np.ndarray
    std: np.ndarray
    clip: float
    unit: str
    scale: str
    n_training: int
    params: Mapping[str, Any]
    revision: int
    digest: str

    def columns(self, group: str) -> np.ndarray:
        """Positions of a group's genes within `genes`, int64 [genes of the group]."""
        position = {gene: column for column, gene in enumerate(self.genes)}
        return np.array([position[gene] for gene in self.groups[group]], dtype=np.int64)

    def apply(self, values: np.ndarray, symbols: Sequence[str]) -> np.ndarray:
        """Standardise expression with the training cases' mean and standard deviation.

        Parameters
        ----------
        values : float [cases, symbols], on the scale `scale`
        symbols : the gene of each column, in any order; columns that were not selected are ignored

        Returns
        -------
        float32 [cases, genes], clipped to [-clip, clip], columns in the order of `genes`

        Raises
        ------
        InputError if a selected gene is missing.
        """
        position = {symbol: column for column, symbol in enumerate(symbols)}
        missing = [gene for gene in self.genes if gene not in position]
        if missing:
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise InputError(
                f"genes of task {self.task}, fold {self.fold}",
                f"{len(missing)} of {len(self.genes)} selected genes are not in the expression table ({shown}"
                f"{nearest(missing[0], position)}).",
                "give a table with these genes, or select genes again on this one.",
            )
        picked = np.asarray(values)[:, [position[gene] for gene in self.genes]].astype(np.float64)
        return np.clip((picked - self.mean) / self.std, -self.clip, self.clip).astype(np.float32)


def write_genes(path: str | Path, selection: GeneSelection) -> None:
    write_json(
        path,
        KIND,
        FORMAT_VERSION,
        {
            "task": selection.task,
            "fold": selection.fold,
            "genes": list(selection.genes),
            "groups": {name: list(genes) for name, genes in selection.groups.items()},
            "mean": [float(value) for value in selection.mean],
            "std": [float(value) for value in selection.std],
            "clip": float(selection.clip),
            "unit": selection.unit,
            "scale": selection.scale,
            "n_training": selection.n_training,
            "params": dict(selection.params),
            "revision": selection.revision,
            "digest": selection.digest,
        },
    )


def read_genes(path: str | Path) -> GeneSelection:
    """Read what `write_genes` wrote. Raises FormatError for damage, an unknown version or lists that disagree."""
    body = read_json(path, KIND, FORMAT_VERSION)
    try:
        selection = GeneSelection(
            task=body["task"],
            fold=int(body["fold"]),
            genes=tuple(body["genes"]),
            groups={name: tuple(body["groups"][name]) for name in GROUPS},
            mean=np.array(body["mean"], dtype=np.float64),
            std=np.array(body["std"], dtype=np.float64),
            clip=float(body["clip"]),
            unit=body["unit"],
            scale=body["scale"],
            n_training=int(body["n_training"]),
            params=body["params"],
            revision=int(body["revision"]),
            digest=body["digest"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: incomplete ({error!r}). Fix: delete it and rerun select_genes.") from error
    known = set(selection.genes)
    whole = (
        len(known) == len(selection.genes) == len(selection.mean) == len(selection.std)
        and all(set(genes) <= known for genes in selection.groups.values())
        and np.isfinite(selection.mean).all()
        and bool((selection.std > 0).all())
    )
    if not whole:
        raise FormatError(f"{path}: genes, groups and scaling disagree. Fix: delete it and rerun select_genes.")
    return selection
