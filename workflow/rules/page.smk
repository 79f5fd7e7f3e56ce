# All that was made -> the one page to read.
#   in   the tables and figures, the metrics that they show; undeclared: results/runs/, results/logs/, results/benchmarks/
#   out  results/index.html

# Its further pages (Markdown) and figures (PNG), by title, in this order: a line here each.
PAGES = made({"Nearest neighbours": f"{RESULTS}/tables/knn.md", "Speed": f"{RESULTS}/tables/speed.md"})
DRAWN = made({"Training curves": f"{RESULTS}/figures/curves.png"})


rule index_page:
    input:
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
