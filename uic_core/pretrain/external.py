"""Stage `external`: a checkpoint of another code base -> checkpoint.safetensors, which every evaluation takes.

Pickled files are read as tensors only, nothing in them is run. Every weight of the network but the top layer must be
in the file, under a name that its format knows, and the file may hold nothing that has no place.
"""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from uic_core import recipe as recipes
from uic_core import runtime
from uic_core.errors import InputError, stage
from uic_core.files import read_yaml, sha256
from uic_core.models import Network, build, formats
from uic_core.models.sobel import Sobel
from uic_core.pretrain import checkpoint
from uic_core.recipe import External

LISTED = 12
"""Names an error lists before it only counts the rest."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a file: a safetensors file, or what torch.save wrote, by itself or under `state_dict`, `model`.

    Raises:
        InputError: the file is missing or damaged; it is a pickle of more than tensors and plain values; it holds no
            state dict.
    """
    if not path.is_file():
        raise InputError(f"{path}: is not there; correct `path` of the run")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{path}: is no whole safetensors file ({error}); fetch it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise InputError(
            f"{path}: was not loaded: it asks for {asked[1] if asked else 'more than tensors'}, and to unpickle that "
            "may run any code. If you trust the file, save its tensors alone: "
            'torch.save(torch.load(old, weights_only=False)["state_dict"], new)'
        ) from None
    except Exception as error:  # torch raises what it comes across in damaged bytes: EOFError, KeyError, struct.error …
        raise InputError(
            f"{path}: is no whole PyTorch file ({type(error).__name__}: {error}); fetch it again"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: holds no state dict, by itself or under state_dict or model (it holds: {held})")
    return {str(name): value for name, value in content.items()}


def convert(theirs: dict[str, Tensor], recipe: External, source: str) -> tuple[Network, list[str]]:
    """The network filled with foreign weights, and remarks for the log on what was renamed, left out and is missing.

    Raises:
        InputError: names are missing or unexpected, with all of them and the coverage; or a weight has another shape,
            is sparse or is not finite, or Sobel filters are not this suite's.
    """
    try:
        theirs, remarks = formats.unwrap(theirs)
    except ValueError as error:
        raise InputError(f"{source}: {error}; it holds more than one network") from None
    tops = [f"{name}.weight" for name in formats.top_names(recipe.arch, recipe.format) if f"{name}.weight" in theirs]
    classes = max(2, *theirs[tops[0]].shape[:1]) if tops else 2
    network = build(recipe.arch, classes=classes, image_size=recipe.image_size, sobel=recipe.sobel)
    _check_sobel(theirs, recipe, source)
    renamed = formats.to_ours(theirs, network, recipe.format)
    own = network.state_dict()
    weights = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
    filled = sum(tensor.numel() for name, tensor in weights.items() if name in renamed.tensors)
    network.coverage = filled / sum(tensor.numel() for tensor in weights.values())
    called = formats.names(network, recipe.format)
    missing = [_theirs(name, called) for name in weights if name not in renamed.tensors and not name.startswith("top.")]
    unexpected = renamed.unexpected + [name for name in renamed.tensors if name not in own]
    if missing or unexpected:
        raise InputError(
            f"{source}: fills {network.coverage:.2%} of {recipe.arch} when read as format '{recipe.format}'; missing: "
            f"{_listed(missing)}; unexpected: {_listed(unexpected)}; correct format, arch and sobel of the run"
        )
    for name, tensor in renamed.tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{source}: {_theirs(name, called)} is {list(tensor.shape)}, {recipe.arch} with sobel: "
                f"{str(recipe.sobel).lower()} and image_size: {recipe.image_size} has {list(own[name].shape)}; correct "
                "the run"
            )
        if tensor.layout != torch.strided or not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {_theirs(name, called)} is not finite; the file is damaged, fetch it again")
        own[name] = tensor.detach().to(own[name].dtype)
    network.load_state_dict(own, strict=True)
    if not tops:
        remarks.append("no top layer in it: a new one stands in its place")
    return network.eval(), [*remarks, *renamed.remarks, f"coverage {network.coverage:.2%} of the network's weights"]


def main(arguments: list[str] | None = None) -> None:
    """Convert somebody's checkpoint; see --help. Exits with 2 and one line on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m uic_core.pretrain.external", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="YAML of a uic_core.recipe.External")
    parser.add_argument("--source", type=Path, required=True, help="the checkpoint file")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint.safetensors to write")
    options = parser.parse_args(arguments)
    with stage():
        recipe = recipes.parse(External, read_yaml(options.recipe), str(options.recipe))
        runtime.seed_everything(0)  # a new top layer is the same each time
        if recipe.format == "uic_core":
            network, remarks = _of_this_suite(options.source, recipe)
        else:
            network, remarks = convert(read_tensors(options.source), recipe, str(options.source))
        checkpoint.save(options.out, network, recipe, {"source": sha256(options.source)})
        for remark in remarks:
            print(f"{options.source}: {remark}")


def _of_this_suite(path: Path, recipe: External) -> tuple[Network, list[str]]:
    network, source = checkpoint.load(path)
    for key in ("arch", "sobel", "image_size"):
        if getattr(source, key) != getattr(recipe, key):
            raise InputError(
                f"{path}: {key} is {getattr(source, key)}, but the run says {getattr(recipe, key)}; make them equal"
            )
    return network, [f"checkpoint of recipe {source.hash()}"]


def _check_sobel(theirs: dict[str, Tensor], recipe: External, source: str) -> None:
    """DeepCluster's files hold the fixed filters: they must be this suite's, and the run must say that they are there.

    They are two convolutions there, one here: the mean over RGB, and the filters.
    """
    held = [theirs[name] for name in ("sobel.0.weight", "sobel.1.weight") if name in theirs]
    if not held:
        return
    if not recipe.sobel:
        raise InputError(f"{source}: its network stands behind Sobel filters; set sobel: true for the run")
    one = Sobel().kernel[:, :1] * 3
    if [tensor.shape for tensor in held] != [(1, 3, 1, 1), (2, 1, 3, 3)]:
        raise InputError(
            f"{source}: its Sobel filters have other shapes than DeepCluster's; such a file cannot be used"
        )
    same = torch.allclose(held[0], torch.full((1, 3, 1, 1), 1 / 3), atol=1e-4) and torch.allclose(
        held[1], one, atol=1e-4
    )
    biases = [theirs[name] for name in ("sobel.0.bias", "sobel.1.bias") if name in theirs]
    if not same or any(bias.any() for bias in biases):
        raise InputError(
            f"{source}: its Sobel filters are not those of DeepCluster and UIC; such a file cannot be used"
        )


def _theirs(name: str, called: dict[str, str]) -> str:
    head = next((head for head in called if name.startswith(f"{head}.")), None)
    return called[head] + name.removeprefix(head) if head else name


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:LISTED]) or "nothing"
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


if __name__ == "__main__":
    main()
