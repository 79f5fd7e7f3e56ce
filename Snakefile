# UIC: every table and figure of "Unsupervised Image Classification for Deep Representation Learning".
#
#   snakemake --profile slurm            the paper, on a cluster        (config/paper.yaml)
#   snakemake --profile profiles/demo    the demo, on this machine      (config/demo.yaml)
#   snakemake --profile … table4         one table; so table1 … table7, fig3, fig4,
#                                        fig_detection, table_detection, …_segmentation,
#                                        table_knn, fig_curves, table_speed
#
# Data flows down this page: images -> index -> recipe -> checkpoint -> metrics -> tables and figures.
from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/config.smk"
include: "workflow/rules/reruns.smk"
include: "workflow/rules/noted.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/takeover.smk"


FILES = config_files()


configfile: "config/paper.yaml"


CONFIG = validated_config()
FULL = full_config()
LONGEST = longest()
RESULTS = CONFIG.results
TABLES, FIGURES = read_tables(CONFIG.tables_file, CONFIG.computable), read_figures(CONFIG.tables_file)
check_folders(write=False)
refuse_second_start()
refuse_other_kind()
prepare_shell()
outlive_time_limits()
watch_jobs()
mark_jobs()


# Neither in a dry run nor in the jobs.
onstart:
    check_folders(write=True)
    take_over()
    look_when_jobs_end()
    say_why_none_starts()


onsuccess:
    note_made()
    refuse_other_data()


onerror:
    end_jobs("--local")
    note_made()


wildcard_constraints:
    dataset="|".join(CONFIG.datasets.names),
    run=RUN_NAME,
    split="[a-z]+",


include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/frozen.smk"
include: "workflow/rules/voc.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/tasks.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/page.smk"


localrules:
    all,
    recipe,
    protocol,
    dataset,
    partial,
    seeds,
    summary,
    index_page,


rule all:
    default_target: True
    input:
        from_elsewhere(CONFIG.named),
        expand(f"{RESULTS}/tables/table{{number}}.md", number=TABLES),
        expand(f"{RESULTS}/figures/fig{{number}}.png", number=FIGURES),
        expand(f"{RESULTS}/tables/{{task}}.md", task=by_class(CONFIG.tables_file, CONFIG.computable)),
        expand(f"{RESULTS}/figures/{{task}}.png", task=by_class(CONFIG.tables_file, CONFIG.computable)),
        OF_ALL_RUNS,
        f"{RESULTS}/README.md",
        f"{RESULTS}/index.html",
