"""A page for every slide of the batch: what it is, what was taken of it, what it looks like."""

from pipeline.batches import run_batch
from pipeline.contracts.layout import RESULTS
from pipeline.guard import LOOKING, guarded
from pipeline.report.quality import QualityStage, read_stages, to_describe
from pipeline.stain import StainParams
from workflow.job import job


def work(watch):
    slugs = snakemake.params.encoders
    features = {f"features/{slug}": path for slug, path in zip(slugs, snakemake.input.features, strict=True)}
    stages = {name: snakemake.input[name] for name in ("check", "tissue", "tiles", "stain")}
    slides = read_stages(stages | features)
    stage = QualityStage(RESULTS, slides, slugs, StainParams(**snakemake.params.stain), snakemake.params.simulated)
    rows = to_describe(slides)
    run_batch(watch.stage(stage), rows, snakemake.output.index, watch.threads(snakemake.threads))


with job(snakemake):
    guarded(work, LOOKING)
