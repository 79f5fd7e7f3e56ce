"""Which results are no longer those of the config: `snakemake partial` leaves them out, while others are made.

A finished start has made them again, and need not ask. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uic_core.config import Config
from uic_core.overview.recorded import difference, to_be_listed
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
    """Say why a run, or one that it starts from, is to be trained again; '' as above."""
    recipe = config.runs[run]
    if not isinstance(recipe, External) and to_be_listed(config, recipe.data):
        return _listed_again(recipe.data)
    if found := difference(config, Path(config.results, "runs", run, "checkpoint.safetensors")):
        return f"run {run}: {found}; run snakemake to train it again"
    return of_run(config, recipe.start) if recipe.start else ""


def _reasons(config: Config, path: Path) -> Iterator[str]:
    run, evaluation = path.parent.name, path.stem
    section = config.evaluations.one(evaluation)
    for listed in section.lists(config.runs[run]):
        if to_be_listed(config, listed.data):
            yield _listed_again(listed.data)
    yield of_run(config, run)  # first, as it names the recipe's key
    splits = [split for job, split in section.needs(config) if job == "proposals"]
    for each in (path, *(Path(config.results, "proposals", f"voc07_{split}.npz") for split in splits)):
        yield _differs(config, each)


def _differs(config: Config, path: Path) -> str:
    found = difference(config, path)
    return f"{path.stem}: {found}; run snakemake to evaluate it again" if found else ""


def _listed_again(data: str) -> str:
    return f"{data} is to be listed again, for the config says that it holds something else; run snakemake"
