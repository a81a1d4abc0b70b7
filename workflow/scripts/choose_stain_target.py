"""Find or make the stains that all tiles are painted in."""

from pipeline.contracts.layout import RESULTS
from pipeline.guard import LOOKING, guarded
from pipeline.stain import StainParams
from pipeline.stain_references import make_target
from pipeline.tiling import TilingParams
from pipeline.tissue import TissueParams
from workflow.job import job


def work(watch):
    section, tissue, tiles = (snakemake.params[key] for key in ("section", "tissue", "tiles"))
    with watch.working("stain.target"):
        make_target(
            StainParams(**section), snakemake.params.kind, RESULTS, snakemake.input.fits,
            TissueParams(**tissue), TilingParams(**tiles),
        )  # fmt: skip


with job(snakemake):
    guarded(work, LOOKING)
