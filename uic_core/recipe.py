"""A recipe: everything that defines a run. Imports no torch, so the workflow can validate a config fast.

The numbers of the paper's recipes are in config/paper.yaml; config/README.md says where each choice comes from.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from uic_core.errors import InputError
from uic_core.files import read_yaml, write_text

Method = Literal["uic", "finetune", "deepcluster", "supervised", "random"]
Arch = Literal["alexnet", "vgg16", "resnet50", "resnet50_mlp", "alexnet_torchvision"]
Format = Literal["uic_core", "uic_official", "deepcluster", "selflabel", "torchvision", "moco", "swav"]


class Strict(BaseModel):
    """Base of everything that is read from a config: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Run(Strict):
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Recipe(_Run):
    """One pretraining run: data in, `checkpoint.safetensors` out. Every value that changes the weights is here."""

    method: Method
    arch: Arch
    sobel: bool = Field(description="frozen greyscale + Sobel filters before conv1 (paper: AlexNet)")
    classes: int = Field(ge=2, description="K, the width of the top layer; supervised: the annotated classes")
    image_size: int = Field(ge=64, description="side of the square crop the network sees, pixels")
    resize: int = Field(ge=64, description="shorter side before a centre crop, pixels")
    images: int = Field(ge=0, description="train on the first n images of a seeded shuffle; 0 = all of them")
    epochs: int = Field(ge=0, description="0 saves the initial weights (method random)")
    batch_size: int = Field(ge=2, description="images a step over all processes")
    lr: float = Field(gt=0)
    schedule: Literal["linear", "cosine", "constant"] = Field(description="stepped per epoch; all but constant to 0")
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    augmentation: Literal["standard", "strong"]
    label_view: Literal["training", "center_crop"] = Field(
        description="where pseudo-labels come from: the training forward itself, or a separate centre-crop pass "
        "in eval mode (Table 2, without augmentation)"
    )
    balanced: bool = Field(
        description="every class is drawn equally often; false: every image once an epoch (uic, finetune), or as "
        "DeepCluster's published sampler draws (deepcluster)"
    )
    pretrained: str = Field(description="finetune: the run whose last checkpoint is the start; '' otherwise")
    pca: int = Field(ge=1, description="deepcluster: dimension after PCA and whitening")
    kmeans_iterations: int = Field(ge=1, description="deepcluster: k-means iterations an epoch")
    precision: Literal["auto", "fp32", "bf16"]
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.method == "finetune") != bool(self.pretrained):
            raise ValueError("pretrained: names a run for method 'finetune', and is '' for every other method")
        if self.method == "random" and self.epochs:
            raise ValueError("epochs: method 'random' saves the initial weights and takes 0 epochs")
        if self.method != "random" and not self.epochs:
            raise ValueError(f"epochs: method '{self.method}' trains, so it takes at least 1 epoch")
        if self.method != "uic" and self.label_view != "training":
            raise ValueError(f"label_view: only method 'uic' makes labels anew each epoch; '{self.method}' reads none")
        if self.method in ("supervised", "random") and not self.balanced:
            raise ValueError(f"balanced: method '{self.method}' does not read it; write true")
        if self.resize < self.image_size:
            raise ValueError("resize: must not be smaller than image_size, the crop is taken from it")
        return self

    @property
    def gpus(self) -> int:
        """That its batch was meant for: the official code's 1024 images are 128 on each of 8, for batch norm too."""
        return 8 if self.batch_size >= 1024 else 1


class External(_Run):
    """A run trained elsewhere: somebody's checkpoint file in, `checkpoint.safetensors` out."""

    method: Literal["external"]
    path: str = Field(min_length=1, description="the checkpoint file: safetensors, or a pickle of tensors")
    format: Format = Field(description="how its weights are named; uic_core/models/formats.py")
    arch: Arch
    sobel: bool = Field(description="the network was trained behind greyscale + Sobel filters")
    image_size: int = Field(ge=64, description="side of the square crop the network sees, pixels")
    resize: int = Field(ge=64, description="shorter side before a centre crop, pixels")

    @model_validator(mode="after")
    def _consistent(self) -> External:
        archs = FORMAT_ARCHS[self.format]
        if self.arch not in archs:
            raise ValueError(f"arch: format '{self.format}' is of {' or '.join(archs)}, not {self.arch}")
        if self.resize < self.image_size:
            raise ValueError("resize: must not be smaller than image_size, the crop is taken from it")
        return self


# The architectures whose checkpoints a format can be of; uic_core.models.formats translates them.
FORMAT_ARCHS: dict[Format, tuple[Arch, ...]] = {
    "uic_core": get_args(Arch),
    "uic_official": ("resnet50", "resnet50_mlp"),
    "deepcluster": ("alexnet", "vgg16"),
    "selflabel": ("alexnet", "resnet50"),
    "torchvision": ("alexnet_torchvision", "alexnet", "vgg16", "resnet50", "resnet50_mlp"),
    "moco": ("resnet50",),
    "swav": ("resnet50",),
}


_TAGS: dict[str, type[_Run]] = {"<trained>": Recipe, "<external>": External}  # no key of a config looks like these


def _tag(run: Any) -> str | None:
    method = run.get("method", "") if isinstance(run, dict) else getattr(run, "method", "")
    if method == "external":
        return "<external>"
    return None if method and method not in get_args(Method) else "<trained>"


Run = Annotated[
    Annotated[Recipe, Tag("<trained>")] | Annotated[External, Tag("<external>")],
    Discriminator(_tag, custom_error_type="method", custom_error_message="unknown"),
]
"""What `runs:` of a config holds."""

Model = TypeVar("Model", bound=Strict)


def parse(model: type[Model], value: dict[str, Any], source: str) -> Model:
    """Validate `value` as a `model`; every mistake is told at once, unknown keys with the nearest known one.

    Raises:
        InputError: "<source>: <key>: <what is wrong>", one line a mistake.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise InputError("\n".join(f"{source}: {line}" for line in lines)) from None


def parse_run(value: dict[str, Any], source: str) -> Recipe | External:
    """Validate a recipe, or what stands for one where the run was trained elsewhere. Raises InputError as `parse`."""
    return parse(External, value, source) if _tag(value) == "<external>" else parse(Recipe, value, source)


def _explain(model: type[BaseModel], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"] if part not in _TAGS)
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.0)
        return f"{where}: unknown key; did you mean '{near[0]}'? (known: {', '.join(known)})" if near else where
    if item["type"] == "missing":
        return f"{where}: missing; config/README.md explains the key"
    given = item["input"]
    if item["type"] == "method":
        methods = ", ".join((*get_args(Method), "external"))
        return f"{where}.method: no method '{given['method']}' (known: {methods})"
    hint = ""
    if item["type"].startswith("float") and isinstance(given, str):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)"
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{where + ': ' if where else ''}{item['msg'].removeprefix('Value error, ')}{shown}{hint}"


def _fields_at(model: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed at `loc`, found by walking the model's annotations."""
    for part in loc:
        model = _TAGS.get(str(part), model)
        fields = getattr(model, "model_fields", {})
        if part in fields:
            model = fields[part].annotation
        # inside dict[str, Model] the next part is a free key
        arguments = [a for a in getattr(model, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        if arguments and part not in fields:
            model = arguments[0]
    return sorted(getattr(model, "model_fields", {}))


def load(model: type[Model], path: Path) -> Model:
    """Read and validate a YAML file written by `save` or by hand. Raises InputError naming file and key."""
    return parse(model, read_yaml(path), str(path))


def save(value: Strict, path: Path) -> None:
    """Write a model as YAML, atomically, in field order."""
    write_text(path, yaml.safe_dump(value.model_dump(), sort_keys=False))
