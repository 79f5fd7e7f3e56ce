"""Files written whole or not at all, YAML read strictly, content hashes. No torch: the report needs this too."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from uic_core.errors import InputError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success move it over `path`, on any failure remove it.

    A reader sees the old bytes or the new ones, never half of them.

    Raises:
        InputError: the disk is full; nothing stands under the final name that was not there before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: numpy and matplotlib choose the format, or append a suffix, by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if _is_full(error):
            raise InputError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def hold(folder: Path) -> bool:
    """From now to its end, whatever ends it, this process alone holds `folder`, through a file `.lock` in it.

    Returns:
        False where the file system has no locks, and nothing is held.

    Raises:
        InputError: another process holds it; says which, where.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # its number stays open
    holder = os.read(file, 4096).decode(errors="replace").strip()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise InputError(f"{folder}: {holder} works in it; wait for its end, or stop it") from None
    except OSError:
        os.close(file)
        return False
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}, started in {Path.cwd()},\n".encode(), 0)
    return True


def _is_full(error: Exception) -> bool:
    """Whether there was no room to write. numpy and safetensors say so in words of their own, without an errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return bool(re.search(r"os error (28|122|27)\b|\d+ requested and \d+ written", str(error)))


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (see `atomic`)."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys; `<<` merges stay allowed."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node)
        if key in seen:
            mark = key_node.start_mark
            raise InputError(f"{mark.name}:{mark.line + 1}: key '{key}' stands twice; remove one of them")
        seen.add(key)
    loader.flatten_mapping(node)
    return {loader.construct_object(k): loader.construct_object(v, deep=True) for k, v in node.value}


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping strictly.

    Raises:
        InputError: the file is missing, is no YAML mapping, has a key twice (YAML would silently keep the last).
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = yaml.load(file, Loader=_StrictLoader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a mapping of keys to values")
    return value
