"""Training step and prediction of every model, time and memory: ``python -m benchmarks.model_steps [--sizes 500]``.

One line per figure: name, ours, direct evaluation of the same maths where there is another way, ratio; then how each
grows with the number of tiles. A step is forward, backward and the optimiser's update on one case with one slide, one
thread of the CPU; models of two magnifications get so many tiles at each, and MIRROR draws 2048 of them for a step.
Models come from the registry; those without slides are measured once. Each measurement has its own process, so that
peaks of memory do not mix; memory is the peak above what inputs and weights took before it. What would go beyond the
limits is said and left out: time grows as the square at most, and of what we are compared with so does memory.

Direct is, for the subspace and disentangled models, the position bias and distances of all pairs at once; for MIRROR,
attention with its matrix written out and a backward pass through all of it; for `transmil` and `cmta`, the attention
that theirs approximates. `--released` compares MIRROR's step with its released form, Nyström attention, instead.
`--probe` times a linear probe of 300 cases and 100 epochs against one that encodes every case anew in each epoch (one
encoding is timed and multiplied).
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import models.deformable
import models.density_peaks
import models.full_attention
from models.batch import Batch, Sizes
from models.model import Model
from models.registry import FINE_TUNE, MODELS, SLIDES, model_class
from models.transmil import HEADS, NystromAttention

FEATURES, OTHER_GENES, FAMILIES, CLASSES = 1024, 431, 50, 4
GENES = {"tumour": 59, "tme": 361}
SIZES = (500, 2500, 10_000, 20_000)
OURS, DIRECT, RELEASED = FORMS = ("ours", "direct", "released")
STEP, PREDICTION = PHASES = ("training step", "prediction")
REPEATS, ENOUGH_SECONDS = 3, 6.0
MIRROR, DRAWN = "mirror-pretraining", 2048
PROBED_CASES, PROBE_EPOCHS, PROBE_BATCH = 300, 100, 16
UNITS = {"seconds": "CPU s", "MiB": "peak memory, MiB"}
TABULATED = ("subspace", "disentangled-teacher", "disentangled-histology", "disentangled-student")
NEEDED = {
    **{(n, DIRECT, 2500, STEP, unit): ratio for n in TABULATED for unit, ratio in (("seconds", 8.0), ("MiB", 3.0))},
    **{(MIRROR, RELEASED, tiles, STEP, "seconds"): 2.0 for tiles in (500, DRAWN)},
}  # of ours over the other form, design section 7


def all_pairs_at_once() -> None:
    """Position bias and distances of density peaks in one piece."""
    models.deformable.EXACT_PAIRS_PER_CHUNK = models.density_peaks.DISTANCES_PER_CHUNK = sys.maxsize


def written_out(self: Any, tokens: Tensor, rows: Tensor | None = None, constant: Tensor | None = None) -> Tensor:
    """`models.full_attention.FullAttention.forward` by the equations."""
    q, k, v = self.qkv(tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    nearby = self.residual(v)
    if rows is not None:
        q, nearby = q[:, :, rows], nearby[:, :, rows]
    heads = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v + nearby
    return self.dropout(self.out(heads.transpose(1, 2).flatten(2)))


def attention_written_out() -> None:
    NystromAttention.forward = models.full_attention.FullAttention.forward = written_out


#: what makes a process evaluate a model directly; others have no second way
DIRECTLY: dict[str, Callable[[], None]] = {
    **dict.fromkeys(TABULATED, all_pairs_at_once),
    **dict.fromkeys(("transmil", "cmta", "mirror", MIRROR), attention_written_out),
}


def build(name: str, form: str, tiles: int) -> Model:
    """A model in one of the forms; the two slower ones change module constants or methods of this process."""
    torch.manual_seed(0)
    cls, params = model_class(name), {}
    if form == DIRECT:
        DIRECTLY[name]()
        params = {"position_bias": "exact"} if name in TABULATED else {}
    elif form == RELEASED:
        params = {"attention": "nystrom", "fixed_length": min(tiles, DRAWN)}
    if MODELS[name].is_probe:
        params["mode"] = FINE_TUNE
    families = [sorted(torch.randperm(OTHER_GENES)[:30].tolist()) for _ in range(FAMILIES)]
    genes = {group: GENES.get(group, OTHER_GENES) for group in cls.gene_groups}
    return cls(cls.Config(**params), Sizes(FEATURES, genes, CLASSES, "classification", 3, families))


def one_case(name: str, tiles: int) -> Batch:
    """A case with one slide, tiles in rows of a nearly square lattice; a teacher's lesson beside two magnifications."""
    cls = model_class(name)
    number, yes = torch.arange(tiles), torch.ones(1, dtype=torch.bool)
    genes = {group: torch.randn(1, GENES.get(group, OTHER_GENES)) for group in cls.gene_groups}
    batch = Batch(("case",), yes, yes, genes=genes, clinical=torch.randn(1, 3))
    if SLIDES not in cls.needs:
        return batch
    side = math.ceil(math.sqrt(tiles))
    cell = torch.stack([number % side, number // side], dim=1)[None]
    mask, slide = torch.ones(1, tiles, dtype=torch.bool), torch.zeros(1, tiles, dtype=torch.int64)
    features = torch.rand(1, tiles, FEATURES)
    batch = replace(batch, features=features, mask=mask, slide=slide, cell=cell, coords=cell * 448)
    if cls.magnifications == 1:
        return batch
    lesson = {
        f"{m}_{what}": torch.rand(1, n) for m in ("coarse", "fine") for what, n in (("logits", 4), ("features", 256))
    }
    coarser = replace(batch, features=torch.rand(1, tiles, FEATURES))
    return replace(batch, coarser=coarser, parent=number[None] // 4, lesson=lesson, taught=yes)


def trained(model: Model, batch: Batch, optimiser: torch.optim.Optimizer) -> None:
    outputs = model(batch)
    labelled = [logits for logits in outputs.branches or (outputs.logits,) if logits.shape[1]]
    loss = sum(cross_entropy(logits, torch.tensor([1])) for logits in labelled) + sum(outputs.losses.values())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def predicted(model: Model, batch: Batch) -> None:
    with torch.no_grad():
        model(batch)


def fastest(act: Callable[[], Any]) -> float:
    """CPU seconds of the fastest of a few runs; of the only one if it is long."""
    spent: list[float] = []
    while len(spent) < REPEATS and sum(spent) < ENOUGH_SECONDS:
        started = time.process_time()
        act()
        spent.append(time.process_time() - started)
    return min(spent)


def measure(name: str, form: str, phase: str, tiles: int) -> dict[str, float]:
    """CPU seconds of the fastest run, and MiB at the highest."""
    torch.set_num_threads(1)
    model, batch = build(name, form, tiles).train(phase == STEP), one_case(name, tiles)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True) if phase == STEP else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = fastest(lambda: predicted(model, batch) if optimiser is None else trained(model, batch, optimiser))
    return {"seconds": seconds, "MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def measure_probe(again: bool, tiles: int) -> dict[str, float]:
    """CPU seconds of a linear probe; the time of the encoder is that of one case, multiplied."""
    torch.set_num_threads(1)
    model = build("mirror", OURS, tiles).eval()
    case = one_case("mirror", tiles)
    with torch.no_grad():
        encoding = fastest(lambda: model.condensed(case)) * PROBED_CASES * (PROBE_EPOCHS if again else 1)
    embedding, label = torch.randn(PROBED_CASES, model.head.in_features), torch.randint(CLASSES, (PROBED_CASES,))
    optimiser = torch.optim.Adam(model.head.parameters(), lr=2e-3, fused=True)
    started = time.process_time()
    for _ in range(PROBE_EPOCHS):
        for rows in torch.randperm(PROBED_CASES).split(PROBE_BATCH):
            logits = model(replace(case, embedding=embedding[rows])).logits
            optimiser.zero_grad(set_to_none=True)
            cross_entropy(logits, label[rows]).backward()
            optimiser.step()
    head = time.process_time() - started
    return {"seconds": encoding + head, "head": head}


def apart(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """The result of `function` in a process that ran nothing before."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = get_context("forkserver")
    context.set_forkserver_preload(["models.model"])  # loads torch, once for all
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


class Series:
    """One form of one phase of a model, from the smallest size to the largest that the limits let through."""

    def __init__(self, name: str, form: str, phase: str, limits: dict[str, float]) -> None:
        self.name, self.form, self.phase, self.limits = name, form, phase, limits
        self.measured: dict[int, dict[str, float]] = {}

    def at(self, tiles: int) -> dict[str, float] | str:
        """The figures, or why they were not taken."""
        for unit, text in (("MiB", "need {:.0f} GB"), ("seconds", "take {:.0f} s")):
            expected = self.expected(unit, tiles)
            if expected > self.limits[unit] and (self.form != OURS or unit == "seconds"):
                return "not run: would " + text.format(expected / 1024 if unit == "MiB" else expected)
        self.measured[tiles] = apart(measure, self.name, self.form, self.phase, tiles)
        return self.measured[tiles]

    def expected(self, unit: str, tiles: int) -> float:
        """A constant and a square through the two last sizes; 0 if there are fewer."""
        if len(self.measured) < 2:
            return 0.0
        (a, low), (b, high) = [(self.read(n), self.measured[n][unit]) for n in sorted(self.measured)[-2:]]
        return low + max(high - low, 0.0) * (self.read(tiles) ** 2 - a**2) / (b**2 - a**2) if a < b else high

    def read(self, tiles: int) -> int:
        """So many of a case's tiles are read."""
        return min(tiles, DRAWN) if self.phase == STEP and self.name in (MIRROR, "mirror") else tiles

    def exponent(self, unit: str) -> float | None:
        """Slope of the logarithms over the three largest sizes; None of a single one."""
        sizes = sorted(self.measured)[-3:]
        values = [max(self.measured[n][unit], 1e-3) for n in sizes]
        return float(np.polyfit(np.log(sizes), np.log(values), 1)[0]) if len(sizes) > 1 else None


def line(figure: str, ours: float, other: float | str | None, needed: float | None = None) -> bool:
    """Print one; True unless `needed` is missed."""
    text = f"{figure:66} {ours:9.3f}"
    missed = False
    if isinstance(other, float):
        missed = needed is not None and other / ours < needed
        text += f" {other:9.3f} {other / ours:7.1f}" + (f"   needed {needed:g}{', MISSED' * missed}" if needed else "")
    elif other is not None:
        text += f"   {other}"
    print(text, flush=True)
    return not missed


def compare(name: str, against: str | None, phase: str, sizes: Sequence[int], limits: dict[str, float]) -> bool:
    """Print the figures of one phase at all sizes, and the exponents by which they grow; True unless one is missed."""
    ours, other = (Series(name, form, phase, limits) if form else None for form in (OURS, against))
    good = True
    for tiles in sizes if SLIDES in MODELS[name].needs else [1]:
        mine, theirs = ours.at(tiles), other.at(tiles) if other else None
        if isinstance(mine, str):
            print(f"{f'{name}, {tiles} tiles: {phase}':66} {mine}", flush=True)
            continue
        where = f"{name}, {tiles} tiles" if SLIDES in MODELS[name].needs else name
        for unit, figure in UNITS.items():
            beside = theirs[unit] if isinstance(theirs, dict) else theirs
            good &= line(
                f"{where}: {phase}, {figure}", mine[unit], beside, NEEDED.get((name, against, tiles, phase, unit))
            )
    for unit, figure in UNITS.items():
        grows = ours.exponent(unit)
        if grows is not None:
            theirs = other.exponent(unit) if other else None
            beside = "" if theirs is None else f" {theirs:9.2f}"
            print(f"{f'{name}: {phase}, {figure}: exponent of tiles':66} {grows:9.2f}{beside}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of tiles")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--memory-gb", type=float, default=8.0, help="leave out what would need more")
    parser.add_argument("--seconds", type=float, default=200.0, help="leave out what would take longer")
    parser.add_argument("--released", action="store_true", help="MIRROR's step against its released form, no more")
    parser.add_argument("--probe", action="store_true", help="the linear probe, no more")
    given = parser.parse_args()
    sizes, limits = sorted(given.sizes), {"MiB": given.memory_gb * 1024, "seconds": given.seconds}
    print(f"{'figure':66} {OURS:>9} {RELEASED if given.released else DIRECT:>9} {'ratio':>7}")
    if given.released:
        return int(not compare(MIRROR, RELEASED, STEP, sizes, limits))
    if given.probe:
        for tiles in sizes:
            once, anew = (apart(measure_probe, again, tiles) for again in (False, True))
            line(f"linear probe, {tiles} tiles: encoding once, CPU s", once["seconds"], anew["seconds"])
            line(f"linear probe, {tiles} tiles: its linear layer alone, CPU s", once["head"], None)
        return 0
    good = True
    for name in given.models:
        for phase in PHASES:
            if phase == STEP and model_class(name).fits_itself:
                print(f"{name}: fitted at once, it has no training step")
            elif phase == STEP or not MODELS[name].task_free:
                good &= compare(name, DIRECT if name in DIRECTLY else None, phase, sizes, limits)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
