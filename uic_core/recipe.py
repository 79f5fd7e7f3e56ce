"""A recipe: everything that defines a run. Imports no torch, so the workflow can validate a config fast.

The values of the paper's recipes are in config/paper.yaml; config/README.md gives the source of each value.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Tag, TypeAdapter, ValidationError, model_validator

from uic_core.errors import InputError, nearest
from uic_core.files import write_text
from uic_core.models import ARCHS, known
from uic_core.models.architecture import Format
from uic_core.strict_yaml import lines_of, read_yaml

Arch = Annotated[str, AfterValidator(known)]
"""The name of an architecture."""


def as_written(path: str) -> str:
    """Return a path unchanged. Raises ValueError if a shell or Snakemake would read another path in it."""
    whole = os.path.expandvars(os.path.expanduser(path))
    if whole != path:
        raise ValueError(f"{path!r} is not expanded here; write {whole!r}")
    if odd := re.search(r"^[~-]|[{}$\x00-\x1f]", path):
        raise ValueError(
            f"{path!r} holds {odd[0]!r}, which Snakemake or a shell would change; write or rename the path without it"
        )
    return path


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed, as numpy takes it."""

PathName = Annotated[str, AfterValidator(as_written)]
"""A path in a config, taken as it is written."""


class Strict(BaseModel):
    """Base of all models read from a config: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def written(self) -> dict[str, Any]:
        """Return keys and values as `save` writes them: a key that is left out stays left out."""
        return self.model_dump(exclude_none=True)


S = TypeVar("S", bound=Strict)


def stated(section: S | None) -> S:
    """Return a section that may be left out, where the config's check has found that it is not."""
    assert section is not None, "the config lacks a data set, or an evaluation, that it needs"
    return section


class _Run(Strict):
    @property
    def start(self) -> str:
        """The run whose checkpoint this one starts from, for methods with the key `pretrained`; else ''."""
        return str(getattr(self, "pretrained", ""))

    @property
    def stage(self) -> str:
        """Name of the stage, and of the rule, that makes the checkpoint."""
        return "finetune" if self.start else "pretrain"

    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return digest(self.written())

    def hashes(self) -> tuple[str, ...]:
        """The hash, and those by which earlier versions called the same recipe."""
        return (self.hash(),)


PLACES = {"path"}
"""Keys of a recipe that say where something lies. What lies there is known by its bytes."""


def digest(recipe: dict[str, Any]) -> str:
    """The hash of a recipe's keys and values, as a recipe.yaml holds them, without its PLACES."""
    return _digest({key: value for key, value in recipe.items() if key not in PLACES})


def _digest(recipe: dict[str, Any]) -> str:
    canonical = json.dumps(recipe, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Recipe(_Run):
    """A run of this suite, from images to `checkpoint.safetensors`. Holds every value that changes the weights.

    All methods have these keys; each method adds its own (uic_core/methods).
    """

    method: str
    data: str = Field(description="a name under datasets.folders")
    arch: Arch
    sobel: bool = Field(description="frozen greyscale + Sobel filters before conv1 (paper: AlexNet)")
    classes: int = Field(ge=2, description="K of the top layer, or of each of its heads; supervised: annotated classes")
    image_size: int = Field(ge=64, description="side of the square crop the network sees, pixels")
    resize: int = Field(ge=64, description="shorter side before a centre crop, pixels")
    seed: Seed

    @model_validator(mode="after")
    def _crop_fits(self) -> Recipe:
        _check_crop(self.resize, self.image_size)
        return self

    @property
    def outputs(self) -> int:
        """Width of the top layer."""
        return self.classes

    @property
    def gpus(self) -> int:
        """Number of GPUs the job requests."""
        return 1

    def images_of(self, available: int) -> int:
        """How many of the `available` images the run uses."""
        return available


class Training(Recipe):
    """A run that trains, by any method."""

    images: int = Field(ge=0, description="train on the first n images of a seeded shuffle; 0 = all of them")
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2, description="images a step over all processes")
    lr: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    augmentation: Literal["standard", "strong", "selflabel"]
    crop_scale: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="smallest share of an image that a training crop takes; left out: .08, torchvision's",
    )
    precision: Literal["auto", "fp32", "bf16"]

    @property
    def gpus(self) -> int:
        """Number of GPUs for the batch size: the official code's 1024 images are 128 on each of 8."""
        return math.gcd(self.batch_size, 8) if self.batch_size >= 1024 else 1

    def images_of(self, available: int) -> int:
        """How many of the `available` images the run trains on."""
        return self.images or available

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, 0 <= epoch < epochs."""
        raise NotImplementedError


class Annealed(Training):
    """A training whose learning rate follows a curve over all epochs (docs/protocol.md, Pretraining)."""

    schedule: Literal["linear", "cosine", "constant"] = Field(description="stepped per epoch; all but constant to 0")

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, 0 <= epoch < epochs."""
        done = epoch / self.epochs
        return (
            self.lr
            * {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[self.schedule]
        )


class Stepped(Training):
    """A training whose learning rate is divided by ten at some epochs."""

    lr_steps: list[int] = Field(description="epochs, from 0, from which the learning rate is a tenth of that before")

    @model_validator(mode="after")
    def _steps_rise(self) -> Stepped:
        if self.lr_steps != sorted(set(self.lr_steps)) or any(step < 1 for step in self.lr_steps):
            raise ValueError(f"lr_steps: {self.lr_steps} must rise and start at 1 or later")
        return self

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, 0 <= epoch < epochs."""
        return self.lr / 10.0 ** sum(epoch >= step for step in self.lr_steps)


class External(_Run):
    """A run trained elsewhere: converts an external checkpoint file to `checkpoint.safetensors`."""

    stage: ClassVar[str] = "external"  # type: ignore[misc]

    method: Literal["external"]
    path: PathName = Field(min_length=1, description="the checkpoint file: safetensors, or a pickle of tensors")
    format: Format = Field(description="how its weights are named; uic_core/models/formats.py")
    arch: Arch
    sobel: bool = Field(description="the network was trained behind greyscale + Sobel filters")
    image_size: int = Field(ge=64, description="side of the square crop the network sees, pixels")
    resize: int = Field(ge=64, description="shorter side before a centre crop, pixels")

    @model_validator(mode="after")
    def _consistent(self) -> External:
        archs = [name for name, arch in ARCHS.items() if self.format in arch.formats]
        if self.arch not in archs:
            raise ValueError(f"arch: format '{self.format}' is of {' or '.join(archs)}, not {self.arch}")
        _check_crop(self.resize, self.image_size)
        return self

    def hashes(self) -> tuple[str, ...]:
        """The hash, and the one that earlier versions made with `path`."""
        return self.hash(), _digest(self.written())


def _check_crop(resize: int, image_size: int) -> None:
    if resize < image_size:
        raise ValueError("resize: must not be smaller than image_size, the crop is taken from it")


Model = TypeVar("Model")


def parse(model: type[Model], value: dict[str, Any], source: str) -> Model:
    """Validate `value` as a `model` or as a member of a union. All mistakes are reported at once.

    Raises:
        InputError: "<source>: <key>: <what is wrong>", one line per mistake; suggests a known key for an unknown one.
            What an anchor repeats is one mistake.
    """
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        raise InputError("\n".join(f"{source}: {line}" for line in _mistakes(model, error.errors()))) from None


def _mistakes(model: Any, items: Sequence[Any]) -> list[str]:
    """One line for each mistake: where it is first, what it is, where else it is."""
    renamed = {(*item["loc"][:-1], near) for item in items for near in _near(model, item)}
    found: dict[tuple[Any, ...], tuple[str, list[str]]] = {}
    for item in items:
        if item["type"] == "missing" and item["loc"] in renamed:
            continue  # written, under the wrong name
        where, what = _explain(model, item)
        key = "" if item["type"] in ("value_error", "method") else item["loc"][-1]  # those name the key themselves
        # An unknown key is one mistake, whatever other keys each method knows.
        same = (key, item["msg"] if item["type"] == "extra_forbidden" else what)
        found.setdefault(same, (what, []))[1].append(where)
    lines = []
    for what, (first, *others) in found.values():
        so_too = f"; so too {', '.join(others)}" if others else ""
        lines.append(f"{first + ': ' if first else ''}{what}{so_too}")
    return lines


def _explain(model: Any, item: Any) -> tuple[str, str]:
    """Where a mistake is, and what it is."""
    where = ".".join(str(part) for part in item["loc"] if not _is_tag(part) and part != "[key]")
    given = item["input"]
    if item["type"] == "extra_forbidden":
        known = _known(model, item["loc"][:-1])
        near = nearest(str(item["loc"][-1]), known)
        return where, f"unknown key; {near}(known: {', '.join(known)})" if near else "unknown key; remove it"
    if item["type"] == "method":
        where, known = f"{where + '.' if where else ''}method", item["ctx"]["known"]
        if isinstance(given, dict) and "method" in given:
            return where, f"no method '{given['method']}' (known: {known})"
        return where, f"missing; config/README.md explains the key (known: {known})"
    if item["type"] == "missing":
        return where, "missing; config/README.md explains the key"
    hint = ""
    if item["type"].startswith("float") and isinstance(given, str):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)"
    named = item["type"] == "value_error"  # its message names the value already
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and not named else ""
    return where, f"{item['msg'].removeprefix('Value error, ')}{shown}{hint}"


def _near(model: Any, item: Any) -> list[str]:
    """The known key that an unknown one resembles, if there is one."""
    unknown = item["type"] == "extra_forbidden"
    return difflib.get_close_matches(str(item["loc"][-1]), _known(model, item["loc"][:-1]), n=1) if unknown else []


def tag(name: str) -> str:
    """Tag of a model in a union, and in the error locations of pydantic. It differs from every key."""
    return f"<{name}>"


def _is_tag(part: int | str) -> bool:
    return str(part).startswith("<")


def _known(annotation: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed at `loc`, found by walking the annotations."""
    for part in loc:
        fields = getattr(_only(annotation), "model_fields", {})
        if part in fields:
            annotation = fields[part].annotation
        elif _is_tag(part):
            annotation = _models(annotation)[str(part)]
        else:  # a free key of dict[str, …], or a place in a list
            annotation = get_args(annotation)[-1]
    return sorted(getattr(_only(annotation), "model_fields", ()))


def _only(annotation: Any) -> Any:
    """The model of an annotation such as `Model | None`; else the annotation."""
    models = _models(annotation)
    return next(iter(models.values())) if len(models) == 1 and type(None) in get_args(annotation) else annotation


def _models(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models in an annotation, through unions and Annotated[…], by their tags or names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation.__name__: annotation}
    parts = get_args(annotation)
    found = {name: model for part in parts for name, model in _models(part).items()}
    tags = [part.tag for part in parts if isinstance(part, Tag)]
    return dict(zip(tags, found.values(), strict=True)) if tags else found


def load(model: type[Model], path: Path) -> Model:
    """Read and validate a YAML file written by `save` or by hand. Raises InputError naming file and key."""
    value = read_yaml(path)
    with lines_of(str(path)):
        return parse(model, value, str(path))


def save(value: Strict, path: Path) -> None:
    """Write a model as YAML, atomically, in field order."""
    write_text(path, yaml.safe_dump(value.written(), sort_keys=False))
