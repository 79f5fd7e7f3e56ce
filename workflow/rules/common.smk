# What the rules ask of the config: names of files, runs and metrics. Settings: config.smk; jobs: cluster.smk; what runs
# again: reruns.smk and noted.smk; one Snakemake at a time: takeover.smk.
import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The package is imported from the checkout: a clone runs without installation.
sys.path.insert(0, str(workflow.basedir))

from uic_core.data.dataset import demand_kind  # noqa: E402
from uic_core.errors import InputError  # noqa: E402
from uic_core.evaluations import BY_CLASS  # noqa: E402
from uic_core.recipe import Training  # noqa: E402
from uic_core.report.cells import by_class, needed, of_every_run, read_figures, read_tables  # noqa: E402


def refuse_other_kind():
    """Refuse to mix results of generated and of real data in one folder."""
    remedy = "name another folder under `results` in the config, or move that one away"
    try:
        demand_kind(Path(CONFIG.results), CONFIG.datasets.generated, remedy)
    except InputError as error:
        raise WorkflowError(str(error)) from None


def section(name):
    """Return a section of the config as JSON; as params, it decides what reruns."""
    return json.dumps(getattr(CONFIG.evaluations, name).model_dump())


def runs(stage):
    """Return the wildcard pattern of the runs whose checkpoint a stage makes."""
    names = [name for name, recipe in CONFIG.runs.items() if recipe.stage == stage]
    return "|".join(names) or "no_run"


def source_checkpoint(wildcards):
    """Return the checkpoint that further fine-tuning starts from."""
    return f"{RESULTS}/runs/{CONFIG.runs[wildcards.run].start}/checkpoint.safetensors"


def external_checkpoint(wildcards):
    """Return the file of a run that was trained elsewhere."""
    return there(f"runs.{wildcards.run}.path", CONFIG.runs[wildcards.run].path)


def generated(wildcards):
    """Return the marker file of a generated data set; nothing for real data."""
    return f"{RESULTS}/data/{wildcards.dataset}.generated" if CONFIG.datasets.generated else []


def train_index(data):
    """Return the index of a data set's training images: their files, or the cache if the config has one."""
    cached = "" if CONFIG.datasets.cache.format == "none" else "_cached"
    return f"{RESULTS}/index/{data}_train{cached}.npz"


def run_index(wildcards):
    """Return the index of the images that a run trains on."""
    return train_index(CONFIG.runs[wildcards.run].data)


def evaluated(run, evaluation):
    """Return the checkpoint of a run. If the run cannot have the evaluation, end with the reason."""
    if reason := CONFIG.refuses(run, evaluation):
        sys.exit(f"error: {RESULTS}/metrics/{run}/{evaluation}.json: {reason}")
    return f"{RESULTS}/runs/{run}/checkpoint.safetensors"


def index_of(evaluation, split):
    """Return an input function for the index of an evaluation's images: those it learns from, or is tested on."""

    def find(wildcards):
        data = CONFIG.evaluations.one(evaluation.format(**wildcards)).data
        return train_index(data) if split == "train" else f"{RESULTS}/index/{data}_{split}.npz"

    return find


def fewshot_index(wildcards):
    """Return the index of the images that few-shot episodes are drawn from."""
    images = CONFIG.evaluations.fewshot.images
    return f"{RESULTS}/index/{images.data}_{images.split}.npz"


def labelled_index(run):
    """Return the index of the images of a run's pseudo-labels, not cached."""
    return f"{RESULTS}/index/{CONFIG.runs[run].data}_train.npz"


def shows(number):
    """Return what a table shows, in a few words."""
    return TABLES[number].title.partition(".")[0]


def existing(files):
    """Return the files that exist."""
    return [file for file in files if os.path.exists(file)]


def merged(run, evaluation):
    """Return the metrics file of an evaluation that tables show: the run's own, or that of all its seeds."""
    return f"{RESULTS}/metrics/{run}/{evaluation}{'.seeds' if CONFIG.seeds.get(run) else ''}.json"


def pairs_of(*tables):
    """Return each (run, evaluation) that the given tables take a cell from, once, in reading order."""
    computable = CONFIG.computable
    pairs = (pair for table in tables for pair in needed(CONFIG.tables_file, table, computable))
    return list(dict.fromkeys(pairs))


def computed(*tables, task=""):
    """Return `pairs_of` as run/evaluation, for --computed; with `task`, of that evaluation alone."""
    return [f"{run}/{evaluation}" for run, evaluation in pairs_of(*tables) if evaluation == (task or evaluation)]


def metrics_of(*tables):
    """Return the metrics files that the given tables take a cell from."""
    return sorted(merged(*pair) for pair in pairs_of(*tables))


def training_runs():
    """Return the runs that train here, without those of further seeds."""
    return [run for run in CONFIG.named if isinstance(CONFIG.runs[run], Training)]


def metrics_of_every_run(evaluation):
    """Return the metrics files of an evaluation that all runs have."""
    return [merged(run, name) for run, name in of_every_run(CONFIG) if name == evaluation]


def metrics_of_seeds(wildcards):
    """Return the metrics files of one evaluation of a run, one per seed."""
    return [f"{RESULTS}/metrics/{run}/{wildcards.evaluation}.json" for run in CONFIG.repeats(wildcards.run)]


def metrics_of_run(wildcards):
    """Return every metrics file of a run that a table shows."""
    every = [*metrics_of(*TABLES), *metrics_of_every_run("knn")]
    return [file for file in every if Path(file).parent.name == wildcards.run]


def task_metrics(task):
    """Return a task's metrics files that a table takes a cell from."""
    return [file for file in metrics_of(*TABLES) if Path(file).name.split(".")[0] == task]


def own_metrics(task):
    """Return the task's metrics of the same runs; with several seeds, the run's own."""
    return [f"{Path(file).parent}/{task}.json" for file in task_metrics(task)]


def task_samples(task):
    """Return the task's results on sample images, written with `own_metrics`."""
    return [f"{Path(file).parent}/{task}_samples.npz" for file in task_metrics(task)]


def made(files):
    """Keep the files that `rule all` makes for this config."""
    return {title: file for title, file in files.items() if file in OF_ALL_RUNS}


def further_parts(folder=""):
    """Return --page and --figure arguments of the page; with `folder`, its kNN table comes from there."""
    own = {title: str(Path(folder, "knn.md")) for title in PAGES if folder and Path(PAGES[title]).name == "knn.md"}
    options = [("--page", PAGES | own), ("--figure", DRAWN)]
    return [word for option, files in options for title, file in files.items() for word in (option, title, file)]


def stale():
    """Return the arguments that name what is to be made again, with the reason: nobody takes it for the config's."""
    from uic_core.overview import outdated  # only here: Snakemake starts faster without Pillow

    reasons = {}
    for run in CONFIG.runs:
        for evaluation in CONFIG.evaluations.present:
            for file in existing(f"{RESULTS}/metrics/{run}/{evaluation}{mean}.json" for mean in ("", ".seeds")):
                reasons.setdefault(outdated.of_metrics(CONFIG, Path(file)), []).append(file)
    trainings = filter(None, (outdated.of_run(CONFIG, run) for run in training_runs()))
    reasons.setdefault(next(trainings, ""), []).extend([PAGES.get("Speed"), DRAWN.get("Training curves")])
    reasons.pop("", None)
    return [word for reason, files in reasons.items() for word in ("--stale", reason, *filter(None, files))]
