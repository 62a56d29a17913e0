//! What the speaker-verification tool says to recordings, models and outputs that are not as they
//! should be: an error with the file's name and a reason, the right exit code, and nothing left
//! behind.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::Stdio;

use shared::media::audio::{Waveform, write_wav, write_wav_f32};
use shared::rng::Stream;
use tests::tool::{Run, Workplace, root};

fn media(name: &str) -> String {
    root().join("samples/media").join(name).display().to_string()
}

/// Bursts of noise, which pass for speech.
fn bursts(rate_hz: u32, seconds: f64) -> Vec<f32> {
    let mut stream = Stream::new(1, "bad input", 0);
    let count = (f64::from(rate_hz) * seconds) as usize;
    (0..count)
        .map(|t| {
            let loud = (t as f64 / f64::from(rate_hz) * 3.0).fract() < 0.6;
            (if loud { 0.1 } else { 0.0005 } * stream.normal()) as f32
        })
        .collect()
}

fn wave(place: &Workplace, name: &str, samples: Vec<f32>, rate_hz: u32, channels: usize) {
    write_wav(&place.path(name), &Waveform { samples, rate_hz, channels }, true).unwrap();
}

#[test]
fn recordings_that_cannot_be_used_are_refused_with_a_reason() {
    let place = Workplace::new("tdnn");
    let speech = bursts(16_000, 3.0);
    wave(&place, "good.wav", speech.clone(), 16_000, 1);
    wave(&place, "no-samples.wav", vec![], 16_000, 1);
    wave(&place, "one-sample.wav", vec![0.5], 16_000, 1);
    wave(&place, "short.wav", speech[..200].to_vec(), 16_000, 1);
    wave(&place, "silence.wav", vec![0.0; 48_000], 16_000, 1);
    wave(&place, "constant.wav", vec![0.3; 48_000], 16_000, 1);
    // The writer refuses such values, so they go into a finished file.
    let waveform = Waveform { samples: speech.clone(), rate_hz: 16_000, channels: 1 };
    for (name, value) in [("nan.wav", f32::NAN), ("infinite.wav", f32::INFINITY)] {
        write_wav_f32(&place.path(name), &waveform, true).unwrap();
        let mut bytes = std::fs::read(place.path(name)).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&value.to_le_bytes());
        place.write(name, bytes);
    }
    place.write("empty.wav", "");
    place.write("text.wav", "this is no recording at all, but a line of text\n".repeat(100));
    let good = std::fs::read(place.path("good.wav")).unwrap();
    place.write("header-only.wav", &good[..44]);
    place.write("half-a-header.wav", &good[..20]);
    let files = place.files();
    let cases: [(&str, &[&str]); 13] = [
        ("no-samples.wav", &["no-samples.wav"]),
        ("one-sample.wav", &["one-sample.wav"]),
        ("short.wav", &["short.wav", "too short"]),
        ("silence.wav", &["silence.wav", "no speech"]),
        ("constant.wav", &["constant.wav"]),
        ("nan.wav", &["nan.wav"]),
        ("infinite.wav", &["infinite.wav"]),
        ("empty.wav", &["empty.wav"]),
        ("text.wav", &["text.wav"]),
        ("header-only.wav", &["header-only.wav"]),
        ("half-a-header.wav", &["half-a-header.wav"]),
        ("missing.wav", &["missing.wav"]),
        (".", &["folder"]),
    ];
    for (name, words) in cases {
        place.run(["verify", "good.wav", name]).failure(2, words);
        let json = place.run(["verify", name, "good.wav", "--json"]).failure(2, words).json();
        assert!(json["error"].is_string() && json["kind"].is_string(), "{name}: {json}");
        // To this command a folder is a list of recordings.
        if name != "." {
            place.run(["embed", name, "--out", "out.safetensors"]).failure(2, &[]);
        }
        place.run(["enroll", "Nobody", name]).failure(2, &[]);
    }
    assert_eq!(place.files(), files, "something was left behind");
}

#[test]
fn a_pipe_does_not_hang() {
    if !cfg!(unix) {
        return;
    }
    let place = Workplace::new("tdnn");
    let made = std::process::Command::new("mkfifo").arg(place.path("pipe")).status();
    assert!(made.is_ok_and(|status| status.success()));
    place.run(["verify", "pipe", "pipe"]).failure(2, &["pipe"]);
}

#[test]
fn every_rate_and_channel_count_gives_about_the_same_voice() {
    let place = Workplace::new("tdnn");
    let original = shared::media::audio::read(
        &root().join("samples/media/librivox/0870.flac"),
        &shared::limits::Limits::default(),
    )
    .unwrap();
    for (rate_hz, least) in [(22_050, 0.97), (44_100, 0.97), (48_000, 0.97), (96_000, 0.97)] {
        let mono = original.resampled(rate_hz).unwrap().samples;
        let stereo = mono.iter().flat_map(|sample| [*sample; 2]).collect();
        let surround = mono.iter().flat_map(|sample| [*sample; 6]).collect();
        for (channels, samples) in [(1, mono), (2, stereo), (6, surround)] {
            wave(&place, "other.wav", samples, rate_hz, channels);
            let verify =
                ["verify", &media("librivox/0870.flac"), "other.wav", "--json", "--threshold", "0"];
            let score = place.run(verify).success().json()["score"].as_f64().unwrap();
            assert!(score > least, "{rate_hz} Hz, {channels} channels: {score}");
        }
    }
}

#[test]
fn models_that_are_none_are_refused() {
    let place = Workplace::new("tdnn");
    let (a, b) = (media("cards/001.flac"), media("cards/005.flac"));
    let shipped = std::fs::read(root().join("samples/models/tdnn.safetensors")).unwrap();
    place.write("truncated.safetensors", &shipped[..shipped.len() / 2]);
    let mut damaged = shipped.clone();
    let last = damaged.len() - 1000;
    damaged[last] ^= 0x55;
    place.write("damaged.safetensors", damaged);
    place.write("huge-header.safetensors", [0xff; 64]);
    place.write("empty.safetensors", "");
    for name in [
        "truncated.safetensors",
        "damaged.safetensors",
        "huge-header.safetensors",
        "empty.safetensors",
        "missing.safetensors",
    ] {
        place.run(["verify", &a, &b, "--model", name]).failure(2, &[name]);
        place.run(["info", name]).failure(2, &[name]);
    }
    let tiny = root().join("tests/golden/tdnn/ckpt/tiny.torchparams").display().to_string();
    place.run(["verify", &a, &b, "--model", &tiny]).failure(2, &["tdnn convert"]);
}

#[test]
fn outputs_that_cannot_be_written_leave_nothing() {
    let place = Workplace::new("tdnn");
    let recording = media("cards/005.flac");
    place
        .run(["embed", &recording, "--out", "no/such/folder/x.npy"])
        .failure(2, &["no/such/folder"]);
    assert!(place.files().is_empty());
    if cfg!(target_os = "linux") {
        // What is written to a full disk.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let verify = ["verify", &recording, &recording, "--threshold", "0"];
        let output = place.command(verify).stdout(Stdio::from(full)).output().unwrap();
        Run::of(output).failure(2, &["error"]);
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let place = Workplace::new("tdnn");
    let mut child =
        place.command(["info"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

#[test]
fn wrong_usage_is_told_apart() {
    let place = Workplace::new("tdnn");
    let recording = media("cards/005.flac");
    place.write("trials.txt", "1 a.wav b.wav\n2 a.wav\n");
    place.write("unlabelled.txt", "a.wav b.wav\n");
    let cases: [&[&str]; 9] = [
        &[],
        &["verify", &recording],
        &["verify", &recording, &recording, "--threads", "0"],
        &["verify", &recording, &recording, "--device", "abacus"],
        &["verify", &recording, &recording, "--prior", "1.5"],
        &["embed", &recording, "--out", "x.npy", "--shard", "3/2"],
        &["evaluate", "--trials", "trials.txt"],
        &["evaluate", "--trials", "unlabelled.txt"],
        &["train", "--data", ".", "--out", "run"],
    ];
    for arguments in cases {
        place.run(arguments).failure(2, &[]);
    }
    assert_eq!(place.files(), ["trials.txt", "unlabelled.txt"]);
}
