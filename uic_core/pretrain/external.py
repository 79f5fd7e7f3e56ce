"""Stage `external`: a checkpoint of another code base -> checkpoint.safetensors, which every evaluation accepts.

Pickled files are read as tensors only; no code in them is run. Every weight of the network must be in the file, under a
name that its format knows, and the file may hold no unknown weights. Only the whole top layer may be missing.
"""

from __future__ import annotations

import pickle
import re
import textwrap
import warnings
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from uic_core import checkpoint
from uic_core import recipe as recipes
from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.files import stamp, unchanged
from uic_core.models import ARCHS, build, formats
from uic_core.models.network import Network
from uic_core.models.sobel import Sobel
from uic_core.pretrain import content
from uic_core.recipe import External
from uic_core.run import randomness, trained
from uic_core.strict_yaml import read_yaml

_KEYS = ("state_dict", "model")
"""Keys of the state dict in files of training scripts that hold more than that."""

_DAMAGED = "the file is damaged or made for another purpose: fetch it again"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, or from a torch.save file, alone or under `state_dict` or `model`.

    Raises:
        InputError: the file is missing, damaged or no checkpoint, pickles more than tensors and plain values, or holds
            no state dict.
    """
    kind = _kind(path)
    if kind == "safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{path}: is no whole safetensors file ({error}); fetch it again") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch.save did not write
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise errors of many types: EOFError, KeyError, struct.error …
        asked = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if asked or kind == "pickle":
            raise InputError(
                f"{path}: was not loaded: it asks for {asked[1] if asked else 'more than tensors'}, and to unpickle "
                "that may run any code. If you trust the file, save its tensors where that can be imported, and name "
                f"new.pth as `path`: {content.save_tensors(kind)}"
            ) from None
        first = str(error).partition("\n")[0].partition(" In PyTorch 2.6")[0]
        raise InputError(
            f"{path}: is no whole PyTorch file ({type(error).__name__}: {first}); {content.instead(kind)}"
        ) from None
    for key in _KEYS:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        names = ", ".join(map(str, held)) if isinstance(held, dict) else type(held).__name__
        raise InputError(f"{path}: holds no state dict, by itself or under state_dict or model (it holds: {names})")
    return {str(name): value for name, value in held.items()}


def convert(theirs: dict[str, Tensor], recipe: External, source: str) -> tuple[Network, list[str]]:
    """The network filled with foreign weights, and remarks for the log on what was renamed, left out and is missing.

    Raises:
        InputError: names are missing or unexpected (the message lists them all and the coverage); a weight has another
            shape, is no plain tensor of real numbers or is not finite; or Sobel filters are not this suite's.
    """
    try:
        theirs, remarks = formats.unwrap(theirs)
    except ValueError as error:
        raise InputError(f"{source}: {error}; it holds more than one network") from None
    if ARCHS[recipe.arch].resnet_depth and any(".shortcut." in name for name in theirs):
        raise InputError(
            f"{source}: is a pre-activation ResNet50, as SelfLabel's resnet-10x3k.pth is, and this suite has none; "
            "take SelfLabel's newer resnet50-10x3k_pp.pth or resnet50-1k_pp.pth with format: torchvision"
        )
    tops = [name for name in formats.top_names(recipe.arch, recipe.format) if f"{name}.weight" in theirs][:1]
    classes = 2
    for top in tops:
        weight = theirs[f"{top}.weight"]
        _check_plain(f"{top}.weight", weight, source)
        if weight.ndim != 2:
            raise InputError(
                f"{source}: {top}.weight is {list(weight.shape)}, not [classes, features]; correct the run"
            )
        classes = max(2, len(weight))
    network = build(recipe.arch, classes=classes, image_size=recipe.image_size, sobel=recipe.sobel)
    _check_sobel(theirs, recipe, source)
    renamed = formats.to_ours(theirs, network, recipe.format)
    own = network.state_dict()
    weights = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
    filled = sum(tensor.numel() for name, tensor in weights.items() if name in renamed.tensors)
    network.coverage = filled / sum(tensor.numel() for tensor in weights.values())
    called = formats.names(network, recipe.format) | ({"top": tops[0]} if tops else {})
    needed = [name for name in weights if tops or not name.startswith("top.")]
    missing = [_theirs(name, called) for name in needed if name not in renamed.tensors]
    unexpected = renamed.unexpected + [_theirs(name, called) for name in renamed.tensors if name not in own]
    if missing or unexpected:
        raise InputError(
            f"{source}: does not fit\n{_listed('missing', missing)}\n{_listed('unexpected', unexpected)}\n"
            f"{source}: fills {checkpoint.percent(network.coverage)} of {recipe.arch} when read as format "
            f"'{recipe.format}'; correct format, arch and sobel of the run"
        )
    for name, tensor in renamed.tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{source}: {_theirs(name, called)} is {list(tensor.shape)}, {recipe.arch} with sobel: "
                f"{str(recipe.sobel).lower()} and image_size: {recipe.image_size} has {list(own[name].shape)}; correct "
                "the run"
            )
        if name in weights:
            _check_plain(_theirs(name, called), tensor, source)
        elif not _in_memory(tensor) or tensor.is_complex():  # a batch norm's count of batches, of any type
            raise InputError(
                f"{source}: {_theirs(name, called)} is {tensor.dtype}, not a number of batches; {_DAMAGED}"
            )
        own[name] = tensor.detach().to(own[name].dtype)
        if not torch.isfinite(own[name]).all():
            raise InputError(f"{source}: {_theirs(name, called)} is not finite; {_DAMAGED}")
    network.load_state_dict(own, strict=True)
    if not tops:
        remarks.append("no top layer in it: a new one stands in its place")
    coverage = checkpoint.percent(network.coverage)
    return network.eval(), [*remarks, *renamed.remarks, f"coverage {coverage} of the network's weights"]


def main(arguments: list[str] | None = None) -> None:
    """Convert an external checkpoint; --help lists the arguments. Exits with 2 and one line on a user's mistake."""
    parser = stage_parser("uic_core.pretrain.external", __doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="YAML of a uic_core.recipe.External")
    parser.add_argument("--source", type=Path, required=True, help="the checkpoint file")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint.safetensors to write")
    options = parser.parse_args(arguments)
    with stage():
        recipe = recipes.parse(External, read_yaml(options.recipe), str(options.recipe))
        randomness.seed_everything(0)  # a new top layer is the same each time
        stamped = stamp(options.source)
        with unchanged(source=options.source) as hashes:
            if recipe.format == "uic_core":
                network, remarks = _of_this_suite(options.source, recipe)
            else:
                network, remarks = convert(read_tensors(options.source), recipe, str(options.source))
        (options.out.parent / trained.NAME).unlink(missing_ok=True)  # of an earlier file
        # In place of the path: the same file makes the same bytes, wherever it lies.
        named = recipe.model_copy(update={"path": f"sha256:{hashes['source']}"})
        checkpoint.save(options.out, network, named, hashes)
        trained.write(
            options.out.parent, [options.out.name], recipe=recipe.hash(), start=hashes["source"], start_stamp=stamped,
            start_path=recipe.path,
        )  # fmt: skip
        for remark in remarks:
            print(f"{options.source}: {remark}")


def _kind(path: Path) -> content.Kind:
    if not path.is_file():
        found = "is a folder; name the file in it that holds the weights" if path.is_dir() else "is not there"
        raise InputError(f"{path}: {found}; correct `path` of the run")
    return content.kind(path)


def _of_this_suite(path: Path, recipe: External) -> tuple[Network, list[str]]:
    network, source = checkpoint.load(path, content.instead(_kind(path)))
    for key in ("arch", "sobel", "image_size"):
        if getattr(source, key) != getattr(recipe, key):
            raise InputError(
                f"{path}: {key} is {getattr(source, key)}, but the run says {getattr(recipe, key)}; make them equal"
            )
    return network, [f"checkpoint of recipe {source.hash()}"]


def _check_sobel(theirs: dict[str, Tensor], recipe: External, source: str) -> None:
    """Check the fixed filters in DeepCluster's files: they must equal this suite's, and the run must set `sobel: true`.

    DeepCluster has two convolutions, the mean over RGB and the filters; this suite has one.
    """
    filters = {name: tensor for name, tensor in theirs.items() if re.fullmatch(r"sobel\.[01]\.(weight|bias)", name)}
    for name, tensor in filters.items():
        _check_plain(name, tensor, source)
    held = [filters[name] for name in ("sobel.0.weight", "sobel.1.weight") if name in filters]
    if not held:
        return
    if not recipe.sobel:
        raise InputError(f"{source}: its network stands behind Sobel filters; set sobel: true for the run")
    one = Sobel().kernel[:, :1] * 3
    if [tensor.shape for tensor in held] != [(1, 3, 1, 1), (2, 1, 3, 3)]:
        raise InputError(
            f"{source}: its Sobel filters have other shapes than DeepCluster's; such a file cannot be used"
        )
    same = torch.allclose(held[0].float(), torch.full((1, 3, 1, 1), 1 / 3), atol=1e-4) and torch.allclose(
        held[1].float(), one, atol=1e-4
    )
    biases = [filters[name] for name in ("sobel.0.bias", "sobel.1.bias") if name in filters]
    if not same or any(bias.any() for bias in biases):
        raise InputError(
            f"{source}: its Sobel filters are not those of DeepCluster and UIC; such a file cannot be used"
        )


def _theirs(name: str, called: dict[str, str]) -> str:
    head = next((head for head in called if name.startswith(f"{head}.")), None)
    return called[head] + name.removeprefix(head) if head else name


def _check_plain(name: str, tensor: Tensor, source: str) -> None:
    """Refuse a weight that is no array of real numbers in memory. `name` is the foreign name."""
    if not _in_memory(tensor):
        wrong = "is sparse, quantised or without numbers"
    elif not tensor.is_floating_point():
        wrong = f"is {tensor.dtype}"
    elif not tensor.ndim:
        wrong = "is a single number"
    else:
        return
    raise InputError(f"{source}: {name} {wrong}, not a plain tensor of floating-point numbers; {_DAMAGED}")


def _in_memory(tensor: Tensor) -> bool:
    """True if memory holds every element: the tensor is not sparse, quantised, meta or expanded from fewer elements."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.nbytes


def _listed(what: str, names: list[str]) -> str:
    """Number and names as text, wrapped into lines."""
    text = f"{what} ({len(names)}): {', '.join(names) or 'nothing'}"
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
