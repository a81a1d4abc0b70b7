# From slide files to feature bags. The unit of work is a batch; a batch job declares only its index (design 5.7).


rule check_slides:
    input:
        joined=ancient(rules.join_cohort.output.table),
    output:
        index=layout.batch_index(RESULTS, "check", "{batch}"),
    params:
        revision=REVISIONS["check"],
        slides=sheet_rows,
        identities=slide_identities,
        cases=batch_cases,
        results=RESULTS,
    threads: 2
    log:
        "logs/check_slides/{batch}.log",
    conda:
        "../../envs/slides.yaml"
    script:
        "../scripts/check_slides.py"


rule detect_tissue:
    input:
        upstream=rules.check_slides.output.index,
    output:
        index=layout.batch_index(RESULTS, "tissue", "{batch}"),
    params:
        revision=REVISIONS["tissue"],
        section=config["tissue"],
        results=RESULTS,
    threads: 2
    log:
        "logs/detect_tissue/{batch}.log",
    conda:
        "../../envs/slides.yaml"
    script:
        "../scripts/detect_tissue.py"


rule tile_slides:
    input:
        upstream=rules.detect_tissue.output.index,
    output:
        index=layout.batch_index(RESULTS, "tiles", "{batch}"),
    params:
        revision=REVISIONS["tiles"],
        section=config["tiles"],
        results=RESULTS,
    threads: 2
    log:
        "logs/tile_slides/{batch}.log",
    conda:
        "../../envs/slides.yaml"
    script:
        "../scripts/tile_slides.py"


rule fit_stains:
    input:
        upstream=rules.tile_slides.output.index,
    output:
        index=layout.batch_index(RESULTS, "stain", "{batch}"),
    params:
        revision=REVISIONS["stain"],
        section=config["stain"],
        results=RESULTS,
    threads: 2
    log:
        "logs/fit_stains/{batch}.log",
    conda:
        "../../envs/slides.yaml"
    script:
        "../scripts/fit_stains.py"


rule prepare_encoder:
    input:
        weights=lambda wildcards: ENCODERS[wildcards.encoder]["path"] or [],
    output:
        facts=layout.encoder_facts(RESULTS, "{encoder}"),
    params:
        revision=REVISIONS["features"],
        encoder=lambda wildcards: ENCODERS[wildcards.encoder],
    log:
        "logs/prepare_encoder/{encoder}.log",
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/prepare_encoder.py"


rule embed_tiles:
    input:
        upstream=rules.fit_stains.output.index,
        facts=rules.prepare_encoder.output.facts,
    output:
        index=layout.batch_index(RESULTS, "features/{encoder}", "{batch}"),
    params:
        revision=REVISIONS["features"],
        encoder=lambda wildcards: ENCODERS[wildcards.encoder],
        stain=config["stain"],
        section=config["embedding"],
        results=RESULTS,
    threads: 8
    resources:
        gpu=1,
    log:
        "logs/embed_tiles/{encoder}/{batch}.log",
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/embed_tiles.py"


rule index_features:
    input:
        batches=batch_indexes("features/{encoder}"),
        facts=rules.prepare_encoder.output.facts,
    output:
        index=layout.features_index(RESULTS, "{encoder}"),
    params:
        revision=REVISIONS["features"],
        results=RESULTS,
    log:
        "logs/index_features/{encoder}.log",
    conda:
        "../../envs/torch.yaml"
    script:
        "../scripts/index_features.py"
