"""What a config says of the data sets: where they are and what they must hold. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from uic_core.recipe import Strict


class ImageFolder(Strict):
    """ImageNet's layout: <root>/train/<class>/*.JPEG and <root>/val/<class>/*.JPEG."""

    root: str = Field(min_length=1)
    classes: int = Field(ge=2)
    train_images: int = Field(ge=1)
    val_images: int = Field(ge=1)


class Voc07(Strict):
    """<root>/VOC2007 of the VOCdevkit: JPEGImages, Annotations, ImageSets/Main."""

    root: str = Field(min_length=1)
    trainval_images: int = Field(ge=1)
    test_images: int = Field(ge=1)


class VocSegmentation(Strict):
    """<root>/VOC2012: JPEGImages, SegmentationClass and lists in ImageSets/Segmentation; SBD's folder to train on."""

    root: str = Field(min_length=1)
    sbd: str = Field(description="SBD's dataset/ with img/, cls/ and the train_list; '' trains on VOC2012's own masks")
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

    root: str = Field(min_length=1)
    train_classes: int = Field(ge=1)
    val_classes: int = Field(ge=1)
    test_classes: int = Field(ge=5)
    images_per_class: int = Field(ge=20)


DatasetName = Literal["imagenet", "voc07", "voc_segmentation", "miniimagenet"]


class Dataset(Strict):
    """One of the data sets, as a file of its own: a change to another one reruns nothing here."""

    name: DatasetName
    generated: bool
    seed: int = Field(ge=0)
    section: ImageFolder | Voc07 | VocSegmentation | MiniImageNet


class Cache(Strict):
    """ImageNet's training images once more, smaller, for pretraining and linear probes; see uic_core/data/cache.py."""

    format: Literal["none", "jpeg", "uint8"]
    side: int = Field(ge=64, description="shorter side, pixels; larger images are resized to it")
    root: str = Field(min_length=1, description="folder for the pixels, on a fast disk")


class Datasets(Strict):
    """Where the data sets are and what they must hold; `generated` makes them first, at these very sizes."""

    generated: bool
    seed: int = Field(ge=0)
    imagenet: ImageFolder
    voc07: Voc07
    voc_segmentation: VocSegmentation
    miniimagenet: MiniImageNet
    cache: Cache

    def one(self, name: DatasetName) -> Dataset:
        """A data set by its name."""
        return Dataset(name=name, generated=self.generated, seed=self.seed, section=getattr(self, name))
