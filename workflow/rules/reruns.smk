# What runs again: results whose records differ from the config (docs/changing.md). Snakemake compares the rest by times.
import functools
import os
import sys
import traceback
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile, flag, is_flagged

from uic_core.run import trained

JUDGED = {}  # what `difference` found of each file


def never_hidden(find):
    """Let an error of an input function end Snakemake, which would otherwise take its file for one that no rule makes."""

    @functools.wraps(find)
    def found(*arguments, **more):
        try:
            return find(*arguments, **more)
        except Exception:
            traceback.print_exc()
            sys.exit("error: the workflow cannot say what runs again; nothing was changed. Please report this")

    return found


def difference(file):
    """Compare what a result records with the config (uic_core/overview/recorded.py); say what differs, once."""
    from uic_core.overview import recorded  # not in the jobs, which start faster without Pillow

    if file not in JUDGED:
        JUDGED[file] = recorded.difference(CONFIG, Path(file))
        if JUDGED[file] and not file.endswith(".yaml"):
            print(f"{file}: {JUDGED[file]}; it is made again where it is needed", file=sys.stderr)
    return JUDGED[file]


def refuse_other_data():
    """Refuse to call a run finished whose data sets turned out to hold other data than its results were made from."""
    agreed = [file for file, found in JUDGED.items() if found == ""]
    JUDGED.clear()
    made = [file for file in agreed if difference(file)]
    if made:
        raise WorkflowError(
            f"{len(made)} results were made from other data than their data sets hold now, {made[0]} among them; start "
            "snakemake again, and they are made again"
        )


def by_content(output, source=()):
    """Return an input function for settings or data: what `output` records of them counts, not the times of `source`.

    Where it agrees with the config, `source` is ancient; where it differs, `output` is made again. Times count only
    where it cannot be said. Both are paths in the results folder, `source` may be an input function.
    """

    @never_hidden
    def find(wildcards):
        found = source(wildcards) if callable(source) else source and f"{RESULTS}/{source}"
        if not workflow.is_main_process:
            return found
        made = f"{RESULTS}/{output}".format(**dict(wildcards.items()))
        differs = difference(made)
        if differs:
            workflow.dag.forcefiles.add(made)
        look_past_ancient()
        return ancient(found) if differs == "" else found

    return find


def wherever(output, source):
    """As `by_content`, for one file whose path does not count either: it may have moved.

    Snakemake compares the names of a job's inputs with those that it noted; the file gets the name that it had then.
    """
    by_its_content = by_content(output, source)

    @never_hidden
    def find(wildcards):
        found = by_its_content(wildcards)
        if not workflow.is_main_process or not is_flagged(found, "ancient"):
            return found
        made = IOFile(f"{RESULTS}/{output}".format(**dict(wildcards.items())))
        noted = workflow.persistence.input(made) or []
        names = [name for name in noted if Path(name).name != "recipe.yaml"]
        return flag(found, "sourcecache_entry", names[0]) if names else found

    return find


@never_hidden
def its_start(wildcards):
    """Return the checkpoint that further fine-tuning starts from. Its bytes count, if the fine-tuned run records them.

    Where the start is to be made again, so is what was trained from it.
    """
    found = source_checkpoint(wildcards)
    if not (workflow.is_main_process and stands(wildcards.run)):
        return found
    made = trained.read(Path(RESULTS, "runs", wildcards.run))  # a checkpoint that came alone has none
    return ancient(found) if made and made.start else found


def stands(run):
    """Return whether a run stays: it is whole and records what the config says, nobody forces it; so is what it starts from."""
    recipe = CONFIG.runs[run]
    files = [str(file.apply_wildcards({"run": run})) for file in workflow.get_rule(recipe.stage).output]
    forced = recipe.stage in {rule.name for rule in workflow.dag.forcerules} or workflow.dag.forcefiles & set(files)
    whole = all(os.path.exists(file) for file in files) and difference(files[0]) == ""
    return whole and not forced and (not recipe.start or stands(recipe.start))


@functools.cache
def look_past_ancient():
    """Let Snakemake look at every job that does not follow from another one.

    It passes over all jobs behind one that runs, as if they ran too (dag.update_needrun). Behind an ancient input they
    do not, and one of them may have a reason of its own.
    """
    dag, search = workflow.dag, workflow.dag.bfs

    def follows(files):
        return not all(file.is_ancient and os.path.exists(file) for file in files)

    def bfs(direction, *jobs, **options):
        if direction is dag.depending:
            direction = {
                job: {after: files for after, files in dag.depending[job].items() if follows(files)} for job in dag.jobs
            }
        return search(direction, *jobs, **options)

    dag.bfs = bfs


def from_elsewhere(runs):
    """Return an input function that refuses what is made of runs if a checkpoint from elsewhere is missing.

    Snakemake would not say so: where a file cannot be made again, it takes the one that is there.
    """

    @never_hidden
    def find(wildcards):
        for run in dict.fromkeys(runs):
            recipe = CONFIG.runs[run]
            if recipe.stage == "external" and difference(f"{RESULTS}/runs/{run}/checkpoint.safetensors") != "":
                there(f"runs.{run}.path", recipe.path)
        return []

    return find


def voc07_root(wildcards, input):
    """Return VOC07's folder. By the argument `input` Snakemake knows that another folder alone reruns nothing."""
    return CONFIG.datasets.voc07.root if CONFIG.datasets.voc07 else ""
