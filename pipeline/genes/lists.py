"""The gene lists that a selection works with, brought to the symbols of the expression table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.genes.params import RFE_SVM, GeneParams
from pipeline.signatures import Signatures, load_cancer_genes, load_signatures
from pipeline.signatures.families import load_families


@dataclass(frozen=True)
class GeneLists:
    """Tumour and TME sets, gene families by name, and the cancer genes that an elimination is united with."""

    signatures: Signatures
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cancer_genes: tuple[str, ...] = ()

    def families_of(self, genes: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The families' genes among `genes`, in that order; families without any are left out."""
        members = {name: set(family) for name, family in self.families.items()}
        found = {name: tuple(gene for gene in genes if gene in family) for name, family in members.items()}
        return {name: family for name, family in found.items() if family}


def load_lists(
    params: GeneParams, current: Callable[[str], str] | None = None, signatures: Signatures | None = None
) -> GeneLists:
    """What the parameters name. `signatures` stands in for the tumour and the TME set; `current` renames symbols.

    Raises InputError as the readers in `pipeline.signatures` do.
    """
    return GeneLists(
        signatures or load_signatures(params.tumour, params.tme, current),
        load_families(params.families, current) if params.families else {},
        load_cancer_genes(params.cancer_genes, current) if params.selection == RFE_SVM else (),
    )
