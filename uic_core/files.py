"""Atomic writes, folder locks, content hashes, strict YAML. Imports no torch, because the report uses this too."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from uic_core.errors import InputError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success move it over `path`, on any failure remove it.

    A reader sees either the old bytes or the new ones, never a mixture.

    Raises:
        InputError: the disk is full; `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keep the suffix last: numpy and matplotlib choose the format by it, or append a suffix if it is missing.
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
    """Take an exclusive lock on `folder`, through a file `.lock` in it, for the life of the process.

    Returns:
        False if the file system has no locks; nothing is locked then.

    Raises:
        InputError: another process holds the lock; the message says which one, and where.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if told := holder(folder):
        raise InputError(f"{folder}: {told} works in it; wait for its end, or stop it")
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # open for the life of the process
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # within this very moment
        os.close(file)
        raise InputError(f"{folder}: another process has just begun to work in it; wait for its end") from None
    except OSError:
        os.close(file)
        return False
    os.ftruncate(file, 0)
    told = f"process {os.getpid()} on {socket.gethostname()}, started in {Path.cwd()}, since {time.ctime()},\n"
    os.pwrite(file, told.encode(), 0)
    return True


def holder(folder: Path) -> str:
    """Return what the process that has taken the lock of `folder` (see `hold`) says of itself; '' if none has."""
    try:
        file = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return os.read(file, 4096).decode(errors="replace").strip()
    except OSError:  # there are no locks
        return ""
    finally:
        os.close(file)


def _is_full(error: Exception) -> bool:
    """True if the disk was full. numpy and safetensors report that in the message only, without an errno."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return bool(re.search(r"os error (28|122|27)\b|\d+ requested and \d+ written", str(error)))


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (see `atomic`)."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError for NaN and infinities."""
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
        InputError: the file is missing, is no YAML mapping, or has a duplicate key (YAML would silently keep the last).
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
