# What tables and figures were made from, in results/made_from.json: one that shows anything else than now is made again.
import functools
import hashlib
import json
from pathlib import Path

from uic_core.files import DAMAGED, known_sha256, sha256, write_json
from uic_core.run import trained

NOTED = set()  # the rules of tables and figures


def as_noted(name):
    """Return an input function that makes a table or figure again if its settings or numbers are not those recorded.

    Snakemake notes settings itself, but in .snakemake, which does not come with copied results; and newer metrics or a
    newer tables.yaml may have an older time. Without a note, times count.
    """
    NOTED.add(name)

    @never_hidden
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
    return hashlib.sha256(" ".join(hash_or_error(file) for file in files).encode()).hexdigest()[:16]


def hash_or_error(file):
    """Return the hash of a file's bytes; why it cannot be read, so that what shows it is made again and says so, too."""
    try:
        return known_sha256(file, "", [])
    except OSError as error:
        return str(error)


def note_made():
    """Record what this Snakemake's tables and figures were made from: settings at its start, numbers at its end.

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
