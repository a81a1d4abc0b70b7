# From slide files to feature bags. The unit of work is a batch; a batch job declares only its index (design 5.7).


rule check_slides:
    output:
        index=layout.batch_index(RESULTS, "check", "{batch}"),
    log:
        "logs/check_slides/{batch}.log",
    conda:
        "../../envs/slides.yaml"
    threads: 2
    params:
        revision=REVISIONS["check"],
        slides=sheet_rows,
        identities=slide_identities,
        cases=batch_cases,
    script:
        "../scripts/check_slides.py"


rule detect_tissue:
    input:
        upstream=rules.check_slides.output.index,
    output:
        index=layout.batch_index(RESULTS, "tissue", "{batch}"),
    log:
        "logs/detect_tissue/{batch}.log",
    conda:
        "../../envs/slides.yaml"
    threads: 2
    params:
        revision=REVISIONS["tissue"],
        section=config["tissue"],
    script:
        "../scripts/detect_tissue.py"


rule tile_slides:
    input:
        upstream=rules.detect_tissue.output.index,
    output:
        index=layout.batch_index(RESULTS, "tiles", "{batch}"),
    log:
        "logs/tile_slides/{batch}.log",
    conda:
        "../../envs/slides.yaml"
    threads: 2
    params:
        revision=REVISIONS["tiles"],
        section=config["tiles"],
    script:
        "../scripts/tile_slides.py"


rule fit_stains:
    input:
        upstream=rules.tile_slides.output.index,
    output:
        index=layout.batch_index(RESULTS, "stain", "{batch}"),
    log:
        "logs/fit_stains/{batch}.log",
    conda:
        "../../envs/slides.yaml"
    threads: 2
    params:
        revision=REVISIONS["stain"],
        section=config["stain"],
    script:
        "../scripts/fit_stains.py"


rule prepare_encoder:
    input:
        weights=lambda wildcards: ENCODERS[wildcards.encoder]["path"] or [],
    output:
        facts=layout.encoder_facts(RESULTS, "{encoder}"),
    log:
        "logs/prepare_encoder/{encoder}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        revision=REVISIONS["features"],
        encoder=lambda wildcards: ENCODERS[wildcards.encoder],
    script:
        "../scripts/prepare_encoder.py"


rule embed_tiles:
    input:
        upstream=rules.fit_stains.output.index,
        facts=rules.prepare_encoder.output.facts,
        target=stain_target(),
    output:
        index=layout.batch_index(RESULTS, "features/{encoder}", "{batch}"),
    log:
        "logs/embed_tiles/{encoder}/{batch}.log",
    wildcard_constraints:
        encoder=one_of(EMBEDDED),
    conda:
        "../../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
    params:
        revision=REVISIONS["features"],
        encoder=lambda wildcards: ENCODERS[wildcards.encoder],
        stain=config["stain"],
        section=config["embedding"],
    script:
        "../scripts/embed_tiles.py"


rule adopt_features:
    input:
        imported=lambda wildcards: f"{ENCODERS[wildcards.encoder]['path']}/index.tsv",
    output:
        index=layout.batch_index(RESULTS, "features/{encoder}", "{batch}"),
    log:
        "logs/adopt_features/{encoder}/{batch}.log",
    wildcard_constraints:
        encoder=one_of(ADOPTED),
    conda:
        "../../envs/slides.yaml"
    params:
        revision=REVISIONS["import"],
        slides=sheet_rows,
        cases=batch_cases,
    script:
        "../scripts/adopt_features.py"


rule index_features:
    input:
        batches=batch_indexes("features/{encoder}"),
        facts=encoder_facts,
    output:
        index=layout.features_index(RESULTS, "{encoder}"),
    log:
        "logs/index_features/{encoder}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        revision=REVISIONS["features"],
    script:
        "../scripts/index_features.py"
