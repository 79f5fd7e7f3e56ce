"""Checkpoints of other code bases compute here what they compute there, or are refused with the reason.

The references are torchvision's own networks, and DeepCluster's and SelfLabel's built here from what is published of
their layout: children of a Sequential, called by position.
"""

from __future__ import annotations

import argparse
import bz2
import copy
import gzip
import json
import lzma
import pickle
import re
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torchvision
from torch import Tensor, nn

from uic_core import checkpoint
from uic_core import recipe as recipes
from uic_core.errors import InputError
from uic_core.files import sha256, stamp
from uic_core.models import build, formats
from uic_core.pretrain import external
from uic_core.recipe import External
from uic_core.run import trained


def settings(**changes: Any) -> External:
    base = {
        "method": "external", "path": "file.pth", "format": "torchvision", "arch": "resnet50", "sobel": False,
        "image_size": 64, "resize": 73,
    }  # fmt: skip
    return recipes.parse(External, base | changes, "test")


def shake(module: nn.Module) -> nn.Module:
    """Statistics, scales and biases that a mistake would not leave unnoticed; in eval mode."""
    generator = torch.Generator().manual_seed(3)
    for tensor in (*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())):
        if tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.0, generator=generator)
    return module.eval()


class Positional(nn.Module):
    """features and classifier as plain sequences, as DeepCluster and SelfLabel have AlexNet."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        convs = ((96, 11, 4, 2, True), (256, 5, 1, 2, True), (384, 3, 1, 1, False), (384, 3, 1, 1, False))
        for out, kernel, stride, padding, pool in (*convs, (256, 3, 1, 1, True)):
            layers += [nn.Conv2d(inputs, out, kernel, stride, padding), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2)] * pool
            inputs = out
        self.features: nn.Module = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(256, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU()
        )  # 256 = 1·1·256, the last map of 64 pixels
        self.top_layer = nn.Linear(4096, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.top_layer(self.classifier(torch.flatten(self.features(x), 1)))
        return logits


def sobel_layers() -> nn.Sequential:
    """Greyscale and filters as two frozen convolutions."""
    grey, filters = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1)
    nn.init.constant_(grey.weight, 1 / 3)
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    with torch.no_grad():
        filters.weight.copy_(torch.stack([across, across.T])[:, None])
    for layer in (grey, filters):
        nn.init.zeros_(layer.bias)
    return nn.Sequential(grey, filters)


def old(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torch before 0.4.1 wrote it: batch norms did not count their batches."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


@torch.no_grad()
def test_deepcluster(tmp_path: Path) -> None:
    there = Positional(2, 30)
    shake(there)
    there.features = nn.DataParallel(there.features)
    state = old(there.state_dict()) | {f"sobel.{name}": value for name, value in sobel_layers().state_dict().items()}
    optimizer = torch.optim.SGD(there.parameters(), 0.1, momentum=0.9).state_dict()
    content = {"epoch": 500, "arch": "alexnet", "state_dict": state, "optimizer": optimizer}
    torch.save(content, tmp_path / "checkpoint.pth.tar", _use_new_zipfile_serialization=False)
    recipe = settings(format="deepcluster", arch="alexnet", sobel=True)
    network, remarks = external.convert(external.read_tensors(tmp_path / "checkpoint.pth.tar"), recipe, "file")
    x = torch.randn(2, 3, 64, 64)
    maps = there.features.module(sobel_layers()(x)).flatten(1)
    torch.testing.assert_close(network(x), there.top_layer(there.classifier(maps)))
    assert network.coverage == 1
    assert remarks == [
        "'module.' removed from 30 names",
        "'sobel' left out, it is no part of the network",
        "coverage 100.00% of the network's weights",
    ]


@torch.no_grad()
@pytest.mark.parametrize("tops", [["top_layer"], ["top_layer.0"], ["top_layer0", "top_layer1", "top_layer2"]])
def test_selflabel_alexnet(tops: list[str]) -> None:
    there = Positional(3, 30)
    shake(there)
    state = there.state_dict()
    weights = {name: state.pop(f"top_layer.{name}") for name in ("weight", "bias")}
    for number, top in enumerate(tops):
        state |= {f"{top}.{name}": value + number for name, value in weights.items()}
    network, _ = external.convert(state, settings(format="selflabel", arch="alexnet"), "file")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), there(x))  # of the first head
    assert (network.classes, network.coverage) == (30, 1)


def resnet(classes: int = 20) -> torchvision.models.ResNet:
    torch.manual_seed(0)
    network = torchvision.models.resnet50(num_classes=classes)
    shake(network)
    return network


STATE = resnet().state_dict()


@torch.no_grad()
@pytest.mark.parametrize("top", ["top_layer", "top_layer.0", "top_layer0"])
def test_selflabel_resnet(top: str) -> None:
    there = resnet()
    parts = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    state = nn.Sequential(*(there.get_submodule(part) for part in parts)).state_dict(prefix="features.")
    state |= there.fc.state_dict(prefix=f"{top}.")
    if top == "top_layer0":
        state |= there.fc.state_dict(prefix="top_layer1.")
    network, remarks = external.convert(state, settings(format="selflabel"), "file")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), there(x))
    assert (network.classes, network.coverage) == (20, 1)
    assert remarks[-1] == "coverage 100.00% of the network's weights"
    del state[f"{top}.bias"]
    with pytest.raises(InputError, match=rf"missing \(1\): {re.escape(top)}\.bias\n"):
        external.convert(state, settings(format="selflabel"), "file")


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "make", "image_size"),
    [
        ("resnet50", resnet, 64),
        ("alexnet_torchvision", torchvision.models.alexnet, 224),
    ],
)
def test_torchvision(arch: str, make: Any, image_size: int) -> None:
    there = shake(make())
    recipe = settings(arch=arch, image_size=image_size, resize=256)
    network, _ = external.convert(there.state_dict(), recipe, "file")
    x = torch.randn(1, 3, image_size, image_size)
    torch.testing.assert_close(network(x), there(x))
    assert network.coverage == 1


@torch.no_grad()
def test_moco() -> None:
    there = resnet()
    query = {f"module.encoder_q.{name}": value for name, value in there.state_dict().items() if "fc" not in name}
    head = {
        "module.encoder_q.fc.0.weight": torch.ones(8, 2048),
        "module.queue": torch.ones(8, 4),
        "module.queue_ptr": torch.ones(1),
    }
    key = {
        name.replace("encoder_q", "encoder_k"): value + 1
        for name, value in (query | head).items()
        if "queue" not in name
    }
    network, remarks = external.convert(query | head | key, settings(format="moco"), "file")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(
        network.taps(x, ["avgpool"])["avgpool"], nn.Sequential(*list(there.children())[:-1])(x).flatten(1)
    )
    own = 2 * 2048 + 2  # a new top layer of two classes
    weights = sum(value.numel() for value in network.state_dict().values() if value.is_floating_point())
    assert network.coverage == 1 - own / weights
    assert remarks[-1] == "coverage 99.98% of the network's weights"
    assert "no top layer in it: a new one stands in its place" in remarks
    assert any("encoder_q." in remark for remark in remarks)


@torch.no_grad()
def test_swav() -> None:
    there = resnet()
    state = {f"module.{name}": value for name, value in there.state_dict().items() if "fc" not in name}
    state |= {"module.projection_head.0.weight": torch.ones(8, 2048), "module.prototypes.weight": torch.ones(9, 8)}
    network, _ = external.convert(state, settings(format="swav"), "file")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(
        network.taps(x, ["avgpool"])["avgpool"], nn.Sequential(*list(there.children())[:-1])(x).flatten(1)
    )


@torch.no_grad()
def test_uic_official() -> None:
    there = resnet()
    there.head = nn.Sequential(
        nn.Conv2d(2048, 2048, 1, bias=False), nn.BatchNorm2d(2048), nn.ReLU(),
        nn.Conv2d(2048, 2048, 1, bias=False), nn.BatchNorm2d(2048), nn.ReLU(),
    )  # fmt: skip
    shake(there)
    state = {f"module.{name}": value for name, value in there.state_dict().items()}
    network, _ = external.convert(state, settings(format="uic_official", arch="resnet50_mlp"), "file")
    x = torch.randn(2, 3, 64, 64)
    trunk = nn.Sequential(*(child for name, child in there.named_children() if name not in ("fc", "head")))
    torch.testing.assert_close(network(x), there.fc(there.head(trunk(x)).flatten(1)))


@pytest.mark.parametrize(
    "prefix",
    [
        "module._orig_mod.", "_orig_mod.module.", "module.module.", "model.backbone.", "module.model.encoder_q.",
        "module.base_encoder._orig_mod.",
    ],
)  # fmt: skip
def test_prefixes_one_before_the_other(prefix: str) -> None:
    names = ["conv1.weight", "layer1.0.bn1.weight"]
    bare, remarks = formats.unwrap({prefix + name: torch.zeros(1) for name in names})
    assert list(bare) == names
    parts = dict.fromkeys(part for part in prefix.split(".") if part)
    assert sorted(remarks) == sorted(f"'{part}.' removed from 2 names" for part in parts)
    inside, _ = formats.unwrap({"features.module._orig_mod.0.weight": torch.zeros(1), "submodule.a": torch.zeros(1)})
    assert list(inside) == ["features.0.weight", "submodule.a"]


def resnet_state(prefix: str = "") -> dict[str, Tensor]:
    """torchvision's ResNet50 without its top layer."""
    return {f"{prefix}{name}": value for name, value in STATE.items() if not name.startswith("fc.")}


def others(*names: str) -> dict[str, Tensor]:
    return {name: torch.full((8, 2048), torch.nan) for name in names}  # that would not pass, were they taken


@pytest.mark.parametrize(
    ("format", "make", "filled"),
    [
        ("moco", lambda: resnet_state("module.encoder_q.") | others("module.encoder_q.fc.weight"), False),
        (
            "moco",  # v3
            lambda: (
                resnet_state("module.base_encoder.")
                | {name: value + 1 for name, value in resnet_state("module.momentum_encoder.").items()}
                | others("module.base_encoder.fc.0.weight", "module.momentum_encoder.fc.0.weight")
                | others("module.predictor.0.weight")
            ),
            False,
        ),
        (
            "swav",  # DeepCluster-v2
            lambda: (
                resnet_state("module.")
                | others("module.projection_head.0.weight")
                | others(*(f"module.prototypes.prototypes{head}.weight" for head in range(3)))
            ),
            False,
        ),
        ("uic_official", lambda: {f"module.{name}": value for name, value in STATE.items()}, True),
        (
            "uic_official",  # of its linear evaluation
            lambda: (
                {f"module.{name}": value for name, value in STATE.items()}
                | others("module.linear.weight", "module.linear.bias")
            ),
            True,
        ),
        ("torchvision", lambda: resnet_state("model.backbone."), False),
    ],
)
def test_resnets_of_others(format: str, make: Any, filled: bool) -> None:
    network, _ = external.convert(make(), settings(format=format), "file")
    assert network.top_filled is filled
    own = formats.to_theirs(network, "torchvision")
    assert own.keys() == (STATE if filled else resnet_state()).keys()
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in own.items())


@torch.no_grad()
def test_vgg16() -> None:
    """torchvision's; in DeepCluster's the features are wrapped, and the top layer has a name of its own."""
    there = torchvision.models.vgg16_bn(num_classes=9, init_weights=False)
    there.classifier[0] = nn.Linear(512 * 2 * 2, 4096)
    shake(there)
    state = there.state_dict()
    network, _ = external.convert(state, settings(arch="vgg16"), "file")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network(x), there.classifier(there.features(x).flatten(1)))
    assert network.coverage == 1
    renamed = {
        name.replace("features.", "features.module.").replace("classifier.6.", "top_layer."): value
        for name, value in state.items()
    }
    network, _ = external.convert(renamed, settings(format="deepcluster", arch="vgg16"), "file")
    assert network.coverage == 1
    assert all(torch.equal(tensor, state[name]) for name, tensor in formats.to_theirs(network, "torchvision").items())


# --- what is refused ---------------------------------------------------------------------------------------------


class Payload:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.write_text, (self.trace, "ran")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pth.tar", tmp_path / "trace"
    content = {"state_dict": resnet().state_dict(), "args": Payload(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        InputError, match=r"evil\.pth\.tar: was not loaded: it asks for getattr,.*If you trust the file"
    ):
        external.read_tensors(path)
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(InputError, match=r"evil\.pth\.tar: "):
        external.read_tensors(path)
    assert not trace.exists()


def follow(message: str) -> None:
    """Run the command that a message ends with, here and as a shell would."""
    (program,) = shlex.split(message[message.index("python -c ") :])[2:]
    exec(program, {})


def dump(content: Any, path: str) -> None:
    with open(path, "wb") as file:
        pickle.dump(content, file)


LAYER = nn.Linear(2, 2)
ARRAYS = {name: value.numpy() for name, value in LAYER.state_dict().items()}


@pytest.mark.parametrize("key", ["state_dict", "model", None])
@pytest.mark.parametrize(
    ("save", "weights", "asks"),
    [
        (torch.save, LAYER.state_dict(), r"argparse\.Namespace"),
        (torch.save, LAYER, r"torch\.nn\.modules\.linear\.Linear"),
        (partial(torch.save, _use_new_zipfile_serialization=False), LAYER, r"torch\.nn\.modules\.linear\.Linear"),
        (torch.save, ARRAYS | {"names": np.array(["x"])}, r"numpy\.\S+"),
        (dump, ARRAYS | {"step": 3}, r"more than tensors|numpy\.\S+"),  # as detectron2's .pkl files are
    ],
)
def test_fault_58_weights_in_a_pickle_are_saved_as_the_message_says(
    tmp_path: Path, key: str | None, save: Any, weights: Any, asks: str, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    content = weights if key is None else {key: weights}
    if isinstance(content, dict):
        content = dict(content) | {"args": argparse.Namespace(lr=1)}
    save(content, "old.pth")
    with pytest.raises(InputError, match=rf"asks for ({asks}|argparse\.Namespace),.*may run any code") as error:
        external.read_tensors(tmp_path / "old.pth")
    seen(error.value)
    follow(str(error.value))
    found = external.read_tensors(tmp_path / "new.pth")
    assert found.keys() == {"weight", "bias"}
    assert all(torch.equal(found[name], value) for name, value in LAYER.state_dict().items())


def test_fault_58_arrays_and_programs_are_saved_as_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("old.npz", **ARRAYS)
    torch.jit.script(LAYER).save("old.pt")
    for name, told in (("old.npz", "holds arrays of NumPy"), ("old.pt", "is TorchScript")):
        with pytest.raises(InputError, match=told) as error:
            external.read_tensors(tmp_path / name)
        seen(error.value)
        follow(str(error.value))
        found = external.read_tensors(tmp_path / "new.pth")
        assert all(torch.equal(found[key], value) for key, value in LAYER.state_dict().items())
        Path("new.pth").unlink()


def packed(path: Path, name: str) -> Path:
    """A checkpoint inside an archive or a compressed file; `name` tells which."""
    made = path.parent / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(made, "w") as archive:
            archive.write(path, "deep/file.pth")
    elif name.endswith(".tar"):
        with tarfile.open(made, "w") as archive:
            archive.add(path, "file.pth")
    else:
        opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[made.suffix]
        with opener(made, "wb") as file:
            file.write(path.read_bytes())
    return made


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x.zip", r"is a zip archive \(deep/file\.pth\), no PyTorch file; unpack it"),
        ("x.tar", "is a tar archive; unpack it"),
        ("x.pth.gz", "is compressed by gzip; unpack it"),
        ("x.bz2", "is compressed by bzip2; unpack it"),
        ("x.xz", "is compressed by xz; unpack it"),
    ],
)
def test_fault_58_a_packed_checkpoint_is_named_and_read_when_unpacked(
    tmp_path: Path, name: str, told: str, seen: Any
) -> None:
    path = tmp_path / "file.pth"
    torch.save(LAYER.state_dict(), path)
    archive = packed(path, name)
    path.unlink()
    with pytest.raises(InputError, match=told) as error:
        external.read_tensors(archive)
    seen(error.value)
    if name.endswith((".zip", ".tar")):
        shutil.unpack_archive(archive, tmp_path)
        (path,) = tmp_path.rglob("file.pth")
    else:
        program = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}[archive.suffix]
        subprocess.run([program, "-d", archive], check=True)
        path = archive.with_suffix("")
    assert torch.equal(external.read_tensors(path)["weight"], LAYER.weight)


ONLY = "only PyTorch's and safetensors files can be read"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty; fetch it again"),
        (
            b"\n <!DOCTYPE html><html>Sign in</html>",
            "is a web page or a server's error, no checkpoint: open it in a browse",
        ),
        (b"<HTML><body>", "is a web page"),
        (b"\xef\xbb\xbf\r\n<!doctype html>", "is a web page"),
        (b"<!-- saved --><html>", "is a web page"),
        (b"<Error><Code>AccessDenied</Code></Error>", "is a web page or a server's error"),
        (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>', "is a web page or a"),
        (b'{"message": "Not Found"}', "is a web page or a server's error"),
        (b'{"err": {"code": 404}}', "is a web page or a server's error"),
        (b'{\n  "message": "Not Found"\n}', "is a web page or a server's error"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a pointer of Git LFS.*git lfs pull",
        ),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is HDF5, as of Keras"),
        (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}", "is a single NumPy array"),
        (b"MATLAB 5.0 MAT-file, Platform: posix" + bytes(99), f"is a MAT-file of MATLAB; {ONLY}"),
        (b"GGUF\x03\0\0\0" + bytes(99), f"is GGUF, as of llama.cpp; {ONLY}"),
        (b"\n\x07AlexNet\x10\x01" + bytes(99), rf"is no whole PyTorch file \(\w+: .*; {ONLY}: fetch one"),  # of Caffe
        (b"\x08\x07\x12\x07pytorch:" + bytes(99), rf"is no whole PyTorch file \(\w+: .*; {ONLY}: fetch one"),  # ONNX
        (bytes(4000), rf"is no whole PyTorch file \(\w+: .*; {ONLY}: fetch one of these"),
        (b"PK\x03\x04" + bytes(99), r"is no whole PyTorch file \(\w+: .*; fetch it again"),
    ],
)
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
@pytest.mark.parametrize("format", ["torchvision", "uic_core"])
def test_fault_58_what_is_no_checkpoint_is_said_to_be_what_it_is(
    tmp_path: Path, data: bytes, told: str, name: str, format: str, capsys: pytest.CaptureFixture[str], seen: Any
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SystemExit):
        run_stage(tmp_path, settings(format=format).model_copy(update={"path": name}))
    message = capsys.readouterr().err
    seen(message)
    if format == "uic_core" and "no whole PyTorch" in told:
        told = r"is no whole safetensors file .*; " + told.rpartition("; ")[2]
    assert re.search(rf"{name}: {told}", message), message
    assert "may run any code" not in message
    assert len(message.splitlines()) == 1


def test_fault_58_a_damaged_zip_is_left_to_torch(tmp_path: Path, seen: Any) -> None:
    """Python's zipfile refuses such a list of entries with errors of other types; torch reads one of them."""
    path = tmp_path / "file.pth"
    torch.save(LAYER.state_dict(), path)
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02")

    def damage(offset: int, value: int) -> None:
        path.write_bytes(whole[: entry + offset] + bytes([value]) + whole[entry + offset + 1 :])

    damage(6, 255)  # the version of the format
    with pytest.raises(NotImplementedError):
        zipfile.ZipFile(path)
    assert external.read_tensors(path).keys() == {"weight", "bias"}
    damage(46, 233)  # a name in UTF-8
    with pytest.raises(UnicodeDecodeError):
        zipfile.ZipFile(path)
    with pytest.raises(InputError, match=r"file\.pth: is no whole PyTorch file .*; fetch it again$") as error:
        external.read_tensors(path)
    seen(error.value)


def test_fault_58_a_safetensors_header_of_any_length_is_read(tmp_path: Path) -> None:
    """Of 8827 bytes its length reads as {", like an answer in JSON."""
    path = tmp_path / "file.safetensors"
    external.safetensors.torch.save_file(LAYER.state_dict(), path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((8827).to_bytes(8, "little") + data[8 : 8 + size].ljust(8827) + data[8 + size :])
    assert path.read_bytes().startswith(b'{"')
    assert external.read_tensors(path).keys() == {"weight", "bias"}


def test_fault_58_the_content_counts_not_the_name(tmp_path: Path) -> None:
    torch.save(LAYER.state_dict(), tmp_path / "torch.safetensors")
    external.safetensors.torch.save_file(LAYER.state_dict(), tmp_path / "safe.pth")
    for name in ("torch.safetensors", "safe.pth"):
        assert torch.equal(external.read_tensors(tmp_path / name)["weight"], LAYER.weight)


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"state_dict": {"a": torch.ones(4000)}}, path)
    else:
        external.safetensors.torch.save_file({"a": torch.ones(4000)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"{name}: "):
        external.read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "net": {"a": torch.zeros(1)}}, r"holds no state dict.*it holds: epoch, net"),
        ([torch.zeros(1)], r"holds no state dict.*list"),
        ({}, "holds no state dict"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        external.read_tensors(tmp_path / "file.pth")


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    state = dict(STATE)
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        (changed(conv1__weight=None), {}, r"\(1\): conv1\.weight\nunexpected \(0\): nothing\n.* 99\.96% of resnet50"),
        (changed(extra__weight=torch.zeros(1)), {}, r"\(0\): nothing\nunexpected \(1\): extra\.weight\n.*correct"),
        (changed(fc__other=torch.zeros(1)), {}, r"unexpected \(1\): fc\.other\n"),
        (changed(fc__bias=None), {}, r"missing \(1\): fc\.bias\n(.*\n)*.*fills 99\.99% of resnet50"),
        (changed(fc__weight=None), {}, r"unexpected \(1\): fc\.bias\n"),
        ({"conv1.weight": STATE["conv1.weight"]}, {}, r"(?s)\): bn1\.weight.*layer4\.2\.bn3\.bias.*fills 0\.\d\d% of"),
        (STATE, {"arch": "vgg16"}, r"(?s): features\.0\.weight.*unexpected.*: conv1\.weight.* of vgg16"),
        (STATE, {"format": "swav"}, r"unexpected \(2\): fc\.weight, fc\.bias"),
        (STATE, {"sobel": True}, r"conv1\.weight is \[64, 3, 7, 7\].*sobel: true.*has \[64, 2, 7, 7\]"),
        (changed(bn1__weight=torch.full((64,), float("nan"))), {}, r"bn1\.weight is not finite"),
        (changed(bn1__weight=torch.zeros(64).to_sparse()), {}, r"bn1\.weight is sparse"),
        (changed(bn1__weight=torch.zeros(64, dtype=torch.int8)), {}, r"bn1\.weight is torch\.int8, not a plain tensor"),
        (changed(bn1__weight=torch.zeros(64, dtype=torch.complex64)), {}, r"bn1\.weight is torch\.complex64"),
        (changed(bn1__weight=torch.quantize_per_tensor(torch.ones(64), 1, 0, torch.qint8)), {}, r"bn1.*quantised"),
        (changed(bn1__num_batches_tracked=torch.tensor(1j)), {}, r"bn1\.num_batches_tracked is torch\.complex64"),
        (changed(fc__weight=torch.tensor(1.0)), {}, r"fc\.weight is a single number"),
        (changed(fc__weight=torch.zeros(9)), {}, r"fc\.weight is \[9\]"),
        (changed(fc__weight=torch.zeros(1, 1).expand(10**9, 2048)), {}, r"fc\.weight is sparse"),
        (changed(bn1__weight=torch.zeros(1).expand(10**12)), {}, r"bn1\.weight is \[1000000000000\]"),
        (changed(module__conv1__weight=torch.zeros(1)), {}, r"two weights would be called conv1\.weight"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_listed(state: dict[str, Tensor], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        external.convert(state, settings(**changes), "file.pth")
    assert str(error.value).startswith("file.pth: ")


def test_half_a_top_layer_is_no_full_coverage() -> None:
    """Its bias is less than a hundredth of a per cent of the network."""
    with pytest.raises(InputError) as error:
        external.convert(changed(fc__bias=None), settings(), "file.pth")
    assert "100.00%" not in str(error.value)
    assert [checkpoint.percent(share) for share in (1.0, 1 - 1e-9, 0.5)] == ["100.00%", "99.99%", "50.00%"]


def test_selflabels_pre_activation_resnet_is_named() -> None:
    state = {"features.2.0.bn1.weight": torch.zeros(64), "features.2.0.shortcut.0.weight": torch.zeros(256, 64, 1, 1)}
    with pytest.raises(InputError, match=r"resnet-10x3k\.pth.*take SelfLabel's newer .*_pp\.pth.*format: torchvision"):
        external.convert(state, settings(format="selflabel"), "file.pth")


def test_sobel_filters_must_be_there_and_ours() -> None:
    state = Positional(2, 30).state_dict() | {
        f"sobel.{name}": value for name, value in sobel_layers().state_dict().items()
    }
    recipe = settings(format="deepcluster", arch="alexnet", sobel=True)
    with pytest.raises(InputError, match="set sobel: true"):
        external.convert(state, recipe.model_copy(update={"sobel": False}), "file")
    with pytest.raises(InputError, match=r"sobel\.0\.weight is torch\.int8"):
        external.convert(state | {"sobel.0.weight": torch.zeros(1, 3, 1, 1, dtype=torch.int8)}, recipe, "file")
    for name, other in (("sobel.1.weight", torch.ones(2, 1, 3, 3)), ("sobel.1.bias", torch.ones(2))):
        with pytest.raises(InputError, match="are not those of DeepCluster"):
            external.convert(state | {name: other}, recipe, "file")
    with pytest.raises(InputError, match="have other shapes"):
        external.convert(state | {"sobel.0.weight": torch.ones(1)}, recipe, "file")


# --- the stage ---------------------------------------------------------------------------------------------------


def run_stage(folder: Path, recipe: External) -> Path:
    recipes.save(recipe, folder / "recipe.yaml")
    out = folder / "run" / "checkpoint.safetensors"
    external.main(["--recipe", str(folder / "recipe.yaml"), "--source", str(folder / recipe.path), "--out", str(out)])
    return out


def test_the_stage_leaves_a_checkpoint_that_every_evaluation_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {"state_dict": {f"backbone.{name}": value.half() for name, value in STATE.items()}}, tmp_path / "file.pth"
    )
    out = run_stage(tmp_path, settings())
    network, recipe = checkpoint.load(out)
    assert recipe == settings(path=f"sha256:{sha256(tmp_path / 'file.pth')}")
    assert recipe.hash() == settings().hash()
    assert network.classes == 20
    assert network.coverage == 1
    assert torch.equal(network.features.conv1.weight, STATE["conv1.weight"].half().float())
    assert "'backbone.' removed from 320 names" in capsys.readouterr().out
    first = out.read_bytes()
    (tmp_path / "file.pth").rename(tmp_path / "moved.pth")
    assert run_stage(tmp_path, settings(path="moved.pth")).read_bytes() == first
    recipes.save(settings(path="moved.pth"), out.with_name("recipe.yaml"))
    assert checkpoint.of_run("theirs", out)[2].recipe == settings().hash()


def test_fault_28_an_external_file_replaced_while_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seen: Callable[[object], None]
) -> None:
    """The bytes that are named are those that were read; their size and time are kept, so that others are noticed."""
    file, run = tmp_path / "file.pth", tmp_path / "run"
    torch.save(STATE, file)
    read = external.read_tensors

    def replaced(path: Path) -> dict[str, Tensor]:
        tensors = read(path)
        torch.save(STATE | {"fc.bias": torch.ones(20)}, tmp_path / "other.pth")
        (tmp_path / "other.pth").replace(path)
        return tensors

    monkeypatch.setattr(external, "read_tensors", replaced)
    with pytest.raises(SystemExit):
        run_stage(tmp_path, settings())
    seen(capsys.readouterr().err)
    assert not run.exists()
    monkeypatch.setattr(external, "read_tensors", read)
    out = run_stage(tmp_path, settings())
    made = trained.read(run)
    assert made is not None
    assert (made.start, made.start_stamp) == (sha256(file)[:16], stamp(file))
    with safetensors.safe_open(out, framework="pt") as opened:
        assert json.loads(opened.metadata()[checkpoint.FORMAT])["source"] == sha256(file)


def test_a_missing_top_layer_is_the_same_each_time(tmp_path: Path) -> None:
    torch.save({name: value for name, value in STATE.items() if "fc" not in name}, tmp_path / "file.pth")
    out = run_stage(tmp_path, settings(format="moco"))
    first = out.read_bytes()
    assert run_stage(tmp_path, settings(format="moco")).read_bytes() == first
    network, _ = checkpoint.load(out)
    assert 0.999 < network.coverage < 1


def test_a_checkpoint_of_this_suite_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = build("alexnet", classes=6, image_size=64, sobel=True)
    own = settings(format="uic_core", arch="alexnet", sobel=True)
    checkpoint.save(tmp_path / "file.safetensors", network, own, {})
    out = run_stage(tmp_path, own.model_copy(update={"path": "file.safetensors"}))
    assert torch.equal(checkpoint.load(out)[0].top.weight, network.top.weight)
    with pytest.raises(SystemExit):
        run_stage(tmp_path, own.model_copy(update={"path": "file.safetensors", "image_size": 70}))
    assert "image_size is 64, but the run says 70" in capsys.readouterr().err


def test_a_refused_file_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"args": argparse.Namespace()}, tmp_path / "file.pth")
    with pytest.raises(SystemExit) as stopped:
        run_stage(tmp_path, settings())
    assert stopped.value.code == 2
    assert "argparse.Namespace" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format", ["uic_core", "torchvision"])
def test_a_folder_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    (tmp_path / "folder").mkdir()
    for name, told in (("folder", "is a folder; name the file in it that holds the weights"), ("no", "is not there")):
        with pytest.raises(SystemExit):
            run_stage(tmp_path, settings(format=format, path=name))
        assert capsys.readouterr().err == f"error: {tmp_path / name}: {told}; correct `path` of the run\n"


@pytest.mark.parametrize("coverage", ["much", None, 1.5])
def test_a_damaged_header_is_named(tmp_path: Path, coverage: Any) -> None:
    path = tmp_path / "checkpoint.safetensors"
    header = {"recipe": settings().model_dump(), "coverage": coverage}
    tensors = OrderedDict(build("resnet50", classes=2, image_size=64, sobel=False).state_dict())
    external.safetensors.torch.save_file(copy.copy(tensors), path, metadata={checkpoint.FORMAT: json.dumps(header)})
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: its header"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("top.weight", torch.tensor(1.0), r"weight top\.weight is \[\], expected \[2, 4096\]"),
        ("top.weight", torch.zeros(10**9, 0), r"weight top\.weight is \[1000000000, 0\]"),
        ("top.bias", torch.zeros(2, dtype=torch.int8), r"weight top\.bias is torch\.int8, expected torch\.float32"),
    ],
)
def test_a_damaged_weight_of_a_converted_checkpoint_is_named(
    tmp_path: Path, name: str, tensor: Tensor, message: str
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    recipe = settings(arch="alexnet")
    tensors = build("alexnet", classes=2, image_size=64, sobel=False).state_dict() | {name: tensor}
    header = json.dumps({"recipe": recipe.model_dump(), "coverage": 1.0})
    external.safetensors.torch.save_file(dict(tensors), path, metadata={checkpoint.FORMAT: header})
    with pytest.raises(InputError, match=message):
        checkpoint.load(path)
