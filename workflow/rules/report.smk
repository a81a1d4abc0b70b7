# What people look at, and the verdict on the whole run.


rule build_report:
    input:
        cohort=rules.join_cohort.output.table,
        splits=rules.make_splits.output.splits if TASKS else [],
        features=[layout.features_index(RESULTS, e) for e in ENCODERS],
        expression=expression_table(),
        genes=[layout.genes(RESULTS, t, k) for t in TASKS for k in FOLDS if HAS_RNA],
        predictions=[layout.predictions(RESULTS, t, x) for t, x in PREDICTED],
        evaluations=[layout.evaluation(RESULTS, t) for t in TASKS],
    output:
        report=layout.report(RESULTS),
    log:
        "logs/build_report.log",
    conda:
        "../../envs/report.yaml"
    params:
        revisions=REVISIONS,
        config=config,
    script:
        "../scripts/build_report.py"


rule conclude:
    input:
        report=rules.build_report.output.report,
        slides=[i for e in ENCODERS for i in batch_indexes(f"features/{e}")],
        trained=[layout.models_index(RESULTS, t, x) for t, x in RUNS],
    output:
        verdict=layout.verdict(RESULTS),
    log:
        "logs/conclude.log",
    conda:
        "../../envs/report.yaml"
    params:
        allow_failed=config["inputs"]["allow_failed"],
    script:
        "../scripts/conclude.py"
