"""Kill trials: work in a forked process is killed (-9) at random moments and done again, until it comes to its end.

Run as a script: ``python -m tests.bad_slides.killing {stages|training} FOLDER TRIALS SEED``; it prints
a line per trial.
A fork spares each trial the start of Python. It is a script of its own because a process with threads must not fork.
"""

from __future__ import annotations

import csv
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.contracts.cohort import Slide
from tests.bad_slides import stages
from tests.bad_slides.sound import SOUND, write_sound

_KINDS = ("aperio-rgb", "deflate", "png")
_MODELS = ("snn", "concat")


def forked(work: Callable[[], None]) -> int:
    """Id of a process that does `work` and ends."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def trial(work: Callable[[], None], seconds: float, rng: random.Random) -> int:
    """Do `work`, which takes about `seconds`, killed once or twice on the way. How many kills found it at work."""
    kills = 0
    for _ in range(rng.choice((1, 1, 2))):
        child = forked(work)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert os.waitpid(forked(work), 0)[1] == 0
    return kills


def contents(folder: Path) -> dict[str, bytes]:
    """What must be equal (design 5.9): no pictures, no times. Index rows come without their seconds."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".png" and p.parent.name != "_timings"]
    return {str(p.relative_to(folder)): _without_seconds(p) if p.suffix == ".tsv" else p.read_bytes() for p in files}


def _without_seconds(path: Path) -> bytes:
    with open(path, newline="") as handle:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(handle, delimiter="\t")]
    return repr(rows).encode()


def stage_work(folder: Path) -> Callable[[Path], Callable[[], None]]:
    """All slide stages; each trial's folder is laid out anew, the slides are the same files."""
    slides = [Slide(k, "c", str(write_sound(k, folder / f"{k}.{SOUND[k][0]}")), 0.5) for k in _KINDS]

    def work(out: Path) -> Callable[[], None]:
        stages.lay_out(out, slides)
        return lambda: stages.run(out, pause=0.02)

    return work


def training_work(folder: Path) -> Callable[[Path], Callable[[], None]]:
    """Training of a model without and of one with slides, two folds each."""
    import torch

    from models.experiment import Experiment
    from models.train import train_folds
    from tests.toy_cohort import SURVIVAL, make_toy

    torch.set_num_threads(1)
    inputs = make_toy(folds=2).write(folder / "data")

    def work(out: Path) -> Callable[[], None]:
        def train() -> None:
            for model in _MODELS:
                made = Experiment(name=model, model=model, epochs=4, batch_size=5, lr=3e-3, patience=0)
                train_folds(made, SURVIVAL, inputs, out / model, out / model / "index.tsv", device="cpu")

        return train

    return work


def main(what: str, folder: Path, trials: int, seed: int) -> None:
    logging.disable(logging.CRITICAL)
    folder.mkdir(parents=True)
    prepared = (stage_work if what == "stages" else training_work)(folder)
    started = time.monotonic()
    assert os.waitpid(forked(prepared(folder / "undisturbed")), 0)[1] == 0
    seconds = time.monotonic() - started
    wanted = contents(folder / "undisturbed")
    assert len(wanted) > 8
    rng = random.Random(seed)
    for number in range(trials):
        out = folder / f"trial{number}"
        kills = trial(prepared(out), seconds, rng)
        found = contents(out)
        differing = sorted(path for path in wanted | found if wanted.get(path) != found.get(path))
        print(f"{kills} kills, {len(found)} files,", f"different: {differing}" if differing else "equal", flush=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
