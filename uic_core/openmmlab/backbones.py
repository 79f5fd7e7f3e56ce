"""uic_core's networks as OpenMMLab backbones, and the small registered parts that mmdet and mmseg share.

Importing this module registers them (`custom_imports` of a config); both libraries find them through their common
root registry. Weights come from our own checkpoints only, as tensors: OpenMMLab's loader would unpickle anything.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.registry import FUNCTIONS, HOOKS, MODELS, TRANSFORMS, WEIGHT_INITIALIZERS
from torch import Tensor, nn

from uic_core import models
from uic_core.data import reader
from uic_core.data.augment import MEAN, STD
from uic_core.data.loader import ignore_foreign_sigterm
from uic_core.errors import InputError
from uic_core.pretrain import checkpoint as checkpoints

# Features do not depend on the classifier: the smallest one costs nothing to build.
_ANY_SIZE, _ANY_CLASSES = 64, 2

# SIGTERM reaches every process of a job: those that decode must live on while this one saves its state.
FUNCTIONS.register_module(module=ignore_foreign_sigterm)


def preprocessor(kind: str, **extra: Any) -> dict[str, Any]:
    """Config of a data preprocessor: RGB 0…255 to ImageNet's mean and standard deviation (`LoadRgb` gives RGB)."""
    mean, std = ([255.0 * float(value) for value in np.ravel(values)] for values in (MEAN, STD))
    return {"type": kind, "mean": mean, "std": std, "bgr_to_rgb": False, **extra}


def classifier_kernel(network: models.Network) -> tuple[int, int, int]:
    """What fc6 expects: (channels C, side k of the last map, hidden width); its input is C·k·k, 256·6·6 at 224.

    Raises:
        InputError: the architecture has no fc6 and fc7 (PROTOCOL sections 6 and 7 build on them).
    """
    if not hasattr(network.classifier, "fc6"):
        raise InputError(f"arch {network.arch} has no fc6 and fc7; detection and segmentation take alexnet or vgg16")
    channels = [module for module in network.features.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
    fc6: Any = network.classifier.fc6
    side = round((fc6.in_features / channels) ** 0.5)
    assert channels * side * side == fc6.in_features, "fc6 must take a square map"
    return channels, side, fc6.out_features


@MODELS.register_module()
class UicBackbone(BaseModule):
    """Sobel (or not) and the convolutions of AlexNet or VGG16; BN frozen in statistics, scale and shift.

    Without `pad`: images [B, 3, H, W] to one map, up to the ReLU before the last pool, stride 16 (Fast R-CNN).
    With `pad`: made dense as FCN-32s (PROTOCOL section 7): conv1 padded by `pad`, the last pool kept, pools rounding
    up as Caffe's do (or the last pixels of some sizes would see no score), stride 32. The images come back beside
    the map: the head needs their size to crop.

    Args:
        arch: alexnet or vgg16.
        sobel: whether conv1 sees Sobel responses.
        frozen: names of convolutions that are not trained.
        pad: zero padding of conv1, pixels, or None.
        init_cfg: `dict(type="UicCheckpoint", checkpoint=…)`.
    """

    def __init__(
        self, arch: str, sobel: bool, frozen: tuple[str, ...] = (), pad: int | None = None, init_cfg: Any = None
    ) -> None:
        super().__init__(init_cfg)
        network = models.build(arch, classes=_ANY_CLASSES, image_size=_ANY_SIZE, sobel=sobel)
        layers = OrderedDict(network.features.named_children())
        last = list(layers.values())[-1]
        if not isinstance(last, nn.MaxPool2d):
            raise InputError(f"arch {arch}: detection and segmentation take alexnet or vgg16")
        if pad is None:
            layers.popitem()
        else:
            next(layer for layer in layers.values() if isinstance(layer, nn.Conv2d)).padding = (pad, pad)
            for layer in layers.values():
                if isinstance(layer, nn.MaxPool2d):
                    layer.ceil_mode = True
        self.dense = pad is not None
        self.sobel = network.sobel
        self.features = nn.Sequential(layers)
        self.sobel.requires_grad_(False)
        for name, layer in layers.items():
            if isinstance(layer, nn.BatchNorm2d) or name in frozen:
                layer.requires_grad_(False)
        unknown = set(frozen) - set(layers)
        assert not unknown, f"no layers {unknown} to freeze"
        self.train()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised RGB [B, 3, H, W] to (map [B, C, h, w],), with `pad` to (map, images)."""
        features = self.features(self.sobel(images))
        return (features, images) if self.dense else (features,)

    def train(self, mode: bool = True) -> UicBackbone:
        """Training mode for everything but BN, whose running statistics stay as pretrained [choice]."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def load_network(self, network: models.Network) -> None:
        """Copy the weights of a pretrained network, every key or an error."""
        own = ("sobel.", "features.")
        state = {name: value for name, value in network.state_dict().items() if name.startswith(own)}
        self.load_state_dict(state, strict=True)


@WEIGHT_INITIALIZERS.register_module()
class UicCheckpoint:
    """mmengine initializer `dict(type="UicCheckpoint", checkpoint=PATH)`: hands our checkpoint's tensors over.

    Works on every module with a method `load_network` (the backbone, the heads).
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = Path(checkpoint)

    def __call__(self, module: Any) -> None:
        """Raises InputError: the checkpoint is missing, damaged or foreign."""
        network, _ = checkpoints.load(self.checkpoint)
        module.load_network(network)


@TRANSFORMS.register_module()
class LoadRgb(BaseTransform):  # type: ignore[misc]
    """Decode `img_path` as every other stage does (uic_core.data.reader); mmcv's reader gives None for a bad file.

    Raises InputError: unreadable, or of another size than the annotation says.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds `img` (uint8 RGB [H, W, 3]), `img_shape` and `ori_shape` (H, W)."""
        path = Path(results["img_path"])
        image = np.asarray(reader.read_rgb(path))
        height, width = image.shape[:2]
        said = results.get("height", height), results.get("width", width)
        if said != (height, width):
            raise InputError(f"{path}: is {width}×{height}, but its annotation says {said[1]}×{said[0]}; correct it")
        # a copy: PIL's memory is read-only
        results |= {"img": image.copy(), "img_shape": (height, width), "ori_shape": (height, width)}
        return results


@HOOKS.register_module()
class StopIfNotFinite(Hook):  # type: ignore[misc]
    """Stop when the loss is no longer a number (FAULTS row 7), looking every `interval` iterations and at the end."""

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        """Raises InputError, naming the iteration."""
        iteration = runner.iter + 1
        if iteration % self.interval and iteration != runner.max_iters:
            return
        if outputs is not None and not torch.isfinite(outputs["loss"]).all():
            raise InputError(f"loss is {outputs['loss'].item()} at iteration {iteration}; lower the learning rate")
