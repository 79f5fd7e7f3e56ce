"""`make lock`: compile envs/*.in into the hash-pinned lock and write the conda environments from the same pins.

Existing pins are kept; `make lock UPGRADE=1` takes newer ones. The lock holds for Linux x86_64 and every Python of
PYTHONS: it is compiled for the first and must come out the same for the others. It names no package index.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ENVS = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12")
PLATFORM = "x86_64-manylinux_2_28"  # torch's own floor

# What conda itself installs, by environment: pinned by version; what these need in turn conda chooses, as the lock is
# pip's alone. mmcv is compiled there, against the C library that torch asks for.
CONDA = {
    "core": ("python==3.11.13", "pip==25.1.1"),
    "openmmlab": ("python==3.11.13", "pip==25.1.1", "cxx-compiler==1.9.0", "sysroot_linux-64==2.28"),
    "report": ("python==3.11.13", "pip==25.1.1"),
}
# These ask for another build of OpenCV than the one that is pinned, so they (and what asks for them) are installed
# without dependencies, after everything else.
POST_DEPLOY = (
    "imaug",
    "imagecorruptions-imaug",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
)
BEGIN, END = "# pins, written by make lock", "# end of pins"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)")


def pins(text: str) -> dict[str, str]:
    """Package name -> version, for every `name==version` line of a requirements text."""
    return dict(match.groups() for line in text.splitlines() if (match := PIN.match(line)))  # type: ignore[misc]


def blocks(text: str) -> dict[str, str]:
    """Package name -> its whole requirement, hashes included."""
    return {match[1]: block for block in re.split(r"\n(?=\S)", text.rstrip()) if (match := PIN.match(block))}


def compile_pins(source: Path, output: Path, python: str, *options: str) -> None:
    """Run `uv pip compile`; pins that `output` already holds are preferred."""
    uv = Path(sys.executable).with_name("uv")
    fixed = ["--no-annotate", "--no-header", "--no-emit-index-url", "--quiet", "--python-platform", PLATFORM]
    overrides = ["--override", str(ENVS / "overrides.in"), "--python-version", python]
    command = [str(uv), "pip", "compile", *fixed, *overrides, *options, str(source), "-o", str(output)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"error: {source.name} cannot be compiled for Python {python}; see uv's message above")


def compile_lock(upgrade: bool) -> None:
    """Write uv.txt and lock.txt.

    Raises:
        SystemExit: the Pythons would need different pins; the message names them.
    """
    options = ["--generate-hashes", *(["--upgrade"] if upgrade else [])]
    compile_pins(ENVS / "uv.in", ENVS / "uv.txt", PYTHONS[0], *options)
    lock = ENVS / "lock.txt"
    compile_pins(ENVS / "dev.in", lock, PYTHONS[0], *options)
    first = pins(lock.read_text())
    for python in PYTHONS[1:]:
        with tempfile.TemporaryDirectory() as folder:
            other = Path(folder, "lock.txt")
            compile_pins(ENVS / "dev.in", other, python, "--constraint", str(lock))
            different = sorted(first.items() ^ pins(other.read_text()).items())
        if different:
            sys.exit(
                f"error: Python {PYTHONS[0]} and {python} need different pins: {different}; constrain them in *.in"
            )


def environment(name: str, lock: dict[str, str]) -> str:
    """The text of envs/<name>.yaml: every package that <name>.in needs, directly or not, at the lock's version."""
    with tempfile.TemporaryDirectory() as folder:
        closure = Path(folder, "closure.txt")
        compile_pins(ENVS / f"{name}.in", closure, PYTHONS[0], "--constraint", str(ENVS / "lock.txt"))
        packages = pins(closure.read_text())
    assert packages.items() <= lock.items(), sorted(packages.items() - lock.items())
    lines = ["# Written by make lock from the same pins as .venv; edit envs/*.in instead.", "channels:"]
    lines += ["  - conda-forge", "  - nodefaults", "dependencies:"]
    lines += [*(f"  - {item}" for item in CONDA[name]), "  - pip:"]
    lines += [f"      - {item}=={version}" for item, version in packages.items() if item not in POST_DEPLOY]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Write whole or not at all; the mode stays."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text)
    if path.exists():
        temporary.chmod(path.stat().st_mode)
    os.replace(temporary, path)


def main() -> None:
    """Compile the lock, then write the three environments and the pins of the post-deploy script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that envs/*.in allow")
    arguments = parser.parse_args()
    compile_lock(arguments.upgrade)
    text = (ENVS / "lock.txt").read_text()
    for name in CONDA:
        write(ENVS / f"{name}.yaml", environment(name, pins(text)))
    script = ENVS / "openmmlab.post-deploy.sh"
    before, rest = script.read_text().split(BEGIN)
    after = rest.split(END)[1]
    hashed = blocks(text)
    write(script, "\n".join([before + BEGIN, *(hashed[name] for name in POST_DEPLOY), END + after]))
    print("written: envs/lock.txt, envs/uv.txt, the conda environments; make setup installs them")


if __name__ == "__main__":
    main()
