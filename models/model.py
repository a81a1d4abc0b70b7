"""What the training loop expects of every model."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from models.batch import Batch, Outputs, Targets
from models.survival import Intervals, risk_of_survival, survival_of_hazards


class Model(nn.Module):
    """Base of all models: one file each, a configuration dataclass, `forward`, and optional gradient editing.

    A model reads no file, chooses no device and knows nothing of folds.

    Attributes
    ----------
    needs : the modalities that a case must have, of "slides", "genes" and "clinical" (the case sheet)
    gene_groups : the groups of the gene selection that `forward` reads
    Config : frozen dataclass of the model's own hyper-parameters, which are the keys of ``experiments.params``
    defaults : defaults of the experiment's keys (epochs, batch_size, lr, weight_decay, patience)
    defaults_by_kind : task kind -> defaults that differ for it
    reference_params : values of `Config` that reproduce the released code; None if there is no reference mode
    fits_itself : True when `fit` replaces the training loop
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    gene_groups: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type]
    defaults: ClassVar[dict[str, Any]] = {}
    defaults_by_kind: ClassVar[dict[str, dict[str, Any]]] = {}
    reference_params: ClassVar[dict[str, Any] | None] = None
    fits_itself: ClassVar[bool] = False

    def forward(self, batch: Batch) -> Outputs:
        raise NotImplementedError

    def edit_gradients(self, outputs: Outputs, targets: Targets) -> None:
        """Change gradients between the backward pass and the optimiser's step. Most models do not."""

    def outcome(self, logits: Tensor, intervals: Intervals) -> tuple[Tensor, Tensor]:
        """Survival tasks: risk [samples] and survival [samples, bins] at the end of each interval."""
        survival = survival_of_hazards(logits)
        return risk_of_survival(survival), survival

    def condensed(self, batch: Batch) -> Batch:
        """Models that fit themselves on slides: what `fit` needs of a batch, so that all samples fit into memory."""
        return batch

    def fit(
        self, batch: Batch, targets: Targets, validation: tuple[Batch, Targets] | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Models that fit themselves: learn from all training samples at once; return history rows and notes."""
        raise NotImplementedError
