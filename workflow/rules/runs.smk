# All runs of the config side by side, whether or not a table of the paper shows them.
#   in   results/metrics/<run>/knn.json, results/runs/<run>/history.jsonl, whole once there is checkpoint.safetensors
#   out  results/tables/{knn,speed}.{md,csv,html}, results/figures/curves.{png,svg}
OF_ALL_RUNS = []  # what `rule all` takes of them

if metrics_of_every_run("knn"):
    OF_ALL_RUNS.append(f"{RESULTS}/tables/knn.md")

    rule table_knn:
        input:
            as_noted("table_knn"),
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


if training_runs():
    OF_ALL_RUNS += [f"{RESULTS}/figures/curves.png", f"{RESULTS}/tables/speed.md"]

    rule fig_curves:
        input:
            as_noted("fig_curves"),
            histories=[f"{RESULTS}/runs/{run}/history.jsonl" for run in training_runs()],
            checkpoints=ancient([f"{RESULTS}/runs/{run}/checkpoint.safetensors" for run in training_runs()]),
        output:
            png=report(
                f"{RESULTS}/figures/curves.png",
                caption="../report/fig_curves.rst",
                category="All runs",
                labels={"shows": "Training curves"},
            ),
            svg=f"{RESULTS}/figures/curves.svg",
        log:
            f"{RESULTS}/logs/report/fig_curves.log",
        benchmark:
            f"{RESULTS}/benchmarks/report/fig_curves.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            mem_mb=megabytes(2000),
            runtime=minutes(10),
        params:
            scale=CONFIG.scale,
            recipes=CONFIG.hashes(training_runs()),
        shell:
            "python -m uic_core.report.curves --history {input.histories} --scale {params.scale}"
            " --recipes {params.recipes} --out {output.png} --svg {output.svg} > {log} 2>&1"

    # From each history's neighbour training.json, which is no output: a training of an earlier version has no times.
    rule table_speed:
        input:
            as_noted("table_speed"),
            histories=[f"{RESULTS}/runs/{run}/history.jsonl" for run in training_runs()],
            checkpoints=ancient([f"{RESULTS}/runs/{run}/checkpoint.safetensors" for run in training_runs()]),
        output:
            md=f"{RESULTS}/tables/speed.md",
            csv=f"{RESULTS}/tables/speed.csv",
            html=report(
                f"{RESULTS}/tables/speed.html",
                caption="../report/table_speed.rst",
                category="All runs",
                labels={"shows": "Speed of the trainings"},
            ),
        log:
            f"{RESULTS}/logs/report/table_speed.log",
        benchmark:
            f"{RESULTS}/benchmarks/report/table_speed.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            mem_mb=megabytes(1000),
            runtime=minutes(10),
        params:
            scale=CONFIG.scale,
            recipes=CONFIG.hashes(training_runs()),
        shell:
            "python -m uic_core.report.speed --history {input.histories} --scale {params.scale}"
            " --recipes {params.recipes} --out {output.md} --csv {output.csv} --html {output.html} > {log} 2>&1"
