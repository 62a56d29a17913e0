#!/usr/bin/env bash
# Measures what using the tool costs: the time of `tdnn verify` on two recordings of 4 s, time and
# memory of `tdnn embed` on one of 3 hours, and the time of `tdnn score` on a list of 37,611 trials
# whose recordings have embeddings already. Times are of whole processes, with the files in the
# system's cache.
#
#   bash samples/bench/costs.sh [TRIALS]
#
# TRIALS is a list such as that of VoxCeleb1-O; without it, one of the same size is made up. The
# embeddings are random: what they are makes no difference to the time.
set -euo pipefail
export LC_ALL=C
trials=${1:+$(realpath "$1")}
cd "$(dirname "$0")/../.."
runs=${RUNS:-20}
hours=${HOURS:-3}
if [ ! -x /usr/bin/time ]; then
    echo "costs: /usr/bin/time is missing, which tells memory; install the package \"time\"" >&2
    exit 1
fi

bash samples/setup.sh
cargo build --release --workspace --bins --examples --quiet
target=${CARGO_TARGET_DIR:-target}/release
tdnn=$target/tdnn
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
made=$("$target/examples/cost_inputs" "$folder" "$hours" ${trials:+"$trials"})
[ -n "$trials" ] || made="$made (no list was given: made up)"

# Seconds that a command takes: median and best of all runs after one that does not count.
time_runs() {
    local times=() start i
    "$@" >/dev/null
    for ((i = 0; i < runs; i++)); do
        start=$EPOCHREALTIME
        "$@" >/dev/null
        times+=("$(echo "$EPOCHREALTIME $start" | awk '{ printf "%.3f", $1 - $2 }')")
    done
    printf '%s\n' "${times[@]}" | sort -n |
        awk '{ t[NR] = $1 } END { printf "median %s s, best %s s of %d", t[int((NR + 1) / 2)], t[1], NR }'
}

model=$(grep -m 1 'model name' /proc/cpuinfo 2>/dev/null | cut -d : -f 2 || true)
echo "machine:$model, $("$tdnn" doctor | awk '$1 == "threads" { print $2 }') threads"
echo "verify, two recordings of 4 s: $(time_runs "$tdnn" verify "$folder/a.wav" "$folder/b.wav")"
echo "score, $made:"
echo "    $(time_runs "$tdnn" score --quiet --trials "${trials:-$folder/trials.txt}" \
    --embeddings "$folder/embeddings.safetensors" --out "$folder/scores.txt" --force)"
/usr/bin/time -f '%e %M' -o "$folder/time" \
    "$tdnn" embed --quiet "$folder/long.wav" --out "$folder/long.safetensors" >/dev/null
awk -v hours="$hours" \
    '{ printf "embed, a recording of %s h: %.1f s, peak memory %.0f MB\n", hours, $1, $2 * 1.024e-3 }' \
    "$folder/time"
