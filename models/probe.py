"""A linear head on encoders that were pre-trained without labels: frozen and read once, or fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from models.batch import Batch, Outputs
from models.model import Model
from models.params import check_choice, check_range
from models.registry import FINE_TUNE

LINEAR = "linear_probe"
MODES = (LINEAR, FINE_TUNE)


def check_probe(mode: Any, shots: Any, label_smoothing: Any) -> None:
    """Raise InputError unless these keys of a configuration have a legal value."""
    check_choice("mode", mode, MODES)
    check_range("label_smoothing", label_smoothing, 0, 0.99)
    if shots is not None:
        check_range("shots", shots, 1, 1_000_000, integer=True)


class Probe(Model):
    """Its `config` has `mode`, `shots` and `label_smoothing`; a subclass builds its `encoders`, calls `add_head`, and
    defines `embedded`.

    Attributes
    ----------
    encoders : names of the modules that are taken over from pre-training, with the tensors' names
    """

    encoders: ClassVar[tuple[str, ...]]
    defaults: ClassVar = {"epochs": 100, "batch_size": 16, "lr": 2e-3, "weight_decay": 0.0, "patience": 0}
    defaults_by_kind: ClassVar = {"survival": {"lr": 3e-3}}
    defaults_by_mode: ClassVar = {FINE_TUNE: {"lr": 2e-5}}

    def embedded(self, batch: Batch) -> Tensor:
        """What the linear head reads, [samples, its width]."""
        raise NotImplementedError

    def add_head(self, width: int, outputs: int) -> None:
        """Weights N(0, 0.01^2), and frozen encoders for a linear probe."""
        self.head = nn.Linear(width, outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.label_smoothing = self.config.label_smoothing
        self.encodes_once = self.config.mode == LINEAR
        for name in self.encoders:
            getattr(self, name).requires_grad_(not self.encodes_once)

    def forward(self, batch: Batch) -> Outputs:
        return Outputs(self.head(self.embedded(batch) if batch.embedding is None else batch.embedding))

    def condensed(self, batch: Batch) -> Batch:
        return Batch(batch.case_ids, batch.has_slides, batch.has_genes, embedding=self.embedded(batch))

    def train(self, mode: bool = True) -> Probe:
        super().train(mode)
        for name in self.encoders:
            getattr(self, name).train(mode and not self.encodes_once)
        return self

    def start(self, state: Mapping[str, Tensor]) -> None:
        """Take the encoders' weights over; the head stays as it is."""
        prefixes = tuple(f"{name}." for name in self.encoders)
        taken = {name: value for name, value in state.items() if name.startswith(prefixes)}
        head = {name: value for name, value in self.state_dict().items() if name.startswith("head.")}
        self.load_state_dict({**taken, **head})
