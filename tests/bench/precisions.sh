#!/usr/bin/env bash
# Times the dense layers of the models in f32, bf16 and 8-bit integers, in turns, and prints a table.
#
#   bash tests/bench/precisions.sh [THREADS]
set -euo pipefail
cd "$(dirname "$0")/../.."
bash samples/setup.sh
cargo build --release --workspace --examples --quiet
exec "${CARGO_TARGET_DIR:-target}/release/examples/kernels" "${1:-2}" precisions
