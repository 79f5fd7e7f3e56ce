"""The set-up script's messages and repeats, the lock, and the conda environments that must hold the same pins."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ("core", "openmmlab", "report")
OTHER_OPENCV = {"opencv-python", "opencv-python-headless"}  # envs/overrides.in drops them
NOWHERE = "http://127.0.0.1:9/simple"  # the discard port: refused at once, as without a network


# --- the set-up script -----------------------------------------------------------------------------------------------


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/bash\n" + textwrap.dedent(text))
    path.chmod(0o755)
    return path


class Checkout:
    """A copy of what set-up reads, and a PATH whose commands the test chooses."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.bin = folder / "bin"
        self.bin.mkdir()
        shutil.copytree(ROOT / "envs", self.root / "envs")
        for name in ("pyproject.toml", "LICENSE", "README.md"):
            shutil.copy(ROOT / name, self.root)
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHON": sys.executable,
            "FORCE_CUDA": "0",
            "UV_CACHE_DIR": str(folder / "cache"),
        }

    def setup(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", self.root / "envs" / "setup.sh"],
            env=self.environment | environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=300,
        )

    def refusal(self, **environment: str) -> str:
        """The one line of stderr of a set-up that must fail."""
        done = self.setup(**environment)
        assert done.returncode == 1, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert not (self.root / ".venv" / "uic_core.setup").exists()
        return line

    def fake(self, name: str, text: str) -> Path:
        return executable(self.bin / name, text)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def stubbed(checkout: Checkout) -> Checkout:
    """A checkout whose Python, pip and uv only note down their calls in `calls`."""
    version = re.search(r"uv==(\S+)", (ROOT / "envs" / "uv.txt").read_text())[1]  # type: ignore[index]
    real, calls = sys.executable, checkout.root / "calls"
    stub = checkout.bin / "stub"
    executable(
        stub,
        f"""
        case "$1 $2" in
            "-c "*) [[ "$2" == *mmcv* ]] || exec {real} "$@" ;;
            "--version ") exec {real} --version ;;
            "-m venv") echo venv >>{calls}; mkdir -p .venv/bin; cp {stub} .venv/bin/python ;;
            "-m pip")
                echo bootstrap >>{calls}
                printf '#!/bin/bash\\n[[ $1 == --version ]] && echo "uv {version} (stub)" && exit\\n' >.venv/bin/uv
                printf 'echo "$@" >>{calls}; [[ ! -e {checkout.root}/broken ]]\\n' >>.venv/bin/uv
                chmod +x .venv/bin/uv ;;
        esac
        """,
    )
    checkout.environment["PYTHON"] = str(stub)
    return checkout


def calls(checkout: Checkout) -> list[str]:
    """The calls since the last look, shortened to what matters."""
    file = checkout.root / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [" ".join(line.split()[:3]) for line in lines]


FULL = ["venv", "bootstrap", "--no-progress pip install", "--no-progress pip sync", "--no-progress pip install"]


def test_refuses_another_machine(checkout: Checkout) -> None:
    checkout.fake("uname", "[[ $1 == -s ]] && echo Darwin || echo arm64\n")
    assert "this is Darwin arm64" in checkout.refusal()


def test_names_the_wrong_python_and_the_remedy(checkout: Checkout) -> None:
    old = checkout.fake("python3.9", "echo 3.9\n")
    message = checkout.refusal(PYTHON=str(old))
    assert "Python 3.11 or 3.12 is needed" in message
    assert f"found: {old} 3.9" in message
    assert "apt install python3.11" in message


def test_skips_a_python_that_does_not_run(stubbed: Checkout) -> None:
    """pyenv leaves a python3.11 in PATH that only prints a complaint."""
    stubbed.fake("python3.11", "exit 127\n")
    shutil.copy(stubbed.bin / "stub", stubbed.bin / "python3.12")
    del stubbed.environment["PYTHON"]
    assert stubbed.setup().returncode == 0
    assert calls(stubbed)[0] == "venv"


def test_names_the_missing_compiler_and_the_remedy(checkout: Checkout) -> None:
    for name in ("g++", "c++", "clang++"):
        checkout.fake(name, "echo 'unrecognized option -std=c++17' >&2; exit 1\n")
    assert "no C++17 compiler works" in checkout.refusal()
    assert "apt install g++" in checkout.refusal()


def test_names_the_disk_that_is_too_small(checkout: Checkout) -> None:
    checkout.fake(
        "df", "printf 'Filesystem 1024-blocks Used Available Capacity Mounted\\n/dev/x 9 9 3145728 9%% /\\n'\n"
    )
    message = checkout.refusal()
    assert "has 3 GB free and the environment needs 12 GB" in message
    assert str(checkout.root) in message


def test_names_the_network_when_uv_cannot_be_fetched(checkout: Checkout) -> None:
    message = checkout.refusal(PIP_INDEX_URL=NOWHERE, PIP_CONFIG_FILE="/dev/null", PIP_RETRIES="0")
    assert "the network or the package index is out of reach" in message


def test_names_the_network_when_packages_cannot_be_fetched(checkout: Checkout) -> None:
    venv = checkout.root / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    shutil.copy(Path(sys.executable).with_name("uv"), venv / "bin" / "uv")
    message = checkout.refusal(UV_DEFAULT_INDEX=NOWHERE, UV_HTTP_RETRIES="0")
    assert "the network or the package index is out of reach" in message
    assert "it continues" in message


def test_force_cuda_without_nvcc_is_refused(checkout: Checkout) -> None:
    kept = ["bash", "dirname", "cat", "sed", "flock"]
    for name in kept:
        (checkout.bin / name).symlink_to(shutil.which(name))  # type: ignore[arg-type]
    assert "FORCE_CUDA=1 and no nvcc in PATH" in checkout.refusal(FORCE_CUDA="1", PATH=str(checkout.bin))


def test_force_cuda_with_another_cuda_is_refused(checkout: Checkout) -> None:
    checkout.fake("nvcc", "echo 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    assert "nvcc is not of CUDA 13" in checkout.refusal(FORCE_CUDA="1")


def test_cuda_build_is_said_and_forced(stubbed: Checkout) -> None:
    stubbed.fake("nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    assert "mmcv: cpu build" in stubbed.setup().stdout
    calls(stubbed)
    done = stubbed.setup(FORCE_CUDA="1")
    assert "mmcv: cuda build" in done.stdout
    sync = next(line for line in (stubbed.root / "calls").read_text().splitlines() if "pip sync" in line)
    assert "--config-settings-package onedl-mmcv:cuda=13" in sync
    assert "--reinstall-package onedl-mmcv" in sync
    # A node without nvcc later keeps what was built.
    calls(stubbed)
    assert "up to date (mmcv: cuda build)" in stubbed.setup().stdout
    assert calls(stubbed) == []


def test_second_setup_does_nothing_and_a_changed_lock_syncs(stubbed: Checkout) -> None:
    def tree() -> dict[str, str]:
        files = (path for path in (stubbed.root / ".venv").rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first = stubbed.setup()
    assert first.returncode == 0, first.stderr
    assert ".venv is ready (mmcv: cpu build)" in first.stdout
    assert calls(stubbed) == FULL
    before = tree()

    second = stubbed.setup()
    assert second.returncode == 0
    assert "up to date" in second.stdout
    assert calls(stubbed) == []
    assert tree() == before

    lock = stubbed.root / "envs" / "lock.txt"
    lock.write_text(lock.read_text().replace("tqdm==", "tqdm==99."))
    assert stubbed.setup().returncode == 0
    assert calls(stubbed) == FULL[2:]


def test_interrupted_setup_continues(stubbed: Checkout) -> None:
    (stubbed.root / "broken").touch()
    assert "set-up stopped" in stubbed.refusal()
    assert calls(stubbed) == FULL[:3]
    (stubbed.root / "broken").unlink()
    assert stubbed.setup().returncode == 0
    assert calls(stubbed) == FULL[2:]


def test_interrupted_change_is_not_forgotten(stubbed: Checkout) -> None:
    """The lock comes back after a half-done sync to another one: .venv holds a mixture, and is synced."""
    assert stubbed.setup().returncode == 0
    lock = stubbed.root / "envs" / "lock.txt"
    text = lock.read_text()
    lock.write_text(text.replace("tqdm==", "tqdm==99."))
    (stubbed.root / "broken").touch()
    assert stubbed.setup().returncode == 1
    (stubbed.root / "broken").unlink()
    lock.write_text(text)
    calls(stubbed)
    assert stubbed.setup().returncode == 0
    assert calls(stubbed) == FULL[2:]


def test_half_a_venv_starts_again(stubbed: Checkout) -> None:
    """Killed while the venv was made: a Python without pip and without uv."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", stubbed.root / ".venv"], check=True)
    stubbed.setup()
    assert calls(stubbed)[0] == "venv"


def test_moved_checkout_starts_again(stubbed: Checkout) -> None:
    assert stubbed.setup().returncode == 0
    stubbed.root = stubbed.root.rename(stubbed.root.with_name("moved"))
    executable(stubbed.bin / "stub", (stubbed.bin / "stub").read_text().replace("/checkout/", "/moved/"))
    calls(stubbed)
    stubbed.setup()
    assert calls(stubbed)[0] == "venv"


# --- the lock --------------------------------------------------------------------------------------------------------


def pins(text: str) -> dict[str, str]:
    """Package -> version; fails where a package stands twice."""
    found = re.findall(r"^ *(?:- )?([A-Za-z0-9._-]+)==([^\s\\]+)", text, re.MULTILINE)
    assert len(found) == len({canonicalize_name(name) for name, _ in found})
    return {canonicalize_name(name): version for name, version in found}


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    return pins((ROOT / "envs" / "lock.txt").read_text())


def wanted(requirement: Requirement, python: str, extras: set[str]) -> bool:
    """Whether a requirement's marker holds on Linux x86_64 with that Python and those extras."""
    linux = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
    }
    return requirement.marker is None or any(
        requirement.marker.evaluate(linux | {"extra": extra}) for extra in extras | {""}
    )


def closure(roots: list[Requirement], python: str) -> dict[str, list[Requirement]]:
    """Every package that `roots` need, with all that is asked of it, read from the installed packages."""
    asked: dict[str, list[Requirement]] = {}
    queue, seen = list(roots), set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in OTHER_OPENCV:
            continue
        asked.setdefault(name, []).append(requirement)
        if (name, frozenset(requirement.extras)) not in seen:
            seen.add((name, frozenset(requirement.extras)))
            needs = (Requirement(line) for line in metadata.distribution(name).requires or [])
            queue += [need for need in needs if wanted(need, python, set(requirement.extras))]
    return asked


def read_in(name: str) -> list[Requirement]:
    """The requirements of envs/<name>.in and of the files it names."""
    found = []
    for line in (ROOT / "envs" / f"{name}.in").read_text().splitlines():
        if line.startswith("-r "):
            found += read_in(line.removeprefix("-r ").removesuffix(".in"))
        elif line and not line.startswith("#"):
            found.append(Requirement(line))
    return found


def test_lock_is_hashed_and_names_no_index() -> None:
    for name in ("lock.txt", "uv.txt"):
        text = (ROOT / "envs" / name).read_text()
        assert "://" not in text
        assert "--index" not in text
        for block in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[A-Za-z0-9._-]+==\S+ \\\n {4}--hash=sha256:[0-9a-f]{64}", block), block.split("\n")[0]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_lock_holds_for_python(lock: dict[str, str], python: str) -> None:
    """One pin a package, no markers; with that Python, nothing is missing, superfluous or of a refused version."""
    asked = closure(read_in("dev"), python)
    for name, requirements in asked.items():
        assert name in lock, f"{name} is not in the lock"
        for requirement in requirements:
            assert requirement.specifier.contains(lock[name], prereleases=True), f"{requirement} against {lock[name]}"
        supported = SpecifierSet(metadata.metadata(name).get("Requires-Python") or "")
        assert supported.contains(f"{python}.9"), f"{name} does not support Python {python}"
    assert set(asked) == set(lock)


def test_venv_holds_the_lock(lock: dict[str, str]) -> None:
    # Not all of sys.path: pkg_resources, once imported, adds setuptools' vendored packages to it.
    found = metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(item.name): item.version for item in found}
    assert {name: installed.get(name) for name in lock} == lock
    assert not OTHER_OPENCV & set(installed)


# --- the conda environments ------------------------------------------------------------------------------------------


def conda(name: str) -> tuple[list[str], list[str], dict[str, str]]:
    """(conda entries, pip entries, pins that the post-deploy script adds) of an environment."""
    document = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
    assert document["channels"] == ["conda-forge", "nodefaults"]
    *packages, pip = document["dependencies"]
    script = ROOT / "envs" / f"{name}.post-deploy.sh"
    return packages, pip["pip"], pins(script.read_text()) if script.exists() else {}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment_pins_every_version(name: str) -> None:
    packages, pip, _ = conda(name)
    for entry in packages + pip:
        spec = MatchSpec(entry)
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.+_-]*", str(spec.version)), f"{entry} is no exact version"
    assert {"python", "pip"} <= {MatchSpec(entry).name.normalized for entry in packages}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment_is_the_locks_closure(name: str, lock: dict[str, str]) -> None:
    packages, pip, later = conda(name)
    held = pins("\n".join(pip)) | later
    assert held.items() <= lock.items()
    (python,) = (entry.removeprefix("python==") for entry in packages if entry.startswith("python=="))
    assert set(held) == set(closure(read_in(name), ".".join(python.split(".")[:2])))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_pip_would_add_nothing(name: str) -> None:
    """pip follows the dependencies of what the YAML lists: no other OpenCV and nothing unpinned is among them."""
    _, pip, _ = conda(name)
    held = pins("\n".join(pip))
    for package in held:
        needs = (Requirement(line) for line in metadata.distribution(package).requires or [])
        missing = {
            need.name for need in needs if wanted(need, "3.11", set()) and canonicalize_name(need.name) not in held
        }
        assert not missing, f"{package} needs {missing}"


def test_post_deploy_script_is_hash_pinned_and_runs_in_bash(lock: dict[str, str]) -> None:
    """Snakemake runs it by its first line's interpreter; its pins carry the lock's hashes."""
    script = ROOT / "envs" / "openmmlab.post-deploy.sh"
    text = script.read_text()
    assert text.splitlines()[0] == "#!/usr/bin/env bash"
    subprocess.run(["bash", "-n", script], check=True)
    locked = (ROOT / "envs" / "lock.txt").read_text()
    for name, version in pins(text).items():
        block = re.search(rf"^{name}=={re.escape(version)}( \\\n +--hash=\S+)+$", text, re.MULTILINE)
        assert block is not None, f"{name} has no hash"
        assert block[0] in locked


def test_post_deploy_script_refuses_another_cuda_than_torchs(tmp_path: Path) -> None:
    for name, says in (("python", "13.0"), ("nvcc", "Cuda compilation tools, release 12.4, V12.4.99")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / name).chmod(0o755)
    process = subprocess.run(
        ["bash", ROOT / "envs" / "openmmlab.post-deploy.sh"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FORCE_CUDA": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert "error: FORCE_CUDA=1 and no nvcc of CUDA 13, torch's version, is first in PATH" in process.stderr


@pytest.mark.parametrize(
    ("nvcc", "compiles", "forced", "calls", "says"),
    [
        ("13.0", True, "", ["1"], "mmcv with CUDA kernels"),
        ("13.0", False, "", ["1", "0"], "mmcv's CUDA kernels do not compile, see above; now without them"),
        ("13.0", True, "0", ["0"], "mmcv with CPU kernels"),
        ("12.4", True, "", ["0"], "mmcv with CPU kernels"),
    ],
)
def test_post_deploy_script_builds_for_cuda_where_nvcc_is_found(
    tmp_path: Path, nvcc: str, compiles: bool, forced: str, calls: list[str], says: str
) -> None:
    log = tmp_path / "log"
    python = f"""#!/bin/sh
case "$*" in
*torch.version*) echo 13.0 ;;
*pip*) echo "$FORCE_CUDA" >>{log}; [ "$FORCE_CUDA" = 0 ] || {str(compiles).lower()} ;;
esac
"""
    for name, text in (("python", python), ("nvcc", f"#!/bin/sh\necho 'Cuda compilation tools, release {nvcc}, V'\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    process = subprocess.run(
        ["bash", ROOT / "envs" / "openmmlab.post-deploy.sh"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FORCE_CUDA": forced},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert log.read_text().split() == calls
    assert says in process.stdout


# Every stage reads what is described there; only those that compute call the functions that import more.
DESCRIBED = {
    path
    for package in ("methods", "models", "evaluations", "run/randomness.py")
    for path in (ROOT / "uic_core").glob(package if package.endswith(".py") else f"{package}/*.py")
}


def imports(path: Path, described: bool) -> set[str]:
    """Full names that a module imports, anywhere in it; `from a import b` is a and a.b.

    `described`: of modules that describe something, those only that are imported with the module.
    """
    names = set()
    tree = ast.parse(path.read_text())
    skipped = set()
    if described and path in DESCRIBED:
        lazy = (ast.FunctionDef, ast.If)  # functions, and what is for the type checker alone
        skipped = {id(inner) for node in ast.walk(tree) if isinstance(node, lazy) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def followed(start: list[Path], described: bool) -> set[Path]:
    """The files of uic_core that these import, in turn, themselves included."""
    found: set[Path] = set()
    queue = list(start)
    while queue:
        path = queue.pop()
        if path in found:
            continue
        found.add(path)
        for name in imports(path, described):
            home = ROOT.joinpath(*name.split("."))
            if name.split(".")[0] == "uic_core":
                queue += [file for file in (home.with_suffix(".py"), home / "__init__.py") if file.exists()]
    return found


def imported(path: Path, described: bool) -> set[str]:
    """Top-level names that a module imports from packages."""
    return {name.split(".")[0] for name in imports(path, described)} - set(sys.stdlib_module_names) - {"uic_core"}


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("core", ["data", "models", "pretrain", "evaluate", "run"]),
        ("openmmlab", ["openmmlab"]),
        ("report", ["report", "protocol.py"]),
    ],
)
def test_every_import_is_in_its_environment(name: str, modules: list[str]) -> None:
    _, pip, later = conda(name)
    held = set(pins("\n".join(pip)) | later)
    served = metadata.packages_distributions()
    stages = [ROOT / "uic_core" / module for module in modules]
    files = [file for stage in stages for file in (stage.rglob("*.py") if stage.is_dir() else [stage])]
    described = name == "report"
    for file in followed(files, described):
        for used in imported(file, described):
            found = {canonicalize_name(item) for item in served.get(used, [])}
            assert found & held, f"{file.relative_to(ROOT)} imports {used}, which envs/{name}.in does not bring"


# --- the team's habits -----------------------------------------------------------------------------------------------


def told(*arguments: str, **environment: str) -> str:
    """What `make` prints. `make test` hands its own flags and level on: they are not for this one."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=mine | environment, capture_output=True, text=True, check=True
    ).stdout


def planned(*arguments: str, **environment: str) -> str:
    """What `make` would run."""
    return told("-n", *arguments, **environment)


def test_make_deletes_results_only_where_the_command_says_so() -> None:
    """A variable RESULTS of the environment, or RESULTS=0, once meant yes."""
    # What is refused leaves the demo's images, too. What goes and what stays: tests/overview/test_clean.py.
    assert "uic_core.overview.clean --results results && rm -rf data/demo" in planned("clean", "RESULTS=1")
    assert "results" not in planned("clean", RESULTS="/scratch/results") + planned("clean", "RESULTS=0")
    assert "--prioritize results/cifar10_small/runs/uic_128/" in planned("cifar10", "SMALL=1")
    assert "cifar10_small" not in planned("cifar10", "SMALL=0") + planned("cifar10", SMALL="1")
    assert "--gpus=4" in planned("plan", "GPUS=4")
    assert "--gpus" not in planned("plan", GPUS="4")


def test_make_demo_is_the_demo_by_any_profile() -> None:
    for profile in ("profiles/demo", "slurm"):
        starts = [line for line in planned("demo", f"PROFILE={profile}").splitlines() if "/snakemake " in line]
        assert len(starts) == 2
        assert all("--replace-workflow-config --configfile config/demo.yaml" in line for line in starts)


def test_precommit_runs_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    commands = [line for line in planned("check").splitlines() if line.startswith(".venv")]
    assert [hook["entry"] for hook in hooks] == commands


def test_help_lists_every_command() -> None:
    """Also cifar10, whose digits the search for names once left out."""
    targets = re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert [line.split()[0] for line in told("help").splitlines()] == targets


def test_readme_has_the_two_commands_and_ci_runs_the_second() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_folder_is_in_the_readme() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    readme = (ROOT / "README.md").read_text()
    for folder in sorted({line.split("/")[0] for line in listed.splitlines() if "/" in line}):
        assert f"{folder}/" in readme, f"README.md's tree lacks {folder}/"


def test_package_is_importable_from_anywhere(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", "-c", "import uic_core"], cwd=tmp_path, check=True)
