"""Open every slide of the batch: what is it, at which um per pixel, and can it be read?"""

from pipeline.batches import run_batch
from pipeline.check import CheckStage
from pipeline.contracts.cohort import Slide
from pipeline.contracts.layout import RESULTS
from pipeline.eligibility import sheet_verdicts
from pipeline.guard import OPENING, guarded
from workflow.job import job


def work(watch):
    slides = [Slide(**row) for row in snakemake.params.slides]
    stage = CheckStage({slide.slide_id: slide for slide in slides}, RESULTS)
    upstream = sheet_verdicts(slides, snakemake.params.cases)
    run_batch(watch.stage(stage), upstream, snakemake.output.index, watch.threads(snakemake.threads))


with job(snakemake):
    guarded(work, OPENING)
