"""kill -9 in the embedding job, then a rerun, equals a run that nobody disturbed."""

import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from tests.workflow.conftest import ARTEFACTS, ROOT


@pytest.mark.workflow
@pytest.mark.parametrize("seed", [0, *[pytest.param(s, marks=pytest.mark.full) for s in range(1, 6)]])
def test_killed_embedding_then_rerun_equals_an_undisturbed_run(unrun, finished, tmp_path, seed):
    cohort = unrun.copy(tmp_path / "cohort")
    cohort.snakemake("stains")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(cohort.command(), cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    cohort.snakemake("--rerun-incomplete")
    assert cohort.contents(*ARTEFACTS) == finished.contents(*ARTEFACTS)
    after = cohort.stamps("features/tiny/*x/*.h5")
    assert {name: after[name] for name in bags} == bags, "finished bags are kept"
    assert list(cohort.results.rglob("*.part")) == []


def _wait_for_first_bag(cohort, run) -> None:
    deadline = time.monotonic() + 120
    while not cohort.stamps("features/tiny/*x/*.h5"):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
