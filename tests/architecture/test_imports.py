"""Arrows point one way (design 5.1), the Snakefile stays light, and the env files cover what their scripts import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.architecture.imports import closure, violations

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {"cv2": "opencv-python", "openslide": "openslide-python", "PIL": "pillow", "sklearn": "scikit-learn",
                 "sksurv": "scikit-survival", "spams": "spams-bin", "markupsafe": "jinja2",
                 "yaml": "pyyaml"}  # fmt: skip


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\s*-?\s*([A-Za-z0-9_.-]+)==(\S+)", text, flags=re.M))


def test_imports_point_one_way():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("models/bad.py", "from pipeline.slide import open_slide"),
        ("models/bad.py", "from pipeline import tissue"),
        ("pipeline/bad.py", "def f():\n    import models.train"),
        ("pipeline/bad.py", "from workflow.job import job"),
        ("pipeline/contracts/bad.py", "import pipeline.stain"),
        ("pipeline/contracts/bad.py", "import torch"),
        ("models/bad.py", "import snakemake"),
    ],
)
def test_a_breach_is_found(tmp_path, module, statement):
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(statement + "\n")
    assert len(violations(tmp_path)) >= 1


def test_allowed_imports_pass(tmp_path):
    path = tmp_path / "models" / "good.py"
    path.parent.mkdir()
    path.write_text(
        "from pipeline.contracts import features\nfrom pipeline.contracts.tasks import Task\nimport torch\n"
    )
    assert violations(tmp_path) == []


def test_the_snakefile_imports_nothing_heavy():
    heavy = "{'numpy', 'torch', 'pandas', 'h5py', 'scanpy', 'timm', 'cv2', 'matplotlib'}"
    code = (
        "import sys\n"
        "from pipeline.contracts import layout, cohort, revisions\nfrom workflow.configuration import checked\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def scripts_with_envs() -> list[tuple[str, str]]:
    """(environment, script) of every rule that runs a script."""
    text = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    rules = re.split(r"^rule \w+:", text, flags=re.M)[1:]
    return [
        (re.search(r"envs/(\w+)\.yaml", rule)[1], re.search(r'"\.\./scripts/(\w+)\.py"', rule)[1]) for rule in rules
    ]


def test_every_script_belongs_to_one_rule_of_its_name():
    names = [script for _, script in scripts_with_envs()]
    assert sorted(names) == sorted(p.stem for p in (ROOT / "workflow/scripts").glob("*.py"))
    text = "".join(p.read_text() for p in (ROOT / "workflow/rules").glob("*.smk"))
    assert sorted(re.findall(r"^rule (\w+):", text, flags=re.M)) == sorted(names)


@pytest.mark.parametrize(("env", "script"), scripts_with_envs())
def test_env_files_cover_imports(env, script):
    needed = closure(ROOT / "workflow/scripts" / f"{script}.py", ROOT) - set(sys.stdlib_module_names)
    given = pins((ROOT / "envs" / f"{env}.yaml").read_text())
    assert {DISTRIBUTIONS.get(name, name) for name in needed} - set(given) == set()


def test_env_files_pin_what_the_tests_use():
    required = pins((ROOT / "requirements.txt").read_text())
    for path in (ROOT / "envs").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["channels"] == ["conda-forge"]
        given = pins(path.read_text())
        assert given and given.items() <= required.items(), path.name


def test_scripts_are_adapters():
    for path in (ROOT / "workflow/scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 25, path.name


def test_no_file_mentions_an_absolute_path_of_a_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    places = re.compile(r"(?<![\w.])/(?:work|home|root|Users)/")
    assert [name for name in tracked if places.search((ROOT / name).read_text(errors="ignore"))] == []
