#!/usr/bin/env bash
# Fine-tunes a recogniser.
#
#   bash samples/asr/finetune.sh                 # the shipped one on the shipped recordings, in seconds: shows how it goes
#   bash samples/asr/finetune.sh LIBRISPEECH     # on train-clean-100 of that folder, evaluated on its dev-clean
#
# MODEL is what it begins with (default: the shipped recogniser; any encoder that `lighthubert convert`
# made, of a supernet the subnet SUBNET), CONFIG the settings (default: samples/training/adaptation.json
# for the shipped recordings, those of HuBERT Base on ten hours for others), TRAIN and VALIDATION other
# parts of the folder, OUT the folder for results (default: samples/out/finetune). The same command goes
# on after an interruption.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash samples/setup.sh
cargo build --release -p lighthubert --quiet
lighthubert=${CARGO_TARGET_DIR:-target}/release/lighthubert
model=${MODEL:-samples/models/recogniser.safetensors}
out=${OUT:-samples/out/finetune}
config=${CONFIG:-}
if [ $# -eq 0 ]; then
    # Four of one speaker's recordings to learn from, the fifth to see what came of it.
    list=samples/media/recordings.tsv
    data=(--data "$list" --where id=librivox/0870.flac,librivox/0880.flac,librivox/0890.flac,librivox/0920.flac
        --validation-where id=librivox/0930.flac --evaluate-every 10)
    config=${config:-samples/training/adaptation.json}
else
    data=(--data "$1/${TRAIN:-train-clean-100}" --validation "$1/${VALIDATION:-dev-clean}")
fi
"$lighthubert" finetune "${data[@]}" --init "$model" ${SUBNET:+--subnet "$SUBNET"} \
    ${config:+--config "$config"} --out "$out"
"$lighthubert" info "$out/model.safetensors"
