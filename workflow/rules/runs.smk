# All runs of the config side by side, whether or not a table of the paper shows them.
#   in   results/metrics/<run>/knn.json of every run
#   out  results/tables/knn.{md,csv,html}
OF_ALL_RUNS = []  # what `rule all` takes of them

if metrics_of_every_run("knn"):
    OF_ALL_RUNS.append(f"{RESULTS}/tables/knn.md")

    rule table_knn:
        input:
            from_elsewhere(CONFIG.named),
            metrics=metrics_of_every_run("knn"),
        output:
            md=f"{RESULTS}/tables/knn.md",
            csv=f"{RESULTS}/tables/knn.csv",
            html=report(
                f"{RESULTS}/tables/knn.html",
                caption="../report/table_knn.rst",
                category="All runs",
                labels={"shows": "Nearest neighbours"},
            ),
        log:
            f"{RESULTS}/logs/report/table_knn.log",
        benchmark:
            f"{RESULTS}/benchmarks/report/table_knn.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            mem_mb=megabytes(1000),
            runtime=minutes(10),
        params:
            runs=CONFIG.named,
            scale=CONFIG.scale,
            recipes=CONFIG.hashes(CONFIG.named),
        shell:
            "python -m uic_core.report.knn --metrics {input.metrics} --runs {params.runs} --scale {params.scale}"
            " --recipes {params.recipes} --out {output.md} --csv {output.csv} --html {output.html} > {log} 2>&1"
