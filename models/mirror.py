"""MIRROR's classifier: one linear layer on what a slide and an RNA encoder make of a case.

Source: MIRROR (IEEE TMI 2025, DOI 10.1109/TMI.2025.3632555); MIRROR specification, sections 7.11 and 10. `init_from`
names an experiment of `models.mirror_pretraining`, whose encoders of the same fold are taken over with their genes and
scaling; `width`, `dropout`, `rna_mlp_ratio`, `attention` and `fixed_length` must be the same in both.

- ``mode: linear_probe``: encoders stay frozen in evaluation mode and read every case once; the linear layer learns.
  (The released code runs them anew at each step with dropout on.)
- ``mode: fine_tune``: everything learns; without `init_from`, from random weights.
- ``shots: n``: n training cases of each class, or of each survival interval, are drawn without replacement, and nothing
  else of the training cases is used but the intervals (the released code draws with replacement).

In training, labels are smoothed by 0.1, as released; in validation they are not. The rest of the task's loss is that of
all models here: class-weighted cross-entropy (the released code has no weights), discrete-time likelihood for survival.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models.batch import Batch, Sizes
from models.mirror_encoders import ENCODER_PARAMS, NYSTROM, EncoderConfig, RnaEncoder, SlideEncoder, sequences
from models.params import check_choice
from models.probe import LINEAR, Probe, check_probe

CONCAT, ADD = FUSIONS = ("concat", "add")


@dataclass(frozen=True)
class MirrorConfig(EncoderConfig):
    """Hyper-parameters of the classifier; the others are those of `models.mirror_encoders.EncoderConfig`.

    Attributes
    ----------
    mode : "linear_probe" or "fine_tune"
    fusion : the linear layer reads both embeddings by "concat", or their sum by "add"
    shots : training cases of each class or survival interval; None takes all
    label_smoothing : share of a training label that is spread over all classes
    """

    mode: str = LINEAR
    fusion: str = CONCAT
    shots: int | None = None
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probe(self.mode, self.shots, self.label_smoothing)
        check_choice("fusion", self.fusion, FUSIONS)


class Mirror(Probe):
    """Encoders of slides and RNA and a linear head. Reference mode is per slide."""

    name = "mirror"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = MirrorConfig
    encoders = ("slide", "rna")
    shared_params = ENCODER_PARAMS
    reference_params: ClassVar = {"fixed_length": 2048, "attention": NYSTROM}

    def __init__(self, config: MirrorConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.slide = SlideEncoder(sizes.features, config)
        self.rna = RnaEncoder(sizes.genes["all"], config)
        self.add_head(config.width * (2 if config.fusion == CONCAT else 1), sizes.outputs)

    def embedded(self, batch: Batch) -> Tensor:
        read = sequences(batch, self.config, draw=self.slide.training)
        slides = torch.cat([self.slide(sequence, only_class=True)[0] for sequence in read])
        rna = self.rna(batch.genes["all"])
        return torch.cat([slides, rna], dim=1) if self.config.fusion == CONCAT else slides + rna
