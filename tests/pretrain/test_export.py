"""What is exported loads where it says it does, and comes back bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from mmdet.models.backbones import ResNet

from uic_core import checkpoint
from uic_core import recipe as recipes
from uic_core.files import sha256
from uic_core.models import build
from uic_core.models.network import Network
from uic_core.openmmlab.backbones import UicBackbone
from uic_core.pretrain import export, external
from uic_core.recipe import External
from uic_core.run import metrics


def exported(folder: Path, arch: str, sobel: bool, *options: str, coverage: float = 1.0) -> tuple[Network, Path]:
    torch.manual_seed(0)
    network = build(arch, classes=7, image_size=64, sobel=sobel).eval()
    network.coverage = coverage
    recipe = recipes.parse(
        External,
        {
            "method": "external", "path": "x", "format": "uic_core", "arch": arch, "sobel": sobel, "image_size": 64,
            "resize": 73,
        },
        "test",
    )  # fmt: skip
    checkpoint.save(folder / "checkpoint.safetensors", network, recipe, {})
    arguments = ["--run", "mine", "--checkpoint", str(folder / "checkpoint.safetensors"), "--out", str(folder / "out")]
    export.main([*arguments, *options])
    return network, folder / "out"


@pytest.mark.parametrize(
    ("arch", "sobel"),
    [
        ("alexnet", True),
        ("resnet50", False),
        ("resnet50_mlp", False),
        ("alexnet_torchvision", False),
        ("alexnet_rotnet", False),
    ],
)
def test_back_and_forth(tmp_path: Path, arch: str, sobel: bool) -> None:
    network, out = exported(tmp_path, arch, sobel)
    recipe = checkpoint.load(tmp_path / "checkpoint.safetensors")[1]
    assert isinstance(recipe, External)
    again, _ = external.convert(
        external.read_tensors(out / "torchvision.safetensors"),
        recipe.model_copy(update={"format": "torchvision"}),
        "file",
    )
    assert again.coverage == 1
    for (name, here), (other, there) in zip(network.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(here, there)


@torch.no_grad()
def test_resnet_loads_into_torchvision_and_mmdet(tmp_path: Path) -> None:
    network, out = exported(tmp_path, "resnet50", False)
    x = torch.randn(2, 3, 64, 64)
    there = torchvision.models.resnet50(num_classes=7)
    there.load_state_dict(safetensors.torch.load_file(out / "torchvision.safetensors"), strict=True)
    assert torch.equal(there.eval()(x), network(x))
    backbone = ResNet(depth=50)
    weights = safetensors.torch.load_file(out / "openmmlab.safetensors")
    backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in weights.items()}, strict=True)
    backbone.eval()  # mmdet's returns None
    assert torch.equal(backbone(x)[-1], network.maps(x))


@torch.no_grad()
def test_alexnet_loads_into_torchvision() -> None:
    network = build("alexnet_torchvision", classes=7, image_size=224, sobel=False).eval()
    with torch.device("meta"):
        there = torchvision.models.alexnet(num_classes=7)
    there.load_state_dict(export.torchvision_weights(network), strict=True, assign=True)
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(there.eval()(x), network(x))


@torch.no_grad()
def test_a_top_layer_that_no_checkpoint_filled_is_left_out(tmp_path: Path) -> None:
    network, out = exported(tmp_path, "resnet50", False, coverage=0.9998)
    weights = safetensors.torch.load_file(out / "torchvision.safetensors")
    assert not any(name.startswith("fc.") for name in weights)
    card = (out / "README.md").read_text()
    assert "resnet50, without a top layer, trained" in card
    assert "filled 99.98% of its weights: it had no top layer, so there is none in these files" in card
    assert "network.load_state_dict(weights, strict=False)  # there is no `fc`" in card
    recipe = checkpoint.load(tmp_path / "checkpoint.safetensors")[1]
    assert isinstance(recipe, External)
    again, remarks = external.convert(weights, recipe.model_copy(update={"format": "torchvision"}), "file")
    assert not again.top_filled
    assert "no top layer in it: a new one stands in its place" in remarks
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again.embed(x), network.embed(x))


def test_vgg_loads_into_torchvision() -> None:
    with torch.device("meta"):
        network = build("vgg16", classes=7, image_size=224, sobel=False)
        there = torchvision.models.vgg16_bn(num_classes=7)
    weights = export.torchvision_weights(network)
    there.load_state_dict(weights, strict=True)  # names and shapes
    network = build("vgg16", classes=7, image_size=64, sobel=False).eval()
    there = torchvision.models.vgg16_bn(num_classes=7, init_weights=False).eval()
    there.classifier[0] = torch.nn.Linear(512 * 2 * 2, 4096)
    there.load_state_dict(export.torchvision_weights(network), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(there.classifier(there.features(x).flatten(1)), network(x))


@torch.no_grad()
def test_alexnet_loads_into_the_openmmlab_backbone(tmp_path: Path) -> None:
    network, out = exported(tmp_path, "alexnet", True)
    backbone = UicBackbone("alexnet", sobel=True)
    weights = safetensors.torch.load_file(out / "openmmlab.safetensors")
    backbone.load_state_dict({name.removeprefix("backbone."): value for name, value in weights.items()}, strict=True)
    x = torch.randn(2, 3, 64, 64)
    network.features.conv1.padding = (5, 5)  # Fast R-CNN's, as the backbone has them
    network.features.pool1.padding = network.features.pool2.padding = 1
    network.features.pool1.ceil_mode = network.features.pool2.ceil_mode = True
    assert torch.equal(backbone(x)[0], network.taps(x, ["conv5"])["conv5"])


def test_the_model_card_says_recipe_metrics_commit_and_hashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path, "alexnet", True)
    digest = sha256(tmp_path / "checkpoint.safetensors")
    came = metrics.provenance(metrics.Origin("mine", digest, "r", 1.0, (), ""), seed=0)
    found = metrics.Metrics(
        evaluation="linear_probe",
        run="mine",
        dataset=metrics.Dataset(name="imagenet", fingerprint="f", sizes={}),
        values={"conv5": metrics.Value(value=41.23, unit="%", ci95=0.5)},
        protocol={},
        provenance=came,
    )
    metrics.write(tmp_path / "linear_probe.json", found)
    _, out = exported(tmp_path, "alexnet", True, "--metrics", str(tmp_path / "linear_probe.json"))
    made_of_another = found.model_copy(update={"provenance": came.model_copy(update={"checkpoint_hash": "0" * 16})})
    metrics.write(tmp_path / "other.json", made_of_another)
    with pytest.raises(SystemExit):
        exported(tmp_path, "alexnet", True, "--metrics", str(tmp_path / "other.json"))
    assert "other.json: is of another checkpoint than" in capsys.readouterr().err
    card = (out / "README.md").read_text()
    assert f"| linear_probe | conv5 | 41.2 % ± 0.5 | imagenet | {came.commit} | {came.date} |" in card
    assert "arch: alexnet\n" in card
    for name in export.FILES:
        assert f"| {name} | `{sha256(out / name)}` |" in card
    assert "Sobel" in card
