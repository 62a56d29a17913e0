#!/usr/bin/env bash
# Measures what training costs: clips a second and peak memory of `mmdiffusion train` on clips that
# `make-demo-data` makes, for a small network with and without gradient checkpointing, and for the
# published network with it.
#
#   bash samples/bench/training.sh
#
# RUNS steps count, after one that does not (default 5). Without checkpointing the published network
# needs more memory than most machines have: PUBLISHED="true false" measures that too.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."
runs=${RUNS:-5}
if [ ! -x /usr/bin/time ]; then
    echo "training: /usr/bin/time is missing, which tells memory; install the package \"time\"" >&2
    exit 1
fi

bash samples/setup.sh
cargo build --release --workspace --bins --quiet
mmdiffusion=${CARGO_TARGET_DIR:-target}/release/mmdiffusion
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$mmdiffusion" make-demo-data --quiet --num 16 --size 64 --out "$folder/clips" >/dev/null

# Trains with settings SETTINGS, a JSON file, gradient checkpointing on or off, so many clips at a time.
measure() {
    local name=$1 settings=$2 checkpointing=$3 batch=$4 run=$folder/run
    rm -rf "$run"
    # The settings come printed with a line for each.
    "$mmdiffusion" train --print-config ${settings:+--config "$settings"} |
        sed -e "s/\"use_checkpoint\": [a-z]*/\"use_checkpoint\": $checkpointing/" \
            -e "s/\"steps\": [0-9]*/\"steps\": $((runs + 1))/" \
            -e "s/\"batch\": [0-9]*/\"batch\": $batch/" >"$folder/settings.json"
    /usr/bin/time -f '%M' -o "$folder/memory" \
        "$mmdiffusion" train --quiet --data "$folder/clips" --config "$folder/settings.json" \
        --out "$run" --previews 0 --save-every 1000000 --evaluate-every 1000000 >/dev/null
    # The log has the time at which each step ended.
    sed 's/.*"time_s":\([0-9.]*\).*/\1/' "$run/log.jsonl" |
        awk 'NR > 1 { printf "%.3f\n", $1 - last } { last = $1 }' | sort -n |
        awk -v name="$name" -v checkpointing="$checkpointing" -v batch="$batch" \
            -v memory="$(cat "$folder/memory")" '
            { t[NR] = $1 }
            END {
                median = t[int((NR + 1) / 2)]
                printf "| %s | %s | %d | %.2f | %.3f | %.0f |\n",
                    name, checkpointing == "true" ? "yes" : "no", batch, median, batch / median,
                    memory * 1.024e-3
            }'
}

echo "| network | checkpointing | batch | s a step | clips/s | peak memory MB |"
echo "|---|---|---|---|---|---|"
for checkpointing in false true; do
    measure "16 x 32 x 32, 8 kHz" samples/training/balls.json "$checkpointing" 4
done
for checkpointing in ${PUBLISHED:-true}; do
    measure "published" "" "$checkpointing" 1
done
