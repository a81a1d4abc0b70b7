"""List the bags of one encoder: the only list that training reads."""

from pipeline.bag_index import collect_bags
from pipeline.contracts.batches import read_batch
from pipeline.contracts.features import write_index
from pipeline.contracts.layout import RESULTS
from workflow.job import job

with job(snakemake):
    rows = [row for path in snakemake.input.batches for row in read_batch(path).values()]
    bags = collect_bags(RESULTS, snakemake.wildcards.encoder, rows)
    write_index(snakemake.output.index, bags)
