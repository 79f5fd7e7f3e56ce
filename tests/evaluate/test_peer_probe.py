"""The peers' own linear probes: each switch against a plain computation, their published schedules, the stage."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uic_core import checkpoint, recipe
from uic_core.config import validate
from uic_core.data import reader
from uic_core.data.augment import normalize
from uic_core.data.index import Index
from uic_core.errors import InputError
from uic_core.evaluate import heads, linear_probe, probes, ten_crop
from uic_core.evaluations import LinearProbe, PeerProbe
from uic_core.methods import parse_run
from uic_core.models.network import Network
from uic_core.overview.smoke import smaller
from uic_core.strict_yaml import read_yaml

CONFIG = Path(__file__).parents[2] / "config"
LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5"]
SHARED: dict[str, Any] = {
    "data": "imagenet", "layers": {"alexnet": LAYERS}, "images": {"alexnet": 0}, "val_images": {"alexnet": 0},
    "batch_size": 192, "momentum": 0.9, "batch_norm": True, "seed": 0, "lr": 0.01,
}  # fmt: skip
SELFLABEL = SHARED | {
    "crop": {"alexnet": "resized_crop"}, "epochs": 36, "lr_steps": [10, 20, 30], "lr_factor": 10.0,
    "weight_decay": 1e-5, "nesterov": False, "start": "xavier", "test": "ten_crop_logits",
}  # fmt: skip
ROTNET = SHARED | {
    "crop": {"alexnet": "random_crop"}, "epochs": 35, "lr_steps": [5, 15, 25], "lr_factor": 5.0, "weight_decay": 5e-4,
    "nesterov": True, "start": "he", "test": "center_crop",
}  # fmt: skip
"""As their code has them; docs/protocol.md says the same, which tests/test_protocol_document.py holds."""


def protocol(section: dict[str, Any], **changes: Any) -> PeerProbe:
    return recipe.parse(PeerProbe, section | changes, "test")


@pytest.mark.parametrize(
    ("section", "rates"),
    [
        (SELFLABEL, [(10, 0.01), (10, 0.001), (10, 0.0001), (6, 0.00001)]),
        (ROTNET, [(5, 0.01), (10, 0.002), (10, 0.0004), (10, 0.00008)]),
    ],
    ids=["selflabel", "rotnet"],
)
def test_the_learning_rates_are_their_codes(section: dict[str, Any], rates: list[tuple[int, float]]) -> None:
    made = protocol(section)
    found = [probes.learning_rate(made, epoch) for epoch in range(made.epochs)]
    np.testing.assert_allclose(found, [rate for epochs, rate in rates for _ in range(epochs)], rtol=1e-12)


def test_heads_start_as_theirs_do(alexnet: Network) -> None:
    """SelfLabel's head is a convolution over all places: its Xavier counts K outputs at each of them."""
    classes, channels, places = 50, 256, 3 * 3  # conv5 of 64 pixels: 3 × 3
    drawn = {
        start: heads.build_heads(alexnet, ["conv5"], classes, protocol(SELFLABEL, start=start))["conv5"].linear
        for start in ("normal", "xavier", "he")
    }
    assert {tuple(linear.weight.shape) for linear in drawn.values()} == {(classes, channels * places)}
    bound = math.sqrt(6 / (channels * places + classes * places))
    weight = drawn["xavier"].weight.detach()
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert drawn["he"].weight.std().item() == pytest.approx(math.sqrt(2 / classes), rel=0.02)
    assert all((linear.bias == 0).all() for linear in drawn.values())
    paper = recipe.parse(
        LinearProbe, {key: SELFLABEL[key] for key in LinearProbe.model_fields.keys() & SELFLABEL}, "test"
    )
    assert torch.equal(
        heads.build_heads(alexnet, ["conv5"], classes, paper)["conv5"].linear.weight, drawn["normal"].weight
    )


def test_an_image_is_tested_as_they_test_it(alexnet: Network, indexes: tuple[Index, Index]) -> None:
    """Against one image at a time; the heads are such that the three tests disagree."""
    _, val = indexes
    generator = torch.Generator().manual_seed(0)
    dimension = heads.activations(alexnet, torch.zeros(1, 3, 64, 64), ["conv3"])["conv3"].shape[1]
    snapshots = [
        {"conv3": (torch.randn(8, dimension, generator=generator), torch.randn(8, generator=generator))}
        for _ in range(20)
    ]
    expected: dict[str, list[torch.Tensor]] = {"ten_crop_softmax": [], "ten_crop_logits": [], "center_crop": []}
    for position, label in enumerate(val.labels):
        image = reader.read_rgb(val.file(position))
        crops = torch.from_numpy(reader.ten_crop(image, 73, 64))
        centre = torch.from_numpy(np.ascontiguousarray(reader.center_crop(image, 73, 64)))[None]
        for test, views in (("ten_crop_softmax", crops), ("ten_crop_logits", crops), ("center_crop", centre)):
            features = heads.activations(alexnet, normalize(views), ["conv3"])["conv3"]
            logits = torch.stack([F.linear(features, *snapshot["conv3"]) for snapshot in snapshots])
            scores = (logits.softmax(2) if test == "ten_crop_softmax" else logits).mean(1)
            expected[test].append(scores.argmax(1) == int(label))
    counts = {test: torch.stack(right).sum(0) for test, right in expected.items()}
    assert len({tuple(count.tolist()) for count in counts.values()}) == 3, "the tests differ"
    for test, count in counts.items():
        parts = ten_crop.hits(alexnet, snapshots, val, 73, test=test)  # type: ignore[arg-type]
        found = sum(part for _, part in parts)
        assert isinstance(found, torch.Tensor)
        assert found[0, 0].tolist() == count.tolist(), test


def test_nesterovs_momentum_without_any_is_refused_with_the_config() -> None:
    with pytest.raises(InputError, match=r"momentum: Nesterov's takes one above 0; raise it, or write nesterov: false"):
        protocol(ROTNET, momentum=0.0)
    assert protocol(SELFLABEL, momentum=0.0).momentum == 0.0


def test_momentum_is_nesterovs_and_the_crop_and_batch_norm_the_protocols(
    alexnet: Network, indexes: tuple[Index, Index]
) -> None:
    for section, nesterov, crop in ((SELFLABEL, False, "resized_crop"), (ROTNET, True, "random_crop")):
        made = probes.Probes(alexnet, *indexes, protocol(section, batch_size=16), 73)
        (group,) = made._optimizer.param_groups
        assert (group["nesterov"], group["momentum"], group["weight_decay"]) == (nesterov, 0.9, section["weight_decay"])
        assert made._crop == crop
        assert all(head.norm is not None and not head.norm.affine for head in made.heads.values())
        made.close()


@pytest.mark.parametrize(("name", "section"), [("linear_probe_selflabel", SELFLABEL), ("linear_probe_rotnet", ROTNET)])
def test_stage_writes_metrics_of_its_own_name(
    alexnet: Network, indexes: tuple[Index, Index], tmp_path: Path, name: str, section: dict[str, Any]
) -> None:
    made_by = parse_run(read_yaml(CONFIG / "demo.yaml")["runs"]["random_sobel"] | {"classes": 4}, "test")
    checkpoint.save(tmp_path / "checkpoint.safetensors", alexnet, made_by, {})
    few = {"epochs": 2, "lr_steps": [1], "batch_size": 16, "layers": {"alexnet": ["conv5"]}}
    recipe.save(protocol(section, **few), tmp_path / "protocol.yaml")
    arguments = {"checkpoint": "checkpoint.safetensors", "protocol": "protocol.yaml", "out": f"{name}.json"}
    for split, index in zip(("train", "val"), indexes, strict=True):
        index.save(tmp_path / f"{split}.npz")
        arguments[f"{split}-index"] = f"{split}.npz"
    given = [f"--{key}={tmp_path / file}" for key, file in arguments.items()]
    linear_probe.main(["--run", "random_sobel", "--evaluation", name, *given])
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["evaluation"] == name
    assert list(found["values"]) == ["conv5", "conv5/top5", "conv5/best_epoch", "conv5/last", "conv5/last/top5"]
    kept = {key: found["protocol"][key] for key in ("test", "start", "nesterov", "lr_factor", "batch_norm")}
    assert kept == {key: section[key] for key in kept}
    assert not list(tmp_path.glob("*state*"))
    with pytest.raises(SystemExit):  # the paper's section has other keys
        linear_probe.main(["--run", "random_sobel", *given])


def with_peers(**changes: Any) -> dict[str, Any]:
    """The paper's config with both sections."""
    content: dict[str, Any] = copy.deepcopy(read_yaml(CONFIG / "paper.yaml"))
    content["evaluations"] |= {
        "linear_probe_selflabel": copy.deepcopy(SELFLABEL),
        "linear_probe_rotnet": ROTNET | changes,
    }
    return content


def test_a_config_may_have_them_and_they_are_of_the_architectures_that_they_name() -> None:
    config = validate(with_peers(), "mine.yaml")
    assert config.refuses("uic_3k", "linear_probe_rotnet") == ""
    told = config.refuses("uic_resnet50_strong", "linear_probe_rotnet")
    assert told == "run uic_resnet50_strong is resnet50, and this probe is of alexnet; name another run"
    close = with_peers()
    close["runs"]["uic_3k"] |= {"resize": 224}  # nothing to a probe that looks at the centre crop alone
    probes = [name for name in close["evaluations"] if name.startswith("linear_probe")]
    assert len(probes) == 3
    refused = {name for name in probes if "resize" in validate(close, "mine.yaml").refuses("uic_3k", name)}
    assert refused == {"linear_probe", "linear_probe_selflabel"}
    without = validate(read_yaml(CONFIG / "paper.yaml"), "paper.yaml")
    assert "has no evaluations.linear_probe_rotnet; add" in without.refuses("uic_3k", "linear_probe_rotnet")
    generated = with_peers() | {"scale": "demo"}
    generated["datasets"]["generated"] = True
    small = smaller(validate(generated, "mine.yaml"), Path("small"))
    assert small.evaluations.linear_probe_rotnet is not None
    assert small.evaluations.linear_probe_rotnet.epochs == 2
    with pytest.raises(InputError, match=r"linear_probe_rotnet\.crop: nothing for alexnet, which runs use"):
        validate(with_peers(crop={}), "mine.yaml")
    with pytest.raises(InputError, match=r"linear_probe_rotnet\.lr_factor: .* greater than 1"):
        validate(with_peers(lr_factor=1.0), "mine.yaml")
