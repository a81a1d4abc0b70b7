"""What the training loop expects of every model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from models.batch import Batch, Outputs, Sizes, Targets
from models.params import build_config
from models.registry import model_class
from models.survival import Intervals, risk_of_survival, survival_of_hazards

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.experiment import Experiment


class Model(nn.Module):
    """Base of all models: one file each, a configuration dataclass, `forward`, and optional gradient editing.

    A model reads no file, chooses no device and knows nothing of folds.

    Attributes
    ----------
    needs : the modalities that a case must have, of "slides", "genes" and "clinical" (the case sheet)
    may_lack : those of `needs` that a single case may lack, as long as it has one of them; `forward` then goes by
        `has_slides` and `has_genes`
    gene_groups : the groups of the gene selection that `forward` reads
    Config : frozen dataclass of the model's own hyper-parameters, which are the keys of ``experiments.params``
    defaults : defaults of the experiment's keys (epochs, batch_size, lr, weight_decay, patience)
    defaults_by_kind : task kind -> defaults that differ for it
    defaults_when_started : defaults that differ for an experiment with ``init_from``
    defaults_by_mode : value of the hyper-parameter ``mode`` -> defaults that differ for it
    reference_params : values of `Config` that reproduce the released code; None if there is no reference mode
    presets : name -> values of `Config`, for the ablations of its authors; ``params: {preset: name}`` takes one
    magnifications : how many magnifications of each slide `forward` reads, 1 or 2
    warmup_epochs : 0 lowers the learning rate by a cosine, epoch by epoch; otherwise the rate also rises, step by step,
        from 0 over so many epochs
    decoupled_decay : take AdamW's weight decay instead of Adam's
    fits_itself : True when `fit` replaces the training loop
    shared_params : keys of `Config` that must be the same in the experiment whose weights it starts from
    label_smoothing : of the classification loss in training; validation has none
    encodes_once : True when the training loop reads only what `condensed` made of each sample, once
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    may_lack: ClassVar[frozenset[str]] = frozenset()
    gene_groups: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type]
    config: Any
    defaults: ClassVar[dict[str, Any]] = {}
    defaults_by_kind: ClassVar[dict[str, dict[str, Any]]] = {}
    defaults_when_started: ClassVar[dict[str, Any]] = {}
    defaults_by_mode: ClassVar[dict[str, dict[str, Any]]] = {}
    reference_params: ClassVar[dict[str, Any] | None] = None
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    magnifications: ClassVar[int] = 1
    warmup_epochs: ClassVar[int] = 0
    decoupled_decay: ClassVar[bool] = False
    fits_itself: ClassVar[bool] = False
    shared_params: ClassVar[tuple[str, ...]] = ()
    label_smoothing: float = 0.0
    encodes_once: bool = False

    def start(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of the experiment that this one starts from."""
        self.load_state_dict(state)

    def constrain(self) -> None:
        """Bring parameters back into their bounds after the optimiser's step."""

    def forward(self, batch: Batch) -> Outputs:
        raise NotImplementedError

    def edit_gradients(self, outputs: Outputs, targets: Targets) -> None:
        """Change gradients between the backward pass and the optimiser's step. Most models do not."""

    def attention_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Where the model looks among single tiles, asked for by `models.explain` alone.

        Name of a map -> [samples, tiles]: weights that are not negative, 0 where there is no tile, and of sum 1 over
        all tiles of a sample, whatever slide they are of (zeros for a sample without slides). Empty for a model
        without weights over single tiles.
        """
        return {}

    def lesson(self, batch: Batch) -> dict[str, Tensor]:
        """Models that teach: what a student learns of each sample, name -> [samples, ...]."""
        raise NotImplementedError

    def outcome(self, logits: Tensor, intervals: Intervals) -> tuple[Tensor, Tensor]:
        """Survival tasks: risk [samples] and survival [samples, bins] at the end of each interval."""
        survival = survival_of_hazards(logits)
        return risk_of_survival(survival), survival

    def condensed(self, batch: Batch) -> Batch:
        """What `fit`, or the loop of a model that encodes once, needs of a batch, so that all samples fit into
        memory."""
        return batch

    def fit(
        self, batch: Batch, targets: Targets, validation: tuple[Batch, Targets] | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Models that fit themselves: learn from all training samples at once; return history rows and notes."""
        raise NotImplementedError


def build_model(experiment: Experiment, sizes: Sizes) -> Model:
    """The untrained model of a resolved experiment."""
    model = model_class(experiment.model)
    return model(build_config(model.Config, experiment.params, experiment.model), sizes)


def restored(checkpoint: Checkpoint, device: torch.device) -> Model:
    """The trained model of a checkpoint, in evaluation mode."""
    model = build_model(checkpoint.experiment, checkpoint.sizes).to(device)
    model.load_state_dict(checkpoint.state)
    return model.eval()


def learnt(model: Model) -> dict[str, Tensor]:
    """The state without parameters that are frozen."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def fixed_length(model: Model) -> int | None:
    """Tiles per slide in reference mode, None when a sample is a case with all its tiles."""
    return getattr(model.config, "fixed_length", None)
