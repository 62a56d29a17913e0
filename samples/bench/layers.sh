#!/usr/bin/env bash
# Times layers of the models' sizes in our kernels and in PyTorch, side by side in one run.
#
#   bash samples/bench/layers.sh [--threads 2] [--rounds 3]
#
# Takes the PyTorch of $PYTHON (default: python3). To have it installed into a folder of its own:
#   python3 -m venv target/venv && target/venv/bin/pip install torch
#   PYTHON=target/venv/bin/python bash samples/bench/layers.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "layers: $python has no PyTorch; set PYTHON to one that has (see the head of this script)" >&2
    exit 1
fi
bash samples/setup.sh
cargo build --release --workspace --examples --quiet
exec "$python" samples/bench/layers_pytorch.py "${CARGO_TARGET_DIR:-target}/release/examples/layers" "$@"
