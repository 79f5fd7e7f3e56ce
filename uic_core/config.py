"""The whole experiment matrix, typed: what config/paper.yaml and config/demo.yaml may say. Imports no torch."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uic_core.data.dataset import Datasets, ImageFolder
from uic_core.errors import InputError
from uic_core.methods import METHODS, Run
from uic_core.models import ARCHS
from uic_core.recipe import Arch, External, Strict, parse

_ROOT = Path(__file__).resolve().parents[1]


class LinearProbe(Strict):
    """Linear classifiers on frozen layers (PROTOCOL section 4)."""

    data: str = Field(description="a name under datasets.folders")
    layers: dict[Arch, list[str]]
    crop: dict[Arch, Literal["random_crop", "resized_crop"]]
    images: dict[Arch, Annotated[int, Field(ge=0)]] = Field(description="training images, 0 = all")
    val_images: dict[Arch, Annotated[int, Field(ge=0)]] = Field(description="tested images, 0 = all")
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_steps: list[int]
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    batch_norm: bool = Field(description="non-affine BN before the linear layer, as SelfLabel and RotNet have it")
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> LinearProbe:
        _check_layers(self.layers, {name: tuple(arch.probe_layers) for name, arch in ARCHS.items()})
        _check_steps(self.lr_steps, "epochs", self.epochs)
        return self


class Clusters(Strict):
    """Pseudo-labels against annotations (Table 1, Figs. 3 and 4)."""

    grid_classes: int = Field(ge=1, description="pseudo-classes shown in Fig. 4")
    grid_images: int = Field(ge=1, description="images of each")
    min_images: int = Field(ge=1, description="smaller classes are not considered for Fig. 4")


class VocClassification(Strict):
    """Multi-label VOC07 classification (PROTOCOL section 5)."""

    image_size: int = Field(ge=64)
    train: Literal["fc6_8", "all"]
    batch_norm: Literal["affine_trained", "frozen"]
    iterations: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_halved_every: int = Field(ge=1)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    clip_gradient: float = Field(gt=0)
    crops: int = Field(ge=1)
    seed: int = Field(ge=0)


class Proposals(Strict):
    """Selective search (PROTOCOL section 6), or what others found by it."""

    source: str = Field(description="folder of Fast R-CNN's voc_2007_<split>.mat; '' searches with the keys below")
    mode: Literal["fast", "quality"]
    shorter_side: int = Field(ge=32, description="images are resized to this before the search; boxes are mapped back")
    max_boxes: int = Field(ge=1)
    min_side: int = Field(ge=1, description="boxes with a side below this many pixels are dropped")
    seed: int = Field(ge=0)


class Detection(Strict):
    """Fast R-CNN through mmdet (PROTOCOL section 6)."""

    train_scales: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    train_max: int = Field(ge=32)
    test_scale: int = Field(ge=32)
    test_max: int = Field(ge=32)
    iterations: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_steps: list[int]
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    images_per_batch: int = Field(ge=1)
    rois_per_batch: int = Field(ge=4, description="RoIs over all images of a batch")
    foreground: float = Field(gt=0, lt=1)
    nms: float = Field(gt=0, lt=1)
    rescale: bool = Field(description="data-dependent rescaling of the pretrained layers (magic_init)")
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Detection:
        _check_steps(self.lr_steps, "iterations", self.iterations)
        sides = {
            "train_max": (self.train_max, max(self.train_scales)),
            "test_max": (self.test_max, self.test_scale),
        }
        for key, (longest, shorter) in sides.items():
            if longest < shorter:
                raise ValueError(f"{key}: {longest} is below the shorter side {shorter}; raise it")
        if self.rois_per_batch % self.images_per_batch:
            raise ValueError("rois_per_batch: must be a multiple of images_per_batch")
        return self


class Segmentation(Strict):
    """FCN-32s through mmseg (PROTOCOL section 7)."""

    pad: int = Field(ge=0, description="zero padding of conv1, pixels; 100 in FCN-32s")
    iterations: int = Field(ge=1, description="forward-backward passes, not optimiser steps")
    batch_size: int = Field(ge=1)
    accumulate: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_steps: list[int]
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Segmentation:
        _check_steps(self.lr_steps, "iterations", self.iterations)
        return self


class Resolution(Strict):
    """How a miniImageNet image becomes the network's input: shorter side to `resize`, centre crop `crop`."""

    resize: int = Field(ge=64)
    crop: int = Field(ge=64)

    @model_validator(mode="after")
    def _fits(self) -> Resolution:
        if self.crop > self.resize:
            raise ValueError("crop: must not be larger than resize, it is taken from it")
        return self


class Fewshot(Strict):
    """Prototypical evaluation (PROTOCOL section 8). Resolution 'upsampled' is Table 5's 224, 'native' its 84."""

    resolutions: dict[Literal["upsampled", "native"], Resolution]
    layers: dict[Arch, list[str]]
    ways: int = Field(ge=2)
    shots: int = Field(ge=1)
    queries: int = Field(ge=1)
    episodes: int = Field(ge=2)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Fewshot:
        _check_layers(self.layers, {name: arch.fewshot_layers for name, arch in ARCHS.items()})
        return self


class Evaluations(Strict):
    """Settings of every evaluation, one section a module of uic_core/evaluate or uic_core/openmmlab."""

    linear_probe: LinearProbe
    clusters: Clusters
    voc_classification_fc6_8: VocClassification
    voc_classification_all: VocClassification
    proposals: Proposals
    detection: Detection
    segmentation: Segmentation
    fewshot: Fewshot


class Config(Strict):
    """One paper, one config."""

    scale: Literal["paper", "demo"]
    results: str = Field(min_length=1, description="folder of everything that is made, beside the data sets")
    tables: str = Field(min_length=1, description="YAML: which cell of which table comes from where")
    published: str = Field(min_length=1, description="CSV: the numbers that the tables cite")
    datasets: Datasets
    templates: dict[str, Any] = Field(description="recipes that runs are made of by YAML anchors; not read otherwise")
    runs: dict[str, Run]
    seeds: dict[str, list[Annotated[int, Field(ge=0)]]] = Field(
        description="further seeds of a run; its tables' cells become means over all of them"
    )
    evaluations: Evaluations

    @property
    def tables_file(self) -> Path:
        """Where `tables` is: a path that is not absolute is one in the clone."""
        return _ROOT / self.tables

    @property
    def published_file(self) -> Path:
        """Where `published` is, likewise."""
        return _ROOT / self.published

    def repeats(self, run: str) -> list[str]:
        """The names of all runs of a recipe: itself, and one for each further seed."""
        return [run, *(seeded(run, seed) for seed in self.seeds.get(run, []))]


def seeded(run: str, seed: int) -> str:
    """The name of a run with another seed."""
    return f"{run}_seed{seed}"


def _folder(config: Config, name: str, where: str) -> ImageFolder:
    """A data set of class folders by its name. Raises InputError with the known ones."""
    folders = config.datasets.folders
    if name not in folders:
        near = difflib.get_close_matches(name, folders, n=1, cutoff=0.0)
        hint = f"did you mean '{near[0]}'? (known: {', '.join(folders)})" if near else "none is there"
        raise InputError(f"{where}: no data set '{name}' under datasets.folders; {hint}")
    return folders[name]


def _check_steps(steps: list[int], key: str, end: int) -> None:
    """Refuse learning-rate steps that never come, or not in this order."""
    if steps != sorted(set(steps)) or any(not 0 < step < end for step in steps):
        raise ValueError(f"lr_steps: {steps} must rise and lie between 0 and {key} ({end})")


def _check_layers(layers: dict[str, list[str]], known: dict[str, tuple[str, ...]]) -> None:
    """Refuse layers that an architecture does not have, none, and one twice."""
    for arch, names in layers.items():
        unknown = [name for name in names if name not in known[arch]]
        if unknown or not names or len(set(names)) < len(names):
            what = f"has no layer '{unknown[0]}' for this" if unknown else "names no layer, or one twice"
            raise ValueError(f"layers.{arch}: {what} (known: {', '.join(known[arch])})")


def validate(value: dict[str, Any], source: str) -> Config:
    """Validate a whole config, and what one key demands of another.

    Raises:
        InputError: every mistake, each with file and key; an unknown run is answered with the known ones.
    """
    config = _with_seeds(parse(Config, value, source), source)
    if odd := re.search(r"[^\w./+@=,:-]", config.results):
        raise InputError(
            f"{source}: results: {config.results!r} holds {odd[0]!r}, which the rules' shells would take apart; name a "
            "folder of letters, digits and . _ - /"
        )
    for name, recipe in config.runs.items():
        where = f"{source}: runs.{name}"
        if not name.replace("_", "").isalnum():
            raise InputError(f"{where}: run names are letters, digits and _; they become folders")
        cache = config.datasets.cache
        if cache.format != "none" and cache.side < recipe.resize:
            raise InputError(
                f"{source}: datasets.cache.side: {cache.side} is below runs.{name}.resize ({recipe.resize}), "
                "images would be enlarged again; raise it"
            )
        if isinstance(recipe, External):
            continue
        data = _folder(config, recipe.data, f"{where}.data")
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
            source_run = config.runs.get(recipe.start)
            if source_run is None:
                near = difflib.get_close_matches(recipe.start, config.runs, n=1, cutoff=0.0)[0]
                raise InputError(
                    f"{where}.pretrained: no run '{recipe.start}'; did you mean '{near}'? "
                    f"(known: {', '.join(config.runs)})"
                )
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
            shape = ("arch", "sobel", "classes", "image_size")
            differing = [key for key in shape if getattr(recipe, key) != getattr(source_run, key)]
            if differing:
                raise InputError(f"{where}: {', '.join(differing)} must equal those of run '{recipe.start}'")
    _check_evaluations(config, f"{source}: evaluations")
    return config


def _with_seeds(config: Config, source: str) -> Config:
    """The config with a run for every further seed. Further fine-tuning starts from the run of the same seed."""
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


def _check_evaluations(config: Config, where: str) -> None:
    """What would otherwise come out after days of pretraining."""
    evaluations, probe = config.evaluations, config.evaluations.linear_probe
    data = _folder(config, probe.data, f"{where}.linear_probe.data")
    if not data.val_images:
        raise InputError(f"{where}.linear_probe.data: {probe.data} has no validation images; name another data set")
    for arch in sorted({recipe.arch for recipe in config.runs.values()}):
        for key in ("layers", "crop", "images", "val_images"):
            if arch not in getattr(probe, key):
                raise InputError(f"{where}.linear_probe.{key}: nothing for {arch}, which runs use; add a line")
        if arch not in evaluations.fewshot.layers:
            raise InputError(f"{where}.fewshot.layers: nothing for {arch}, which runs use; add a line")
        for key, there in (("images", data.train_images), ("val_images", data.val_images)):
            wanted = getattr(probe, key)[arch]
            if wanted > there:
                raise InputError(
                    f"{where}.linear_probe.{key}.{arch}: {wanted}, but {probe.data} has {there}; 0 takes all"
                )
    for name in ("fc6_8", "all"):
        trained = getattr(evaluations, f"voc_classification_{name}").train
        if trained != name:
            raise InputError(f"{where}.voc_classification_{name}.train: must be {name}, not {trained}")
    if evaluations.voc_classification_all.batch_norm == "frozen":
        raise InputError(f"{where}.voc_classification_all.batch_norm: must be affine_trained, ALL trains all layers")
    fewshot, mini = evaluations.fewshot, config.datasets.miniimagenet
    if fewshot.ways > mini.test_classes:
        raise InputError(f"{where}.fewshot.ways: {fewshot.ways}, but there are {mini.test_classes} test classes")
    if fewshot.shots + fewshot.queries > mini.images_per_class:
        raise InputError(
            f"{where}.fewshot.queries: {fewshot.shots} shots and {fewshot.queries} queries, but a class has "
            f"{mini.images_per_class} images"
        )
    missing = {"upsampled", "native"} - set(fewshot.resolutions)
    if missing:
        raise InputError(f"{where}.fewshot.resolutions: {', '.join(sorted(missing))} is missing; Table 5 shows both")
