# Data sets on disk -> checked data sets -> indices (files, labels, fingerprint).
#   in   the folders named in config `datasets` (the demo makes them)
#   out  results/data/<dataset>.checked, results/index/<dataset>_<split>.npz


rule protocol:
    output:
        f"{RESULTS}/protocols/{{evaluation}}.yaml",
    log:
        f"{RESULTS}/logs/protocols/{{evaluation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/protocols/{{evaluation}}.tsv"
    wildcard_constraints:
        evaluation="|".join(type(CONFIG.evaluations).model_fields),
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        value=lambda wildcards: section(wildcards.evaluation),
    shell:
        "python -m uic_core.protocol --section {wildcards.evaluation} --value {params.value:q} --out {output} > {log} 2>&1"


rule datasets:
    output:
        f"{RESULTS}/protocols/datasets.yaml",
    log:
        f"{RESULTS}/logs/protocols/datasets.log",
    benchmark:
        f"{RESULTS}/benchmarks/protocols/datasets.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        value=json.dumps(CONFIG.datasets.model_dump()),
    shell:
        "python -m uic_core.protocol --section datasets --value {params.value:q} --out {output} > {log} 2>&1"


if CONFIG.datasets.generated:

    rule synthetic:
        input:
            f"{RESULTS}/protocols/datasets.yaml",
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
            mem_mb=2000,
            runtime=30,
        shell:
            "python -m uic_core.data.synthetic --protocol {input} --dataset {wildcards.dataset} > {log} 2>&1"


rule check:
    input:
        generated,
        protocol=f"{RESULTS}/protocols/datasets.yaml",
    output:
        f"{RESULTS}/data/{{dataset}}.checked",
    log:
        f"{RESULTS}/logs/data/check_{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/check_{{dataset}}.tsv"
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=4000,
        runtime=120,
    shell:
        "python -m uic_core.data.check --protocol {input.protocol} --dataset {wildcards.dataset} --out {output}"
        " > {log} 2>&1"


rule index:
    input:
        checked=f"{RESULTS}/data/{{dataset}}.checked",
        protocol=f"{RESULTS}/protocols/datasets.yaml",
    output:
        f"{RESULTS}/index/{{dataset}}_{{split}}.npz",
    log:
        f"{RESULTS}/logs/data/index_{{dataset}}_{{split}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/index_{{dataset}}_{{split}}.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=240,
    shell:
        "python -m uic_core.data.index --protocol {input.protocol} --dataset {wildcards.dataset}_{wildcards.split}"
        " --out {output} --threads {threads} > {log} 2>&1"
