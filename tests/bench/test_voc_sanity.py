"""The planted case's data: scenes enlarged with their masks, labels shuffled, settings that the config accepts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from bench import voc_sanity
from uic_core import recipe
from uic_core.data import reader, voc
from uic_core.data.index import Index, build_folder
from uic_core.methods import parse_run


def test_scenes_are_enlarged_with_their_masks(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    voc_sanity.enlarge(demo_data.voc_segmentation, tmp_path)
    both = (voc.segmentation_lists(root, "", "train", "val") for root in (demo_data.voc_segmentation, tmp_path))
    for small, large in zip(*both, strict=True):
        for image in large.ids():
            before, after = voc.read_mask(small.mask(image)), voc.read_mask(large.mask(image))
            size = voc_sanity.ENLARGED
            np.testing.assert_array_equal(after, before.repeat(size, axis=0).repeat(size, axis=1))
            assert reader.read_rgb(large.image(image)).size == after.shape[::-1]


def test_shuffled_labels_are_the_same_labels_on_other_images(demo_data: SimpleNamespace) -> None:
    index: Index = build_folder(demo_data.imagenet, "train", "imagenet")
    shuffled = voc_sanity.shuffle(index)
    assert (shuffled.labels != index.labels).mean() > 0.5
    np.testing.assert_array_equal(np.bincount(shuffled.labels), np.bincount(index.labels))
    np.testing.assert_array_equal(shuffled.paths, index.paths)
    assert shuffled.fingerprint != index.fingerprint


def test_the_settings_are_a_config(tmp_path: Path) -> None:
    voc_sanity.protocols(tmp_path)
    for name, model in voc_sanity.PROTOCOLS.items():
        recipe.load(model, voc_sanity.protocol(tmp_path, name))
    made = parse_run(voc_sanity.pretraining(), "pretraining")
    assert isinstance(made, recipe.Recipe)
    assert made.method == "supervised"
    assert made.image_size >= 127
