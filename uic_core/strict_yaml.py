"""YAML read strictly: nothing stands twice, nothing is counted by sixties, and mistakes have their line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from uic_core.errors import InputError
from uic_core.files import read_text


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and 8:00 for 480; `<<` merges stay allowed. Its errors know their line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # a 13th month; a timestamp that is none
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def _is_merge(key: yaml.Node) -> bool:
    return str(key.tag) == "tag:yaml.org,2002:merge"


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, value_node in node.value:
        if _is_merge(key_node):
            continue
        key = loader.construct_object(key_node)
        hashable = isinstance(key, Hashable)
        if not hashable or key in seen:
            told = f"key '{key}' stands twice; remove one of them" if hashable else "this key is no text; quote it"
            raise yaml.constructor.ConstructorError(None, None, told, key_node.start_mark)
        seen.add(key)
        if value_node.tag in _NUMBERS and ":" in value_node.value:  # counted by sixties
            told = (
                f"{key}: {value_node.value} means the number {loader.construct_object(value_node)}; quote it if it is "
                "text, and write a time limit in minutes, as 480, or as 8h"
            )
            raise yaml.constructor.ConstructorError(None, None, told, value_node.start_mark)
    loader.flatten_mapping(node)
    return {loader.construct_object(k): loader.construct_object(v, deep=True) for k, v in node.value}


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping strictly.

    Raises:
        InputError: the file is missing, is no YAML mapping, is nested too deeply, has a duplicate key (YAML would
            silently keep the last), or a value like 8:00 (YAML would silently take it for the number 480). The message
            names the line, if there is one.
    """
    text = read_text(path)
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        line, told = _told(error, text)
        raise InputError(f"{path}:{line}: is not valid YAML: {told}") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; take brackets out") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a mapping of keys to values")
    return value


def _told(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Return the line of an error in a YAML file, and what is wrong with the remedy."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a character that YAML does not allow
        return text.count("\n", 0, getattr(error, "position", 0)) + 1, f"{str(error).splitlines()[0]}; remove it"
    told, begun = str(getattr(error, "problem", "")), getattr(error, "context_mark", None)
    if "'\\t'" in told:
        told += "; indent with spaces, not with tabs"
    elif "undefined alias" in told:
        told += f"; the anchors above it are {', '.join(re.findall(r'&([-_a-zA-Z0-9]+)', text[: mark.index]))}"
    elif begun and begun.line < mark.line:
        told += f", {error.context} that begins in line {begun.line + 1}; mend one of these lines"  # type: ignore[attr-defined]
    elif ";" not in told:
        told += "; mend this line"
    return mark.line + 1, told


@contextlib.contextmanager
def lines_of(source: str, *below: str) -> Iterator[None]:
    """Name lines in an InputError of the block: "<source>: <key>: …" becomes "<source>:<line>: <key>: …".

    The line of a key that an anchor gives is the anchor's. Where `source` is no YAML file, nothing changes.

    Args:
        below: files that `source` goes over; the line is that of the uppermost file that has the key, or most of it.
    """
    try:
        yield
    except InputError as error:
        roots = {}
        for file in (*below, source):
            with contextlib.suppress(InputError, yaml.YAMLError):
                roots[file] = yaml.compose(read_text(Path(file)), Loader=yaml.SafeLoader)

        def numbered(match: re.Match[str]) -> str:
            places = [(*_line(root, match[1].split(".")), file) for file, root in reversed(roots.items())]
            depth, line, file = max(places, key=lambda place: place[0], default=(0, 0, source))
            return f"{file}:{line}: {match[1]}" if depth else match[0]

        raise InputError(re.sub(rf"^{re.escape(source)}: ([^:\n]+)", numbered, str(error), flags=re.M)) from None


def _line(node: yaml.Node | None, keys: list[str]) -> tuple[int, int]:
    """Return how many of nested keys are there, and the line, from 1, of the innermost of them; 0, 0 if none is."""
    depth = line = 0
    for key in keys:
        found = next((pair for pair in _pairs(node) if pair[0] == key), None)
        if found is None:
            break
        depth, (_, line, node) = depth + 1, found
    return depth, line


def _pairs(node: yaml.Node | None) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield (key, line, value) of a mapping, its own before merged ones; of a sequence, with places for keys."""
    if isinstance(node, yaml.SequenceNode):
        yield from ((str(place), item.start_mark.line + 1, item) for place, item in enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        yield from ((str(k.value), k.start_mark.line + 1, v) for k, v in node.value if not _is_merge(k))
        for merged in (value for key, value in node.value if _is_merge(key)):
            for each in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
                yield from _pairs(each)
