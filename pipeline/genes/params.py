"""Section ``genes`` of the config."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.contracts.errors import InputError
from pipeline.contracts.genes import REFUSE, UNSEEN
from pipeline.contracts.settings import require, require_choice
from pipeline.signatures import BUILTIN

HVG, RFE_SVM, ALL = SELECTIONS = ("hvg", "rfe_svm", "all")
CHOICES = {
    "selection": SELECTIONS,
    "order": ("signatures_then_hvg", "hvg_then_signatures"),
    "flavour": ("variance", "seurat", "seurat_v3", "cell_ranger"),
    "both": ("exclude", "keep", "tumour", "tme"),
    "centre": ("none", "cohort"),
    "unseen_cohort": UNSEEN,
}


@dataclass(frozen=True)
class GeneParams:
    """Section ``genes`` of the config.

    Parameters
    ----------
    selection : "hvg" keeps the highly variable genes of the sets; "rfe_svm" what recursive elimination with a linear
        SVM leaves of the whole table, and `cancer_genes` (MIRROR's selection); "all" keeps every gene of the table
    order : "signatures_then_hvg" takes the most variable share of the signature genes, "hvg_then_signatures" the
        signature genes among the most variable share of the transcriptome
    top_fraction : that share
    n_top : a number of genes instead of the share
    flavour : "variance" of the values, or scanpy's "seurat" and "cell_ranger" (dispersion, normalised within bins of
        equal mean) and "seurat_v3" (variance of counts over what their mean lets expect)
    tumour, tme : "builtin", or a GMT, TSV or CSV file
    both : genes in both sets stay out of both groups but in "all" ("exclude", as in the published models), stay in
        both ("keep"), or go to one ("tumour", "tme")
    families : gene sets that models may take as tokens: a GMT file, "builtin" (the functional groups of the built-in
        lists), or None
    rfe_step : share of all genes that a round of the elimination removes
    rfe_folds : inner folds that choose how many genes stay
    cancer_genes : added to what "rfe_svm" leaves: "builtin" (the driver genes of Vogelstein et al. 2013), a file, or
        "none"
    min_genes : smallest size of the tumour and the TME group with "hvg"; otherwise only a model that reads an empty
        group refuses it
    std_floor : smallest standard deviation to divide by, on the scale of the values
    clip : standardised values beyond it are clipped, in standard deviations
    centre : "cohort" subtracts from every gene its mean over the training cases of the case's cohort, before genes are
        chosen and standardised (scanpy's flavours look at values that are not centred)
    unseen_cohort : with centring, a cohort without training cases is refused, or centred on "itself"
    max_missing : largest share of the selected genes that a new table may lack; they stand at the training mean
    """

    selection: str = HVG
    order: str = "signatures_then_hvg"
    top_fraction: float = 0.3
    n_top: int | None = None
    flavour: str = "variance"
    tumour: str = BUILTIN
    tme: str = BUILTIN
    both: str = "exclude"
    families: str | None = None
    rfe_step: float = 0.05
    rfe_folds: int = 5
    cancer_genes: str = BUILTIN
    min_genes: int = 5
    std_floor: float = 0.01
    clip: float = 10.0
    centre: str = "none"
    unseen_cohort: str = REFUSE
    max_missing: float = 0.1

    def __post_init__(self) -> None:
        for key, known in CHOICES.items():
            require_choice(f"genes.{key}", getattr(self, key), known)
        if not 0 < self.top_fraction <= 1:
            raise InputError("config.yaml genes.top_fraction", f"{self.top_fraction} is not in (0, 1].")
        for key, least in (("min_genes", 1), ("n_top", 1), ("rfe_folds", 2)):
            value = getattr(self, key)
            if value is None and key == "n_top":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"config.yaml genes.{key}", f"{value!r} is not a whole number from {least}.")
        require(0 < self.rfe_step < 1, "genes.rfe_step", self.rfe_step, "a share between 0 and 1")
        if not 0 <= self.max_missing < 1:
            raise InputError("config.yaml genes.max_missing", f"{self.max_missing} is not in [0, 1).")
        for key in ("std_floor", "clip"):
            if not 0 < getattr(self, key) < math.inf:
                raise InputError(f"config.yaml genes.{key}", "it must be a number above 0.")
