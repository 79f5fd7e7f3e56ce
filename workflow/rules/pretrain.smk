# Index + recipe -> checkpoint, pseudo-labels, history: one folder per run.
#   in   results/index/<data>_train.npz (or <data>_train_cached.npz), config `runs`
#   out  results/runs/<run>/{recipe.yaml, checkpoint.safetensors, labels.npy, history.jsonl}; undeclared: training.json


rule recipe:
    input:
        by_content("runs/{run}/recipe.yaml"),
    output:
        f"{RESULTS}/runs/{{run}}/recipe.yaml",
    log:
        f"{RESULTS}/logs/{{run}}/recipe.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/recipe.tsv"
    wildcard_constraints:
        run="|".join(CONFIG.runs),
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        value=lambda wildcards: json.dumps(CONFIG.runs[wildcards.run].written()),
    shell:
        "python -m uic_core.protocol --section recipe --value {params.value:q} --out {output} > {log} 2>&1"


rule pretrain:
    input:
        recipe=by_content("runs/{run}/checkpoint.safetensors", "runs/{run}/recipe.yaml"),
        index=by_content("runs/{run}/checkpoint.safetensors", run_index),
    output:
        checkpoint=f"{RESULTS}/runs/{{run}}/checkpoint.safetensors",
        labels=f"{RESULTS}/runs/{{run}}/labels.npy",
        history=f"{RESULTS}/runs/{{run}}/history.jsonl",
    log:
        f"{RESULTS}/logs/{{run}}/pretrain.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/pretrain.tsv"
    wildcard_constraints:
        run=runs("pretrain"),
    conda:
        "../../envs/core.yaml"
    threads: cpus
    resources:
        mem_mb=megabytes(64000),
        runtime=time_of("pretrain"),
        gpu=gpus,
        gres="",
        nodes=1,
        slurm_extra=SIGNAL,
    params:
        folder=subpath(output.checkpoint, parent=True),
    shell:
        "launch {resources.nodes} {resources.gpu} '{resources.gres}' uic_core.pretrain --recipe {input.recipe} --train-index {input.index} --out {params.folder}"
        " --threads {threads} > {log} 2>&1"


rule external:
    input:
        recipe=by_content("runs/{run}/checkpoint.safetensors", "runs/{run}/recipe.yaml"),
        source=wherever("runs/{run}/checkpoint.safetensors", external_checkpoint),
    output:
        f"{RESULTS}/runs/{{run}}/checkpoint.safetensors",
    log:
        f"{RESULTS}/logs/{{run}}/external.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/external.tsv"
    wildcard_constraints:
        run=runs("external"),
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=megabytes(8000),
        runtime=time_of("external"),
    shell:
        "python -m uic_core.pretrain.external --recipe {input.recipe} --source {input.source:q} --out {output}"
        " > {log} 2>&1"


rule finetune:
    input:
        recipe=by_content("runs/{run}/checkpoint.safetensors", "runs/{run}/recipe.yaml"),
        index=by_content("runs/{run}/checkpoint.safetensors", run_index),
        pretrained=its_start,
    output:
        checkpoint=f"{RESULTS}/runs/{{run}}/checkpoint.safetensors",
        labels=f"{RESULTS}/runs/{{run}}/labels.npy",
        history=f"{RESULTS}/runs/{{run}}/history.jsonl",
    log:
        f"{RESULTS}/logs/{{run}}/finetune.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/finetune.tsv"
    wildcard_constraints:
        run=runs("finetune"),
    conda:
        "../../envs/core.yaml"
    threads: cpus
    resources:
        mem_mb=megabytes(64000),
        runtime=time_of("finetune"),
        gpu=gpus,
        gres="",
        nodes=1,
        slurm_extra=SIGNAL,
    params:
        folder=subpath(output.checkpoint, parent=True),
    shell:
        "launch {resources.nodes} {resources.gpu} '{resources.gres}' uic_core.pretrain.finetune --recipe {input.recipe} --train-index {input.index}"
        " --pretrained {input.pretrained} --out {params.folder} --threads {threads} > {log} 2>&1"
