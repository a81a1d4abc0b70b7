"""One self-contained page about the whole run."""

from pipeline.contracts.layout import RESULTS
from pipeline.report.build import ReportContext, build_report
from workflow.job import job

with job(snakemake):
    build_report(
        RESULTS,
        snakemake.output.report,
        ReportContext(config=snakemake.params.config, revisions=snakemake.params.revisions),
    )
