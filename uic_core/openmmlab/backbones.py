"""uic_core's networks as OpenMMLab backbones, and small registered components that mmdet and mmseg share.

Importing this module registers them (`custom_imports` of a config); both libraries find them through their common
root registry. Weights come only from our own checkpoints, as tensors: OpenMMLab's loader would unpickle any file.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.registry import FUNCTIONS, HOOKS, MODELS, TRANSFORMS, WEIGHT_INITIALIZERS
from torch import Tensor, nn

from uic_core import checkpoint as checkpoints
from uic_core import models
from uic_core.data import reader
from uic_core.data.augment import MEAN, STD
from uic_core.data.loader import ignore_foreign_sigterm
from uic_core.errors import InputError
from uic_core.models.network import Network

# The features do not depend on the classifier, so build the smallest one.
_ANY_SIZE, _ANY_CLASSES = 64, 2

# SIGTERM reaches every process of a job; the decoding processes must survive while this one saves its state.
FUNCTIONS.register_module(module=ignore_foreign_sigterm)


def preprocessor(kind: str, **extra: Any) -> dict[str, Any]:
    """Config of a data preprocessor: normalise RGB 0…255 by ImageNet's mean and deviation (`LoadRgb` gives RGB)."""
    mean, std = ([255.0 * float(value) for value in np.ravel(values)] for values in (MEAN, STD))
    return {"type": kind, "mean": mean, "std": std, "bgr_to_rgb": False, **extra}


def classifier_kernel(network: Network) -> tuple[int, int, int]:
    """Shape of fc6: (channels C, side k of the last map, hidden width); its input is C·k·k, 256·6·6 at 224.

    Raises:
        InputError: the architecture has no fc6 and fc7, which docs/protocol.md, Detection and Segmentation require.
    """
    if not hasattr(network.classifier, "fc6"):
        raise InputError(f"arch {network.arch} has no fc6 and fc7; detection and segmentation take {models.with_fc6()}")
    channels = [module for module in network.features.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
    fc6: Any = network.classifier.fc6
    side = round((fc6.in_features / channels) ** 0.5)
    assert channels * side * side == fc6.in_features, "fc6 must take a square map"
    return channels, side, fc6.out_features


@MODELS.register_module()
class UicBackbone(BaseModule):
    """The optional Sobel filters and the convolutions of a uic_core network; BN statistics, scale and shift are frozen.

    AlexNet and VGG16 return one map. Their pools use ceil mode, as in Caffe, so that they cover the pixels at the right
    and lower edges.
    Without `pad` the map is the output of the ReLU before the last pool, stride 16. The padding is that of Fast R-CNN's
    networks (protocol.md): each layer is padded by half its kernel, which aligns the first cell with the first
    pixel. Only AlexNet changes: 5 at conv1, 1 at both pools.
    With `pad` the network is that of FCN-32s (protocol.md): conv1 is padded by `pad`, the last pool is kept,
    stride 32. It also returns the images, because the head needs their size for cropping.
    ResNet50 returns the maps of its four stages, strides 4, 8, 16, 32 and 256, 512, 1024, 2048 channels, like mmdet's
    and mmseg's own ResNet.

    Args:
        arch: one of uic_core.models.ARCHS; an MLP head is omitted.
        sobel: True if conv1 takes Sobel responses.
        frozen: names of layers (conv1; for ResNet50 also layer1 …) that are not trained.
        pad: zero padding of conv1, pixels, or None.
        init_cfg: from `pretrained`, or `dict(type="UicCheckpoint", checkpoint=…)`.

    Raises:
        InputError: ResNet50 with `pad`.
    """

    def __init__(
        self, arch: str, sobel: bool, frozen: tuple[str, ...] = (), pad: int | None = None, init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg)
        network = models.build(arch, classes=_ANY_CLASSES, image_size=_ANY_SIZE, sobel=sobel)
        layers = OrderedDict(network.features.named_children())
        self._stages = tuple(name for name in layers if name.startswith("layer"))
        if self._stages:
            if pad is not None:
                raise InputError(f"arch {arch}: FCN-32s takes {models.with_fc6()}")
        else:
            if pad is None:
                _, last = layers.popitem()
                assert isinstance(last, nn.MaxPool2d)
            else:
                next(layer for layer in layers.values() if isinstance(layer, nn.Conv2d)).padding = (pad, pad)
            for layer in layers.values():
                if isinstance(layer, nn.MaxPool2d):
                    layer.ceil_mode = True
                if pad is None and isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                    layer.padding = ((int(np.ravel(layer.kernel_size)[0]) - 1) // 2,) * 2
        self.dense = pad is not None
        self.sobel = network.sobel
        self.features = nn.Sequential(layers)
        self.sobel.requires_grad_(False)
        for name, layer in layers.items():
            for module in layer.modules():
                if isinstance(module, nn.BatchNorm2d) or name in frozen:
                    module.requires_grad_(False)
        unknown = set(frozen) - set(layers)
        assert not unknown, f"no layers {unknown} to freeze"
        self.train()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map normalised RGB [B, 3, H, W] to (map [B, C, h, w],); with `pad` (map, images); for ResNet50 four maps."""
        if self._stages:
            maps, x = [], self.sobel(images)
            for name, layer in self.features.named_children():
                x = layer(x)
                if name in self._stages:
                    maps.append(x)
            return tuple(maps)
        features = self.features(self.sobel(images))
        return (features, images) if self.dense else (features,)

    def train(self, mode: bool = True) -> UicBackbone:
        """Set training mode for everything except BN, which keeps its pretrained running statistics [choice]."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def load_network(self, network: Network) -> None:
        """Copy the weights of a pretrained network; raise an error if any key is missing or unknown."""
        own = ("sobel.", "features.")
        state = {name: value for name, value in network.state_dict().items() if name.startswith(own)}
        self.load_state_dict(state, strict=True)

    def load_exported(self, weights: dict[str, Tensor], path: Path) -> None:
        """Copy all weights of an `openmmlab.safetensors`.

        Args:
            weights: named without the prefix `backbone.`; ResNet50's have torchvision's names.

        Raises:
            InputError: names or shapes differ from this network's, or a weight is not finite; names `path`.
        """
        prefix = "features."
        there = {f"{prefix}{name.removeprefix(prefix)}": tensor for name, tensor in weights.items()}
        here = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefix)}
        others = [name for name in here.keys() | there.keys() if _shape(here, name) != _shape(there, name)]
        if others:
            name = min(others)
            raise InputError(
                f"{path}: is no exported backbone of this arch and sobel: {name} is {_shape(there, name)}, expected "
                f"{_shape(here, name)}"
            )
        for name, tensor in there.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"{path}: weight {name} is not finite; export the run again")
        self.load_state_dict(there, strict=False)  # Sobel filters are not exported


def _shape(tensors: dict[str, Tensor], name: str) -> list[int] | None:
    return list(tensors[name].shape) if name in tensors else None


def pretrained(checkpoint: Path, digest: str) -> dict[str, Any]:
    """Config of a `UicCheckpoint`. `digest` is the SHA-256 that the file must have when it is read; '' takes any."""
    return {"type": "UicCheckpoint", "checkpoint": str(checkpoint), "digest": digest}


@WEIGHT_INITIALIZERS.register_module()
class UicCheckpoint:
    """mmengine initializer `dict(type="UicCheckpoint", checkpoint=PATH)`: loads a checkpoint's tensors into a module.

    A run's `checkpoint.safetensors` initialises modules with a method `load_network` (the backbone, the heads); an
    exported `openmmlab.safetensors` initialises only the backbone.
    """

    def __init__(self, checkpoint: str, digest: str = "") -> None:
        self.checkpoint, self.digest = Path(checkpoint), digest

    def __call__(self, module: Any) -> None:
        """Raises InputError: the checkpoint is missing, damaged, foreign, replaced or lacks weights of the module."""
        weights = _exported(self.checkpoint)
        if weights is None:
            network, _, digest = checkpoints.read(self.checkpoint)
            if self.digest and digest != self.digest:
                raise InputError(f"{self.checkpoint}: was replaced while it was read; run the same command again")
            module.load_network(network)
        elif hasattr(module, "load_exported"):
            module.load_exported(weights, self.checkpoint)
        else:
            raise InputError(
                f"{self.checkpoint}: is an exported backbone, without fc6 and fc7; give the checkpoint itself"
            )


def _exported(path: Path) -> dict[str, Tensor] | None:
    """Read an exported backbone's weights and strip their prefix; None for any other file."""
    prefix = "backbone."
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if names and all(name.startswith(prefix) for name in names):
                return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, RuntimeError, safetensors.SafetensorError):
        pass  # reading it as a checkpoint raises a clear error
    return None


@TRANSFORMS.register_module()
class LoadRgb(BaseTransform):  # type: ignore[misc]
    """Decode `img_path` like every other stage (uic_core.data.reader); mmcv's reader returns None for a bad file.

    Raises InputError: the image is unreadable, or its size differs from the annotation's.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img` (uint8 RGB [H, W, 3]), `img_shape` and `ori_shape` (H, W)."""
        path = Path(results["img_path"])
        image = np.asarray(reader.read_rgb(path))
        height, width = image.shape[:2]
        said = results.get("height", height), results.get("width", width)
        if said != (height, width):
            raise InputError(f"{path}: is {width}×{height}, but its annotation says {said[1]}×{said[0]}; correct it")
        # copy, because PIL's memory is read-only
        results |= {"img": image.copy(), "img_shape": (height, width), "ori_shape": (height, width)}
        return results


@HOOKS.register_module()
class StopIfNotFinite(Hook):  # type: ignore[misc]
    """Stop if the loss is not finite, checked every `interval` iterations and at the last one."""

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        """Raises InputError: the loss is not finite; names the iteration."""
        iteration = runner.iter + 1
        if iteration % self.interval and iteration != runner.max_iters:
            return
        loss = runner.message_hub.get_scalar("train/loss").current()  # mmengine has read it from the device already
        if not math.isfinite(loss):
            raise InputError(f"loss is {loss} at iteration {iteration}; lower the learning rate")
