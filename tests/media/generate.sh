#!/usr/bin/env bash
# Makes the audio files of this folder anew: one synthetic sound of 0.3 s, two channels at 16 kHz
# (a sweep up, a sweep down), in many formats. Needs sox and FFmpeg.
set -euo pipefail
cd "$(dirname "$0")"

sox -R -n -r 16000 -b 16 -c 2 reference.wav synth 0.3 sine 200-3000 sine 2500-100 gain -6

# encode OUTPUT OPTIONS...
encode() {
    local output=$1
    shift
    ffmpeg -y -v error -i reference.wav -map_metadata -1 -fflags +bitexact -flags:a +bitexact "$@" "$output"
}

# Plain samples of every other kind, which need no more than a tenth of a second.
for kind in u8 s24le s32le f64le alaw mulaw; do
    encode "$kind.wav" -t 0.1 -ar 8000 -ac 1 -c:a "pcm_$kind"
done
encode float.wav -c:a pcm_f32le
encode adpcm.wav -c:a adpcm_ms
encode rf64.wav -rf64 always
encode pcm.aiff
encode pcm.caf
encode alac.caf -c:a alac
encode flac.flac
encode flac.ogg -c:a flac
encode vorbis.ogg -c:a libvorbis -q:a 3 -page_duration 50000
encode vorbis.webm -c:a libvorbis -q:a 3
encode flac.mkv -c:a flac
encode mp3.mp3 -c:a libmp3lame -b:a 48k
encode mp2.mp2 -c:a mp2 -b:a 160k
encode aac.m4a -c:a aac -b:a 192k
encode alac.m4a -c:a alac
encode fragmented.mp4 -c:a aac -b:a 192k -movflags frag_keyframe+delay_moov
encode adts.aac -c:a aac -b:a 192k
encode opus.ogg -c:a libopus -b:a 128k
encode opus.webm -c:a libopus -b:a 128k
