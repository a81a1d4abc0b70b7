"""Is this machine, config and cohort ready? Every line says what was looked at; a cross comes with its fix."""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml

from models.experiment import Experiment
from pipeline.contracts import layout
from pipeline.contracts.cohort import Slide, read_cases, read_slides
from pipeline.contracts.encoders import IMPORTED
from pipeline.contracts.errors import HistoweaveError, SlideError
from pipeline.contracts.slide_files import is_remote
from pipeline.contracts.slide_types import select_types
from pipeline.contracts.tasks import PRETRAINING
from pipeline.encoder_table import KNOWN, departures
from pipeline.remote_files import remote_file
from workflow.configuration import checked

HELP = "check this machine, the config and the cohort"
REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
FEATURE_BYTES = 2048 * 4  #: a ResNet-50 feature; the estimate says so
SECONDS_PER_TILE_CPU, SECONDS_PER_TILE_GPU = 0.05, 0.001


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. `mark` is ok, note or fail."""

    mark: str
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"), help="default: config.yaml")


def run(options: argparse.Namespace) -> int:
    findings = []
    for look in (_packages, _reader, _device, lambda: _cohort(options.configfile)):
        for finding in _guarded(look):
            findings.append(finding)
            print(f"[{finding.mark:4}] {finding.text}", flush=True)
    failed = sum(finding.mark == "fail" for finding in findings)
    print(f"{failed} to mend." if failed else "Ready: snakemake --cores 8 --use-conda -n shows what would run.")
    return 1 if failed else 0


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (HistoweaveError, OSError) as error:
        yield Finding("fail", str(error))


def _packages() -> Iterator[Finding]:
    wrong = []
    pins = [line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    for name, wanted in pins:
        try:
            found = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found = "absent"
        if found != wanted:
            wrong.append(f"{name} {found} (tested with {wanted})")
    missing = [w for w in wrong if " absent " in w]
    if missing:
        yield Finding(
            "fail",
            f"packages missing: {', '.join(missing)}. Fix: make env, or pip install -r requirements.txt",
        )
    others = [w for w in wrong if " absent " not in w]
    if others:
        yield Finding("note", f"other versions than tested: {', '.join(others)}")
    if not wrong:
        yield Finding("ok", f"{len(pins)} packages as pinned")


def _reader() -> Iterator[Finding]:
    openslide = importlib.import_module("openslide")
    yield Finding("ok", f"OpenSlide library {openslide.__library_version__}")


def _device() -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        yield Finding("ok", f"GPU {torch.cuda.get_device_name(0)}")
    else:
        yield Finding("note", "no GPU seen by torch: tiles are embedded on the CPU, which takes some 50 times longer")


def _cohort(configfile: Path) -> Iterator[Finding]:
    if not configfile.exists():
        yield Finding("fail", f"{configfile} does not exist. Fix: copy config.yaml of histoweave here and edit it")
        return
    config = checked(yaml.safe_load(configfile.read_text(encoding="utf-8")) or {})
    yield Finding("ok", f"{configfile}: {len(config['tasks'])} tasks, {len(config['experiments'])} experiments")
    _resolve(config)
    yield from _encoders(config)
    cases = read_cases(config["inputs"]["cases"])
    yield Finding("ok", f"{cases.path}: {len(cases.rows)} cases")
    if config["inputs"]["slides"]:
        yield from _slides(config)


def _resolve(config: dict) -> None:
    """Raise InputError for a hyper-parameter that a model does not have. Loads torch, so a dry run leaves it out."""
    kinds = {task["name"]: task["kind"] for task in config["tasks"]}
    for experiment in config["experiments"]:
        for task in experiment["tasks"] or kinds:
            Experiment(**experiment).resolved(kinds.get(task, PRETRAINING))


def _encoders(config: dict) -> Iterator[Finding]:
    """What the table of known encoders says about those of the config."""
    if not config["inputs"]["slides"]:
        return
    tiles = config["tiles"]
    for encoder in config["encoders"]:
        for text in departures(encoder, tiles["size_px"], tiles["magnifications"]):
            yield Finding("note", text)
        known = KNOWN.get(encoder["preset"] or "")
        is_fetched = Path(layout.encoder_weights(layout.RESULTS, encoder["slug"])).exists()
        if known and known.is_gated and encoder["weights"] == "pretrained" and not is_fetched:
            yield Finding(
                "note",
                f"encoder '{encoder['slug']}' ({known.licence}) needs a login: accept its conditions on"
                f" {known.sources[0]}, set HF_TOKEN, then run: snakemake weights",
            )


def _slides(config: dict) -> Iterator[Finding]:
    inputs = config["inputs"]
    sheet = select_types(read_slides(inputs["slides"]), inputs["slide_types"], inputs["keep_normal"])
    slides = [slide for slide in sheet if not slide.exclude]
    if config["encoders"] and all(encoder["weights"] == IMPORTED for encoder in config["encoders"]):
        yield Finding("note", f"features are imported: {len(slides)} slides, whose files are not read")
        return
    remote = [slide for slide in slides if is_remote(slide.path)]
    yield from _remote(remote)
    slides = [slide for slide in slides if slide not in remote]
    missing = [slide for slide in slides if not Path(slide.path).exists()]
    if missing:
        listed = ", ".join(f"{slide.slide_id} ({slide.path})" for slide in missing[:5])
        yield Finding("fail", f"{len(missing)} of {len(slides)} slide files missing: {listed}. Fix: correct slides.tsv")
    present = [Path(slide.path) for slide in slides if slide not in missing]
    size = sum(path.stat().st_size for path in present)
    yield Finding("ok", f"{len(present)} slide files, {size / 1e9:.1f} GB")
    # a compressed slide at 40x holds about 0.15 MB per 20x tile; half of them on tissue
    tiles = size / 0.3e6
    share = sum((mag / 20) ** 2 for mag in config["tiles"]["magnifications"]) * len(config["encoders"])
    need = tiles * share * FEATURE_BYTES
    free = shutil.disk_usage(".").free
    text = (
        f"rough estimate: {tiles * share:,.0f} tiles, {need / 1e9:.1f} GB of features (2048-d),"
        f" {tiles * share * SECONDS_PER_TILE_GPU / 3600:.1f} h on one GPU or"
        f" {tiles * share * SECONDS_PER_TILE_CPU / 3600:.1f} h on one CPU core; {free / 1e9:.0f} GB free"
    )
    yield Finding("ok" if free > 1.2 * need else "fail", text + ("" if free > 1.2 * need else ". Fix: free disk space"))


def _remote(slides: Sequence[Slide]) -> Iterator[Finding]:
    """Looks up one slide of each protocol: thousands of requests would take long, and access fails for all or none."""
    for protocol, slide in {slide.path.partition(":")[0]: slide for slide in reversed(slides)}.items():
        try:
            with remote_file(slide.path) as file:
                what = f"{protocol} slides: {slide.slide_id} is there, {file.size / 1e9:.2f} GB"
                yield Finding("ok", f"{what}; the others were not looked up")
        except SlideError as error:
            yield Finding("fail", str(error))
