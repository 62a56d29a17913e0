//! Videos as our own writers and FFmpeg's tool make them, read back.
#![cfg(feature = "video")]
#![allow(clippy::unwrap_used)]

use std::path::Path;

use shared::limits::Limits;
use shared::media::video::{Channel, ClipOptions, VideoClip, read_clip, write_mp4};
use shared::media::{Frames, Waveform, audio};

const RATE_HZ: u32 = 16_000;

fn options() -> ClipOptions {
    ClipOptions {
        fps: 10,
        start_s: 0.0,
        duration_s: None,
        letterbox: None,
        rate_hz: RATE_HZ,
        channel: Channel::Mix,
    }
}

/// Frames whose brightness counts up by `step` from 20 on.
fn counted(width: usize, height: usize, count: usize, step: usize) -> Frames {
    let pixels = (0..count).flat_map(|index| vec![(20 + step * index) as u8; 3 * width * height]);
    Frames::new(width, height, pixels.collect()).unwrap()
}

/// The brightness of each frame in its middle.
fn brightness(clip: &VideoClip) -> Vec<u8> {
    let frames = clip.frames.as_ref().unwrap();
    frames.iter().map(|pixels| pixels[pixels.len() / 6 * 3]).collect()
}

fn tone(samples: usize) -> Waveform {
    let sample = |i: usize| (0.5 * (i as f64 * 0.17).sin()) as f32;
    Waveform::from_mono((0..samples).map(sample).collect(), RATE_HZ)
}

fn read(path: &Path, options: &ClipOptions) -> VideoClip {
    read_clip(path, options, &Limits::default()).unwrap()
}

#[test]
fn mp4_files_come_back_with_exact_lengths() {
    let folder = tempfile::tempdir().unwrap();
    for (frames, samples) in [(16, 25_600), (1, 1600), (7, 11_111), (40, 64_000)] {
        let path = folder.path().join(format!("{frames}.mp4"));
        let (picture, sound) = (counted(32, 16, frames, 5), tone(samples));
        write_mp4(&path, &picture, 10, Some(&sound), "a comment", false).unwrap();
        let clip = read(&path, &options());
        println!("{frames} {:?}", brightness(&clip));
        let heard = audio::read(&path, &Limits::default()).unwrap();
        println!("{} {}", heard.frames(), samples);
        let read = clip.sound.unwrap().samples;
        let err: f32 = read.iter().zip(&sound.samples).skip(200).take(samples.saturating_sub(400)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{} err {err}", read.len());
        std::fs::copy(&path, format!("/tmp/mediatest_{frames}.mp4")).unwrap();
    }
}
