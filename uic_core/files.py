"""Atomic writes, folder locks, hashes, text and CSV. Imports no torch, because the report uses this too."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import functools
import hashlib
import io
import json
import lzma
import os
import shutil
import socket
import stat
import tempfile
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from uic_core.errors import InputError, is_full

DAMAGED = (
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, IndexError, OverflowError, MemoryError,
    RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
)  # fmt: skip
"""How reading a damaged file of numpy or JSON ends. A RuntimeError is that it seems encrypted, or nested too deeply."""

_LONGEST_HEADER = 100_000_000  # bytes; safetensors takes no longer one


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
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says; safetensors would leave 0600
        temporary.unlink()
        yield temporary
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if is_full(error):
            raise InputError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(home: Path) -> Iterator[Path]:
    """Yield an empty folder beside `home`; on success it takes the place of `home`, on any failure it is removed.

    Raises:
        InputError: nothing can be written there; `home` is as it was, or gone.
    """
    partial = home.with_name(f".{home.name}.partial")
    try:
        if partial.exists():  # left by a killed process
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        yield partial
        if home.exists():
            shutil.rmtree(home)
        os.replace(partial, home)
    except OSError as error:
        raise InputError(f"{home}: cannot be written ({error.strerror}); make room and run again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_folder(folder: Path, remedy: str, write: bool = True) -> None:
    """Check that a folder is one or can be made; with `write`, make it and write a megabyte, which is gone at once.

    Raises:
        InputError: it is a file or lies in one, links to nothing, is read-only, or has no room; the message ends with
            `remedy`.
    """
    there = next(part for part in (folder, *folder.parents) if os.path.lexists(part))
    try:
        if not stat.S_ISDIR(there.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(1_000_000))
    except OSError as error:
        room = "make room, or " if is_full(error) else ""
        link = f": {there} links to {os.readlink(there)}" if there.is_symlink() else ""
        raise InputError(f"{folder}: nothing can be written there ({error.strerror}{link}); {room}{remedy}") from None


def hold(folder: Path) -> bool:
    """Take an exclusive lock on `folder`, through a file `.lock` in it, for the life of the process.

    Returns:
        False if the file system has no locks; nothing is locked then.

    Raises:
        InputError: another process holds the lock; the message says which one, and where. Or `.lock` cannot be opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if told := holder(folder):
        raise InputError(f"{folder}: {told} works in it; wait for its end, or stop it")
    lock = folder / ".lock"
    try:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # open for the life of the process
    except OSError as error:
        remedy = "move away what is in its place"
        if isinstance(error, PermissionError):
            remedy = f"let {_owner(lock)} make it yours, too: chmod a+rw {lock}"
        raise InputError(f"{lock}: cannot be opened ({error.strerror}); {remedy}") from None
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


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError, KeyError):  # KeyError: an owner without a name
        return path.owner()
    return "its owner"


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


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically (see `atomic`)."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError for NaN and infinities."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


RETRAIN = "put back a good copy, or delete it and run snakemake: its run is made again"
"""The remedy for a file that a training wrote."""


def remake(path: Path) -> str:
    """The remedy for a file that many jobs read: made alone, with the same bytes again, it makes none of them run."""
    return f"delete {path}, then make it alone: snakemake … {path}"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safetensors_metadata(file: BinaryIO) -> dict[str, str]:
    """Read the texts in the header of a safetensors file, without its tensors. Raises one of DAMAGED if it is none."""
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    texts: dict[str, str] = json.loads(file.read(length)).get("__metadata__", {})
    return texts


def stamp(path: Path | str) -> list[int]:
    """Return a file's size in bytes and its time in nanoseconds; [] if there is none to be read."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def known_sha256(path: Path, digest: str, stamped: Sequence[int]) -> str:
    """Return the SHA-256 of a file that was `digest` at size and time `stamped`: it is read if these are others now."""
    now = stamp(path)
    return digest if now == list(stamped) else _sha256_at(path, *now)


@functools.cache
def _sha256_at(path: Path, *now: int) -> str:
    return sha256(path)


@contextlib.contextmanager
def unchanged(**paths: Path) -> Iterator[dict[str, str]]:
    """Yield the SHA-256 of files that the block reads, by name.

    Raises:
        InputError: a file has other bytes at the end of the block.
    """
    hashes = {name: sha256(path) for name, path in paths.items() if path.is_file()}
    yield hashes
    demand_unchanged(paths, hashes)


def demand_unchanged(paths: Mapping[str, Path], hashes: Mapping[str, str]) -> None:
    """Check that files still have the SHA-256 of `hashes`. Raises InputError: one has other bytes now."""
    for name, digest in hashes.items():
        if sha256(paths[name]) != digest:
            raise InputError(f"{paths[name]}: was replaced while it was read; run the same command again")


def read_text(path: Path, remedy: str = "check the path") -> str:
    """Read a text file in UTF-8, without the byte-order mark that spreadsheets and editors on Windows put first.

    Args:
        remedy: said if it cannot be read.

    Raises:
        InputError: it cannot be read, or is not UTF-8; the message names the line.
    """
    try:
        content = Path(path).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        told = f"{path}:{line}: is not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        raise InputError(told) from None


def read_csv(path: Path, header: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file: [(line, {name of the column: text})]. Lines that hold nothing are left out.

    Raises:
        InputError: as `read_text`; the first line is not `header`, a quote is not closed, a line has too many or too
            few fields. The message names the line.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    records, line = [], 1
    try:
        for fields in reader:
            if line == 1 and fields != list(header):
                raise InputError(f"{path}:1: the first line must be '{','.join(header)}'")
            if line > 1 and any(fields):
                if len(fields) != len(header):
                    raise InputError(f"{path}:{line}: has {len(fields)} fields, not {len(header)}; quote commas")
                records.append((line, dict(zip(header, fields, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{line}: is not CSV ({error}); mend this line, or one after it") from None
    if line == 1:
        raise InputError(f"{path}:1: the first line must be '{','.join(header)}'")
    return records
