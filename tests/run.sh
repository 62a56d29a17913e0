#!/usr/bin/env bash
# Sets up what is missing and runs all tests. Arguments go to `cargo test`, e.g. `golden`. Without
# any, the kernels are tested on each instruction set of this processor.
set -euo pipefail
cd "$(dirname "$0")/.."
bash samples/setup.sh
cargo test --release --workspace "$@"
if [ $# -eq 0 ]; then
    for set in portable neon avx2 avx512; do
        # The tool refuses sets that this processor lacks.
        if KERNELS_ISA=$set "${CARGO_TARGET_DIR:-target}/release/tdnn" doctor >/dev/null 2>&1; then
            echo "kernels on $set"
            KERNELS_ISA=$set cargo test --release --workspace --lib --quiet kernels
            KERNELS_ISA=$set cargo test --release --workspace --quiet golden
        fi
    done
fi
