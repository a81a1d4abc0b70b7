"""Linters, formatters and profiles are clean."""

import shutil
import subprocess
import sys

import pytest

from tests.workflow.conftest import ROOT


@pytest.mark.workflow
def test_snakemake_lint(unrun):
    done = unrun.snakemake("--lint", check=False)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["snakefmt", "--check", "Snakefile", "workflow/rules"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_code_style(command):
    program = shutil.which(command[0]) or str(ROOT / sys.prefix / "bin" / command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.workflow
@pytest.mark.parametrize("profile", ["workstation", "slurm"])
def test_profiles_dry_run(unrun, profile):
    done = unrun.snakemake("--dry-run", "--workflow-profile", str(ROOT / "workflow/profiles" / profile))
    assert "embed_tiles" in done.stdout
    if profile == "slurm":
        assert "slurm_partition=gpu" in done.stdout


@pytest.mark.workflow
@pytest.mark.parametrize("mode", ["slides only", "genes only", "no tasks"])
def test_partial_cohorts_plan(unrun, tmp_path, mode):
    cohort = unrun.copy(tmp_path / "cohort")
    config = cohort.config()
    if mode == "slides only":
        config["inputs"].pop("expression")
        config["experiments"] = [config["experiments"][1]]
    elif mode == "genes only":
        config["inputs"].pop("slides")
        config["experiments"] = [config["experiments"][0]]
    else:
        config["tasks"] = config["experiments"] = []
    cohort.write_config(config)
    planned = {job.split()[0] for job in cohort.planned()}
    assert ("embed_tiles" in planned) == (mode != "genes only")
    assert ("prepare_expression" in planned) == (mode != "slides only")
    assert ("train_model" in planned) == (mode != "no tasks")
