# What runs again: results whose records differ from the config (docs/changing.md). Snakemake compares the rest by times.
import functools
import hashlib
import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile, flag, is_flagged

from uic_core.files import DAMAGED, known_sha256, sha256, write_json
from uic_core.run import trained

JUDGED = {}  # what `difference` found of each file
NOTED = set()  # the rules of tables and figures


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
    """Return the same for one file that `output` records the content of: its place does not count either.

    Snakemake compares the names of a job's inputs with those that it noted; the file gets the name that it had then.
    """
    by_its_content = by_content(output, source)

    def find(wildcards):
        found = by_its_content(wildcards)
        if not workflow.is_main_process or not is_flagged(found, "ancient"):
            return found
        made = IOFile(f"{RESULTS}/{output}".format(**dict(wildcards.items())))
        noted = workflow.persistence.input(made) or []
        names = [name for name in noted if Path(name).name != "recipe.yaml"]
        return flag(found, "sourcecache_entry", names[0]) if names else found

    return find


def its_start(wildcards):
    """Return the checkpoint that further fine-tuning starts from. Its bytes count, if the fine-tuned run records them.

    Where the user forces jobs, or the start is to be made again, so is what was trained from it.
    """
    own, found = f"{RESULTS}/runs/{wildcards.run}/checkpoint.safetensors", source_checkpoint(wildcards)
    known = workflow.is_main_process and not workflow.dag_settings.forcerun and stands(wildcards.run)
    made = trained.read(Path(own).parent) if known else None  # a checkpoint that came alone has none
    return ancient(found) if made and made.start else found


def stands(run):
    """Return whether a run's checkpoint, and those that it starts from, record what the config says."""
    start = CONFIG.runs[run].start
    return difference(f"{RESULTS}/runs/{run}/checkpoint.safetensors") == "" and (not start or stands(start))


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


def as_noted(name):
    """Return an input function of a table or figure, by its rule. If it was made from anything else than now, it is made again.

    Snakemake notes settings itself, but in .snakemake, which does not come with copied results; and newer metrics or a
    newer tables.yaml may have an older time. Without a note, times count.
    """
    NOTED.add(name)

    def find(wildcards):
        output = str(workflow.get_rule(name).output[0])
        if workflow.is_main_process and output in noted() and noted()[output] != [settings_of(name), numbers_of(name)]:
            workflow.dag.forcefiles.add(output)
        return []

    return find


@functools.cache  # as they were when this Snakemake started
def settings_of(name):
    """Return the hash of what a table or figure is made from by its rule, which are params, inputs' names, the config's files."""
    made_by = workflow.get_rule(name)
    params = {key: value for key, value in made_by.params.items() if not callable(value)}
    inputs = [str(file) for file in made_by.input if isinstance(file, str)]  # the others are functions
    files = [file for file in (CONFIG.tables_file, CONFIG.published_file) if str(file) in inputs]
    others = [file for file in inputs if Path(file) not in files]  # the clone may be elsewhere
    text = json.dumps([params, others, *(sha256(file) for file in files)], sort_keys=True, default=lambda _: None)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def numbers_of(name):
    """Return the hash of the metrics and trainings that a table or figure shows, as they are now."""
    files = [Path(file) for file in workflow.get_rule(name).input if str(file).endswith((".json", ".jsonl"))]
    files += [file.with_name(trained.NAME) for file in files if file.suffix == ".jsonl"]  # the times of a history
    return hashlib.sha256(" ".join(known_sha256(file, "", []) for file in files).encode()).hexdigest()[:16]


def note_made():
    """Note of what the tables and figures were made that this Snakemake has made: settings of its start, numbers of its end.

    With --touch it has made none: what was noted stays, or it would call an old table new.
    """
    names = {job.rule.name for job in workflow.dag.finished_jobs} & NOTED
    if names:
        made = {str(workflow.get_rule(name).output[0]): [settings_of(name), numbers_of(name)] for name in sorted(names)}
        both = made | noted() if workflow.touch else noted() | made
        write_json(Path(RESULTS, "made_from.json"), dict(sorted(both.items())))


@functools.cache  # every table and figure asks
def noted():
    """Return what was noted when this Snakemake started: file -> hashes of its settings and of its numbers."""
    try:
        return dict(json.loads(Path(RESULTS, "made_from.json").read_text()))
    except DAMAGED:  # there are none, or the file is damaged
        return {}
