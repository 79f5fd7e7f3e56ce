"""The methods by name. To add one, add a file to this package and a line here. Imports no torch."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Discriminator, Tag

from uic_core.methods import (
    deepcluster,
    finetune,
    random,
    rotnet,
    selflabel,
    supervised,
    uic,
    uic_balanced_start,
    uic_no_split,
)
from uic_core.methods.method import Method
from uic_core.recipe import External, Recipe, load, parse, tag

METHODS: dict[str, Method[Any]] = {
    "uic": uic.METHOD,
    "finetune": finetune.METHOD,
    "deepcluster": deepcluster.METHOD,
    "selflabel": selflabel.METHOD,
    "uic_balanced_start": uic_balanced_start.METHOD,
    "uic_no_split": uic_no_split.METHOD,
    "supervised": supervised.METHOD,
    "random": random.METHOD,
    "rotnet": rotnet.METHOD,
}

_MODELS: dict[str, type[Recipe | External]] = {name: method.recipe for name, method in METHODS.items()}
_MODELS["external"] = External


def _tag(run: Any) -> str | None:
    method = run.get("method") if isinstance(run, dict) else getattr(run, "method", None)
    return tag(method) if isinstance(method, str) and method in _MODELS else None


if TYPE_CHECKING:
    Run = Recipe | External
else:
    Run = Annotated[
        functools.reduce(operator.or_, (Annotated[model, Tag(tag(name))] for name, model in _MODELS.items())),
        Discriminator(
            _tag,
            custom_error_type="method",
            custom_error_message="unknown",
            custom_error_context={"known": ", ".join(_MODELS)},
        ),
    ]
    """What `runs:` of a config holds: a recipe of one of the methods, or an External."""


def parse_run(value: dict[str, Any], source: str) -> Recipe | External:
    """Validate a recipe, or the External of a run trained elsewhere. Raises InputError as `parse` does."""
    return parse(cast("type[Recipe | External]", Run), value, source)


def load_run(path: Path) -> Recipe | External:
    """Read and validate a run's recipe.yaml. Raises InputError naming file and key."""
    return load(cast("type[Recipe | External]", Run), path)
