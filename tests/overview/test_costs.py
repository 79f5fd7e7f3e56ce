"""Costs are the plan's, and follow the config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from uic_core.config import Config, read, validate
from uic_core.evaluations.counting import count
from uic_core.methods import METHODS
from uic_core.overview import costs, plan
from uic_core.overview.rates import assumed
from uic_core.strict_yaml import read_yaml

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def paper() -> Config:
    path = CONFIG / "paper.yaml"
    return validate(read_yaml(path), str(path))


@pytest.mark.parametrize(
    ("arch", "sobel", "forward", "training"),
    [("alexnet", True, 2.2, 6.5), ("resnet50", False, 8.2, 24.3), ("vgg16", False, 31.0, 92.7)],
)
def test_networks_cost_what_the_protocol_says(arch: str, sobel: bool, forward: float, training: float) -> None:
    size = count(arch, 3000, 224, sobel)
    assert size.forward / 1e9 == pytest.approx(forward, rel=0.03)
    assert size.training / 1e9 == pytest.approx(training, rel=0.03)


def test_a_linear_layer_by_hand() -> None:
    # AlexNet's classifier at 224 with 3000 classes: 9216·4096 + 4096·4096 + 4096·3000 multiply-adds.
    size = count("alexnet", 3000, 224, True)
    assert size.classifier == 2 * (9216 * 4096 + 4096 * 4096 + 4096 * 3000)


def test_uic_takes_no_pass_of_its_own_and_deepcluster_one_an_epoch(paper: Config) -> None:
    uic, deepcluster = costs.training(paper, "uic_3k"), costs.training(paper, "deepcluster")
    images, epochs = paper.datasets.folders["imagenet"].train_images, paper.runs["uic_3k"].epochs
    assert uic.images == images * epochs
    assert deepcluster.images == 2 * images * paper.runs["deepcluster"].epochs
    size = count("alexnet", paper.runs["deepcluster"].classes, 224, True)
    passes = deepcluster.images / 2 * (size.training + size.forward)
    assert deepcluster.flops == pytest.approx(passes + deepcluster.labelling.operations)
    # the extra forward is .33 of training compute
    assert size.forward / size.training == pytest.approx(0.33, abs=0.01)


def test_labels_from_a_centre_crop_take_a_pass_an_epoch_but_the_first_and_fine_tuning_one(paper: Config) -> None:
    images = paper.datasets.folders["imagenet"].train_images
    crop, tuned = costs.training(paper, "uic_3k_center_crop"), costs.training(paper, "uic_3k_fft")
    assert crop.images == (2 * paper.runs["uic_3k_center_crop"].epochs - 1) * images
    assert tuned.images == images * (1 + paper.runs["uic_3k_fft"].epochs)
    assert ("pretrain", "uic_3k") in tuned.needs
    assert costs.training(paper, "random_rgb").flops == 0


def test_deepclusters_clustering_by_hand(paper: Config) -> None:
    """An epoch: PCA of fc7's 4,096 numbers to 256, twenty iterations among 10,000 centroids, and a last search."""
    job, size = costs.training(paper, "deepcluster"), count("alexnet", 10000, 224, True)
    images, epochs = 1_281_167, 500
    pca = 2 * images * (4096 * 4096 + 4096 * 256)
    kmeans = 2 * images * 10_000 * 256 * (20 + 1)
    assert job.labelling.operations == pytest.approx(epochs * (pca + kmeans))
    assert (pca / 1e12, kmeans / 1e12) == pytest.approx((45.7, 137.8), abs=0.1)
    assert job.exact == pytest.approx(epochs * (pca + kmeans + images * size.forward))
    assert job.gigabytes() * 1e9 > 2 * job.labelling.memory
    assert plan._labelling(job, assumed(paper, 312, 8)) == (
        "deepcluster: 500 clusterings of 1,281,167 × 256 (PCA of 4,096) in 10,000 classes, 20 iterations each, in "
        f"22.3 GB of memory; together {epochs * (pca + kmeans) / (0.6 / 16 * 312e12) / 3600:.1f} GPU-hours"
    )


@pytest.mark.parametrize("heads", [1, 10])
def test_selflabel_takes_a_pass_for_each_moment_and_an_optimisation_for_each_head(heads: int) -> None:
    content = read_yaml(CONFIG / "paper.yaml")
    keys = ("schedule", "label_view", "balanced")
    run = {key: value for key, value in content["runs"]["uic_3k"].items() if key not in keys}
    run |= {"method": "selflabel", "epochs": 400, "sobel": False, "lr_steps": [150, 300, 350], "heads": heads}
    run |= {"optimisations": 100, "moments": "quadratic", "heads_at_once": "all", "sharpness": 25.0, "tolerance": 0.1}
    config = validate(content | {"runs": content["runs"] | {"selflabel": run}}, "paper.yaml")
    job, size = costs.training(config, "selflabel"), count("alexnet", 3000 * heads, 224, False)
    images = config.datasets.folders["imagenet"].train_images
    assert job.images == images * (400 + 99)
    # logits three times, and 500 iterations of what takes as long as 150 float32 operations a number
    labelling = 99 * heads * images * 3000 * (3 * 2 * 4096 + 500 * 150)
    assert job.labelling.operations == pytest.approx(labelling)
    assert job.exact == pytest.approx(labelling + 99 * images * size.forward)
    assert job.flops == pytest.approx(job.exact + 400 * images * size.training)
    assert (job.labelling.memory / 1e9, job.labelling.disk / 1e9) == pytest.approx((7.69, 10.50), abs=0.01)
    assert job.gigabytes() * 1e9 > 6 * job.labelling.memory
    assert job.bytes > job.labelling.disk
    line = plan._labelling(job, assumed(config, 312, 8))
    hours = labelling / (0.6 / 16 * 312e12) / 3600
    assert line.startswith(f"selflabel: {99 * heads} label optimisations of 1,281,167 × 3,000, taken to last 500")
    assert line.endswith(f"in 7.7 GB of memory with 10.5 GB of disk; together {hours:.1f} GPU-hours")


def test_an_image_of_several_views_is_decoded_once(paper: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = costs.training(paper, "supervised")
    monkeypatch.setitem(METHODS, "supervised", replace(METHODS["supervised"], views_per_image=4))
    after = costs.training(paper, "supervised")
    assert (after.flops, after.images, after.bytes) == (4 * before.flops, before.images, before.bytes)


def test_probes_decode_every_training_image_an_epoch_and_test_in_few_passes(paper: Config) -> None:
    job = costs.evaluation(paper, "uic_3k", "linear_probe")
    imagenet = paper.datasets.folders["imagenet"]
    assert job.images == 32 * imagenet.train_images + 3 * imagenet.val_images
    assert job.needs[0] == ("pretrain", "uic_3k")


@pytest.mark.parametrize(("format", "share"), [("jpeg", 1 / 2.6), ("uint8", 1 / 6.8), ("device", 0.0)])
def test_a_cache_saves_decoding_of_the_images_that_it_holds(paper: Config, format: str, share: float) -> None:
    """Those of trainings, and those that probes and neighbours learn from; others are decoded as before."""
    content = read_yaml(CONFIG / "paper.yaml")
    content["datasets"]["cache"]["format"] = format
    cached = validate(content, "paper.yaml")
    learned, tested = paper.datasets.folders["imagenet"].train_images, paper.datasets.folders["imagenet"].val_images
    for run in ("uic_3k", "deepcluster", "uic_3k_fft"):
        before, after = (costs.training(config, run) for config in (paper, cached))
        assert after.images == pytest.approx(share * before.images)
        assert after.flops == before.flops
    job = costs.evaluation(cached, "uic_3k", "linear_probe")
    assert job.images == pytest.approx(share * 32 * learned + 3 * tested)
    for name in ("fewshot", "detection", "segmentation", "voc_classification_all"):
        before, after = (costs.evaluation(config, "uic_3k_fft", name) for config in (paper, cached))
        assert before.images == after.images > 0
    made = {job.rule: job.images for job in costs.preparation(cached)}
    assert made["cache"] == learned


def test_of_neighbours_those_that_vote_are_cached() -> None:
    config = read([CONFIG / "cifar10.yaml"])
    assert config.datasets.cache.format == "device"
    assert costs.evaluation(config, "uic_128", "knn").images == 10_000
    assert costs.training(config, "uic_128").images == 0


@pytest.mark.parametrize("key", ["iterations", "images_per_batch"])
def test_detection_grows_with_its_settings(paper: Config, key: str) -> None:
    # Property: twice the training costs between one and two times the job.
    before = costs.evaluation(paper, "uic_3k_fft", "detection").flops
    changed = paper.evaluations.detection.model_copy(update={key: 2 * getattr(paper.evaluations.detection, key)})
    evaluations = paper.evaluations.model_copy(update={"detection": changed})
    after = costs.evaluation(paper.model_copy(update={"evaluations": evaluations}), "uic_3k_fft", "detection").flops
    assert before < after <= 2 * before


def test_a_data_set_is_listed_whatever_its_name_begins_with() -> None:
    """VOC's are not: their stages read its own lists."""
    text = (
        (CONFIG / "demo.yaml").read_text().replace(" imagenet:", " vocfine:").replace("data: imagenet", "data: vocfine")
    )
    jobs = costs.preparation(validate(yaml.safe_load(text), "demo.yaml"))
    assert {job.run for job in jobs if job.rule == "index"} == {"vocfine", "miniimagenet"}
