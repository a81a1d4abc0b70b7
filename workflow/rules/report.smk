# What people look at, and the verdict on the whole run.


rule describe_slides:
    input:
        check=rules.check_slides.output.index,
        tissue=rules.detect_tissue.output.index,
        tiles=rules.tile_slides.output.index,
        stain=rules.fit_stains.output.index,
        features=lambda w: [layout.batch_index(RESULTS, f"features/{e}", w.batch) for e in EMBEDDED],
        target=stain_target(),
    output:
        index=layout.batch_index(RESULTS, "quality", "{batch}"),
    log:
        "logs/describe_slides/{batch}.log",
    conda:
        "../../envs/report.yaml"
    threads: 2
    params:
        revision=REVISIONS["quality"],
        encoders=EMBEDDED,
        stain=config["stain"],
        simulated=config["inputs"]["simulated"],
    script:
        "../scripts/describe_slides.py"


rule list_slides:
    input:
        batches=batch_indexes("quality"),
    output:
        page=layout.slide_pages(RESULTS),
    log:
        "logs/list_slides.log",
    conda:
        "../../envs/report.yaml"
    params:
        revision=REVISIONS["quality"],
        simulated=config["inputs"]["simulated"],
    script:
        "../scripts/list_slides.py"


rule build_report:
    input:
        slides=slide_list(),
        cohort=rules.join_cohort.output.table,
        splits=rules.make_splits.output.splits if TASKS else [],
        features=[layout.features_index(RESULTS, e) for e in ENCODERS],
        expression=expression_table(),
        scores=layout.gene_set_scores(RESULTS) if HAS_RNA else [],
        umap=layout.umap(RESULTS) if HAS_RNA and config["report"]["umap"] else [],
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
        features=[layout.features_index(RESULTS, e) for e in ENCODERS],
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
