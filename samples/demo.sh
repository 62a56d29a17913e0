#!/usr/bin/env bash
# Sets up, builds, and runs the main jobs on the shipped models and recordings. Results go to
# samples/out.
set -euo pipefail
cd "$(dirname "$0")/.."
bash samples/setup.sh
cargo build --release --workspace --bins
mmdiffusion=${CARGO_TARGET_DIR:-target}/release/mmdiffusion
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
show "$mmdiffusion" info
show "$mmdiffusion" generate --num 6 --out "$out/clips" --formats mp4,strip,safetensors
show "$mmdiffusion" make-demo-data --num 2 --seed 1 --out "$out/given"
show "$mmdiffusion" video2audio "$out"/given/*.mp4 --out "$out/sounds"
show "$mmdiffusion" gallery "$out/clips"
show "$mmdiffusion" gallery "$out/sounds"
printf '\nSpeaker verification: %s\n' "$out/report/report.html"
printf 'Generated clips:      %s\n' "$out/clips/gallery.html"
if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] && command -v xdg-open >/dev/null; then
    xdg-open "$out/clips/gallery.html" >/dev/null 2>&1 &
fi
