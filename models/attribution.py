"""What one output of a model owes to every gene and every tile of a case: integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.batch import Batch
from models.model import Model
from models.params import check_range
from models.survival import Intervals

Output = Callable[[Tensor], Tensor]  #: logits [samples, outputs] of a case's samples to one number
STEPS = 32


@dataclass(frozen=True)
class Attribution:
    """Shares of the difference between what the model says of a case and of the baseline.

    Attributes
    ----------
    value, baseline : the output of the case, and of genes at the training mean and tiles of zeros
    genes : group -> float64 [genes]; empty where the model saw none
    tiles : of every sample in turn, float64 [tiles] per magnification, finest first; empty where the model saw none
    """

    value: float
    baseline: float
    genes: dict[str, Tensor] = field(default_factory=dict)
    tiles: tuple[tuple[Tensor, ...], ...] = ()

    @property
    def residual(self) -> float:
        """Sum of all shares less ``value - baseline``: 0 but for rounding if there were infinitely many steps."""
        shares = [*self.genes.values(), *(each for sample in self.tiles for each in sample)]
        return float(sum(float(share.sum()) for share in shares)) - (self.value - self.baseline)


def integrated_gradients(model: Model, samples: Sequence[Batch], output: Output, steps: int = STEPS) -> Attribution:
    """Integrated gradients of one output along the straight path from the baseline to the case.

    The path moves all genes and the features of all tiles together, from zero, which for standardised genes is the mean
    of the training cases. The integral is taken by the midpoint rule. A gene, or a tile's feature, gets its value times
    the mean gradient along the path; a tile gets the sum of its features.

    Source: Sundararajan, Taly and Yan, ICML 2017 (equation 1; completeness is proposition 1).

    Parameters
    ----------
    model : in evaluation mode
    samples : what the model sees of one case, a batch of one sample each: the case, or each of its slides (whose genes
        are the same, and are counted once)
    output : of the logits of all samples
    steps : points on the path

    Raises
    ------
    InputError
        Fewer than one step.
    """
    check_range("steps", steps, 1, 100_000, integer=True)
    inputs = [_inputs(batch) for batch in samples]
    totals = [[torch.zeros_like(tensor, dtype=torch.float64) for tensor in each] for each in inputs]
    for step in range(steps):
        moved = [[((step + 0.5) / steps * t).requires_grad_() for t in each] for each in inputs]
        flat = [tensor for each in moved for tensor in each]
        told = output(_logits(model, [_with(b, each) for b, each in zip(samples, moved, strict=True)]))
        if not told.requires_grad:  # nothing that it depends on can move
            break
        found = iter(torch.autograd.grad(told, flat, allow_unused=True))
        for each in totals:
            for total in each:
                gradient = next(found)
                if gradient is not None:
                    total += gradient.double() / steps
    with torch.no_grad():
        nothing = [_with(b, [torch.zeros_like(t) for t in each]) for b, each in zip(samples, inputs, strict=True)]
        value, baseline = (float(output(_logits(model, batches))) for batches in (samples, nothing))
    shares = [[x.double() * g for x, g in zip(*pair, strict=True)] for pair in zip(inputs, totals, strict=True)]
    groups = list(samples[0].genes)
    genes = {name: torch.stack([each[k][0] for each in shares]).sum(dim=0) for k, name in enumerate(groups)}
    tiles = tuple(tuple(share[0].sum(dim=-1).cpu() for share in each[len(groups) :]) for each in shares)
    return Attribution(value, baseline, {name: share.cpu() for name, share in genes.items()}, tiles)


def class_margin(label: int) -> Output:
    """The logit of a class less the mean of the others (less nothing if it is the only one), averaged over samples."""

    def output(logits: Tensor) -> Tensor:
        others = [column for column in range(logits.shape[1]) if column != label]
        margin = logits[:, label].double()
        return (margin - logits[:, others].double().mean(dim=1) if others else margin).mean()

    return output


def risk(model: Model, intervals: Intervals) -> Output:
    """The risk that the model predicts, averaged over samples; higher for an earlier event."""

    def output(logits: Tensor) -> Tensor:
        return model.outcome(logits.double(), intervals)[0].mean()

    return output


def _logits(model: Model, batches: Sequence[Batch]) -> Tensor:
    return torch.cat([model(batch).logits for batch in batches])


def _inputs(batch: Batch) -> list[Tensor]:
    """What the path moves: genes by group, then the features of the tiles, finest magnification first."""
    coarser = batch.coarser.features if batch.coarser is not None else None
    return [*batch.genes.values(), *(f for f in (batch.features, coarser) if f is not None)]


def _with(batch: Batch, inputs: Sequence[Tensor]) -> Batch:
    """The batch with other values of `_inputs`."""
    genes = dict(zip(batch.genes, inputs, strict=False))
    tiles = list(inputs[len(genes) :])
    if not tiles:
        return replace(batch, genes=genes)
    coarser = replace(batch.coarser, features=tiles[1]) if batch.coarser is not None else None
    return replace(batch, genes=genes, features=tiles[0], coarser=coarser)
