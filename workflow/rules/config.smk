# The config, read and checked as a whole before the first job, with the tables and numbers that it names.
import os
import tempfile
from pathlib import Path

from uic_core.config import RUN_NAME, read, validate
from uic_core.errors import InputError, stage
from uic_core.files import check_folder
from uic_core.report.check_cells import check_cells
from uic_core.strict_yaml import lines_of, read_yaml

# What the results folder holds. A part may be a link to a larger disk.
PARTS = "benchmarks data export figures index logs metrics proposals protocols runs tables".split()


def config_files():
    """Return the config's files, each over those before it. A mistake in one ends here: Snakemake would name no line."""
    given = workflow.overwrite_configfiles or []
    there = filter(os.path.exists, ["config/paper.yaml", *given])
    files = [min(os.path.abspath(file), os.path.relpath(file), key=len) for file in there]
    with stage():
        for file in files:
            read_yaml(Path(file))
    if given and workflow.config_settings.replace_workflow_config:
        files = files[-len(given) :]  # config/paper.yaml is read, and replaced
    return list(dict.fromkeys(files))


def validated_config():
    """Return the merged config as uic_core.config.Config; end with its mistakes, a line each."""
    with stage():
        *below, last = FILES
        checked = validate(config, last, *below)
        check_cells(checked.tables_file, checked)
        return checked


def full_config():
    """Return the config that says what jobs request: `make smoke` runs a small one, and requests what the full one does."""
    with stage():
        files = os.environ.get("UIC_FULL_CONFIG", "").split()
        return read([Path(file) for file in files]) if files else CONFIG


def check_folders(write):
    """End where nothing can be made: in a file or a dead link in place of a folder; with `write`, also in one that is full."""
    cache = CONFIG.datasets.cache
    folders = {"results": CONFIG.results} | ({"datasets.cache.root": cache.root} if cache.format != "none" else {})
    with stage():
        for key, folder in folders.items():
            check_folder(Path(folder), f"name another folder under `{key}` in the config", write)
        for part in filter(os.path.lexists, (Path(CONFIG.results, name) for name in PARTS)):
            check_folder(part, "make what it links to again, or move it away", write=False)
        if write:
            check_folder(Path(os.environ.get("TMPDIR") or tempfile.gettempdir()), "set TMPDIR to another folder")


def there(key, path):
    """Return a file from elsewhere; end with one line, which names the config's key of it, if it is not there."""
    if not os.path.exists(path):
        *below, last = FILES
        with stage(), lines_of(last, *below):
            raise InputError(f"{last}: {key}: {path} is not there; correct it in the config")
    return path


def published_proposals(wildcards):
    """End if the published proposals of a split are missing. They are no input: their bytes count, not their times."""
    settings = CONFIG.evaluations.proposals
    if settings and settings.source:
        there("evaluations.proposals.source", settings.published(wildcards.split))
    return []
