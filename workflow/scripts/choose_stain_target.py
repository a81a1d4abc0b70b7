"""Find or make the stains that all tiles are painted in."""

from pipeline.contracts.layout import RESULTS
from pipeline.stain import StainParams
from pipeline.stain_references import make_target
from pipeline.tiling import TilingParams
from pipeline.tissue import TissueParams
from workflow.job import job

with job(snakemake):
    make_target(
        StainParams(**snakemake.params.section),
        snakemake.params.kind,
        RESULTS,
        snakemake.input.fits,
        TissueParams(**snakemake.params.tissue),
        TilingParams(**snakemake.params.tiles),
    )
