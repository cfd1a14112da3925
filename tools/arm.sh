#!/usr/bin/env bash
# Runs the contract of the C++ kernels on an emulated 64-bit Arm processor.
#
#   tools/arm.sh [FOLDER [PYTEST_ARGUMENT...]]
#
# Needs Debian or Ubuntu with qemu-user-static, debootstrap and g++-aarch64-linux-gnu, root rights for debootstrap, and
# Python 3.11 (or PYTHON), the version of the Arm system (Debian 12). FOLDER (build/arm) keeps the Arm system and its
# packages, 1.6 GB. The kernels are cross-compiled, the tests emulated, at a tenth of the speed or less: without
# arguments, the tests of a few ops run.
set -euo pipefail

repo=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
folder=$(realpath -m "${1:-$repo/build/arm}")
shift || true
python=${PYTHON:-python3.11}
tests=("${@:-tests/contract/test_refine_windows.py}")
mkdir -p "$folder"

# A system to take the interpreter and the C and C++ libraries from. Nothing in it is started but Python.
if [[ ! -x $folder/system/usr/bin/python3.11 ]]; then
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,libstdc++6,libgomp1 \
        bookworm "$folder/system" http://deb.debian.org/debian >"$folder/debootstrap.log" ||
        { tail "$folder/debootstrap.log"; exit 1; }
    for package in "$folder"/system/var/cache/apt/archives/*.deb; do
        dpkg -x "$package" "$folder/system"
    done
fi

# PyTorch 2.9 is the last whose wheel for Arm comes without CUDA.
if [[ ! -d $folder/packages/torch ]]; then
    "$python" -m pip install --quiet --target "$folder/packages" --no-deps --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --platform any \
        torch==2.9.1 numpy==2.4.6 sympy mpmath networkx jinja2 markupsafe filelock typing_extensions fsspec \
        torchvision==0.24.1 pillow pycocotools safetensors rich markdown-it-py mdurl tyro typeguard docstring_parser \
        pyyaml lazy_loader pytest pluggy iniconfig packaging pygments pytest-xdist execnet expecttest hypothesis \
        sortedcontainers pybind11 ninja
fi

# The module in a copy of the sources, under the name that Python on Arm looks for.
if [[ ! -d $folder/host ]]; then
    "$python" -m venv "$folder/host"
    "$folder/host/bin/pip" install --quiet 'setuptools>=77' pybind11 ninja
fi
rm -rf "$folder/tree"
git clone --quiet "$repo" "$folder/tree"
cd "$folder/tree"
CXX=aarch64-linux-gnu-g++ SHARPMASK_NATIVE=1 SHARPMASK_CUDA=0 "$folder/host/bin/python" setup.py --quiet build_ext \
    --inplace --build-temp "$folder/objects"
for module in sharpmask_kernels/_cpu.*.so; do
    mv "$module" sharpmask_kernels/_cpu.cpython-311-aarch64-linux-gnu.so
done

emulated() {
    qemu-aarch64-static -L "$folder/system" -E PYTHONPATH="$folder/packages" -E OMP_NUM_THREADS=2 \
        "$folder/system/usr/bin/python3.11" "$@"
}
emulated -m sharpmask_kernels.env --check
emulated -m pytest -q -n0 -p no:cacheprovider -k cpu "${tests[@]}"
