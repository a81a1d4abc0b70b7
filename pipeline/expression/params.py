"""Section ``expression`` of the config."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.contracts.errors import InputError
from pipeline.contracts.expression import UNITS
from pipeline.contracts.settings import require_choice
from pipeline.expression.duplicates import ALIQUOT_RULES, GENE_RULES
from pipeline.expression.gdc import STAR_COLUMNS
from pipeline.expression.orientation import GENES_IN_ROWS, SAMPLES_IN_ROWS

CHOICES = {
    "unit": ("auto", *UNITS),
    "common_unit": (None, "tpm"),
    "orientation": ("auto", GENES_IN_ROWS, SAMPLES_IN_ROWS),
    "duplicates": GENE_RULES,
    "aliquots": ALIQUOT_RULES,
    "unknown": ("drop", "error"),
    "symbols": ("auto", "as_is"),
    "star_column": STAR_COLUMNS,
}


@dataclass(frozen=True)
class ExpressionParams:
    """Section ``expression`` of the config.

    Parameters
    ----------
    unit : what the numbers are; "auto" tells it by the rules of `units.detect_unit`
    common_unit : what tables of different units are brought to: "tpm" rescales TPM, FPKM and FPKM-UQ so that every
        sample sums to a million (`normalise.to_tpm`); None refuses different units
    orientation : which way round the table lies; "auto" looks for the case ids
    duplicates : how several rows of one gene become one (`duplicates.merge_genes`)
    aliquots : how several samples of one case become one; "first" takes the first by sorted barcode
    unknown : rows without a gene symbol are dropped and counted, or refused
    symbols : "auto" folds lower-case symbols and brings previous symbols up to date; "as_is" changes none
    aliases : HGNC's table of gene names, or a table that names Ensembl ids; None for the built-in one (`aliases`)
    star_column : the column of single-sample STAR files to read
    target_sum : library size to which counts are scaled
    clip : z-scores beyond it are clipped, and counted
    """

    unit: str = "auto"
    common_unit: str | None = None
    orientation: str = "auto"
    duplicates: str = "mean"
    aliquots: str = "first"
    unknown: str = "drop"
    symbols: str = "auto"
    aliases: str | None = None
    star_column: str = "unstranded"
    target_sum: float = 1e4
    clip: float = 10.0

    def __post_init__(self) -> None:
        for key, known in CHOICES.items():
            if getattr(self, key) is not None or None not in known:
                require_choice(f"expression.{key}", getattr(self, key), [name for name in known if name])
        for key in ("target_sum", "clip"):
            if not 0 < getattr(self, key) < float("inf"):
                raise InputError(f"config.yaml expression.{key}", "it must be a number above 0.", "correct it.")
