"""The schema of the experiment matrix: what config/paper.yaml and config/demo.yaml may say. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from uic_core.data.dataset import Datasets
from uic_core.errors import InputError, nearest
from uic_core.evaluations import EVALUATIONS, Evaluation, Evaluations
from uic_core.layout import Layout
from uic_core.methods import METHODS, Run
from uic_core.recipe import External, PathName, Recipe, Seed, Strict, as_written, parse
from uic_core.strict_yaml import lines_of, read_yaml

_ROOT = Path(__file__).resolve().parents[1]

CONFIG_HELP = "the config, in one file or in several, each over those before it"
"""What an argument `--config` is."""

RUN_NAME = "[A-Za-z0-9_]{1,100}"
"""Pattern of a run's name, which becomes the name of its folder."""


class Config(Strict):
    """The whole config."""

    scale: Literal["paper", "demo", "study"]
    results: Annotated[PathName, AfterValidator(os.path.normpath)] = Field(
        min_length=1, description="folder of everything that is made, beside the data sets"
    )
    tables: PathName = Field(min_length=1, description="YAML: which cell of which table comes from where")
    published: PathName = Field(min_length=1, description="CSV: the numbers that the tables cite")
    datasets: Datasets
    templates: dict[str, Any] = Field(description="recipes that runs are made of by YAML anchors; not read otherwise")
    runs: dict[str, Run]
    seeds: dict[str, list[Seed]] = Field(
        description="further seeds of a run; its tables' cells become means over all of them"
    )
    evaluations: Evaluations

    @property
    def layout(self) -> Layout:
        """Return where the files of `results` lie."""
        return Layout(Path(self.results))

    @property
    def tables_file(self) -> Path:
        """Return the path of `tables`; a relative path starts at the clone."""
        return _ROOT / self.tables

    @property
    def published_file(self) -> Path:
        """Return the path of `published`, likewise."""
        return _ROOT / self.published

    @property
    def named(self) -> list[str]:
        """Return the names of the runs that the config writes out: those of further seeds are left out."""
        further = {repeat for run in self.seeds for repeat in self.repeats(run)[1:]}
        return [run for run in self.runs if run not in further]

    def repeats(self, run: str) -> list[str]:
        """Return the names of all runs of a recipe: itself, and one for each further seed."""
        return [run, *(seeded(run, seed) for seed in self.seeds.get(run, []))]

    def hashes(self, runs: Iterable[str]) -> list[str]:
        """Return `run=hash` of the recipes of runs and of their further seeds, each once; `run=hash,earlier hash`."""
        names = dict.fromkeys(name for run in runs for name in self.repeats(run))
        return [f"{name}={','.join(self.runs[name].hashes())}" for name in names]

    @property
    def computable(self) -> frozenset[tuple[str, str]]:
        """Return (run, evaluation) of everything that can be computed, whether or not a table shows it."""
        present = self.evaluations.present.keys() & EVALUATIONS.keys()
        return frozenset((run, name) for run in self.runs for name in present if not self.refuses(run, name))

    def refuses(self, run: str, evaluation: str) -> str:
        """Return why a run cannot have an evaluation, and the remedy; '' if it can."""
        if run not in self.runs:
            return f"no run '{run}' in the config; name one of {', '.join(self.runs)}"
        if evaluation not in self.evaluations.present:
            return f"the config has no evaluations.{evaluation}; add the section (config/README.md)"
        return self.evaluations.one(evaluation).refuses(run, self.runs[run])


def seeded(run: str, seed: int) -> str:
    """Return the name of a run with another seed."""
    return f"{run}_seed{seed}"


def read(files: Sequence[Path]) -> Config:
    """Read and validate a config of one or more files; each goes over those before it, as Snakemake merges them.

    Mappings are merged key by key; anything else replaces what was there.

    Raises:
        InputError: as `read_yaml` and `validate`.
    """
    value: dict[str, Any] = {}
    for file in files:
        value = _over(value, read_yaml(file))
    *below, last = map(str, files)
    return validate(value, last, *below)


def _over(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: _over(old.get(key), value) for key, value in new.items()}


def validate(value: dict[str, Any], source: str, *below: str) -> Config:
    """Validate a whole config, including conditions between keys.

    Args:
        source, below: the file that it was read from, and those that this one goes over; only named in messages.

    Raises:
        InputError: the mistakes, each with file and key; for an unknown run, the known ones.
    """
    with lines_of(source, *below):
        config = _with_seeds(parse(Config, value, source), source)
        if config.scale == "paper" and config.datasets.generated:
            raise InputError(
                f"{source}: datasets.generated: true with scale: paper would hold generated images against the paper's "
                "numbers; set scale: demo, or generated: false"
            )
        _check_folders(config, source)
        _check_runs(config, source)
        _check_evaluations(config, f"{source}: evaluations")
    return config


def _check_folders(config: Config, source: str) -> None:
    """Find characters that Snakemake or the rules' shells would take for something else."""
    try:
        as_written(str(_ROOT))
    except ValueError as error:
        raise InputError(f"the folder of this clone: {error}") from None
    if odd := re.search(r"[^\w./+@=,:-]", config.results):
        raise InputError(
            f"{source}: results: {config.results!r} holds {odd[0]!r}, which the rules' shells would take apart; name a "
            "folder of letters, digits and . _ - /"
        )
    if config.results in (".", "/"):
        raise InputError(f"{source}: results: {config.results!r} is no folder of their own; name one")


def _check_runs(config: Config, source: str) -> None:
    for name, recipe in config.runs.items():
        where = f"{source}: runs.{name}"
        if not re.fullmatch(RUN_NAME, name):
            raise InputError(
                f"{where}: run names are letters from a to z, digits and _, at most 100; they become folders; rename it"
            )
        cache = config.datasets.cache
        if cache.format != "none" and cache.side < recipe.resize:
            raise InputError(
                f"{source}: datasets.cache.side: {cache.side} is below runs.{name}.resize ({recipe.resize}), "
                "images would be enlarged again; raise it"
            )
        if isinstance(recipe, External):
            continue
        try:
            data = config.datasets.folder(recipe.data, "data")
        except ValueError as error:
            raise InputError(f"{where}.{error}") from None
        there = data.train_images
        images = recipe.images_of(there)
        if recipe.classes > images:
            raise InputError(
                f"{where}.classes: {recipe.classes} classes for {images} images leave classes empty; lower classes"
            )
        if images > there:
            raise InputError(f"{where}.images: {images}, but datasets.folders.{recipe.data}.train_images is fewer")
        try:
            METHODS[recipe.method].check(recipe, data.classes)
        except ValueError as error:
            raise InputError(f"{where}.{error}") from None
        if recipe.start:
            _check_start(where, name, recipe, config)


def _check_start(where: str, name: str, recipe: Recipe, config: Config) -> None:
    """Find what is wrong with the run that another run starts from."""
    source_run = config.runs.get(recipe.start)
    if source_run is None:
        near = nearest(recipe.start, config.runs)
        raise InputError(f"{where}.pretrained: no run '{recipe.start}'; {near}(known: {', '.join(config.runs)})")
    chain = [name]
    while start := getattr(config.runs.get(chain[-1]), "start", ""):
        if start in chain:
            told = " from ".join([*chain, start])
            raise InputError(f"{where}.pretrained: {told} has no beginning; name a run that starts from none")
        chain.append(start)
    if isinstance(source_run, External):
        raise InputError(
            f"{where}.pretrained: '{recipe.start}' was trained elsewhere; further fine-tuning starts from "
            "a run of this config"
        )
    if not METHODS[source_run.method].pseudo_classes:
        raise InputError(
            f"{where}.pretrained: '{recipe.start}' is of method {source_run.method}, whose top layer tells no "
            "pseudo-classes apart; name another run"
        )
    shape = ("arch", "sobel", "classes", "image_size")
    differing = [key for key in shape if getattr(recipe, key) != getattr(source_run, key)]
    if differing:
        raise InputError(f"{where}: {', '.join(differing)} must equal those of run '{recipe.start}'")
    if source_run.outputs != recipe.outputs:
        raise InputError(
            f"{where}.pretrained: '{recipe.start}' has several heads; further fine-tuning starts from a run of one head"
        )


def _with_seeds(config: Config, source: str) -> Config:
    """Add a run for every further seed. Further fine-tuning starts from the run of the same seed."""
    runs = dict(config.runs)
    for name, seeds in config.seeds.items():
        where = f"{source}: seeds.{name}"
        if name not in config.runs:
            raise InputError(f"{where}: no such run (known: {', '.join(config.runs)})")
        recipe = config.runs[name]
        if isinstance(recipe, External):
            raise InputError(f"{where}: was trained elsewhere, with a seed of its own; remove the line")
        if len({recipe.seed, *seeds}) < 1 + len(seeds):
            raise InputError(f"{where}: {seeds} holds a seed twice, or runs.{name}.seed ({recipe.seed}) again")
        for seed in seeds:
            if seeded(name, seed) in config.runs:
                raise InputError(f"{where}: {seed} makes a run '{seeded(name, seed)}', which stands under runs already")
            changes: dict[str, Any] = {"seed": seed}
            if seed in config.seeds.get(recipe.start, []):
                changes["pretrained"] = seeded(recipe.start, seed)
            runs[seeded(name, seed)] = recipe.model_copy(update=changes)
    return config.model_copy(update={"runs": runs})


def _check_sections(where: str, section: Evaluation, config: Config) -> None:
    """Find the sections of the config that an evaluation needs and the config lacks."""
    needed = []
    if section.dataset and section.dataset not in config.datasets.names:
        needed.append(f"datasets.{section.dataset}")
    if "proposals" in {job for job, _ in section.needs(config)} - config.evaluations.present.keys():
        needed.append("evaluations.proposals")
    if needed:
        raise InputError(f"{where}: needs {needed[0]}, which is missing; add that section, or remove this one")


def _check_evaluations(config: Config, where: str) -> None:
    """Find mistakes that would otherwise appear after days of pretraining."""
    for name, section in config.evaluations.present.items():
        if not isinstance(section, Evaluation):
            continue
        _check_sections(f"{where}.{name}", section, config)
        try:
            section.check(name, config)
        except ValueError as error:
            raise InputError(f"{where}.{name}.{error}") from None
