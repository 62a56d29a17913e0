#!/usr/bin/env bash
# Compares subnets: word error rate against parameters, operations and real-time factor, as a table and as
# plots with the Pareto front.
#
#   bash samples/asr/compare-subnets.sh                 # parts of the shipped recogniser, on the shipped recordings
#   bash samples/asr/compare-subnets.sh LIBRISPEECH     # the same on dev-clean of that folder
#   MODEL=base.safetensors bash samples/asr/compare-subnets.sh LIBRISPEECH   # a supernet's max, default and min and NUM
#                                                       # random subnets, each fine-tuned on train-clean-100 first
#
# OUT is the folder for results (default: samples/out/subnets), NUM how many random subnets (default: 5),
# CONFIG settings for the fine-tuning. What is there already is not done again.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash samples/setup.sh
cargo build --release -p lighthubert --quiet
lighthubert=${CARGO_TARGET_DIR:-target}/release/lighthubert
out=${OUT:-samples/out/subnets}
mkdir -p "$out/subnets"
if [ $# -eq 0 ]; then
    data=samples/media/recordings.tsv
else
    data=$1/dev-clean
fi

# A list of so many times the same number: COUNT NUMBER.
repeated() {
    local list=$2 i
    for ((i = 1; i < $1; i++)); do list+=,$2; done
    echo "[$list]"
}

# Makes the recogniser $out/NAME.safetensors of a subnet: NAME SUBNET.
if [ -z "${MODEL:-}" ]; then
    for depth in 6 5 4 3; do
        for ffn in 1024 768; do
            echo "{\"embed_dim\": 256, \"layer_num\": $depth, \"atten_dim\": $(repeated $depth 256)," \
                "\"heads_num\": $(repeated $depth 4), \"ffn_embed\": $(repeated $depth $ffn)}" \
                >"$out/subnets/layers-$depth-ffn-$ffn"
        done
    done
    make() {
        "$lighthubert" extract --model samples/models/recogniser.safetensors --subnet "$2" \
            --out "$out/$1.safetensors" --quiet >&2
    }
elif [ $# -eq 0 ]; then
    echo "compare-subnets: a supernet's subnets need recordings to learn from: give the folder of LibriSpeech" >&2
    exit 2
else
    for name in max default min; do echo "$name" >"$out/subnets/$name"; done
    for i in $(seq "${NUM:-5}"); do
        "$lighthubert" sample --model "$MODEL" --seed "$i" --quiet >"$out/subnets/random-$i"
    done
    train=$1/train-clean-100
    make() {
        "$lighthubert" finetune --data "$train" --init "$MODEL" --subnet "$2" \
            ${CONFIG:+--config "$CONFIG"} --out "$out/$1" >&2
        mv "$out/$1/model.safetensors" "$out/$1.safetensors"
    }
fi

for subnet in "$out"/subnets/*; do
    name=$(basename "$subnet")
    # The published ones go by their names.
    case $name in max | default | min) subnet=$name ;; esac
    [ -f "$out/$name.safetensors" ] || make "$name" "$subnet"
    [ -s "$out/$name.jsonl" ] || "$lighthubert" evaluate --data "$data" \
        --model "$out/$name.safetensors" --json >"$out/$name.jsonl"
done
"$lighthubert" compare "$out"/*.jsonl --out "$out/comparison" --force
echo "The plots are in $out/comparison/comparison.html"
