# All that was made -> the one page to read.
#   in   the tables and figures, the metrics that they show; undeclared: results/runs/, results/logs/, results/benchmarks/
#   out  results/index.html

# Its further pages (Markdown) and figures (PNG), by title, in this order: a line here each.
PAGES = made({"Nearest neighbours": f"{RESULTS}/tables/knn.md", "Speed": f"{RESULTS}/tables/speed.md"})
DRAWN = made({"Training curves": f"{RESULTS}/figures/curves.png"})


rule index_page:
    input:
        as_noted("index_page"),
        expand(f"{RESULTS}/tables/table{{number}}.csv", number=TABLES),
        expand(f"{RESULTS}/tables/{{task}}.csv", task=by_class(CONFIG.tables_file, CONFIG.computable)),
        expand(f"{RESULTS}/figures/fig{{number}}.png", number=FIGURES),
        expand(f"{RESULTS}/figures/{{task}}.png", task=by_class(CONFIG.tables_file, CONFIG.computable)),
        list(PAGES.values()),
        list(DRAWN.values()),
        metrics=[*metrics_of(*TABLES), *metrics_of_every_run("knn")],
        tables=str(CONFIG.tables_file),
        published=str(CONFIG.published_file),
    output:
        f"{RESULTS}/index.html",
    log:
        f"{RESULTS}/logs/report/index_page.log",
    benchmark:
        f"{RESULTS}/benchmarks/report/index_page.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        results=subpath(output[0], parent=True),
        scale=CONFIG.scale,
        recipes=CONFIG.hashes(CONFIG.runs),
        computed=computed(*TABLES),
        further=further_parts(),
    shell:
        "python -m uic_core.report.index_page --results {params.results} --metrics {input.metrics}"
        " --tables {input.tables:q} --computed {params.computed} --published {input.published:q} --scale {params.scale}"
        " --recipes {params.recipes}"
        " {params.further:q} --out {output} > {log} 2>&1"


# `snakemake partial` makes the tables and the one page from what exists, with `–` and the reason for each missing number,
# and for each that is of another config or of other data.
# It declares no outputs and no benchmark, which Snakemake would take for one: so it always runs, and never replaces the
# full tables and page.
rule partial:
    input:
        tables=str(CONFIG.tables_file),
        published=str(CONFIG.published_file),
    log:
        f"{RESULTS}/logs/report/partial.log",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        metrics=lambda wildcards: existing(metrics_of(*TABLES)),
        knn=lambda wildcards: existing(metrics_of_every_run("knn")),
        runs=CONFIG.named if metrics_of_every_run("knn") else [],
        needed=[*metrics_of(*TABLES), *metrics_of_every_run("knn")],
        numbers=list(TABLES),
        results=RESULTS,
        folder=f"{RESULTS}/tables/partial",
        scale=CONFIG.scale,
        recipes=CONFIG.hashes(CONFIG.runs),
        stale=lambda wildcards: stale(),
        computed=computed(*TABLES),
        further=lambda wildcards: further_parts(f"{RESULTS}/tables/partial"),
    shell:
        "(for number in {params.numbers}; do"
        " python -m uic_core.report.tables --partial --table $number --scale {params.scale} --tables {input.tables:q}"
        " --computed {params.computed} --published {input.published:q} --metrics {params.metrics}"
        " --recipes {params.recipes} {params.stale:q} --out {params.folder}/table$number.md"
        " --csv {params.folder}/table$number.csv || exit 1; done;"
        " if [[ -n '{params.runs}' ]]; then python -m uic_core.report.knn --partial --metrics {params.knn}"
        " --runs {params.runs} --scale {params.scale} --recipes {params.recipes} {params.stale:q} --out {params.folder}/knn.md"
        " --csv {params.folder}/knn.csv; fi;"
        " python -m uic_core.report.index_page --partial --results {params.results} --metrics {params.needed}"
        " --tables {input.tables:q} --computed {params.computed} --published {input.published:q} --scale {params.scale}"
        " --recipes {params.recipes} {params.stale:q} {params.further:q} --out {params.folder}/index.html) > {log} 2>&1"
