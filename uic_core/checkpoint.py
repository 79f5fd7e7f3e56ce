"""The checkpoint of a run: the weights as safetensors, with the recipe in the file's header."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from uic_core.errors import InputError
from uic_core.files import DAMAGED, RETRAIN, atomic, safetensors_metadata, stamp
from uic_core.methods import load_run, parse_run
from uic_core.models import build
from uic_core.models.network import Network
from uic_core.recipe import PLACES, External, Recipe
from uic_core.run import metrics, trained

FORMAT = "uic_core/2"
"""The only key of the header: safetensors writes several keys in a different order each time."""


def percent(coverage: float) -> str:
    """Format a share of the weights. A share below 1 never reads 100.00%."""
    return f"{coverage if coverage == 1 else min(coverage, 0.9999):.2%}"


def save(path: Path, network: Network, recipe: Recipe | External, extra: dict[str, str]) -> None:
    """Write the network's state dict and the recipe, atomically. The same weights give the same bytes.

    Args:
        extra: further header entries (text).

    Raises:
        InputError: a weight is not finite, or the disk is full.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: weight {name} is not finite, the training diverged; lower lr in the recipe")
    header = json.dumps({"recipe": recipe.written(), "coverage": network.coverage, **extra}, sort_keys=True)
    with atomic(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={FORMAT: header})


def of_run(run: str, path: Path) -> tuple[Network, Recipe | External, metrics.Origin]:
    """Read a run's checkpoint as `load`, and what an evaluation records of it.

    The file is held against recipe.yaml and training.json, where they lie beside it.

    Raises:
        InputError: as `load`; or the file is another run's: its recipe is not that of recipe.yaml, or its bytes are not
            those of training.json.
    """
    stamped = tuple(stamp(path))  # first: of a file that is replaced meanwhile, the new one is looked at again
    network, recipe, digest = read(path)
    beside = path.parent / "recipe.yaml"
    if beside.exists():
        own, there = load_run(beside).written(), recipe.written()
        differing = [
            f"{key}: {there.get(key)}, not {own.get(key)}"
            for key in (own | there)
            if key not in PLACES and own.get(key) != there.get(key)
        ]
        if differing:
            raise InputError(
                f"{path}: is not the checkpoint of {beside} ({'; '.join(differing)}); put this run's checkpoint back, "
                "or delete the file and run snakemake to train it again"
            )
    seeds = () if isinstance(recipe, External) else (recipe.seed,)
    made_by = trained.check(path, digest)
    made = trained.read(path.parent) if made_by else None
    metrics.code()  # now, not when a long evaluation ends: the clone may be at another commit by then
    remark = made.remark if made else ""
    return (
        network,
        recipe,
        metrics.Origin(run, digest, recipe.hash(), network.coverage, seeds, made_by, stamped, remark),
    )


def load(path: Path, remedy: str = "") -> tuple[Network, Recipe | External]:
    """Read a checkpoint: the network in eval mode, float32, on the CPU, and its recipe.

    The file must hold every weight of the network and nothing else.

    Args:
        remedy: what to do if it does not; default: that for a file of this suite's results.

    Raises:
        InputError: the file is missing, corrupt, no safetensors (pickles are never opened) or not from this suite;
            its weights are not those of the recipe's network; or a weight has another type or is not finite.
    """
    return read(path, remedy)[:2]


def read(path: Path, remedy: str = "") -> tuple[Network, Recipe | External, str]:
    """Read a checkpoint as `load`, and the SHA-256 of the bytes that were read. Raises InputError as `load`."""
    remedy = remedy or RETRAIN
    try:
        # All bytes at once: another file may take this one's place at any time.
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        header = safetensors_metadata(io.BytesIO(content))
        digest = hashlib.sha256(content).hexdigest()
        del content
    except FileNotFoundError as error:
        raise InputError(f"{path}: is not there; run snakemake to make it") from error
    except (OSError, safetensors.SafetensorError, KeyError) as error:  # KeyError: a type of numbers that torch lacks
        raise InputError(f"{path}: is no whole safetensors file ({error}); {remedy}") from error
    if FORMAT not in header:
        raise InputError(f"{path}: is not a checkpoint of this suite (its header lacks {FORMAT}); {remedy}")
    recipe, coverage = _read_header(header[FORMAT], path, remedy)
    if isinstance(recipe, External):  # an external recipe has no `classes`
        top = tensors.get("top.weight")
        classes = max(2, len(top)) if top is not None and top.numel() and top.ndim == 2 else 2
    else:
        classes = recipe.outputs
    network = build(recipe.arch, classes=classes, image_size=recipe.image_size, sobel=recipe.sobel)
    network.coverage = coverage
    expected = network.state_dict()
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise InputError(f"{path}: weights missing: {missing}, unexpected: {unexpected}; {remedy}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path}: weight {name} is {list(tensor.shape)}, expected {list(expected[name].shape)}; {remedy}"
            )
        if tensor.dtype != expected[name].dtype:
            raise InputError(f"{path}: weight {name} is {tensor.dtype}, expected {expected[name].dtype}; {remedy}")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: weight {name} is not finite; {remedy}")
    network.load_state_dict(tensors)
    return network.eval(), recipe, digest


def _read_header(text: str, path: Path, remedy: str) -> tuple[Recipe | External, float]:
    """Parse (recipe, coverage) from the header's only entry. Raises InputError if it is damaged."""
    try:
        header = json.loads(text)
        recipe, coverage = dict(header["recipe"]), float(header["coverage"])
    except DAMAGED as error:
        raise InputError(f"{path}: its header is damaged ({error!r}); {remedy}") from error
    if not 0 <= coverage <= 1:
        raise InputError(f"{path}: its header says a coverage of {coverage}, not 0..1; {remedy}")
    return parse_run(recipe, f"{path}: recipe"), coverage
