"""A tiny simulated cohort, run once through the real Snakefile; tests work on copies of the finished folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from pipeline.signatures import BUILTIN, load_signatures

ROOT = Path(__file__).resolve().parents[2]

CONFIG = {
    "inputs": {
        "slides": "data/slides.tsv",
        "cases": "data/cases.tsv",
        "expression": "data/rna.tsv.gz",
        "allow_failed": True,
        "simulated": True,
    },
    "tiles": {"size_px": 224, "magnifications": [20, 10]},
    "encoders": [{"slug": "tiny", "name": "test_resnet.r160_in1k", "weights": "random"}],
    "genes": {"tumour": "data/tumour.gmt", "top_fraction": 0.9},
    "splits": {"folds": 2, "validation": 0.2},
    "tasks": [
        {"name": "grade", "kind": "classification", "label": "grade"},
        {"name": "survival", "kind": "survival", "time": "time_days", "event": "event"},
    ],
    "experiments": [
        {"name": "genes", "model": "linear"},
        {"name": "slides", "model": "abmil", "tasks": ["grade"], "epochs": 2},
        {"name": "fusion", "model": "concat", "tasks": ["survival"], "epochs": 2},
    ],
    "evaluation": {"bootstrap": 50},
}


class Cohort:
    """A working directory in which the workflow runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = path / "results"

    def copy(self, path: Path) -> Cohort:
        """An equal folder, file times kept: to Snakemake it is as finished as this one."""
        shutil.copytree(self.path, path, symlinks=True)
        return Cohort(path)

    def config(self) -> dict:
        return yaml.safe_load((self.path / "config.yaml").read_text())

    def write_config(self, config: dict) -> None:
        (self.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def edit_config(self, change: Callable[[dict], None]) -> None:
        config = self.config()
        change(config)
        self.write_config(config)

    def command(self, *arguments: str) -> list[str]:
        """The same threads in every run: equality is promised for fixed threads only (design 5.9)."""
        start = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        return [*start, *arguments, "--directory", str(self.path), "--set-threads", "train_model=1"]

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(self.command(*arguments), cwd=ROOT, env=env, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        return done

    def planned(self, *arguments: str) -> list[str]:
        """Jobs that a dry run would start, as 'rule' or 'rule wildcards', sorted."""
        text = self.snakemake("--dry-run", *arguments).stdout
        jobs = []
        for block in re.split(r"\n(?=(?:local)?rule )", text)[1:]:
            name = re.match(r"(?:local)?rule (\w+):", block)[1]
            wildcards = re.search(r"^ +wildcards: (.*)$", block, flags=re.M)
            values = " ".join(w.split("=")[1] for w in wildcards[1].split(", ")) if wildcards else ""
            jobs.append(f"{name} {values}".strip())
        return sorted(jobs)

    def stamps(self, *patterns: str) -> dict[str, int]:
        """Modification time (ns) of every result file that matches."""
        files = {path for pattern in patterns for path in self.results.glob(pattern) if path.is_file()}
        return {str(path.relative_to(self.results)): path.stat().st_mtime_ns for path in sorted(files)}

    def contents(self, *patterns: str) -> dict[str, bytes]:
        files = {path for pattern in patterns for path in self.results.glob(pattern) if path.is_file()}
        return {str(path.relative_to(self.results)): path.read_bytes() for path in sorted(files)}


#: artefacts that must be equal, byte for byte, between two runs on the same input (design 5.9)
ARTEFACTS = (
    "cohort/report.tsv", "slides/*.json", "tissue/*.geojson", "tiles/*.h5", "stain/*.json", "encoders/*.json",
    "features/*/*x/*.h5", "features/*/index.tsv", "expression/*.h5ad", "splits/*.tsv", "genes/*/*.json",
    "models/*/*/fold*/*", "predictions/*/*.tsv", "evaluation/*.tsv",
)  # fmt: skip


def simulate(path: Path, patients: int = 12, size: int = 800) -> Cohort:
    """Write the cohort's input and config; nothing has run yet."""
    command = [sys.executable, "-m", "workflow.simulation", str(path / "data"), "--slide-root", "data/slides"]
    command += ["--patients", str(patients), "--size", str(size)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    cohort = Cohort(path)
    cohort.write_config(json.loads(json.dumps(CONFIG)))
    genes = load_signatures(BUILTIN, BUILTIN).tumour[:80]
    (path / "data/tumour.gmt").write_text("\t".join(["tumour", "test list", *genes]) + "\n")
    return cohort


def made_once(path: Path, make: Callable[[Path], None]) -> Cohort:
    """The cohort at ``path``, made by the first process of the suite that asks; the others wait for it."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            making = path.with_name(f"{path.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            make(making)
            making.rename(path)
    return Cohort(path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Path:
    """A folder of this run of the suite, one for all its processes."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def unrun(shared) -> Cohort:
    return made_once(shared / "unrun", simulate)


@pytest.fixture(scope="session")
def finished(unrun, shared) -> Cohort:
    return made_once(shared / "finished", lambda path: unrun.copy(path).snakemake())


@pytest.fixture
def cohort(finished, tmp_path) -> Cohort:
    """A finished copy to change."""
    return finished.copy(tmp_path / "cohort")
