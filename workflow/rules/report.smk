# Metrics -> tables and figures. Each is its own target: `snakemake table4`, `snakemake fig3`.
#   in   results/metrics/<run>/<evaluation>.json, the files that config `tables` and `published` name
#   out  results/metrics/<run>/<evaluation>.seeds.json for runs with several seeds,
#        results/tables/table<n>.{md,csv,tex,html}, results/figures/fig<n>.{png,svg}; on request results/export/<run>/


rule seeds:
    input:
        by_content("metrics/{run}/{evaluation}.seeds.json"),
        metrics=metrics_of_seeds,
    output:
        f"{RESULTS}/metrics/{{run}}/{{evaluation}}.seeds.json",
    log:
        f"{RESULTS}/logs/{{run}}/seeds_{{evaluation}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/seeds_{{evaluation}}.tsv"
    wildcard_constraints:
        run="|".join(run for run in CONFIG.seeds if CONFIG.seeds[run]) or "no_run",
        evaluation="[a-z0-9_]+",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=500,
        runtime=5,
    shell:
        "python -m uic_core.report.seeds --metrics {input.metrics} --out {output} > {log} 2>&1"


rule export:
    input:
        by_content("export/{run}/README.md"),
        checkpoint=f"{RESULTS}/runs/{{run}}/checkpoint.safetensors",
        metrics=metrics_of_run,
    output:
        card=f"{RESULTS}/export/{{run}}/README.md",
        torchvision=f"{RESULTS}/export/{{run}}/torchvision.safetensors",
        openmmlab=f"{RESULTS}/export/{{run}}/openmmlab.safetensors",
    log:
        f"{RESULTS}/logs/{{run}}/export.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/export.tsv"
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=megabytes(8000),
        runtime=minutes(10),
    params:
        folder=subpath(output.card, parent=True),
    shell:
        "python -m uic_core.pretrain.export --run {wildcards.run} --checkpoint {input.checkpoint}"
        " --metrics {input.metrics} --out {params.folder} > {log} 2>&1"


for number in TABLES:

    rule:
        name:
            f"table{number}"
        input:
            as_noted(f"table{number}"),
            from_elsewhere([run for run, _ in needed(CONFIG.tables_file, number, CONFIG.computable)]),
            metrics=metrics_of(number),
            tables=str(CONFIG.tables_file),
            published=str(CONFIG.published_file),
        output:
            md=f"{RESULTS}/tables/table{number}.md",
            csv=f"{RESULTS}/tables/table{number}.csv",
            tex=f"{RESULTS}/tables/table{number}.tex",
            html=report(
                f"{RESULTS}/tables/table{number}.html",
                caption="../report/table.rst",
                category="Tables",
                labels={"table": f"{number} · {shows(number)}"},
            ),
        log:
            f"{RESULTS}/logs/report/table{number}.log",
        benchmark:
            f"{RESULTS}/benchmarks/report/table{number}.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            mem_mb=megabytes(1000),
            runtime=minutes(10),
        params:
            number=number,
            scale=CONFIG.scale,
            caption=lambda wildcards, number=number: TABLES[number].caption,
            recipes=CONFIG.hashes(run for run, _ in pairs_of(number)),
            computed=computed(number),
        shell:
            "python -m uic_core.report.tables --table {params.number} --scale {params.scale} --tables {input.tables:q}"
            " --computed {params.computed} --published {input.published:q} --metrics {input.metrics}"
            " --recipes {params.recipes} --out {output.md} --csv {output.csv} --tex {output.tex} --html {output.html}"
            " > {log} 2>&1"


for number in FIGURES:

    rule:
        name:
            f"fig{number}"
        input:
            as_noted(f"fig{number}"),
            metrics=f"{RESULTS}/metrics/{FIGURES[number].run}/clusters.json",
            arrays=f"{RESULTS}/metrics/{FIGURES[number].run}/clusters.npz",
            index=ancient(labelled_index(FIGURES[number].run)),
        output:
            png=report(
                f"{RESULTS}/figures/fig{number}.png",
                caption="../report/figure.rst",
                category="Figures",
                labels={"figure": f"{number} · {FIGURES[number].title}"},
            ),
            svg=f"{RESULTS}/figures/fig{number}.svg",
        log:
            f"{RESULTS}/logs/report/fig{number}.log",
        benchmark:
            f"{RESULTS}/benchmarks/report/fig{number}.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            mem_mb=megabytes(2000),
            runtime=minutes(10),
        params:
            number=number,
            scale=CONFIG.scale,
            caption=lambda wildcards, number=number: FIGURES[number].caption,
            recipes=CONFIG.hashes([FIGURES[number].run]),
        shell:
            "python -m uic_core.report.figures --figure {params.number} --scale {params.scale}"
            " --metrics {input.metrics} --arrays {input.arrays} --index {input.index} --recipes {params.recipes}"
            " --out {output.png} --svg {output.svg} > {log} 2>&1"


rule summary:
    input:
        as_noted("summary"),
        csv=expand(f"{RESULTS}/tables/table{{number}}.csv", number=TABLES),
        tables=str(CONFIG.tables_file),
    output:
        readme=f"{RESULTS}/README.md",
        times=report(
            f"{RESULTS}/times.html",
            caption="../report/times.rst",
            category="Jobs",
            labels={"shows": "Time and memory"},
        ),
    log:
        f"{RESULTS}/logs/report/summary.log",
    benchmark:
        f"{RESULTS}/benchmarks/report/summary.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        scale=CONFIG.scale,
        benchmarks=f"{RESULTS}/benchmarks",
        all_runs=lambda wildcards: [Path(file).stem for file in OF_ALL_RUNS],
        computed=computed(*TABLES),
    shell:
        "python -m uic_core.report.summary --csv {input.csv} --tables {input.tables:q} --computed {params.computed}"
        " --scale {params.scale} --benchmarks {params.benchmarks} --times {output.times} --all-runs {params.all_runs}"
        " --out {output.readme} > {log} 2>&1"
