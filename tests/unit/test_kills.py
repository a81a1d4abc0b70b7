"""kill -9 at random moments, then again: the same bytes as a run that nobody disturbed (design 5.9)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("what", "trials"),
    [
        ("stages", 3),
        ("training", 2),
        *[pytest.param("stages", 8, marks=pytest.mark.full, id=f"stages-{part}") for part in range(5)],
        *[pytest.param("training", 5, marks=pytest.mark.full, id=f"training-{part}") for part in range(3)],
    ],
)
def test_killed_and_done_again_equals_an_undisturbed_run(tmp_path, what, trials):
    """From the check to the features, and training; a trial may be killed twice before it may end."""
    seed = str(int.from_bytes(os.urandom(4), "big"))
    command = [sys.executable, "-m", "tests.bad_slides.killing", what, str(tmp_path / "t"), str(trials), seed]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == trials and all(line.endswith("equal") for line in lines), f"seed {seed}\n{done.stdout}"
    assert sum(int(line.split()[0]) for line in lines) >= trials / 2, "most kills must find the work going on"
