"""How the one page (index_page.html.jinja) writes values, runs and curves. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from uic_core.report.runs import Run
from uic_core.run.metrics import Value

_EPOCHS = 12  # lines of a history that are shown
_WIDTH, _HEIGHT = 120, 26  # of a curve over the epochs, pixels
# What no HTML may hold, and what would reorder or hide the text around it.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\ufffb"
    "\ufffe\uffff]"
)


def printable(value: Any) -> Any:
    """Replace what cannot be printed in a text; leave all else as it is."""
    return type(value)(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)) if isinstance(value, str) else value


def shown(value: Any) -> str:
    """Write a setting: text as it is, lists and mappings without brackets around them, all else as JSON."""
    match value:
        case str():
            return value or "–"
        case list() | tuple():
            return ", ".join(map(shown, value)) or "–"
        case dict():
            inner = {key: f"[{shown(each)}]" if isinstance(each, list) else shown(each) for key, each in value.items()}
            return ", ".join(f"{key}: {each}" for key, each in inner.items()) or "–"
        case _:
            return json.dumps(value)


def number(value: float, unit: str) -> str:
    """Write a number of metrics: percentages with two decimals, others with six digits."""
    return f"{value:.2f}" if unit.startswith("%") else f"{value:.6g}"


_COLUMNS = {
    "ci95": ("right", "± 95 %"),
    "n": ("right", "n"),
    "std": ("right", "std over seeds"),
    "seeds": ("right", "seeds"),
    "remark": ("left", "remark"),
}


def columns(values: Mapping[str, Value]) -> list[tuple[str, str, str]]:
    """Return (key, side, title) of what any of the values has beside its number."""
    there = (key for key in _COLUMNS if any(getattr(value, key) not in (None, "") for value in values.values()))
    return [(key, *_COLUMNS[key]) for key in there]


def column(value: Value, key: str) -> str:
    """Write what a value has beside its number; '' if it has it not."""
    found = getattr(value, key)
    if found in (None, ""):
        return ""
    return number(found, value.unit) if key in ("ci95", "std") else f"{found:,}" if key == "n" else str(found)


def what(run: Run) -> str:
    """Say in a line what a run is, and how far it has come."""
    recipe = [str(run.recipe[key]) for key in ("method", "arch") if key in run.recipe]
    epochs = run.recipe.get("epochs")
    done = "trained" if run.finished else f"{run.epochs} of {epochs} epochs" if epochs else "not trained"
    made = sum(each.metrics is not None for each in run.evaluations)
    told = [", ".join([*recipe, *([f"{epochs} epochs"] if epochs else [])]) or "no recipe", done]
    return " · ".join([*told, *([f"{made} of {len(run.evaluations)} evaluations"] if run.evaluations else [])])


def some(count: int) -> list[int]:
    """Choose at most _EPOCHS of `count` epochs, evenly, the first and the last among them."""
    if count <= _EPOCHS:
        return list(range(count))
    return [round(place * (count - 1) / (_EPOCHS - 1)) for place in range(_EPOCHS)]


def curve(values: Sequence[float]) -> str:
    """Return the points of a polyline of _WIDTH by _HEIGHT pixels; a single value, or equal ones, are a level line."""
    low, spread = min(values), max(values) - min(values)
    across = _WIDTH / max(1, len(values) - 1)
    points = values if len(values) > 1 else [values[0]] * 2
    return " ".join(
        f"{place * across:.1f},{(_HEIGHT - 1) - (_HEIGHT - 2) * ((value - low) / spread if spread else 0.5):.1f}"
        for place, value in enumerate(points)
    )
