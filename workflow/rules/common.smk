# Python functions that rules ask: reading the config, and finding files. Those about SLURM are in cluster.smk.
import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The checkout is the package's home: no installation is needed to run from a clone.
sys.path.insert(0, str(workflow.basedir))

from uic_core.config import validate  # noqa: E402
from uic_core.data.dataset import Dataset  # noqa: E402
from uic_core.errors import InputError  # noqa: E402
from uic_core.evaluations import EVALUATIONS  # noqa: E402
from uic_core.files import read_yaml  # noqa: E402
from uic_core.methods import METHODS  # noqa: E402
from uic_core.models import ARCHS  # noqa: E402
from uic_core.recipe import load  # noqa: E402
from uic_core.report.cells import all_needed, check_cells, needed, read_figures, read_tables  # noqa: E402

# What a table's cell sums up, in figures (of sample images) and tables (of classes) of their own. One label a result in
# the report: of a second one that has two values in a category, Snakemake's page makes a toggle, and shows nothing at
# all where not every combination exists.
TASKS = {
    "detection": {"figure": "Detections on sample images", "table": "Detection: AP of every class"},
    "segmentation": {"figure": "Segmentations of sample images", "table": "Segmentation: IU of every class"},
}


def validated_config():
    """The merged config as uic_core.config.Config; refuses what Snakemake's own YAML reading lets pass."""
    # With --replace-workflow-config only the command line's files count; else they are merged over the default.
    replaced = workflow.config_settings.replace_workflow_config
    files = list(workflow.overwrite_configfiles or [])
    if not (files and replaced):
        files.insert(0, Path(workflow.basedir) / "config" / "paper.yaml")
    try:
        for file in files:
            read_yaml(Path(file))
        checked = validate(config, str(os.path.relpath(files[-1])))
        check_cells(checked.tables_file, checked)
        return checked
    except InputError as error:
        raise WorkflowError(f"the config is wrong\n{error}") from None


def refuse_other_scale():
    """The demo must not train over the paper's checkpoints, nor the other way round."""
    try:
        made = {load(Dataset, file).generated for file in Path(CONFIG.results).glob("data/*.yaml")}
    except InputError as error:
        raise WorkflowError(f"{error}; delete the file and run snakemake again") from None
    if made - {CONFIG.datasets.generated}:
        raise WorkflowError(
            f"{CONFIG.results} holds results of {'real' if CONFIG.datasets.generated else 'generated'} data sets; "
            "name another folder under `results` in the config, or move that one away"
        )


def prepare_shell():
    """Every job finds uic_core, none of ~/.local's packages, and, without conda, the Python that runs Snakemake."""
    prefix = f"export PYTHONPATH={str(workflow.basedir)!r} PYTHONNOUSERSITE=1; "
    # Training allocates the same large tensors every step: in huge pages a CPU does 15 to 25 % more images a second.
    prefix += 'export GLIBC_TUNABLES="${{GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}}"; '
    prefix += f"source {str(Path(workflow.basedir, 'workflow', 'launch.sh'))!r}; "
    if not {str(method) for method in workflow.deployment_settings.deployment_method} & {"conda", "apptainer"}:
        prefix += f'export PATH={os.path.dirname(sys.executable)!r}:"$PATH"; '
    shell.prefix(prefix)


def minutes(amount):
    """A job's time, of which every retry asks more; not more than a day, which clusters grant."""
    return lambda wildcards, attempt: min(amount * attempt, max(amount, 1440))


def megabytes(amount):
    """A job's memory, of which every retry asks more; not more than nodes with GPUs have."""
    return lambda wildcards, attempt: min(amount * attempt, max(amount, 128000))


def asked(evaluation):
    """What an evaluation's job asks for (uic_core/evaluations)."""
    return EVALUATIONS[evaluation].resources


def memory_of(evaluation):
    """Its memory, as `megabytes`."""
    return megabytes(1000 * asked(evaluation).memory)


def runtime_of(evaluation):
    """Its time, as `minutes`."""
    return minutes(asked(evaluation).minutes)


def time_limit(wildcards, attempt):
    """Minutes of a training job, by its recipe: as long as a slow GPU (10 TFLOP/s) or slow CPUs (50 images/s each) take.

    At most a day, after which it queues again and goes on; of less, every retry asks more.
    """
    recipe = CONFIG.runs[wildcards.run]
    images = METHODS[recipe.method].passes(recipe).training
    images *= recipe.images_of(CONFIG.datasets.folders[recipe.data].train_images)
    arithmetic = ARCHS[recipe.arch].training_gflop * (recipe.image_size / 224) ** 2 / 10_000 / gpus(wildcards)
    seconds = images * max(arithmetic, 1 / (50 * cpus(wildcards)))
    return min(1440, round(30 + seconds / 60) * attempt)


def gpus(wildcards):
    """GPUs of a training job, on one node."""
    return CONFIG.runs[wildcards.run].gpus


def cpus(wildcards):
    """CPUs of a training job: 16 a GPU, at most what half of a large node has."""
    return min(64, 16 * gpus(wildcards))


def section(name):
    """One section of the config as JSON: the params that decide what reruns."""
    return json.dumps(getattr(CONFIG.evaluations, name).model_dump())


def runs(stage):
    """Wildcard pattern of the runs whose checkpoint a stage makes."""
    names = [name for name, recipe in CONFIG.runs.items() if recipe.stage == stage]
    return "|".join(names) or "no_run"


def source_checkpoint(wildcards):
    """Checkpoint that further fine-tuning starts from."""
    return f"{RESULTS}/runs/{CONFIG.runs[wildcards.run].start}/checkpoint.safetensors"


def external_checkpoint(wildcards):
    """The file of a run that was trained elsewhere."""
    path = CONFIG.runs[wildcards.run].path
    if not os.path.exists(path):
        raise WorkflowError(f"runs.{wildcards.run}.path: {path} is not there; correct it in the config")
    return path


def generated(wildcards):
    """The generated data set's receipt in the demo; nothing to wait for with real data."""
    return f"{RESULTS}/data/{wildcards.dataset}.generated" if CONFIG.datasets.generated else []


def train_index(data):
    """A data set's training images: from their files, or from the cache if the config asks for one."""
    cached = "" if CONFIG.datasets.cache.format == "none" else "_cached"
    return f"{RESULTS}/index/{data}_train{cached}.npz"


def run_index(wildcards):
    """The images that a run trains on."""
    return train_index(CONFIG.runs[wildcards.run].data)


def labelled_index(run):
    """The images of a run's pseudo-labels, from their files."""
    if CONFIG.runs[run].stage == "external":
        raise WorkflowError(f"runs.{run}: was trained elsewhere, so there are no pseudo-labels to look at")
    return f"{RESULTS}/index/{CONFIG.runs[run].data}_train.npz"


def tasks():
    """Those of TASKS that a table shows."""
    return [task for task in TASKS if task in {evaluation for _, evaluation in all_needed(CONFIG.tables_file)}]


def shows(number):
    """What a table shows, in a few words."""
    return TABLES[number].title.partition(".")[0]


def metrics_of(*tables):
    """The metrics files the given tables take a cell from."""
    pairs = {pair for table in tables for pair in needed(CONFIG.tables_file, table)}
    several = {run: ".seeds" for run in CONFIG.seeds if CONFIG.seeds[run]}
    return sorted(f"{RESULTS}/metrics/{run}/{evaluation}{several.get(run, '')}.json" for run, evaluation in pairs)


def metrics_of_seeds(wildcards):
    """One evaluation of a run with each of its seeds."""
    return [f"{RESULTS}/metrics/{run}/{wildcards.evaluation}.json" for run in CONFIG.repeats(wildcards.run)]


def metrics_of_run(wildcards):
    """Every metrics file of a run that a table shows."""
    return [file for file in metrics_of(*TABLES) if Path(file).parent.name == wildcards.run]


def task_metrics(task):
    """Detection's or segmentation's metrics files that a table takes a cell from."""
    return [file for file in metrics_of(*TABLES) if Path(file).name.split(".")[0] == task]


def task_samples(task):
    """What it found in sample images, for the same runs; of several seeds, the run's own."""
    return [f"{Path(file).parent}/{task}_samples.npz" for file in task_metrics(task)]
