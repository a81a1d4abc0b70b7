"""MIRROR's classifier: one linear layer on what a slide and an RNA encoder make of a case.

Source: MIRROR (IEEE TMI 2025, DOI 10.1109/TMI.2025.3632555); MIRROR specification, sections 7.11 and 10. `init_from`
names an experiment of `models.mirror_pretraining`, whose encoders of the same fold are taken over with their genes and
scaling; `width`, `dropout`, `rna_mlp_ratio`, `attention` and `fixed_length` must be the same in both.

- ``mode: linear_probe``: encoders stay frozen in evaluation mode and read every case once; the linear layer learns.
  (The released code runs them anew at each step with dropout on.)
- ``mode: fine_tune``: everything learns; without `init_from`, from random weights.
- ``shots: n``: n training cases of each class, or of each survival interval, are drawn without replacement, and nothing
  else of the training cases is used but the intervals (the released code draws with replacement).

The task's loss is the one of all models here: class-weighted cross-entropy without label smoothing, where the released
code smooths by 0.1; discrete-time likelihood for survival.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from models.batch import Batch, Outputs, Sizes
from models.mirror_encoders import ENCODER_PARAMS, NYSTROM, EncoderConfig, RnaEncoder, SlideEncoder, sequences
from models.model import Model
from models.params import check_choice, check_range
from pipeline.contracts.errors import InputError

if TYPE_CHECKING:
    from models.experiment import Experiment

PROBE, FINE_TUNE = MODES = ("linear_probe", "fine_tune")
CONCAT, ADD = FUSIONS = ("concat", "add")


@dataclass(frozen=True)
class MirrorConfig(EncoderConfig):
    """Hyper-parameters of the classifier; the others are those of `models.mirror_encoders.EncoderConfig`.

    Attributes
    ----------
    mode : "linear_probe" or "fine_tune"
    fusion : the linear layer reads both embeddings by "concat", or their sum by "add"
    shots : training cases of each class or survival interval; None takes all
    """

    mode: str = PROBE
    fusion: str = CONCAT
    shots: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mode", self.mode, MODES)
        check_choice("fusion", self.fusion, FUSIONS)
        if self.shots is not None:
            check_range("shots", self.shots, 1, 1_000_000, integer=True)


class Mirror(Model):
    """Encoders of slides and RNA and a linear head. Reference mode is per slide."""

    name = "mirror"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = MirrorConfig
    shared_params = ENCODER_PARAMS
    defaults: ClassVar = {"epochs": 100, "batch_size": 16, "lr": 2e-3, "weight_decay": 0.0, "patience": 0}
    defaults_by_kind: ClassVar = {"survival": {"lr": 3e-3}}
    defaults_by_mode: ClassVar = {FINE_TUNE: {"lr": 2e-5}}
    reference_params: ClassVar = {"fixed_length": 2048, "attention": NYSTROM}

    def __init__(self, config: MirrorConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.encodes_once = config.mode == PROBE
        self.slide = SlideEncoder(sizes.features, config)
        self.rna = RnaEncoder(sizes.genes["all"], config)
        self.head = nn.Linear(config.width * (2 if config.fusion == CONCAT else 1), sizes.outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        for encoder in (self.slide, self.rna):
            encoder.requires_grad_(not self.encodes_once)

    def forward(self, batch: Batch) -> Outputs:
        embedding = batch.embedding if batch.embedding is not None else self.embedded(batch)
        return Outputs(self.head(embedding))

    def embedded(self, batch: Batch) -> Tensor:
        """What the linear layer reads, [samples, its width]."""
        read = sequences(batch, self.config, draw=self.slide.training)
        slides = torch.cat([self.slide(sequence, only_class=True)[0] for sequence in read])
        rna = self.rna(batch.genes["all"])
        return torch.cat([slides, rna], dim=1) if self.config.fusion == CONCAT else slides + rna

    def condensed(self, batch: Batch) -> Batch:
        return Batch(batch.case_ids, batch.has_slides, batch.has_genes, embedding=self.embedded(batch))

    def train(self, mode: bool = True) -> Mirror:
        super().train(mode)
        for encoder in (self.slide, self.rna):
            encoder.train(mode and not self.encodes_once)
        return self

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        if experiment.params["mode"] == PROBE and not experiment.init_from:
            raise InputError(
                f"config.yaml experiments '{experiment.name}'",
                f"mode {PROBE} needs trained encoders.",
                f"set init_from to a mirror-pretraining experiment, or params: {{mode: {FINE_TUNE}}}.",
            )

    def start(self, state: Mapping[str, Tensor]) -> None:
        """Take the encoders' weights over; the head stays as it is."""
        encoders = {name: value for name, value in state.items() if name.startswith(("slide.", "rna."))}
        head = {name: value for name, value in self.state_dict().items() if name.startswith("head.")}
        self.load_state_dict({**encoders, **head})
