"""The names that other code bases give the weights of these networks.

DeepCluster's, SelfLabel's and torchvision's AlexNet and VGG16 and SelfLabel's ResNet50 name the parts of a sequence by
position. Every other ResNet50 uses torchvision's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from uic_core.models import ARCHS
from uic_core.models.architecture import Format
from uic_core.models.network import Network

# Prefixes that training scripts and enclosing networks add, also nested. No weight's own name begins with one.
PREFIXES = ("encoder_q.", "base_encoder.", "backbone.", "model.", "encoder.")

# Prefixes that DataParallel and torch.compile add before any part of a name.
_WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod)\.")

# Parts of a method outside the network. Files of the format may hold them; they are left out.
OTHERS: dict[Format, str] = {
    "uic_official": r"linear\.",  # the classifier of annotated classes in its eval_linear.py
    "deepcluster": r"sobel\.",  # fixed filters; stage `external` checks them
    "selflabel": r"top_layer[1-9]\d*\.",  # the heads after the first
    "moco": r"encoder_k\.|momentum_encoder\.|predictor\.|fc\.|queue(_ptr)?$",
    "swav": r"projection_head\.|prototypes\.",
}


@dataclass(frozen=True)
class Renamed:
    """A foreign state dict with this suite's names.

    Attributes:
        tensors: tensors by our name.
        unexpected: their names that the format does not know.
        remarks: what was renamed and left out, for the log.
    """

    tensors: dict[str, Tensor]
    unexpected: list[str]
    remarks: list[str]


def top_names(arch: str, format: Format) -> tuple[str, ...]:
    """Possible names of the top layer, the usual one first; empty if the format's files have none for this network."""
    if format in ("moco", "swav"):
        return ()
    if format == "deepcluster":
        return ("top_layer",)
    if format == "selflabel":
        return ("top_layer", "top_layer.0", "top_layer0")  # one head; one in a Sequential; the first of several
    return ("fc",) if ARCHS[arch].resnet_depth else ("classifier.6",)


def names(network: Network, format: Format) -> dict[str, str]:
    """Our name → theirs, for every part of the network except the top layer."""
    resnet = ARCHS[network.arch].resnet_depth > 0
    called = {}
    for position, (name, _) in enumerate(network.features.named_children()):
        called[f"features.{name}"] = name if resnet and format != "selflabel" else f"features.{position}"
    for position, (name, _) in enumerate(network.classifier.named_children()):
        # The head of ResNet50+MLP; position 0 is the average pooling, which is no part of the head.
        called[f"classifier.{name}"] = f"head.{position - 1}" if resnet else f"classifier.{position}"
    return called


def unwrap(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove wrappers and PREFIXES, also nested, from the names. Also returns remarks on what was removed.

    Raises:
        ValueError: two names become equal.
    """
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        gone = dict.fromkeys(_WRAPPERS.findall(name))  # each once, in order
        bare = _WRAPPERS.sub("", name)
        while prefix := next((prefix for prefix in PREFIXES if bare.startswith(prefix)), ""):
            bare = bare.removeprefix(prefix)
            gone[prefix] = None
        if bare in found:
            raise ValueError(f"two weights would be called {bare}")
        found[bare] = tensor
        for prefix in gone:
            counts[prefix] = counts.get(prefix, 0) + 1
    return found, [f"'{prefix}' removed from {count} names" for prefix, count in counts.items()]


def to_ours(tensors: dict[str, Tensor], network: Network, format: Format) -> Renamed:
    """Rename foreign tensors, already unwrapped, to this suite's names."""
    parts = {theirs: ours for ours, theirs in names(network, format).items()}
    top = next((name for name in top_names(network.arch, format) if f"{name}.weight" in tensors), None)
    if top:
        parts[top] = "top"
    ours: dict[str, Tensor] = {}
    unexpected, left_out = [], []
    for name, tensor in tensors.items():
        pieces = name.split(".")
        heads = (".".join(pieces[:length]) for length in range(len(pieces) - 1, 0, -1))
        head = next((head for head in heads if head in parts), None)
        if head is not None:
            ours[parts[head] + name.removeprefix(head)] = tensor
        elif format in OTHERS and re.match(OTHERS[format], name):
            left_out.append(name.split(".")[0])
        else:
            unexpected.append(name)
    remarks = [f"'{part}' left out, it is no part of the network" for part in dict.fromkeys(left_out)]
    return Renamed(ours, unexpected, remarks)


def to_theirs(network: Network, format: Format) -> dict[str, Tensor]:
    """The network's state dict with the names of a format, without a top layer that was missing in the checkpoint."""
    parts = names(network, format)
    for top in top_names(network.arch, format)[: network.top_filled]:
        parts["top"] = top
    found = {}
    for name, tensor in network.state_dict().items():
        head = next((head for head in parts if name.startswith(f"{head}.")), None)
        if head is not None:
            found[parts[head] + name.removeprefix(head)] = tensor
    return found
