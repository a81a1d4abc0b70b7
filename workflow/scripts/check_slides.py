"""Open every slide of the batch: what is it, at which um per pixel, and can it be read?"""

from pipeline.batches import run_batch
from pipeline.check import CheckStage
from pipeline.contracts.cohort import Slide
from pipeline.contracts.layout import RESULTS
from pipeline.eligibility import sheet_verdicts
from workflow.job import job

with job(snakemake):
    slides = [Slide(**row) for row in snakemake.params.slides]
    stage = CheckStage({slide.slide_id: slide for slide in slides}, RESULTS)
    upstream = sheet_verdicts(slides, snakemake.params.cases)
    run_batch(stage, upstream, snakemake.output.index, snakemake.threads)
