# Python functions for the rules: they read the config and find files. Those for SLURM are in cluster.smk.
import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The package is imported from the checkout: a clone runs without installation.
sys.path.insert(0, str(workflow.basedir))

from uic_core.config import validate  # noqa: E402
from uic_core.data.dataset import Dataset  # noqa: E402
from uic_core.errors import InputError  # noqa: E402
from uic_core.evaluations import EVALUATIONS  # noqa: E402
from uic_core.files import read_yaml  # noqa: E402
from uic_core.methods import METHODS  # noqa: E402
from uic_core.models import ARCHS  # noqa: E402
from uic_core.recipe import load  # noqa: E402
from uic_core.report.cells import by_class, check_cells, needed, read_figures, read_tables  # noqa: E402

# Tasks with their own figure (sample images) and table (all classes); a table's cell only summarises them. Each result
# has one label in the report: Snakemake's page turns a second label with two values in a category into a toggle, and
# shows nothing at all if a combination is missing.
TASKS = {
    "detection": {"figure": "Detections on sample images", "table": "Detection: AP of every class"},
    "segmentation": {"figure": "Segmentations of sample images", "table": "Segmentation: IU of every class"},
}


def validated_config():
    """Return the merged config as uic_core.config.Config; refuse errors that Snakemake's YAML reader lets pass."""
    # With --replace-workflow-config only the command line's files count; otherwise they are merged over the default.
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
    """Refuse to overwrite the paper's checkpoints with the demo's, or the reverse."""
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
    """Let jobs find uic_core, no packages of ~/.local and, without conda, the Python that runs Snakemake."""
    prefix = f"export PYTHONPATH={str(workflow.basedir)!r} PYTHONNOUSERSITE=1; "
    # Training allocates the same large tensors every step: huge pages give 15 to 25 % more images per second on a CPU.
    prefix += 'export GLIBC_TUNABLES="${{GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}}"; '
    prefix += f"source {str(Path(workflow.basedir, 'workflow', 'launch.sh'))!r}; "
    if not {str(method) for method in workflow.deployment_settings.deployment_method} & {"conda", "apptainer"}:
        prefix += f'export PATH={os.path.dirname(sys.executable)!r}:"$PATH"; '
    shell.prefix(prefix)


def minutes(amount):
    """Return a job's time: every retry requests more, up to a day, which clusters grant."""
    return lambda wildcards, attempt: min(amount * attempt, max(amount, 1440))


def megabytes(amount):
    """Return a job's memory: every retry requests more, up to what nodes with GPUs have."""
    return lambda wildcards, attempt: min(amount * attempt, max(amount, 128000))


def asked(evaluation):
    """Return what an evaluation's job requests (uic_core/evaluations)."""
    return EVALUATIONS[evaluation].resources


def memory_of(evaluation):
    """Return its memory, as `megabytes` does."""
    return megabytes(1000 * asked(evaluation).memory)


def runtime_of(evaluation):
    """Return its time, as `minutes` does."""
    return minutes(asked(evaluation).minutes)


def time_limit(wildcards, attempt):
    """Return a training job's minutes: what a slow GPU (10 TFLOP/s) or slow CPUs (50 images/s each) take."""
    recipe = CONFIG.runs[wildcards.run]
    images = METHODS[recipe.method].passes(recipe).training
    images *= recipe.images_of(CONFIG.datasets.folders[recipe.data].train_images)
    arithmetic = ARCHS[recipe.arch].training_gflop * (recipe.image_size / 224) ** 2 / 10_000 / gpus(wildcards)
    seconds = images * max(arithmetic, 1 / (50 * cpus(wildcards)))
    # Every retry requests more, up to a day. After a day the job queues again and continues.
    return min(1440, round(30 + seconds / 60) * attempt)


def gpus(wildcards):
    """GPUs of a training job, on one node."""
    return CONFIG.runs[wildcards.run].gpus


def cpus(wildcards):
    """CPUs of a training job: 16 per GPU, at most half of a large node's."""
    return min(64, 16 * gpus(wildcards))


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
    return there(wildcards.run, CONFIG.runs[wildcards.run].path)


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


def probed_index(wildcards):
    """Return the index of the images that linear probes are trained on."""
    return train_index(CONFIG.evaluations.linear_probe.data)


def labelled_index(run):
    """Return the index of the images of a run's pseudo-labels, not cached."""
    if CONFIG.runs[run].stage == "external":
        raise WorkflowError(f"runs.{run}: was trained elsewhere, so there are no pseudo-labels to look at")
    return f"{RESULTS}/index/{CONFIG.runs[run].data}_train.npz"


def shows(number):
    """Return what a table shows, in a few words."""
    return TABLES[number].title.partition(".")[0]


def metrics_of(*tables):
    """Return the metrics files that the given tables take a cell from."""
    pairs = {pair for table in tables for pair in needed(CONFIG.tables_file, table)}
    several = {run: ".seeds" for run in CONFIG.seeds if CONFIG.seeds[run]}
    return sorted(f"{RESULTS}/metrics/{run}/{evaluation}{several.get(run, '')}.json" for run, evaluation in pairs)


def metrics_of_seeds(wildcards):
    """Return the metrics files of one evaluation of a run, one per seed."""
    return [f"{RESULTS}/metrics/{run}/{wildcards.evaluation}.json" for run in CONFIG.repeats(wildcards.run)]


def metrics_of_run(wildcards):
    """Return every metrics file of a run that a table shows."""
    return [file for file in metrics_of(*TABLES) if Path(file).parent.name == wildcards.run]


def task_metrics(task):
    """Return a task's metrics files that a table takes a cell from."""
    return [file for file in metrics_of(*TABLES) if Path(file).name.split(".")[0] == task]


def task_samples(task):
    """Return the task's results on sample images, for the same runs; with several seeds, the run's own."""
    return [f"{Path(file).parent}/{task}_samples.npz" for file in task_metrics(task)]
