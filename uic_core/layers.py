"""The layers of each architecture that evaluations take features from, for the config. Imports no torch."""

from __future__ import annotations

from uic_core.recipe import Arch

Layers = dict[Arch, tuple[str, ...]]

MAX_POOLED = "+MP"
"""Suffix of a layer's name: after the network's last max-pooling."""

_ALEXNET = ("conv1", "conv2", "conv3", "conv4", "conv5")

# What a linear probe can be trained on; uic_core.models has them all, and pools them for it.
PROBE: Layers = {
    "alexnet": _ALEXNET,
    "vgg16": ("conv13",),
    "resnet50": ("avgpool",),
    "resnet50_mlp": ("avgpool", "mlp"),
    "alexnet_torchvision": _ALEXNET,
}

# What few-shot classification can take features of; uic_core.models has them all.
FEWSHOT: Layers = PROBE | {
    "alexnet": (*_ALEXNET, f"conv5{MAX_POOLED}"),
    "vgg16": (*(f"conv{number}" for number in range(1, 14)), f"conv13{MAX_POOLED}"),
    "alexnet_torchvision": (*_ALEXNET, f"conv5{MAX_POOLED}"),
}


def check(layers: dict[Arch, list[str]], known: Layers) -> None:
    """Raise ValueError, for pydantic, for layers that an architecture does not have, for none, and for one twice."""
    for arch, names in layers.items():
        unknown = [name for name in names if name not in known[arch]]
        if unknown or not names or len(set(names)) < len(names):
            what = f"has no layer '{unknown[0]}' for this" if unknown else "names no layer, or one twice"
            raise ValueError(f"layers.{arch}: {what} (known: {', '.join(known[arch])})")
