#!/usr/bin/env bash
# Sets up, builds, and runs the main jobs on the shipped model and recordings. Results go to
# samples/out.
set -euo pipefail
cd "$(dirname "$0")/.."
bash samples/setup.sh
cargo build --release -p tdnn --features video
cargo build --release -p lighthubert
lighthubert=${CARGO_TARGET_DIR:-target}/release/lighthubert
tdnn=${CARGO_TARGET_DIR:-target}/release/tdnn
out=samples/out
rm -rf "$out"
mkdir -p "$out"

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

media=samples/media
show "$tdnn" doctor
show "$tdnn" info
show "$tdnn" verify "$media/librivox/0870.flac" "$media/librivox/0890.flac"
show "$tdnn" verify "$media/librivox/0870.flac" "$media/asterisk/allison-vm-options.flac"
show "$tdnn" enroll Reader "$media"/librivox/0870.flac "$media"/librivox/0890.flac --book "$out/speakers.safetensors"
show "$tdnn" enroll Allison "$media/asterisk/allison-demo-congrats.flac" --book "$out/speakers.safetensors"
show "$tdnn" enroll Carlo "$media/asterisk/carlo-demo-congrats.flac" --book "$out/speakers.safetensors"
show "$tdnn" identify "$media/librivox/0920.flac" --book "$out/speakers.safetensors"
show "$tdnn" identify "$media/asterisk/carlo-vm-options.flac" --book "$out/speakers.safetensors"
show "$tdnn" embed "$media/recordings.tsv" --out "$out/embeddings.npy"
show "$tdnn" evaluate --trials "$media/trials.txt" --root "$media" --out "$out/report"
show "$lighthubert" transcribe "$media/librivox/0880.flac"
show "$lighthubert" evaluate --data "$media/recordings.tsv" --by speaker --out "$out/recognition"
printf '\nThe report is %s\n' "$out/report/report.html"
