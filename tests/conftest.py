"""Fixtures that many test files share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from uic_core.data import synthetic
from uic_core.data.dataset import Datasets
from uic_core.recipe import parse


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Small generated data sets. Read only: every test of the session sees the same files.

    Attributes: imagenet (4 classes, 12 training and 3 validation images each), voc07 (10 + 8 images), voc_segmentation
    (6 + 4 images, lists train and val), miniimagenet (1 + 1 + 5 classes of 20 images) are their roots; datasets is
    the config section that describes them.
    """
    folder: Path = tmp_path_factory.mktemp("demo_data")
    datasets = parse(
        Datasets,
        {
            "generated": True,
            "seed": 0,
            "check_files": True,
            "folders": {
                "imagenet": {
                    "root": str(folder / "imagenet"),
                    "classes": 4,
                    "train_images": 48,
                    "val_images": 12,
                    "source": "ILSVRC-2012 from image-net.org",
                }
            },
            "voc07": {"root": str(folder / "voc07"), "trainval_images": 10, "test_images": 8},
            "voc_segmentation": {
                "root": str(folder / "voc_segmentation"),
                "sbd": "",
                "train_list": "train",
                "train_images": 6,
                "val_list": "val",
                "val_images": 4,
            },
            "miniimagenet": {
                "root": str(folder / "miniimagenet"),
                "train_classes": 1,
                "val_classes": 1,
                "test_classes": 5,
                "images_per_class": 20,
            },
            "cache": {"format": "none", "side": 80, "root": str(folder / "cache")},
        },
        "demo_data",
    )
    names = ("imagenet", "voc07", "voc_segmentation", "miniimagenet")
    for name in names:
        synthetic.generate(datasets.one(name))
    return SimpleNamespace(datasets=datasets, **{name: folder / name for name in names})


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Callable[[object], None]:
    """Record what a test of a fault saw, usually a message: `make faults` prints it."""
    return lambda text: record_property("seen", " ".join(str(text).split()))


def pytest_configure() -> None:
    """Let the tests' processes hear Ctrl-C, which what a shell starts in the background ignores, and its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of a GPU are skipped where none is seen."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


LONGEST = (
    "workflow/test_dag.py",
    "pretrain/test_resume.py",
    "openmmlab/test_resume.py",
    "test_extending.py",
    "workflow/test_takeover.py",
    "workflow/test_changing.py",
    "workflow/test_squeue.py",
    "workflow/test_start.py",
)
"""Files of more than half a minute that would come late."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, beside the fast ones: at the end one of two processes would wait for them."""
    items.sort(key=lambda item: [not item.path.as_posix().endswith(f"/{file}") for file in LONGEST])
