"""The clinical sheet alone: the regularised linear fit of `linear` on chosen columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from models.batch import Batch, Sizes
from models.linear import Linear, LinearConfig
from models.params import WHERE
from models.registry import CLINICAL_COLUMNS
from pipeline.contracts.errors import InputError


@dataclass(frozen=True)
class ClinicalConfig(LinearConfig):
    """Which columns, and the penalty as in `linear`.

    Attributes
    ----------
    columns : of the case sheet. A column of numbers is standardised, and an unknown value set to the mean and marked
        by an indicator; other columns get an indicator per value. All this is fitted on training cases
    categorical : those of the columns whose numbers are codes
    """

    columns: tuple[str, ...] = CLINICAL_COLUMNS
    categorical: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("columns", "categorical"):
            names = getattr(self, key)
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise InputError(f"{WHERE} params", f"{key} is {names!r}, expected a list of column names.")
            object.__setattr__(self, key, tuple(names))
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise InputError(f"{WHERE} params", "columns is empty or names a column twice.", "name each once.")
        for name in self.categorical:
            if name not in self.columns:
                raise InputError(f"{WHERE} params", f"categorical column '{name}' is not among columns.", "add it.")


class Clinical(Linear):
    """logits = encoded columns W' + b; Cox regression for survival."""

    name = "clinical"
    needs = frozenset({"clinical"})
    gene_groups = ()
    Config = ClinicalConfig
    config: ClinicalConfig
    defaults: ClassVar = Linear.defaults

    @staticmethod
    def width(sizes: Sizes) -> int:
        return sizes.clinical

    def columns(self, batch: Batch) -> Tensor:
        assert batch.clinical is not None
        return batch.clinical.double()
