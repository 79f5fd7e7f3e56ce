"""Config sections of the data sets: where they are and what they must contain. Imports no torch."""

from __future__ import annotations

import functools
import operator
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from uic_core.errors import InputError, nearest
from uic_core.files import remake
from uic_core.recipe import PathName, Seed, Strict, load, tag


class ImageFolder(Strict):
    """Images in class folders: <root>/train/<class>/* and <root>/val/<class>/*, as in ImageNet.

    Data without classes, for pretraining only, has its images in <root>/train itself.
    """

    root: PathName = Field(min_length=1)
    classes: int = Field(ge=0, description="class folders; 0: there are none")
    train_images: int = Field(ge=1)
    val_images: int = Field(ge=0, description="0: there is no folder val, and no linear probe on this data")
    source: str = Field(description="where to get it, for the message where it is missing")

    @model_validator(mode="after")
    def _consistent(self) -> ImageFolder:
        if self.classes == 1:
            raise ValueError("classes: 1 tells nothing apart; write 0 for images without class folders")
        if not self.classes and self.val_images:
            raise ValueError("val_images: validation images take class folders; write 0")
        return self


class Voc07(Strict):
    """<root>/VOC2007 of the VOCdevkit: JPEGImages, Annotations, ImageSets/Main."""

    root: PathName = Field(min_length=1)
    trainval_images: int = Field(ge=1)
    test_images: int = Field(ge=1)


class VocSegmentation(Strict):
    """<root>/VOC2012: JPEGImages, SegmentationClass and lists in ImageSets/Segmentation; SBD's folder for training."""

    root: PathName = Field(min_length=1)
    sbd: PathName = Field(
        description="SBD's dataset/ with img/, cls/ and the train_list; '' trains on VOC2012's own masks"
    )
    train_list: str
    train_images: int = Field(ge=1)
    val_list: str
    val_images: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> VocSegmentation:
        if self.train_list == self.val_list:
            raise ValueError("val_list: must not be train_list, the test images would be trained on")
        return self


class MiniImageNet(Strict):
    """<root>/images/*.jpg and train.csv, val.csv, test.csv (filename,label), Ravi & Larochelle's split."""

    root: PathName = Field(min_length=1)
    train_classes: int = Field(ge=1)
    val_classes: int = Field(ge=1)
    test_classes: int = Field(ge=5)
    images_per_class: int = Field(ge=20)


VOC = ("voc07", "voc_segmentation")
"""Data sets without an index: their stages read VOC's own lists."""
_OTHERS = (*VOC, "miniimagenet")
_SECTIONS: tuple[type[Strict], ...] = (ImageFolder, Voc07, VocSegmentation, MiniImageNet)


def _tag(section: Any) -> str:
    """The model of a section: the one with most of its keys. A mistake is then told of that one alone."""
    keys = section if isinstance(section, dict) else getattr(type(section), "model_fields", {})
    return tag(max(_SECTIONS, key=lambda model: len(model.model_fields.keys() & set(keys))).__name__)


if TYPE_CHECKING:
    Section = ImageFolder | Voc07 | VocSegmentation | MiniImageNet
else:
    Section = Annotated[
        functools.reduce(operator.or_, (Annotated[model, Tag(tag(model.__name__))] for model in _SECTIONS)),
        Discriminator(_tag),
    ]
    """The section of one data set."""


class Dataset(Strict):
    """One data set, saved in its own file, so that changes to other data sets rerun nothing here."""

    name: str
    generated: bool
    seed: Seed
    section: Section

    @property
    def key(self) -> str:
        """Return its config key."""
        return f"datasets.{'folders.' * isinstance(self.section, ImageFolder)}{self.name}"


class Cache(Strict):
    """Smaller copies of the training images of `folders`, for pretraining and probes (uic_core/data/cache.py)."""

    format: Literal["none", "jpeg", "uint8", "device"]
    side: int = Field(ge=64, description="shorter side, pixels; larger images are resized to it")
    root: PathName = Field(min_length=1, description="folder for the pixels, on a fast disk")


class Datasets(Strict):
    """Where the data sets are and what they must contain; `generated` creates them first, in these sizes.

    Those that no evaluation of the config takes may be left out.
    """

    generated: bool
    seed: Seed
    check_files: bool = Field(description="compare sizes and times of all files with those at the check, in each job")
    folders: dict[str, ImageFolder] = Field(description="images in class folders, by the name that runs use")
    voc07: Voc07 | None = None
    voc_segmentation: VocSegmentation | None = None
    miniimagenet: MiniImageNet | None = None
    cache: Cache

    @model_validator(mode="after")
    def _named(self) -> Datasets:
        for name in self.folders:
            if not re.fullmatch(r"[a-z][a-z0-9]*", name) or name in _OTHERS:
                raise ValueError(
                    f"folders.{name}: a name is small letters and digits, and none of {', '.join(_OTHERS)}"
                )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all data sets that are described."""
        return (*self.folders, *(name for name in _OTHERS if getattr(self, name) is not None))

    def folder(self, name: str, key: str) -> ImageFolder:
        """Return a data set of class folders by name; `key` is the config key that gives the name.

        Raises:
            ValueError: "<key>: <what is wrong>", with the known names.
        """
        if name not in self.folders:
            near = nearest(name, self.folders)
            hint = f"{near}(known: {', '.join(self.folders)})" if near else "none is there"
            raise ValueError(f"{key}: no data set '{name}' under datasets.folders; {hint}")
        return self.folders[name]

    def train_list(self, name: str) -> tuple[str, str]:
        """Return the job (rule, data set) that lists a data set's training images."""
        return "index" if self.cache.format == "none" else "cache", name

    def one(self, name: str) -> Dataset:
        """Return a data set by name."""
        section = self.folders[name] if name in self.folders else getattr(self, name)
        return Dataset(name=name, generated=self.generated, seed=self.seed, section=section)


def size(dataset: Dataset, split: str) -> int:
    """Return the number of images that an index of a split must have."""
    section = dataset.section
    if isinstance(section, MiniImageNet):
        return int(getattr(section, f"{split}_classes")) * section.images_per_class
    return int(getattr(section, f"{split}_images"))


def demand_kind(results: Path, generated: bool, remedy: str) -> None:
    """Demand that a results folder holds results of generated data sets, or of real ones; an empty one is either's.

    Raises:
        InputError: it holds the other kind, with `remedy`; or one of its descriptions of data sets is damaged.
    """
    made = set()
    for file in results.glob("data/*.yaml"):
        try:
            made.add(load(Dataset, file).generated)
        except InputError as error:
            raise InputError(f"{error}; {remake(file)}") from error
    if made - {generated}:
        raise InputError(f"{results} holds results of {'real' if generated else 'generated'} data sets; {remedy}")
