"""Which results are no longer those of the config: `snakemake partial` leaves them out, while others are made.

A finished start has made them again, and need not ask. A job first removes what it makes again, and what was made from
that is out of date until then. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uic_core.config import Config
from uic_core.data.dataset import VOC
from uic_core.overview.recorded import difference, other_number, removed, to_be_listed
from uic_core.recipe import External


def of_metrics(config: Config, path: Path) -> str:
    """Say why metrics/<run>/<evaluation>.json, or the mean <evaluation>.seeds.json, are to be made again.

    Returns:
        '' if they are not, or if nobody can say.
    """
    if not path.name.endswith(".seeds.json"):
        return next(filter(None, _reasons(config, path)), "")
    run, evaluation = path.parent.name, path.name.removesuffix(".seeds.json")
    parts = [path.parent.with_name(name) / f"{evaluation}.json" for name in config.repeats(run)]
    found = next((reason for part in parts if (reason := of_metrics(config, part))), "")
    return found or _differs(config, path)


def of_run(config: Config, run: str) -> str:
    """Say why a run, or one that it starts from, is to be trained again; '' if it is not."""
    recipe, checkpoint = config.runs[run], config.layout.checkpoint(run)
    if not isinstance(recipe, External) and (reason := _listing(config, recipe.data, "train", cached=True)):
        return reason
    if found := difference(config, checkpoint) if checkpoint.exists() else removed(config, run):
        return f"run {run}: {found}; run snakemake to train it again"
    return of_run(config, recipe.start) if recipe.start else ""


def _reasons(config: Config, path: Path) -> Iterator[str]:
    run, section = path.parent.name, config.evaluations.one(path.stem)
    for data, split, images, _ in section.lists(config.runs[run]):
        yield _listing(config, data, split, cached=images is not None)
    yield of_run(config, run)  # first, as it names the recipe's key
    yield _differs(config, path)
    for job, split in section.needs(config):
        if job == "proposals":
            boxes = config.layout.proposals(split)
            yield _differs(config, boxes) or _missing(config.layout.protocol("proposals"), boxes)


def _differs(config: Config, path: Path) -> str:
    found = difference(config, path)
    return f"{path.stem}: {found}; run snakemake to evaluate it again" if found else ""


def _listing(config: Config, data: str, split: str, cached: bool) -> str:
    """Say that a data set is being listed, or to be listed, of which something was made; it may hold anything then."""
    again = f"{data} is to be listed again, for the config says that it holds something else; run snakemake"
    if to_be_listed(config, data):
        return again
    layout = config.layout
    files = [layout.checked(data)]
    if data not in VOC:
        files.append(layout.index(data, split))
        if split == "train" and cached and config.datasets.cache.format != "none":
            files.append(layout.index(data, "train_cached"))
    found = next(filter(None, (_missing(layout.dataset(data), file) for file in files)), "")
    return found or (again if len(files) > 1 and other_number(config, data, split) else "")


def _missing(settings: Path, file: Path) -> str:
    """Say that a file is not there, if its settings are: they did not come with copied metrics, of which '' is said."""
    if not settings.exists() or file.exists():
        return ""
    return f"{file} is not there; wait for its job, or make it: snakemake … {file}"
