#!/usr/bin/env bash
# Times the layers of the models in our kernels and in PyTorch, in turns in one run.
#
#   bash tests/bench/kernels.sh [--threads 2] [--rounds 3] [--filter TEXT]
#
# Takes the PyTorch of $PYTHON; without it, installs one into target/pytorch.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=target/pytorch/bin/python
    if [ ! -x "$PYTHON" ]; then
        echo "installing PyTorch into target/pytorch"
        python3 -m venv target/pytorch
        target/pytorch/bin/pip install --quiet torch numpy
    fi
fi
bash samples/setup.sh
cargo build --release --workspace --examples --quiet
exec "$PYTHON" tests/bench/kernels_pytorch.py "${CARGO_TARGET_DIR:-target}/release/examples/kernels" "$@"
