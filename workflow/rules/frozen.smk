# Checkpoint -> metrics of the network as it is: linear probes, clusters, VOC07 classification, few-shot, kNN.
#   in   results/runs/<run>/checkpoint.safetensors, results/protocols/<evaluation>.yaml, the data sets
#   out  results/metrics/<run>/<evaluation>.json


rule linear_probe:
    input:
        checkpoint=lambda wildcards: evaluated(wildcards.run, wildcards.evaluation),
        protocol=by_content("metrics/{run}/{evaluation}.json", "protocols/{evaluation}.yaml"),
        train=by_content("metrics/{run}/{evaluation}.json", index_of("{evaluation}", "train")),
        val=by_content("metrics/{run}/{evaluation}.json", index_of("{evaluation}", "val")),
    output:
        f"{RESULTS}/metrics/{{run}}/{{evaluation}}.json",
    log:
        f"{RESULTS}/logs/{{run}}/{{evaluation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/{{evaluation}}.tsv"
    wildcard_constraints:
        evaluation="linear_probe(_batch_norm|_selflabel|_rotnet)?",
    conda:
        "../../envs/core.yaml"
    threads: asked("linear_probe").cpus
    resources:
        mem_mb=memory_of("linear_probe"),
        runtime=time_of("{evaluation}"),
        gpu=asked("linear_probe").gpus,
        gres="",
        nodes=1,
        slurm_extra=SIGNAL,
    shell:
        "launch {resources.nodes} {resources.gpu} '{resources.gres}' uic_core.evaluate.linear_probe --run {wildcards.run} --checkpoint {input.checkpoint}"
        " --evaluation {wildcards.evaluation} --protocol {input.protocol} --train-index {input.train} --val-index {input.val} --out {output}"
        " --threads {threads} > {log} 2>&1"


rule clusters:
    input:
        checkpoint=lambda wildcards: evaluated(wildcards.run, "clusters"),
        labels=f"{RESULTS}/runs/{{run}}/labels.npy",
        history=f"{RESULTS}/runs/{{run}}/history.jsonl",
        protocol=by_content("metrics/{run}/clusters.json", "protocols/clusters.yaml"),
        train=by_content("metrics/{run}/clusters.json", lambda wildcards: labelled_index(wildcards.run)),
    output:
        metrics=f"{RESULTS}/metrics/{{run}}/clusters.json",
        arrays=f"{RESULTS}/metrics/{{run}}/clusters.npz",
    log:
        f"{RESULTS}/logs/{{run}}/clusters.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/clusters.tsv"
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_of("clusters"),
        runtime=time_of("clusters"),
    shell:
        "python -m uic_core.evaluate.clusters --run {wildcards.run} --checkpoint {input.checkpoint}"
        " --labels {input.labels} --history {input.history} --protocol {input.protocol} --train-index {input.train}"
        " --out {output.metrics} --arrays {output.arrays} > {log} 2>&1"


rule voc_classification:
    input:
        checkpoint=lambda wildcards: evaluated(wildcards.run, "voc_classification_all"),
        protocol=by_content(
            "metrics/{run}/voc_classification_{train}.json", "protocols/voc_classification_{train}.yaml"
        ),
        checked=by_content("metrics/{run}/voc_classification_{train}.json", "data/voc07.checked"),
    output:
        f"{RESULTS}/metrics/{{run}}/voc_classification_{{train}}.json",
    log:
        f"{RESULTS}/logs/{{run}}/voc_classification_{{train}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/voc_classification_{{train}}.tsv"
    wildcard_constraints:
        train="fc6_8|all",
    conda:
        "../../envs/core.yaml"
    threads: asked("voc_classification_all").cpus
    resources:
        mem_mb=memory_of("voc_classification_all"),
        runtime=time_of("voc_classification_{train}"),
        gpu=asked("voc_classification_all").gpus,
        gres="",
        nodes=1,
        slurm_extra=SIGNAL,
    params:
        root=voc07_root,
    shell:
        "launch {resources.nodes} {resources.gpu} '{resources.gres}' uic_core.evaluate.voc_classification --run {wildcards.run} --checkpoint {input.checkpoint}"
        " --protocol {input.protocol} --voc {params.root:q} --checked {input.checked} --out {output} --threads {threads} > {log} 2>&1"


rule fewshot:
    input:
        checkpoint=lambda wildcards: evaluated(wildcards.run, "fewshot"),
        protocol=by_content("metrics/{run}/fewshot.json", "protocols/fewshot.yaml"),
        index=by_content("metrics/{run}/fewshot.json", fewshot_index),
    output:
        f"{RESULTS}/metrics/{{run}}/fewshot.json",
    log:
        f"{RESULTS}/logs/{{run}}/fewshot.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/fewshot.tsv"
    conda:
        "../../envs/core.yaml"
    threads: asked("fewshot").cpus
    resources:
        mem_mb=memory_of("fewshot"),
        runtime=time_of("fewshot"),
        gpu=asked("fewshot").gpus,
        gres="",
        nodes=1,
    shell:
        "launch {resources.nodes} {resources.gpu} '{resources.gres}' uic_core.evaluate.fewshot --run {wildcards.run} --checkpoint {input.checkpoint}"
        " --protocol {input.protocol} --index {input.index} --out {output} --threads {threads} > {log} 2>&1"


rule knn:
    input:
        checkpoint=lambda wildcards: evaluated(wildcards.run, "knn"),
        protocol=by_content("metrics/{run}/knn.json", "protocols/knn.yaml"),
        train=by_content("metrics/{run}/knn.json", index_of("knn", "train")),
        val=by_content("metrics/{run}/knn.json", index_of("knn", "val")),
    output:
        f"{RESULTS}/metrics/{{run}}/knn.json",
    log:
        f"{RESULTS}/logs/{{run}}/knn.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/knn.tsv"
    conda:
        "../../envs/core.yaml"
    threads: asked("knn").cpus
    resources:
        mem_mb=memory_of("knn"),
        runtime=time_of("knn"),
        gpu=asked("knn").gpus,
        gres="",
        nodes=1,
        slurm_extra=SIGNAL,
    shell:
        "launch {resources.nodes} {resources.gpu} '{resources.gres}' uic_core.evaluate.knn --run {wildcards.run} --checkpoint {input.checkpoint}"
        " --protocol {input.protocol} --train-index {input.train} --val-index {input.val} --out {output}"
        " --threads {threads} > {log} 2>&1"
