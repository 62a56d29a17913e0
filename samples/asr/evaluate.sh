#!/usr/bin/env bash
# Evaluates a recogniser: word error rates with intervals, greedy and, with a language model, by beam search.
#
#   bash samples/asr/evaluate.sh                 # the shipped one on the shipped recordings, by speaker
#   bash samples/asr/evaluate.sh LIBRISPEECH     # on dev-clean, dev-other, test-clean and test-other of that folder
#
# MODEL is another recogniser, LANGUAGE_MODEL one of words in the ARPA format, OUT the folder for reports
# (default: samples/out/evaluation).
set -euo pipefail
cd "$(dirname "$0")/../.."
bash samples/setup.sh
cargo build --release -p lighthubert --quiet
lighthubert=${CARGO_TARGET_DIR:-target}/release/lighthubert
out=${OUT:-samples/out/evaluation}
options=(${MODEL:+--model "$MODEL"} ${LANGUAGE_MODEL:+--language-model "$LANGUAGE_MODEL"} --force)
if [ $# -eq 0 ]; then
    "$lighthubert" evaluate --data samples/media/recordings.tsv --by speaker "${options[@]}" --out "$out"
    exit
fi
found=0
for part in dev-clean dev-other test-clean test-other; do
    if [ -d "$1/$part" ]; then
        found=1
        echo "$part"
        "$lighthubert" evaluate --data "$1/$part" "${options[@]}" --out "$out/$part"
    fi
done
if [ $found = 0 ]; then
    echo "evaluate: $1 has none of dev-clean, dev-other, test-clean and test-other" >&2
    exit 2
fi
