# The cohort joined before any compute, and the one fold assignment that everything shares. The report comes first by
# priority and by claiming every core, not as an input of later stages: a changed label must not rerun the slides. It runs
# where Snakemake runs, because a cluster job would be given fewer cores than it claims.


rule join_cohort:
    input:
        cases=config["inputs"]["cases"],
        slides=config["inputs"]["slides"] or [],
        expression=expression_files(),
    output:
        table=layout.cohort_report(RESULTS),
        page=layout.cohort_report(RESULTS, "html"),
    log:
        "logs/join_cohort.log",
    priority: 100
    conda:
        "../../envs/molecular.yaml"
    threads: ALL_CORES
    params:
        revision=REVISIONS["cohort"],
        tasks=config["tasks"],
        expression=config["expression"],
        path=expression_path,
        slide_types=WANTED_TYPES,
        reads_slides=READS_SLIDES,
    script:
        "../scripts/join_cohort.py"


rule make_splits:
    input:
        cases=config["inputs"]["cases"],
    output:
        splits=layout.splits(RESULTS),
        notes=layout.split_notes(RESULTS),
    log:
        "logs/make_splits.log",
    conda:
        "../../envs/molecular.yaml"
    params:
        revision=REVISIONS["splits"],
        section=config["splits"],
        tasks=config["tasks"],
    script:
        "../scripts/make_splits.py"
