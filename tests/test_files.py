"""Files are whole or absent; a folder is one process's."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from uic_core import files
from uic_core.errors import InputError


def test_atomic_leaves_the_old_file_whole_when_writing_fails(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "half \ud800")
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "value.npy"
    with pytest.raises(InputError, match=r"value\.npy: the disk is full; free some space"), files.atomic(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_really_full_device_is_named(tmp_path):
    with pytest.raises(InputError, match="the disk is full"), files.atomic(tmp_path / "value.txt"):
        Path("/dev/full").write_bytes(b"0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "write",
    [
        "numpy.save(temporary, numpy.zeros(100_000))",
        "safetensors.numpy.save_file({'a': numpy.zeros(100_000)}, temporary)",
        "temporary.write_bytes(bytes(800_000))",
    ],
)
def test_no_room_is_named_whoever_writes(tmp_path, write):
    """A limit on the size of files is what a test can have of a full disk without being root."""
    program = f"""
import pathlib, resource, signal
import numpy, safetensors.numpy
from uic_core import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with files.atomic(pathlib.Path("value.npy")) as temporary:
    {write}
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "InputError: value.npy: the disk is full; free some space" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_not_finite_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "value.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_sha256_of_known_bytes(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_one_process_at_a_time_holds_a_folder(tmp_path):
    """A kill releases it: no file has to be removed by hand."""
    code = "import sys; from pathlib import Path; from uic_core.files import hold; hold(Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; print(1, flush=True); input()", str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"1\n"
    with pytest.raises(InputError, match=f"process {holder.pid} on .*, started in .* works in it; wait"):
        files.hold(tmp_path)
    holder.kill()
    holder.wait()
    again = subprocess.run(command, input=b"\n", capture_output=True, check=True)
    assert again.stdout == b"1\n"


def test_where_a_file_system_has_no_locks_nothing_is_held(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    assert files.hold(tmp_path) is False


@pytest.mark.parametrize("kind", ["not ours", "a folder", "a loop"])
def test_fault_61_a_lock_that_cannot_be_opened_is_named_with_its_owner(tmp_path, monkeypatch, kind, seen):
    """A colleague's has the mode that their umask says. Root may open it, so that the system's refusal is put in."""
    lock = tmp_path / ".lock"
    if kind == "not ours":
        lock.touch(0o644)
        really = os.open
        monkeypatch.setattr(files.os, "open", lambda path, flags, *mode: refuse(really, path, flags, *mode))
    elif kind == "a folder":
        lock.mkdir()
    else:
        lock.symlink_to(".lock")

    def refuse(really, path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, flags, *mode)

    with pytest.raises(InputError) as error:
        files.hold(tmp_path)
    seen(error.value)
    why = {"not ours": "Permission denied", "a folder": "Is a directory", "a loop": "Too many levels of symbolic links"}
    remedy = "move away what is in its place"
    if kind == "not ours":
        remedy = f"let {lock.owner()} make it yours, too: chmod a+rw {lock}"
    assert str(error.value) == f"{lock}: cannot be opened ({why[kind]}); {remedy}"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_fault_47_every_file_has_the_mode_that_the_umask_says(tmp_path, umask, seen):
    before = os.umask(umask)
    try:
        with files.atomic(tmp_path / "weights.safetensors") as temporary:
            safetensors.numpy.save_file({"a": np.zeros(3)}, temporary)
        with files.atomic(tmp_path / "array.npz") as temporary:
            np.savez(temporary, a=np.zeros(3))
        files.write_json(tmp_path / "value.json", {})
    finally:
        os.umask(before)
    modes = {path.name: f"{path.stat().st_mode & 0o777:04o}" for path in sorted(tmp_path.iterdir())}
    seen(modes)
    assert modes == dict.fromkeys(("array.npz", "value.json", "weights.safetensors"), f"{0o666 & ~umask:04o}")


@pytest.mark.parametrize("write", [True, False])
def test_fault_50_a_link_to_a_folder_that_is_gone_is_named_with_what_it_links_to(tmp_path, seen, write):
    link = tmp_path / "runs"
    link.symlink_to(tmp_path / "purged")
    for folder in (link, link / "x"):
        with pytest.raises(InputError) as error:
            files.check_folder(folder, "move it away", write)
        seen(error.value)
        why = f"No such file or directory: {link} links to {tmp_path}/purged"
        assert str(error.value) == f"{folder}: nothing can be written there ({why}); move it away"
    (tmp_path / "purged").mkdir()  # the remedy
    files.check_folder(link, "", write)


@pytest.mark.parametrize("kind", ["read-only", "a file", "in a file", "full"])
def test_fault_50_a_folder_that_cannot_be_written_is_named_before_anything_is_made(seen, kind):
    """As a user who is not root; the full disk is the kernel's."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "results")
        Path(parent).chmod(0o755)
        if kind == "read-only":
            folder.mkdir(mode=0o555)
        elif kind != "full":
            folder.touch()
        # A limit on the size of files, as above: what a test can have of a full disk everywhere.
        full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        full += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        program = (
            f"import os, sys; from pathlib import Path; from uic_core.files import check_folder; "
            f"{full if kind == 'full' else 'os.getuid() or os.seteuid(65534); '}"
            "check_folder(Path(sys.argv[1]), 'name another folder')"
        )
        path = folder / "here" if kind == "in a file" else folder
        ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
        told = ended.stderr.splitlines()[-1]
        seen(told)
        why = {"read-only": "Permission denied", "full": "File too large"}.get(kind, "Not a directory")
        assert told.endswith(
            f"{path}: nothing can be written there ({why}); {'make room, or ' * (kind == 'full')}name another folder"
        )
        assert list(Path(parent).rglob("*")) == [folder]  # nothing is left behind
        files.check_folder(Path(parent, "another"), "")  # the remedy
