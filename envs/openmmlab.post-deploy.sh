#!/usr/bin/env bash
# Snakemake runs this inside the new conda environment `openmmlab`. It adds OpenMMLab, whose packages ask for other
# OpenCV builds than the pinned one (hence no dependencies), and compiles mmcv against the torch that is already there.
set -euo pipefail

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
cat >"$pins" <<'PINS'
# pins, written by make lock
imaug==0.4.3 \
    --hash=sha256:03ddab6936dbdcdda8d211bde32cad9abe51603f010fc6f4a8264160c4c2f84a \
    --hash=sha256:6696dba7a01711edf6723c728dde0d4bcfca2afb5df9e31ef516c4fccec4be7d
imagecorruptions-imaug==1.1.5 \
    --hash=sha256:aed6ab43c24f70d7b36a7823991ec28f233062eb96ca968b9c56c9c166cd103c \
    --hash=sha256:b55edda9f6eead3ee4ba8956cc65122ab47a9b71605bfe0f74d3bc9ee04ae955
onedl-mmengine==0.10.12 \
    --hash=sha256:48ad9961f86f3e6961efd0e06073783466db3401c0d1e1ddb2b20f702473c821 \
    --hash=sha256:ee735de962714e3b540892897b4e666be6b499f2a663ea33a2807f0d68e40f56
onedl-mmcv==2.3.6 \
    --hash=sha256:8704978a3d492b15cc058742ac3165bd1bcc2dd20678da9ed39e0da3048e3045
onedl-mmdetection==3.5.1 \
    --hash=sha256:2cd7fae8f74f644dd7a1f71cebc2cf531c330c6e027ffada46ee3d34ba7642dc
onedl-mmsegmentation==1.4.2 \
    --hash=sha256:07e343ff98b8cf17f70f838fb865674c0dc557dec1cc8e9799ef073e373ce125
# end of pins
PINS

export MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}"
export CFLAGS="${CFLAGS:-} -O1 -g0" CXXFLAGS="${CXXFLAGS:-} -O1 -g0"

# torch refuses to build extensions with another major version of CUDA than its own.
cuda=$(python -c 'import torch; print(torch.version.cuda)')
has_nvcc() { command -v nvcc >/dev/null && nvcc --version | grep -q "release ${cuda%%.*}\."; }

install() { # install FORCE_CUDA: pip's cache may hold a wheel built for the other or against another torch
    export FORCE_CUDA=$1
    # Where it sees a GPU, mmcv builds for CUDA whatever FORCE_CUDA says.
    if [[ $1 == 0 ]]; then export CUDA_VISIBLE_DEVICES=""; fi
    python -m pip install --no-cache-dir --no-deps --no-build-isolation --require-hashes -r "$pins"
}

forced=${FORCE_CUDA:-}
build=CPU
if [[ $forced != 0 ]] && has_nvcc; then
    # Snakemake builds on the machine it was started on, often without a GPU for torch to compile for: then for all
    # kinds since Turing that CUDA 13 knows.
    if ! compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
        export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-7.5;8.0;9.0+PTX}"
    fi
    if install 1; then
        build=CUDA
    elif [[ $forced == 1 ]]; then
        echo "error: FORCE_CUDA=1 and mmcv's CUDA kernels do not compile, see above; FORCE_CUDA=0 leaves them out" >&2
        exit 1
    else
        echo "openmmlab: mmcv's CUDA kernels do not compile, see above; now without them"
    fi
elif [[ $forced == 1 ]]; then
    echo "error: FORCE_CUDA=1 and no nvcc of CUDA ${cuda%%.*}, torch's version, is first in PATH; add it" >&2
    exit 1
fi
if [[ $build == CPU ]]; then install 0; fi
python -c 'import mmcv.ops, mmdet, mmengine, mmseg'
if [[ $build == CUDA ]]; then
    echo "openmmlab: mmcv with CUDA kernels ($(nvcc --version | tail -n 1))"
else
    echo "openmmlab: mmcv with CPU kernels, all that this suite calls; with nvcc of CUDA ${cuda%%.*} in PATH also CUDA's"
fi
