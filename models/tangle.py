"""Slides alone, read by an encoder that learnt from RNA without labels (`models.tangle_pretraining`, by ``init_from``).

Genes are needed for pre-training only. `mode`, `shots` and `label_smoothing` are as in `models.mirror`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.abmil import POOL, TilePool
from models.batch import Batch, Sizes
from models.probe import LINEAR, Probe, check_probe
from models.tangle_pretraining import ENCODER_PARAMS, PoolConfig


@dataclass(frozen=True)
class TangleConfig(PoolConfig):
    """Hyper-parameters of the classifier; the others are those of `models.tangle_pretraining.PoolConfig`.

    Attributes
    ----------
    mode : "linear_probe" or "fine_tune"
    shots : training cases of each class or survival interval; None takes all
    label_smoothing : share of a training label that is spread over all classes
    """

    mode: str = LINEAR
    shots: int | None = None
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probe(self.mode, self.shots, self.label_smoothing)


class Tangle(Probe):
    """The pooled slide and a linear head."""

    name = "tangle"
    needs = frozenset({"slides"})
    Config = TangleConfig
    encoders = ("slide",)
    shared_params = ENCODER_PARAMS

    def __init__(self, config: TangleConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.slide = TilePool(sizes.features, config.pool)
        self.add_head(config.width, sizes.outputs)

    def embedded(self, batch: Batch) -> Tensor:
        assert batch.features is not None and batch.mask is not None
        return self.slide(batch.features, batch.mask)

    @torch.no_grad()
    def attention_maps(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None and batch.mask is not None
        return {POOL: self.slide.weights(batch.features, batch.mask)}
