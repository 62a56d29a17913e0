//! Damaged videos by the hundred: whatever the bytes, reading ends with a clip or an error, and
//! takes no more memory than its limits allow, beside that of FFmpeg.
#![cfg(feature = "video")]
#![allow(clippy::unwrap_used)]

mod damage;

use std::fs;
use std::process::Command;

use shared::limits::Limits;
use shared::media::video::{Channel, ClipOptions, read_clip, write_mp4};
use shared::media::{Frames, Waveform};
use shared::rng::Stream;

/// Damaged files made from each sound one.
const FILES: u64 = 300;

/// Most memory that one file may take: its frames and samples, twice while they grow.
const MAX_BYTES: usize = 160 << 20;

/// What means much in one container or another: names of chunks, and lengths.
const WORDS: [&[u8]; 12] = [
    b"moov",
    b"trak",
    b"stsz",
    b"elst",
    b"avcC",
    b"RIFF",
    b"strh",
    b"idx1",
    b"GIF89a",
    b"\xff\xff\xff\xff",
    b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
    b"\0\0\0\x01\x65",
];

#[global_allocator]
static ALLOCATOR: damage::Counting = damage::Counting;

// One test, since the memory is that of the whole process.
#[test]
fn damaged_files_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.mp4");
    let pixels = (0..8 * 32 * 32 * 3).map(|i| (i * i / 100 + i / 3000) as u8).collect();
    let sound = Waveform::from_mono((0..12_800).map(|i| (i as f32).sin()).collect(), 16_000);
    let frames = Frames::new(32, 32, pixels).unwrap();
    write_mp4(&source, &frames, 10, Some(&sound), "x", false).unwrap();
    let mut contents = vec![fs::read(&source).unwrap()];
    for (name, coding) in [
        ("x.webm", "-c:v libvpx -c:a libopus"),
        ("x.avi", "-c:v mpeg4 -c:a libmp3lame"),
        ("x.mov", "-c:v mjpeg -c:a pcm_s16le"),
        ("x.gif", "-an"),
    ] {
        let path = folder.path().join(name);
        let made = Command::new("ffmpeg")
            .args(["-v", "error", "-i"])
            .arg(&source)
            .args(coding.split_whitespace())
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        contents.push(fs::read(path).unwrap());
    }
    let limits = Limits {
        duration_s: 60.0,
        pixels: 1 << 20,
        frame_bytes: 64 << 20,
        waveform_bytes: 16 << 20,
        ..Limits::default()
    };
    let path = folder.path().join("clip");
    let start_of_messages = format!("{}: ", path.display());
    for (number, content) in contents.iter().enumerate() {
        let (mut read, mut refused) = (0, 0);
        for index in 0..FILES {
            let mut stream = Stream::new(number as u64, "damage", index);
            fs::write(&path, damage::damaged(content, &contents, &WORDS, &mut stream)).unwrap();
            let options = ClipOptions {
                fps: 10,
                start_s: [0.0, 0.2, 2.5][stream.below(3)],
                duration_s: [None, Some(0.4)][stream.below(2)],
                letterbox: None,
                rate_hz: 16_000,
                channel: Channel::Mix,
            };
            let (clip, taken) = damage::with_peak_bytes(|| read_clip(&path, &options, &limits));
            assert!(taken < MAX_BYTES, "{number} {index}: {taken} bytes of memory");
            match clip {
                Ok(_) => read += 1,
                Err(error) => {
                    refused += 1;
                    let message = error.to_string();
                    assert!(message.starts_with(&start_of_messages), "{number} {index}: {message}");
                    assert!(!message.contains("no progress"), "{number} {index}: {message}");
                }
            }
        }
        println!("file {number}: {read} read, {refused} refused");
        assert!(read > FILES / 50 && refused > FILES / 50, "{number}: {read} {refused}");
    }
}
