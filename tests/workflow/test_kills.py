"""kill -9 in the embedding job, then a rerun, equals a run that nobody disturbed."""

import os
import random
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from tests.workflow.conftest import ARTEFACTS, ROOT


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("seed", "target"), [(0, "features"), *[pytest.param(s, "all", marks=pytest.mark.full) for s in range(1, 6)]]
)
def test_killed_embedding_then_rerun_equals_an_undisturbed_run(finished, tmp_path, seed, target):
    cohort = finished.copy(tmp_path / "cohort")
    for later in ("features", "models", "predictions", "evaluation"):
        shutil.rmtree(cohort.results / later)
    for page in ("report.html", "verdict.tsv"):
        (cohort.results / page).unlink()
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(cohort.command(target), cwd=ROOT, env=env, **quiet)
    _wait_for_first_bag(cohort, run)
    time.sleep(random.Random(seed).uniform(0, 0.2))
    victims = [run, *psutil.Process(run.pid).children(recursive=True)]
    for process in victims:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    run.wait()
    bags = cohort.stamps("features/tiny/*x/*.h5")
    assert 0 < len(bags) < len(finished.stamps("features/tiny/*x/*.h5")), "the kill must fall between two bags"
    cohort.snakemake("--unlock")
    cohort.snakemake(target, "--rerun-incomplete")
    made, undisturbed = cohort.contents(*ARTEFACTS), finished.contents(*ARTEFACTS)
    assert made == {name: undisturbed[name] for name in made} and (target != "all" or made == undisturbed)
    after = cohort.stamps("features/tiny/*x/*.h5")
    assert {name: after[name] for name in bags} == bags, "finished bags are kept"
    assert after.keys() == finished.stamps("features/tiny/*x/*.h5").keys()
    assert list(cohort.results.rglob("*.part")) == []


def _wait_for_first_bag(cohort, run) -> None:
    deadline = time.monotonic() + 120
    while not cohort.stamps("features/tiny/*x/*.h5"):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
