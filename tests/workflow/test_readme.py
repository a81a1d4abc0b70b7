"""The README's commands, run as written, in a copy of the repository."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.workflow.conftest import ROOT

STAND_IN = ROOT / "tests/workflow/conda_stand_in/bin"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The tracked files, times kept, so that the environment at hand counts as made from them."""
    target = tmp_path_factory.mktemp("clone")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def run(command: str, clone: Path) -> subprocess.CompletedProcess:
    path = f"{STAND_IN}{os.pathsep}{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {
        "PATH": path,
        "VENV": sys.prefix,
        "MAKEFLAGS": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(clone),
    }
    done = subprocess.run(command, shell=True, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done


def file_times(folder: Path) -> dict[str, int]:
    kept = [p for p in folder.rglob("*") if p.is_file() and ".snakemake" not in p.parts]
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in kept}


@pytest.mark.workflow
@pytest.mark.timeout(900)
def test_make_demo_twice(clone):
    assert "make demo" in commands()
    done = run("make demo", clone)
    assert "demo/results/report.html" in done.stdout
    assert (clone / "demo/results/report.html").stat().st_size > 100_000
    assert "simulated" in (clone / "demo/results/report.html").read_text().lower()
    before = file_times(clone / "demo")
    again = run("make demo", clone)
    assert "Nothing to be done" in again.stdout + again.stderr
    assert file_times(clone / "demo") == before


@pytest.mark.workflow
@pytest.mark.timeout(900)
def test_the_five_steps_and_the_other_commands(clone, unrun):
    """Run on the tiny cohort: init makes the sheets, the test fills in labels and config as a user would."""
    for name in ("slides.tsv", "cases.tsv"):
        (clone / name).unlink(missing_ok=True)
    slides = clone / "path/to/slides"
    shutil.copytree(unrun.path / "data/slides", slides)
    todo = [c for c in commands() if not c.startswith("make")]
    assert todo[0].startswith("histoweave init")
    run(todo.pop(0), clone)
    assert (clone / "slides.tsv").read_text().count("\n") == len(list(slides.glob("*.tif"))) + 1
    shutil.copytree(unrun.path / "data", clone / "data", dirs_exist_ok=True)
    (clone / "new.tsv").write_bytes(gzip.decompress((clone / "data/rna.tsv.gz").read_bytes()))
    (clone / "config.yaml").write_text(yaml.safe_dump(unrun.config(), sort_keys=False))
    for command in todo:
        slide = next((clone / "results/tiles").glob("*.h5"), Path("none")).stem
        command = command.replace("grade/abmil", "grade/slides").replace("../new_cohort/results", "results")
        run(command.replace("SLIDE_ID", slide), clone)
    assert (clone / "results/report.html").exists()
    assert list((clone / ".snakemake/conda").glob("*/bin/python")), "rules ran in environments of their own"


@pytest.mark.workflow
@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_demo_config_with_conda(clone):
    if not (clone / "demo/data").exists():
        run(f"{sys.executable} -m workflow.simulation demo/data --slide-root data/slides", clone)
    shutil.rmtree(clone / "demo/results", ignore_errors=True)
    run("snakemake --cores 2 --use-conda --directory demo --configfile demo/config.yaml", clone)
    assert (clone / "demo/results/report.html").exists()
