#!/usr/bin/env bash
# Makes .venv from envs/lock.txt; `make setup` calls it. Nothing happens when .venv already holds that lock.
#
# Variables: PYTHON      the interpreter (default: the first of python3.11, python3.12, python3 that fits)
#            CXX         the C++17 compiler (default: g++, c++ or clang++)
#            FORCE_CUDA  1: build mmcv's CUDA kernels, 0: do not (default: 1 where nvcc and an NVIDIA GPU are found)
#            MAX_JOBS    compilers at a time (default: one a core, at most one for 2 GB of memory)
# Mirrors are set as pip and uv know them: PIP_INDEX_URL, UV_DEFAULT_INDEX. What they print goes to .venv/setup.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly lock=envs/lock.txt venv=.venv stamp=.venv/uic_core.setup log=.venv/setup.log
# What pip and uv print where there is no network.
unreachable='dns error|name resolution|error sending request|tcp connect|failed to establish|timed out|unreachable'
unreachable+='|connection (refused|reset|error)'

die() {
    echo "error: $*" >&2
    exit 1
}

pin() { sed -nE "s/^$1==([^ ]+).*/\1/p" "$2"; } # pin NAME FILE: the version that FILE pins

# --- what there is ---------------------------------------------------------------------------------------------------

python_version() { # python_version PYTHON: 3.11, or nothing where it does not run
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

find_python() { # sets `python`
    local candidate found=""
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        case "$(python_version "$candidate")" in
            3.11 | 3.12) python=$candidate && return ;;
            "") ;;
            *) found=" (found: $candidate $(python_version "$candidate"))" ;;
        esac
    done
    die "Python 3.11 or 3.12 is needed${PYTHON:+, PYTHON=$PYTHON is none}$found;" \
        "install it (Debian: apt install python3.11 python3.11-venv python3.11-dev) or set PYTHON=/path/to/python3.11"
}

check_python() {
    local package
    package=python$(python_version "$python")
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments; install its venv module (Debian: apt install $package-venv)"
    [[ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]] ||
        die "$python has no C headers, which mmcv's build needs; install them (Debian: apt install $package-dev)"
}

find_compiler() { # sets CXX, and CC beside it
    local candidate probe
    probe=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder's name is known now
    trap "rm -rf '$probe'" EXIT
    printf '%s\n' '#include <optional>' 'std::optional<int> f(int n) { if (int m = n; m) return m; return {}; }' \
        >"$probe/probe.cpp"
    for candidate in ${CXX:-g++ c++ clang++}; do
        if "$candidate" -std=c++17 -fPIC -shared "$probe/probe.cpp" -o "$probe/probe.so" 2>/dev/null; then
            export CXX=$candidate
            case "$candidate" in
                *clang++*) export CC=${CC:-${candidate/clang++/clang}} ;;
                *g++*) export CC=${CC:-${candidate/g++/gcc}} ;;
            esac
            return
        fi
    done
    die "no C++17 compiler works${CXX:+ (CXX=$CXX)}, and mmcv is built from source;" \
        "install one (Debian: apt install g++) or set CXX=/path/to/g++"
}

check_machine() {
    [[ "$(uname -s) $(uname -m)" == "Linux x86_64" ]] ||
        die "this is $(uname -s) $(uname -m), and the pinned packages are for Linux x86_64; use such a machine"
}

check_disk() {
    local need_gb=12 free_gb
    if [[ -f $stamp ]]; then need_gb=4; fi # only what changed
    free_gb=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024 / 1024))
    ((free_gb >= need_gb)) ||
        die "$PWD has $free_gb GB free and the environment needs $need_gb GB; free some space and run make setup again"
}

has_gpu() { compgen -G '/dev/nvidia[0-9]*' >/dev/null; }

check_driver() { # jobs on a GPU stop without it (uic_core/run/devices.py)
    local driver
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || true
    if [[ $driver =~ ^([0-9]+)\. ]] && ((BASH_REMATCH[1] < 580)); then
        echo "note: NVIDIA driver $driver is too old for torch's CUDA ${cuda%%.*}: GPUs need driver 580 or newer"
    fi
}

has_nvcc() { # torch refuses to build extensions with another major version than its own
    command -v nvcc >/dev/null && nvcc --version | grep -q "release ${cuda%%.*}\."
}

wants_cuda() {
    case "${FORCE_CUDA:-}" in
        0) return 1 ;;
        1) command -v nvcc >/dev/null || die "FORCE_CUDA=1 and no nvcc in PATH; add CUDA $cuda's bin folder to PATH" ;;
        *) has_gpu || return 1 ;; # hours of compiling that a machine without one, as CI's, has no use for
    esac
    has_nvcc && return
    [[ "${FORCE_CUDA:-}" != 1 ]] ||
        die "FORCE_CUDA=1 and nvcc is not of CUDA ${cuda%%.*}, torch's version; put that one first in PATH"
    return 1
}

# --- what is done ----------------------------------------------------------------------------------------------------

state() { # the stamp of a finished set-up; scripts in .venv/bin hold this folder's absolute path
    echo "lock $(cat "$lock" envs/uv.txt | sha256sum | cut -c1-16) root $PWD"
}

finished() {
    [[ -f $stamp && "$(head -n 1 "$stamp")" == "$(state)" ]] || return 1
    [[ "$(tail -n 1 "$stamp")" == "mmcv $build" || $build == cpu ]] || return 1
    [[ -x $venv/bin/python ]] || return 1
    [[ -z "${PYTHON:-}" || "$(python_version "$PYTHON")" == "$(python_version $venv/bin/python)" ]]
}

quietly() { # quietly COMMAND…: its output goes to the log, its failure becomes one line
    "$@" >>"$log" 2>&1 && return
    local tail again="run make setup again, it continues"
    tail=$(tail -n 40 "$log")
    if grep -qiE "$unreachable" <<<"$tail"; then
        die "packages cannot be downloaded, the network or the package index is out of reach;" \
            "check it (or name a mirror in PIP_INDEX_URL and UV_DEFAULT_INDEX) and $again"
    elif grep -qi 'no space left' <<<"$tail"; then
        die "the disk is full; free some space and $again"
    fi
    die "set-up stopped ($(grep -v '^[[:space:]]*$' <<<"$tail" | tail -n 1 | cut -c1-160)); read $log, then $again"
}

make_venv() {
    local current
    current=$(python_version $venv/bin/python)
    # Another Python, a moved folder or half a venv: start again, the packages come from uv's cache.
    if [[ "$current" != "$(python_version "$python")" ]] ||
        [[ -f $stamp && "$(head -n 1 $stamp)" != *" root $PWD" ]] ||
        ! { [[ -x $venv/bin/uv ]] || $venv/bin/python -c 'import pip' 2>/dev/null; }; then
        "$python" -m venv --clear $venv || die "$python -m venv $venv failed; remove $venv and run make setup again"
    fi
    : >"$log"
    [[ "$($venv/bin/uv --version 2>/dev/null)" == "uv $(pin uv envs/uv.txt) "* ]] ||
        quietly $venv/bin/python -m pip install --no-input --retries 2 --require-hashes -r envs/uv.txt
}

uv() { $venv/bin/uv --no-progress "$@" --python $venv/bin/python; }

install_packages() { # all but mmcv: its build needs torch and setuptools to be there
    awk '/^onedl-mmcv==/ { skip = 1 } !skip { print } !/\\$/ { skip = 0 }' "$lock" >$venv/first.txt
    quietly uv pip install --require-hashes --no-deps -r $venv/first.txt
}

build_mmcv() { # and drop what the lock no longer holds
    local cores memory_gb options=()
    cores=$(nproc)
    memory_gb=$(awk '/MemAvailable/ { print int($2 / 1024 / 1024) }' /proc/meminfo)
    local jobs=$((memory_gb / 2 < cores ? memory_gb / 2 : cores))
    export MAX_JOBS=${MAX_JOBS:-$((jobs > 0 ? jobs : 1))} MMCV_WITH_OPS=1
    # The optimiser takes most of the build's time, and the operators in use are few.
    export CFLAGS=${CFLAGS:--O1 -g0} CXXFLAGS=${CXXFLAGS:--O1 -g0}
    if [[ $build == cuda ]]; then
        # Without a GPU to ask, torch would compile for every kind there is.
        has_gpu || export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-7.5;8.0;9.0+PTX}"
        export FORCE_CUDA=1 CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")}
        # uv keys its cache of built wheels by these settings: a CPU wheel is never taken for a CUDA one.
        options=(--config-settings-package "onedl-mmcv:cuda=$cuda")
    else
        # Where it sees a GPU, mmcv builds for CUDA whatever FORCE_CUDA says.
        export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=""
    fi
    [[ ! -f $stamp || "$(tail -n 1 $stamp)" == "mmcv $build" ]] || options+=(--reinstall-package onedl-mmcv)
    # Compiled once: where Python may not write bytecode, every job would spend seconds on it while it imports.
    PATH=$PWD/$venv/bin:$PATH quietly uv pip sync --require-hashes --no-build-isolation --compile-bytecode \
        "${options[@]}" "$lock" envs/uv.txt
    # A wheel from the cache may have been built against another torch: build it once more then.
    if ! $venv/bin/python -c 'import mmcv.ops' >>"$log" 2>&1; then
        quietly $venv/bin/uv cache clean onedl-mmcv
        PATH=$PWD/$venv/bin:$PATH quietly uv pip install --require-hashes --no-deps --reinstall-package onedl-mmcv \
            --no-build-isolation-package onedl-mmcv "${options[@]}" -r "$lock"
        quietly $venv/bin/python -c 'import mmcv.ops'
    fi
}

exec 9<"$lock" && { flock -n 9 2>/dev/null || { echo "another make setup is at work here: waiting" && flock 9; }; }
cuda=$(pin cuda-toolkit "$lock")
build=cpu
if wants_cuda; then build=cuda; fi
if finished; then
    echo "set-up: .venv is up to date (mmcv: $(tail -n 1 $stamp | cut -d' ' -f2) build)"
    exit 0
fi
check_machine
find_python
check_python
find_compiler
check_disk
check_driver
if [[ $build == cpu && "${FORCE_CUDA:-}" != 0 ]]; then
    if has_gpu; then
        echo "note: a GPU but no nvcc of CUDA ${cuda%%.*} in PATH: no CUDA kernels; with it, make setup builds them"
    elif has_nvcc; then
        echo "note: nvcc but no GPU: mmcv gets the CPU kernels, all that this suite calls; FORCE_CUDA=1 builds CUDA's too"
    fi
fi
# Until the end .venv holds no lock, not even the one it held before.
if [[ -f $stamp ]]; then sed -i '1s/^lock [^ ]*/lock unfinished/' "$stamp"; fi
echo "set-up 1/4: .venv ($("$python" --version)) and uv"
make_venv
echo "set-up 2/4: the packages of $lock"
install_packages
echo "set-up 3/4: mmcv, $build build by $CXX (minutes, unless it was built before)"
build_mmcv
echo "set-up 4/4: uic_core"
quietly uv pip install --no-deps --no-build-isolation --editable .
printf '%s\nmmcv %s\n' "$(state)" "$build" >"$stamp.new" && mv "$stamp.new" "$stamp"
echo "set-up: .venv is ready (mmcv: $build build)"
