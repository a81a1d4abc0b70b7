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
        annotations=annotation_identities,
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


rule choose_stain_target:
    input:
        fits=target_fits(),
        file=target_file(),
    output:
        target=layout.stain_target(RESULTS),
    log:
        "logs/choose_stain_target.log",
    conda:
        "../../envs/slides.yaml"
    params:
        revision=REVISIONS["stain"],
        section=config["stain"],
        kind=TARGET_KIND,
        tissue=config["tissue"] if TARGET_KIND == "slide_file" else {},
        tiles=config["tiles"] if TARGET_KIND == "slide_file" else {},
    script:
        "../scripts/choose_stain_target.py"


# Where the network is: on a cluster, with `snakemake weights` or by itself on the machine that submits the jobs.
rule fetch_weights:
    input:
        file=lambda wildcards: ENCODERS[wildcards.encoder]["path"] or [],
    output:
        facts=layout.encoder_facts(RESULTS, "{encoder}"),
        weights=layout.encoder_weights(RESULTS, "{encoder}"),
    log:
        "logs/fetch_weights/{encoder}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        revision=REVISIONS["features"],
        encoder=lambda wildcards: ENCODERS[wildcards.encoder],
    script:
        "../scripts/fetch_weights.py"


# One pass over a slide for all encoders that lack it: an added encoder finds the others finished.
rule embed_tiles:
    input:
        upstream=rules.fit_stains.output.index,
        facts=[layout.encoder_facts(RESULTS, e) for e in EMBEDDED],
        weights=[layout.encoder_weights(RESULTS, e) for e in EMBEDDED],
        target=stain_target(),
    output:
        indexes=embedded_indexes(),
    log:
        "logs/embed_tiles/{batch}.log",
    conda:
        "../../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
    params:
        revision=REVISIONS["features"],
        encoders=[ENCODERS[e] for e in EMBEDDED],
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


# The indexes of an encoder's batches are also written when another encoder is added (hence `ancient`); its list changes
# with what its features are made from.
rule index_features:
    input:
        unpack(listed_features),
    output:
        index=layout.features_index(RESULTS, "{encoder}"),
    log:
        "logs/index_features/{encoder}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        revision=REVISIONS["features"],
        stain=config["stain"],
        section=config["embedding"],
    script:
        "../scripts/index_features.py"
