"""Take the imported bags of every slide of the batch."""

from pipeline.batches import run_batch
from pipeline.contracts.cohort import Slide
from pipeline.contracts.layout import RESULTS
from pipeline.eligibility import sheet_verdicts
from pipeline.interop.adopting import AdoptionStage
from workflow.job import job

with job(snakemake):
    slides = [Slide(**row) for row in snakemake.params.slides]
    stage = AdoptionStage(RESULTS, snakemake.wildcards.encoder, snakemake.input.imported.removesuffix("/index.tsv"))
    run_batch(stage, sheet_verdicts(slides, snakemake.params.cases), snakemake.output.index)
