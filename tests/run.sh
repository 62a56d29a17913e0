#!/usr/bin/env bash
# Sets up what is missing and runs all tests. Arguments go to `cargo test`, e.g. `golden`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash samples/setup.sh
cargo test --release --workspace "$@"
