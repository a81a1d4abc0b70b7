# Any expression table to an AnnData file, and per fold the genes that its training cases choose.


rule prepare_expression:
    input:
        table=expression_files(),
        lists=gene_lists(),
        aliases=alias_file(),
    output:
        table=layout.expression(RESULTS),
    log:
        "logs/prepare_expression.log",
    conda:
        "../../envs/molecular.yaml"
    params:
        revision=REVISIONS["expression"],
        section=config["expression"],
        path=expression_path,
        gene_sets=gene_sets,
        cases=CASES_DIGEST,
        cohorts=column_values(["cohort"]),
        sheet=config["inputs"]["cases"],
    script:
        "../scripts/prepare_expression.py"


rule select_genes:
    input:
        expression=rules.prepare_expression.output.table,
        splits=layout.splits(RESULTS),
        lists=gene_lists() + family_list() + cancer_list(),
        aliases=alias_file(),
    output:
        genes=[layout.genes(RESULTS, "{task}", k) for k in FOLDS],
    log:
        "logs/select_genes/{task}.log",
    conda:
        "../../envs/molecular.yaml"
    params:
        revision=REVISIONS["genes"],
        section=config["genes"],
        task=lambda wildcards: ALL_TASKS[wildcards.task],
        labels=label_values,
        sheet=config["inputs"]["cases"],
    script:
        "../scripts/select_genes.py"


rule score_gene_sets:
    input:
        expression=rules.prepare_expression.output.table,
        lists=gene_lists() + family_list(),
        aliases=alias_file(),
    output:
        scores=layout.gene_set_scores(RESULTS),
        counts=layout.gene_set_scores(RESULTS, "sets"),
    log:
        "logs/score_gene_sets.log",
    conda:
        "../../envs/molecular.yaml"
    params:
        revision=REVISIONS["scores"],
        section={k: config["genes"][k] for k in ("tumour", "tme", "families")},
    script:
        "../scripts/score_gene_sets.py"


rule map_cases:
    input:
        expression=rules.prepare_expression.output.table,
    output:
        places=layout.umap(RESULTS),
    log:
        "logs/map_cases.log",
    conda:
        "../../envs/molecular.yaml"
    params:
        revision=REVISIONS["scores"],
    script:
        "../scripts/map_cases.py"
