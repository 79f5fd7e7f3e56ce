# Data sets on disk -> checked data sets -> indices (files, labels, fingerprint).
#   in   the folders named in config `datasets` (the demo makes them)
#   out  results/data/<dataset>.{yaml,checked}, results/index/<dataset>_<split>.npz (and <dataset>_train_cached.npz)


rule protocol:
    input:
        by_content("protocols/{evaluation}.yaml"),
    output:
        f"{RESULTS}/protocols/{{evaluation}}.yaml",
    log:
        f"{RESULTS}/logs/protocols/{{evaluation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/protocols/{{evaluation}}.tsv"
    wildcard_constraints:
        evaluation="|".join(CONFIG.evaluations.present),
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        value=lambda wildcards: section(wildcards.evaluation),
    shell:
        "python -m uic_core.protocol --section {wildcards.evaluation} --value {params.value:q} --out {output}"
        " > {log} 2>&1"


rule dataset:
    input:
        by_content("data/{dataset}.yaml"),
    output:
        f"{RESULTS}/data/{{dataset}}.yaml",
    log:
        f"{RESULTS}/logs/data/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/{{dataset}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        value=lambda wildcards: CONFIG.datasets.one(wildcards.dataset).model_dump_json(),
    shell:
        "python -m uic_core.protocol --section dataset --value {params.value:q} --out {output} > {log} 2>&1"


if CONFIG.datasets.generated:

    rule synthetic:
        input:
            f"{RESULTS}/data/{{dataset}}.yaml",
        output:
            touch(f"{RESULTS}/data/{{dataset}}.generated"),
        log:
            f"{RESULTS}/logs/data/synthetic_{{dataset}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/data/synthetic_{{dataset}}.tsv"
        conda:
            "../../envs/core.yaml"
        threads: 2
        resources:
            mem_mb=megabytes(2000),
            runtime=time_of("synthetic"),
        shell:
            "python -m uic_core.data.synthetic --dataset {input} --threads {threads} > {log} 2>&1"


# Runs before any training: errors in a data set should be reported while somebody is still watching.
rule check:
    input:
        generated,
        dataset=f"{RESULTS}/data/{{dataset}}.yaml",
    output:
        f"{RESULTS}/data/{{dataset}}.checked",
    log:
        f"{RESULTS}/logs/data/check_{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/check_{{dataset}}.tsv"
    priority: 100
    conda:
        "../../envs/core.yaml"
    threads: 8
    resources:
        mem_mb=megabytes(4000),
        runtime=time_of("check"),
    shell:
        "python -m uic_core.data.check --dataset {input.dataset} --out {output} --threads {threads} > {log} 2>&1"


rule index:
    input:
        checked=f"{RESULTS}/data/{{dataset}}.checked",
        dataset=f"{RESULTS}/data/{{dataset}}.yaml",
    output:
        f"{RESULTS}/index/{{dataset}}_{{split}}.npz",
    log:
        f"{RESULTS}/logs/data/index_{{dataset}}_{{split}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/index_{{dataset}}_{{split}}.tsv"
    priority: 100
    conda:
        "../../envs/core.yaml"
    threads: 8
    resources:
        mem_mb=megabytes(8000),
        runtime=time_of("index"),
    shell:
        "python -m uic_core.data.index --dataset {input.dataset} --split {wildcards.split} --out {output}"
        " --threads {threads} > {log} 2>&1"


rule cache:
    input:
        by_content("index/{dataset}_train_cached.npz", "index/{dataset}_train.npz"),
    output:
        f"{RESULTS}/index/{{dataset}}_train_cached.npz",
    log:
        f"{RESULTS}/logs/data/cache_{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/cache_{{dataset}}.tsv"
    priority: 100
    conda:
        "../../envs/core.yaml"
    threads: 16
    resources:
        mem_mb=megabytes(16000),
        runtime=time_of("cache"),
    params:
        format=CONFIG.datasets.cache.format,
        side=CONFIG.datasets.cache.side,
        root=lambda wildcards: f"{CONFIG.datasets.cache.root}/{wildcards.dataset}",
    shell:
        "python -m uic_core.data.cache --index {input} --format {params.format} --side {params.side}"
        " --root {params.root:q} --out {output} --threads {threads} > {log} 2>&1"
