"""The gene artefact of one task and fold: genes, groups and scaling, fitted on that fold's training cases (JSON)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts.errors import FormatError, InputError, nearest
from pipeline.contracts.files import read_json, write_json

KIND = "histoweave genes"
FORMAT_VERSION = 3
APPLIED_KIND, APPLIED_VERSION = "histoweave applied genes", 1  #: the report beside a table that went through a fold
GROUPS = ("tumour", "tme", "all")
REFUSE, ITSELF = UNSEEN = ("refuse", "itself")  #: what becomes of a cohort that was not in the training cases

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneSelection:
    """Genes of one fold in the order in which models see them, and the whole way from normalised values to inputs.

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
    centres : cohort -> float64 [genes], its mean, which is subtracted first; empty where cohorts are not centred
    unseen : for a cohort without a centre: "refuse", or "itself" (its own mean over the cases at hand)
    max_missing : largest share of the genes that a new table may lack; a missing gene stands at the training mean
    settings : parameters of the expression stage, with which a new table is brought to `scale`
    families : gene families, or pathways, by name: their selected genes in the order of `genes`, one at least; a gene
        may be in several, or in none
    elimination : how recursive elimination came to its genes (sizes tried, accuracies, counts); empty for other ways
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
    centres: Mapping[str, np.ndarray] = field(default_factory=dict)
    unseen: str = REFUSE
    max_missing: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    elimination: Mapping[str, Any] = field(default_factory=dict)

    def columns(self, group: str) -> np.ndarray:
        """Positions of a group's genes within `genes`, int64 [genes of the group]."""
        return self._columns(self.groups[group])

    def family_columns(self) -> dict[str, np.ndarray]:
        """Positions of each family's genes within `genes`, int64 [genes of the family]."""
        return {name: self._columns(genes) for name, genes in self.families.items()}

    def _columns(self, genes: Sequence[str]) -> np.ndarray:
        position = {gene: column for column, gene in enumerate(self.genes)}
        return np.array([position[gene] for gene in genes], dtype=np.int64)

    def missing(self, symbols: Collection[str]) -> tuple[str, ...]:
        """Selected genes that a table with these symbols lacks."""
        present = set(symbols)
        return tuple(gene for gene in self.genes if gene not in present)

    def apply(self, values: np.ndarray, symbols: Sequence[str], cohorts: Sequence[str] = ()) -> np.ndarray:
        """Centre and standardise expression as it was fitted on the training cases.

        Parameters
        ----------
        values : float [cases, symbols], on the scale `scale`
        symbols : the gene of each column, in any order; columns that were not selected are ignored
        cohorts : of each case; used only where there are `centres`

        Returns
        -------
        float32 [cases, genes], clipped to [-clip, clip], columns in the order of `genes`. A gene that the table lacks
        is 0 in every case, which is the mean of the training cases.

        Raises
        ------
        InputError if more than the share `max_missing` of the genes is missing, or a cohort has no centre.
        """
        self._refuse_missing(symbols)
        position = {symbol: column for column, symbol in enumerate(symbols)}
        columns = np.array([position.get(gene, -1) for gene in self.genes], dtype=np.int64)
        picked = np.asarray(values)[:, columns].astype(np.float64)
        if self.centres:
            picked -= self._centre(cohorts, len(picked))
        scaled = np.clip((picked - self.mean) / self.std, -self.clip, self.clip).astype(np.float32)
        scaled[:, columns < 0] = 0
        return scaled

    def with_own_centres(
        self, values: np.ndarray, symbols: Sequence[str], cohorts: Sequence[str], wanted: Collection[str]
    ) -> GeneSelection:
        """This selection with a centre for each cohort in `wanted` that has none: its mean over the cases given here.

        Raises InputError for such a cohort under ``unseen: refuse``, and for cases without a cohort.
        """
        new = sorted(set(wanted) - set(self.centres)) if self.centres else []
        if not new:
            return self
        if self.unseen == REFUSE or "" in new:
            self._refuse_cohort(new[0])
        position = {symbol: column for column, symbol in enumerate(symbols)}
        columns = np.array([position.get(gene, -1) for gene in self.genes], dtype=np.int64)
        centres = dict(self.centres)
        for cohort in new:
            rows = [row for row, name in enumerate(cohorts) if name == cohort]
            centres[cohort] = np.asarray(values)[rows][:, columns].astype(np.float64).mean(axis=0)
            logger.info("genes: cohort %s is new and centred on its own %d cases", cohort, len(rows))
        return replace(self, centres=centres)

    def _centre(self, cohorts: Sequence[str], n_cases: int) -> np.ndarray:
        """float64 [cases, genes]"""
        names = list(cohorts) or [""] * n_cases
        for name in names:
            if name not in self.centres:
                self._refuse_cohort(name)
        return np.stack([self.centres[name] for name in names]) if names else np.zeros((0, len(self.genes)))

    def _refuse_cohort(self, cohort: str) -> None:
        known = ", ".join(sorted(self.centres))
        raise InputError(
            f"genes of task {self.task}, fold {self.fold}",
            f"genes are centred per cohort, and {f'cohort {cohort!r}' if cohort else 'a case without a cohort'} was not"
            f" among the training cases' ({known}).",
            "name the cohort of every case; for a new one set genes.unseen_cohort: itself, which centres it on its own"
            " cases.",
        )

    def _refuse_missing(self, symbols: Sequence[str]) -> None:
        missing = self.missing(symbols)
        if not missing:
            return
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        said = f"{len(missing)} of {len(self.genes)} selected genes are not in the expression table ({shown}"
        if len(missing) > self.max_missing * len(self.genes):
            raise InputError(
                f"genes of task {self.task}, fold {self.fold}",
                f"{said}{nearest(missing[0], symbols)}), more than the share {self.max_missing:g} (genes.max_missing).",
                "give a table with these genes, or select genes again on this one.",
            )
        logger.warning("genes: %s): they stand at the training mean", said)


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
            "centres": {name: [float(v) for v in centre] for name, centre in selection.centres.items()},
            "unseen": selection.unseen,
            "max_missing": selection.max_missing,
            "settings": dict(selection.settings),
            "families": [[name, list(genes)] for name, genes in selection.families.items()],
            "elimination": dict(selection.elimination),
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
            centres={name: np.array(centre, dtype=np.float64) for name, centre in body["centres"].items()},
            unseen=body["unseen"],
            max_missing=float(body["max_missing"]),
            settings=body["settings"],
            families={name: tuple(genes) for name, genes in body["families"]},
            elimination=body["elimination"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: incomplete ({error!r}). Fix: delete it and rerun select_genes.") from error
    known = set(selection.genes)
    whole = (
        len(known) == len(selection.genes) == len(selection.mean) == len(selection.std)
        and all(set(genes) <= known for genes in (*selection.groups.values(), *selection.families.values()))
        and np.isfinite(selection.mean).all()
        and bool((selection.std > 0).all())
        and all(len(c) == len(known) and np.isfinite(c).all() for c in selection.centres.values())
    )
    if not whole:
        raise FormatError(f"{path}: genes, groups and scaling disagree. Fix: delete it and rerun select_genes.")
    return selection
