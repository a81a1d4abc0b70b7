"""Training steps of the fusion models, time and memory: ``python -m benchmarks.model_steps [--tiles 500 2500]``.

One line per figure: name, ours, direct evaluation of the same maths, ratio; ours alone for the baselines. A step is
forward, backward and the optimiser's update on one case with one slide, one thread of the CPU; models of two
magnifications get so many tiles at each. Each measurement has its own process, so that peaks of memory do not mix;
memory is the peak of the step above what inputs and weights took before it. `--models` measures only these.
MIRROR's pre-training is compared with its released form, Nyström attention with its matrices written out; a linear
probe of 300 cases and 100 epochs with one that encodes every case anew in each epoch (one encoding is timed and
multiplied).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch

import models.deformable
import models.density_peaks
from models.batch import Batch, Sizes
from models.model import Model
from models.registry import model_class

FEATURES, GENES = 1024, {"tumour": 59, "tme": 361, "all": 431}
OURS, DIRECT = "ours", "direct"
REPEATS = 3
TABULATED = ("subspace", "disentangled-teacher", "disentangled-histology", "disentangled-student")
PRETRAINING, PROBE = "mirror-pretraining", "mirror"
PROBED_CASES, PROBE_EPOCHS, PROBE_BATCH = 300, 100, 16
BASELINES = ("abmil", "transmil", "concat", "add", "bilinear", "mcat", "cmta")
UNITS = {"seconds": "training step, CPU s", "MiB": "peak memory, MiB"}


def build(name: str, form: str, tiles: int) -> Model:
    """A model in our form, or with every pair's position bias and distance evaluated directly and in one piece."""
    torch.manual_seed(0)
    params: dict[str, Any] = {}
    if name == PRETRAINING:
        params = {"tiles": tiles} if form == OURS else {"attention": "nystrom", "fixed_length": tiles}
    elif form == DIRECT:
        params = {"position_bias": "exact"}
        models.deformable.EXACT_PAIRS_PER_CHUNK = models.density_peaks.DISTANCES_PER_CHUNK = sys.maxsize
    cls = model_class(name)
    return cls(cls.Config(**params), Sizes(FEATURES, GENES, 4, "classification")).train()


def one_case(tiles: int, magnifications: int = 1) -> Batch:
    """A case with one slide, tiles in rows of a nearly square lattice; a teacher's lesson beside two magnifications."""
    number, yes = torch.arange(tiles), torch.ones(1, dtype=torch.bool)
    side = math.ceil(math.sqrt(tiles))
    cell = torch.stack([number % side, number // side], dim=1)[None]
    genes = {group: torch.randn(1, n) for group, n in GENES.items()}
    mask, slide = torch.ones(1, tiles, dtype=torch.bool), torch.zeros(1, tiles, dtype=torch.int64)
    batch = Batch(("case",), yes, yes, torch.rand(1, tiles, FEATURES), mask, slide, cell, cell * 448, genes)
    if magnifications == 1:
        return batch
    lesson = {
        f"{m}_{what}": torch.rand(1, n) for m in ("coarse", "fine") for what, n in (("logits", 4), ("features", 256))
    }
    coarser = replace(batch, features=torch.rand(1, tiles, FEATURES))
    return replace(batch, coarser=coarser, parent=number[None] // 4, lesson=lesson, taught=yes)


def measure(name: str, form: str, tiles: int) -> dict[str, float]:
    """CPU seconds of the fastest step, and MiB of the highest."""
    torch.set_num_threads(1)
    model = build(name, form, tiles)
    batch = one_case(tiles, model.magnifications)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5)

    def step() -> float:
        started = time.process_time()
        outputs = model(batch)
        trained = outputs.branches or (outputs.logits,)
        labelled = [logits for logits in trained if logits.shape[1]]
        loss = sum(torch.nn.functional.cross_entropy(logits, torch.tensor([1])) for logits in labelled)
        loss = loss + sum(outputs.losses.values())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return time.process_time() - started

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = min(step() for _ in range(REPEATS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "MiB": peak / 1024}


def measure_probe(form: str, tiles: int) -> dict[str, float]:
    """CPU seconds of a linear probe; the time of the encoder is that of one case, multiplied."""
    torch.set_num_threads(1)
    model = build(PROBE, OURS, tiles)
    case = one_case(tiles)

    def encoded() -> float:
        started = time.process_time()
        with torch.no_grad():
            model.condensed(case)
        return time.process_time() - started

    encoding = min(encoded() for _ in range(REPEATS)) * PROBED_CASES * (1 if form == OURS else PROBE_EPOCHS)
    embedding, label = torch.randn(PROBED_CASES, model.head.in_features), torch.randint(4, (PROBED_CASES,))
    batch = one_case(1)
    optimiser = torch.optim.Adam(model.head.parameters(), lr=2e-3)
    started = time.process_time()
    for _ in range(PROBE_EPOCHS):
        for rows in torch.randperm(PROBED_CASES).split(PROBE_BATCH):
            logits = model(replace(batch, embedding=embedding[rows])).logits
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(logits, label[rows]).backward()
            optimiser.step()
    head = time.process_time() - started
    return {"seconds": encoding + head, "head": head}


def measured_apart(name: str, form: str, tiles: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.model_steps", "--one", name, form, str(tiles)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, nargs="+", default=[500, 2500])
    known = [*TABULATED, PRETRAINING, PROBE, *BASELINES]
    parser.add_argument("--models", nargs="+", choices=known, default=known)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "FORM", "TILES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, form, tiles = given.one
        print(json.dumps(measure_probe(form, int(tiles)) if name == PROBE else measure(name, form, int(tiles))))
        return 0
    print(f"{'figure':58} {OURS:>9} {DIRECT:>9} {'ratio':>7}")
    for tiles in given.tiles:
        for name in given.models:
            ours = measured_apart(name, OURS, tiles)
            direct = measured_apart(name, DIRECT, tiles) if name not in BASELINES else None
            units = UNITS if name != PROBE else {"seconds": "probe, CPU s", "head": "its head alone"}
            for unit, figure in units.items():
                line = f"{f'{name}, {tiles} tiles: {figure}':58} {ours[unit]:9.3f}"
                print(line + (f" {direct[unit]:9.3f} {direct[unit] / ours[unit]:7.1f}" if direct else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
