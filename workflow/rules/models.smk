# Training, out-of-fold prediction and evaluation. A training job holds all folds of one experiment and declares only
# its index, so that a killed job keeps its finished folds. Pre-training without labels is the task `_pretrain`.


rule train_model:
    input:
        unpack(training_inputs),
    output:
        index=layout.models_index(RESULTS, "{task}", "{experiment}"),
    log:
        "logs/train_model/{task}/{experiment}.log",
    conda:
        "../../envs/torch.yaml"
    threads: 8
    resources:
        gpu=1,
    params:
        revision=REVISIONS["models"],
        experiment=lambda wildcards: EXPERIMENTS[wildcards.experiment],
        task=lambda wildcards: ALL_TASKS[wildcards.task],
        labels=label_values,
        covariates=covariate_values,
        sheet=config["inputs"]["cases"],
    script:
        "../scripts/train_model.py"


rule predict_cases:
    input:
        unpack(prediction_inputs),
        trained=rules.train_model.output.index,
    output:
        table=layout.predictions(RESULTS, "{task}", "{experiment}"),
        left_out=layout.predictions(RESULTS, "{task}", "{experiment}", "left_out"),
        slides=[layout.predictions(RESULTS, "{task}", "{experiment}", "slides")] if SLIDES else [],
        external=[layout.predictions(RESULTS, "{task}", "{experiment}", "external")] if EXTERNAL else [],
        external_left_out=(
            [layout.predictions(RESULTS, "{task}", "{experiment}", "external_left_out")] if EXTERNAL else []
        ),
    log:
        "logs/predict_cases/{task}/{experiment}.log",
    wildcard_constraints:
        experiment=one_of(EXPERIMENTS),
    conda:
        "../../envs/torch.yaml"
    resources:
        gpu=1,
    params:
        revision=REVISIONS["predictions"],
        experiment=lambda wildcards: EXPERIMENTS[wildcards.experiment],
        task=lambda wildcards: TASKS[wildcards.task],
        labels=label_values,
        covariates=covariate_values,
        sheet=config["inputs"]["cases"],
    script:
        "../scripts/predict_cases.py"


rule evaluate_task:
    input:
        predictions=lambda w: [layout.predictions(RESULTS, w.task, x) for x in experiments_of(w.task)],
        external=lambda w: [
            layout.predictions(RESULTS, w.task, x, "external") for x in experiments_of(w.task) if EXTERNAL
        ],
    output:
        metrics=layout.evaluation(RESULTS, "{task}"),
        differences=layout.evaluation(RESULTS, "{task}", "differences"),
    log:
        "logs/evaluate_task/{task}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        revision=REVISIONS["evaluation"],
        section=config["evaluation"],
        task=lambda wildcards: TASKS[wildcards.task],
        grouping=grouping_values,
        sheet=config["inputs"]["cases"],
    script:
        "../scripts/evaluate_task.py"
