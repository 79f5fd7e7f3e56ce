# Detection and segmentation -> figures of sample images and tables of all classes, which Table 4 summarises. Each is
# its own target: `snakemake fig_detection`, `snakemake table_segmentation`. Each result has one label in the report:
# Snakemake's page turns a second label with two values in a category into a toggle, and shows nothing at all if a
# combination is missing.
#   in   results/metrics/<run>/<task>.json, <task>_samples.npz of the runs in a table, the config's `tables`
#   out  results/figures/<task>.{png,svg}, results/tables/<task>.{md,csv,html}


for task in by_class(CONFIG.tables_file, CONFIG.computable):

    rule:
        name:
            f"fig_{task}"
        input:
            as_noted(f"fig_{task}"),
            samples=task_samples(task),
            metrics=own_metrics(task),
            tables=str(CONFIG.tables_file),
        output:
            png=report(
                f"{RESULTS}/figures/{task}.png",
                caption=f"../report/fig_{task}.rst",
                category="Figures",
                labels={"figure": BY_CLASS[task].samples.label},
            ),
            svg=f"{RESULTS}/figures/{task}.svg",
        log:
            f"{RESULTS}/logs/report/fig_{task}.log",
        benchmark:
            f"{RESULTS}/benchmarks/report/fig_{task}.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            mem_mb=megabytes(2000),
            runtime=minutes(10),
        params:
            task=task,
            scale=CONFIG.scale,
            recipes=CONFIG.hashes(Path(file).parent.name for file in task_metrics(task)),
            computed=computed(*TABLES, task=task),
        shell:
            "python -m uic_core.report.sample_figures --task {params.task} --samples {input.samples} --metrics {input.metrics}"
            " --recipes {params.recipes} --tables {input.tables:q} --computed {params.computed} --scale {params.scale}"
            " --out {output.png} --svg {output.svg} > {log} 2>&1"

    rule:
        name:
            f"table_{task}"
        input:
            as_noted(f"table_{task}"),
            metrics=task_metrics(task),
            tables=str(CONFIG.tables_file),
        output:
            md=f"{RESULTS}/tables/{task}.md",
            csv=f"{RESULTS}/tables/{task}.csv",
            html=report(
                f"{RESULTS}/tables/{task}.html",
                caption=f"../report/table_{task}.rst",
                category="Classes",
                labels={"table": f"{BY_CLASS[task].name}: {BY_CLASS[task].measure} of every class"},
            ),
        log:
            f"{RESULTS}/logs/report/table_{task}.log",
        benchmark:
            f"{RESULTS}/benchmarks/report/table_{task}.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            mem_mb=megabytes(1000),
            runtime=minutes(10),
        params:
            task=task,
            scale=CONFIG.scale,
            recipes=CONFIG.hashes(Path(file).parent.name for file in task_metrics(task)),
            computed=computed(*TABLES, task=task),
        shell:
            "python -m uic_core.report.per_class --task {params.task} --metrics {input.metrics} --recipes {params.recipes}"
            " --tables {input.tables:q} --computed {params.computed} --scale {params.scale} --out {output.md}"
            " --csv {output.csv} --html {output.html} > {log} 2>&1"
