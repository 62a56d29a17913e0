//! Videos as our own writer and FFmpeg's tool make them, good and bad, read back.
#![cfg(feature = "video")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use shared::Error;
use shared::limits::Limits;
use shared::media::video::{Channel, ClipOptions, VideoClip, read_clip, write_mp4};
use shared::media::{Frames, Waveform, audio, image::Letterbox};
use tempfile::TempDir;

const RATE_HZ: u32 = 16_000;
/// Time at which the tone of [`burst`] begins.
const ONSET_S: f64 = 0.8;

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

fn window(start_s: f64, duration_s: f64) -> ClipOptions {
    ClipOptions { start_s, duration_s: Some(duration_s), ..options() }
}

/// Grey frames, frame `i` of brightness `20 + 4 i`.
fn counted(width: usize, height: usize, count: usize) -> Frames {
    let pixels = (0..count).flat_map(|index| vec![(20 + 4 * index) as u8; 3 * width * height]);
    Frames::new(width, height, pixels.collect()).unwrap()
}

/// The numbers of the frames of [`counted`], by the brightness in their middle.
fn numbers(clip: &VideoClip) -> Vec<usize> {
    let middle = |pixels: &[u8]| usize::from(pixels[pixels.len() / 6 * 3]);
    clip.frames.as_ref().unwrap().iter().map(|pixels| (middle(pixels) + 2 - 20) / 4).collect()
}

/// Silence, and from [`ONSET_S`] on a tone.
fn burst(samples: usize) -> Waveform {
    let sample = |i: usize| match i as f64 / f64::from(RATE_HZ) >= ONSET_S {
        true => (0.5 * (i as f64 * 0.37).sin()) as f32,
        false => 0.0,
    };
    Waveform::from_mono((0..samples).map(sample).collect(), RATE_HZ)
}

/// Time at which a sound becomes loud.
fn onset_s(sound: &Waveform) -> f64 {
    let first = sound.samples.iter().position(|sample| sample.abs() > 0.2).unwrap();
    first as f64 / f64::from(sound.rate_hz)
}

fn read(path: &Path, options: &ClipOptions) -> VideoClip {
    read_clip(path, options, &Limits::default()).unwrap()
}

fn message(path: &Path, options: &ClipOptions) -> String {
    let error = read_clip(path, options, &Limits::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "{text}");
    text
}

/// A folder with `source.mp4`: 1.6 s of 25 frames a second, and sound.
fn source() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("source.mp4");
    let sound = burst(25_600);
    write_mp4(&path, &counted(48, 32, 40), 25, Some(&sound), "", false).unwrap();
    (folder, path)
}

/// Runs FFmpeg's tool (from `samples/setup.sh`) in a folder.
fn ffmpeg(folder: &TempDir, arguments: &str) {
    let run = Command::new("ffmpeg")
        .args(["-v", "error", "-y"])
        .args(arguments.split_whitespace())
        .current_dir(folder.path())
        .status();
    assert!(run.unwrap().success(), "ffmpeg {arguments}");
}

#[test]
fn mp4_files_come_back_with_exact_lengths() {
    let folder = tempfile::tempdir().unwrap();
    for (count, samples) in [(16, 25_600), (1, 1600), (7, 11_111), (40, 64_000)] {
        let path = folder.path().join(format!("{count}.mp4"));
        let sound = Waveform {
            samples: (0..2 * samples).map(|i| (0.3 * (f64::from(i) * 0.21).sin()) as f32).collect(),
            rate_hz: RATE_HZ,
            channels: 2,
        };
        write_mp4(&path, &counted(32, 16, count), 10, Some(&sound), "a comment", false).unwrap();
        let again = write_mp4(&path, &counted(32, 16, count), 10, None, "", false);
        assert!(matches!(again, Err(Error::Exists { .. })));
        let clip = read(&path, &ClipOptions { channel: Channel::First, ..options() });
        assert_eq!(numbers(&clip), (0..count).collect::<Vec<_>>());
        let heard = clip.sound.unwrap();
        assert_eq!(heard.frames(), count * 1600);
        // Another decoder agrees on the length, and on the place of each sample.
        let other = audio::read(&path, &Limits::default()).unwrap();
        assert_eq!((other.frames(), other.channels), (samples as usize, 2));
        let error = |heard: &Waveform| {
            let pairs = heard.samples.iter().zip(sound.samples.iter().step_by(2));
            let square: f32 = pairs.map(|(a, b)| (a - b).powi(2)).sum();
            (square / samples as f32).sqrt()
        };
        assert!(error(&heard) < 0.02 && error(&other.channel(0).unwrap()) < 0.02, "{count}");
    }
}

#[test]
fn every_format_gives_the_same_clip() {
    let (folder, source) = source();
    // Frame floor(2.5 i) of 25 a second.
    let expected: Vec<usize> = (0..16).map(|i| i * 25 / 10).collect();
    let mut paths = vec![source];
    for (name, coding) in [
        ("vp8.webm", "-c:v libvpx -b:v 1M -c:a libvorbis"),
        ("vp9.webm", "-c:v libvpx-vp9 -b:v 1M -c:a libopus"),
        ("mpeg4.avi", "-c:v mpeg4 -q:v 2 -c:a pcm_s16le"),
        ("mp3.avi", "-c:v mjpeg -q:v 2 -c:a libmp3lame"),
        ("mjpeg.mov", "-c:v mjpeg -q:v 2 -pix_fmt yuvj444p -c:a pcm_s24be -ac 2 -ar 44100"),
        ("bframes.mov", "-c:v libx264 -bf 3 -g 10 -c:a aac -ar 48000"),
        ("ffv1.mkv", "-c:v ffv1 -c:a flac -ar 22050"),
        ("mpeg2.ts", "-c:v mpeg2video -q:v 2 -c:a mp2 -ar 32000"),
        ("fragmented.mp4", "-c copy -movflags frag_keyframe+delay_moov"),
        ("animated.gif", "-an -pix_fmt gray"),
    ] {
        ffmpeg(&folder, &format!("-i source.mp4 {coding} {name}"));
        paths.push(folder.path().join(name));
    }
    for path in paths {
        let clip = read(&path, &options());
        let found = numbers(&clip);
        // The last frame may be shown longer.
        assert!(found.len() <= 17, "{}", path.display());
        let part = read(&path, &window(0.4, 0.6));
        // Beside the padding of MPEG layer 3, AVI files repeat the first frame.
        if !path.ends_with("mp3.avi") {
            assert_eq!(found[..16], expected, "{}", path.display());
            assert_eq!(numbers(&part), expected[4..10], "{}", path.display());
        }
        let Some(sound) = clip.sound else {
            assert!(path.ends_with("animated.gif"));
            continue;
        };
        assert_eq!(sound.frames(), found.len() * 1600, "{}", path.display());
        // MPEG layer 3 in AVI does not state its delay of 1105 samples.
        let slack_s = if path.ends_with("mp3.avi") { 0.07 } else { 0.005 };
        assert!((onset_s(&sound) - ONSET_S).abs() < slack_s, "{}", path.display());
        let part = part.sound.unwrap();
        assert_eq!(part.frames(), 9600, "{}", path.display());
        assert!((onset_s(&part) - (ONSET_S - 0.4)).abs() < slack_s, "{}", path.display());
    }
}

#[test]
fn late_windows_are_found_without_reading_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.mp4");
    write_mp4(&path, &counted(16, 16, 58), 10, Some(&burst(92_800)), "", false).unwrap();
    ffmpeg(&folder, "-i long.mp4 -g 7 -bf 2 -c:a libvorbis -c:v libx264 gop.mkv");
    ffmpeg(&folder, "-i long.mp4 -c:v libvpx -g 9 -c:a libopus long.webm");
    ffmpeg(&folder, "-i long.mp4 -an -pix_fmt gray long.gif");
    for name in ["long.mp4", "gop.mkv", "long.webm", "long.gif"] {
        let path = folder.path().join(name);
        let whole = read(&path, &options());
        let part = read(&path, &window(4.3, 0.7));
        assert_eq!(numbers(&part), [43, 44, 45, 46, 47, 48, 49], "{name}");
        assert_eq!(part.sound.is_some(), name != "long.gif");
        if let (Some(whole), Some(part)) = (whole.sound, part.sound) {
            // Time stamps of Matroska are rounded to milliseconds.
            let error = |lag: usize| {
                let expected = &whole.samples[68_800 - 16 + lag..];
                let pairs = part.samples.iter().zip(expected);
                (pairs.map(|(a, b)| (a - b).powi(2)).sum::<f32>() / 11_200.0).sqrt()
            };
            let least = (0..=32).map(error).fold(f32::INFINITY, f32::min);
            assert!(least < 0.02, "{name}: {least}");
        }
        // Beyond the end there are fewer frames, but the sound is as long as asked for.
        let last = read(&path, &window(5.5, 1.0));
        assert_eq!(numbers(&last), [55, 56, 57], "{name}");
        assert!(last.sound.is_none_or(|sound| sound.frames() == RATE_HZ as usize), "{name}");
        assert!(message(&path, &window(7.0, 1.0)).contains("before the clip from 7 s"), "{name}");
    }
}

#[test]
fn varying_rates_delays_and_rotations_are_honoured() {
    let (folder, _) = source();
    // Frames 0 to 9 last 0.2 s each, the rest 0.04 s.
    let slow = "setpts='if(lt(N,10),N*0.2,2+(N-10)*0.04)/TB'";
    ffmpeg(&folder, &format!("-i source.mp4 -an -vf {slow} -vsync vfr slow.mkv"));
    let clip = read(&folder.path().join("slow.mkv"), &options());
    assert_eq!(numbers(&clip)[..20], std::array::from_fn::<usize, 20, _>(|i| i / 2));
    assert_eq!(numbers(&clip)[20..24], [10, 12, 15, 17]);

    ffmpeg(
        &folder,
        "-i source.mp4 -itsoffset 0.3 -i source.mp4 -map 0:v -map 1:a -c copy late.mkv",
    );
    let clip = read(&folder.path().join("late.mkv"), &options());
    assert!((onset_s(&clip.sound.unwrap()) - ONSET_S - 0.3).abs() < 0.005);
    ffmpeg(
        &folder,
        "-itsoffset 0.3 -i source.mp4 -i source.mp4 -map 0:v -map 1:a -c copy early.mkv",
    );
    let clip = read(&folder.path().join("early.mkv"), &options());
    assert!((onset_s(&clip.sound.unwrap()) - ONSET_S + 0.3).abs() < 0.005);

    // A dark left half, turned clockwise, is a dark upper half.
    let half = |x: usize| if x < 24 { [20; 3] } else { [220; 3] };
    let pixels = (0..32).flat_map(|_| (0..48).flat_map(half)).collect();
    let path = folder.path().join("upright.mp4");
    write_mp4(&path, &Frames::new(48, 32, pixels).unwrap(), 10, None, "", false).unwrap();
    ffmpeg(&folder, "-i upright.mp4 -c copy -metadata:s:v rotate=-90 turned.mp4");
    let clip = read(&folder.path().join("turned.mp4"), &options());
    let frames = clip.frames.unwrap();
    assert_eq!((frames.width(), frames.height()), (32, 48));
    let rows: Vec<bool> = frames.pixels().chunks(3 * 32).map(|row| row[0] < 120).collect();
    assert_eq!(rows, [[true; 24], [false; 24]].concat());
}

#[test]
fn frames_are_fitted_into_the_size_that_is_asked_for() {
    let (_folder, source) = source();
    let letterbox = Some(Letterbox::new(64, 64));
    let clip = read(&source, &ClipOptions { letterbox, ..options() });
    let frames = clip.frames.unwrap();
    assert_eq!((frames.width(), frames.height(), frames.count()), (64, 64, 16));
    // 48 x 32 becomes 64 x 42 with 11 black rows above and below.
    let last = frames.iter().last().unwrap();
    let is_black: Vec<bool> = last.chunks(3 * 64).map(|row| row.iter().all(|&v| v == 0)).collect();
    let bar = [true; 11];
    assert_eq!(is_black, [bar.as_slice(), &[false; 42], &bar].concat());
}

#[test]
fn files_without_picture_or_sound_say_so() {
    let (folder, _) = source();
    ffmpeg(&folder, "-i source.mp4 -c copy -an silent.mp4");
    ffmpeg(&folder, "-i source.mp4 -c copy -vn sound.m4a");
    ffmpeg(&folder, "-i source.mp4 -frames:v 1 cover.png");
    ffmpeg(
        &folder,
        "-i sound.m4a -i cover.png -map 0 -map 1 -c:a libmp3lame -c:v copy -disposition:v attached_pic cover.mp3",
    );
    ffmpeg(&folder, "-f lavfi -i color=size=16x16:duration=1 -c:s srt -frames:v 0 -f mp4 none.mp4");
    let silent = read(&folder.path().join("silent.mp4"), &options());
    assert!(silent.frames.is_some() && silent.sound.is_none());
    for name in ["sound.m4a", "cover.mp3"] {
        let heard = read(&folder.path().join(name), &options());
        assert!(heard.frames.is_none(), "{name}");
        let sound = heard.sound.unwrap();
        assert!((1.59..1.75).contains(&sound.duration_s()), "{name} {}", sound.duration_s());
    }
    message(&folder.path().join("none.mp4"), &options());
}

#[test]
fn bad_files_are_errors_that_name_them() {
    let (folder, source) = source();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, bytes: &[u8]| {
        fs::write(path(name), bytes).unwrap();
        path(name)
    };
    assert!(message(&write("empty.mp4", b""), &options()).contains("empty"));
    assert!(
        message(&write("text.mp4", &[b'x'; 5000]), &options()).contains("no known video format")
    );
    assert!(matches!(
        read_clip(&path("missing.mp4"), &options(), &Limits::default()),
        Err(Error::Io { .. })
    ));
    assert!(matches!(
        read_clip(folder.path(), &options(), &Limits::default()),
        Err(Error::Io { .. })
    ));
    // A list that points elsewhere is not followed.
    write("list.m3u8", b"#EXTM3U\n#EXTINF:2,\nsource.mp4\n");
    message(&path("list.m3u8"), &options());

    // Cut off anywhere, a file is an error, except for parts that are there.
    ffmpeg(&folder, "-i source.mp4 -c copy -movflags faststart first.mp4");
    ffmpeg(&folder, "-i source.mp4 -c:v libvpx -g 5 -c:a libvorbis whole.webm");
    ffmpeg(&folder, "-i source.mp4 -c:v mpeg4 -c:a pcm_s16le whole.avi");
    for name in ["source.mp4", "first.mp4", "whole.webm", "whole.avi"] {
        let bytes = fs::read(path(name)).unwrap();
        for part in 1..20 {
            let cut = write(&format!("cut.{name}"), &bytes[..bytes.len() * part / 20]);
            match read_clip(&cut, &options(), &Limits::default()) {
                Err(Error::Media { .. }) => {}
                Err(other) => panic!("{name} {part}: {other}"),
                Ok(clip) => assert!(
                    part >= 14 && numbers(&clip).len() >= 11,
                    "{name} cut to {part} parts of 20 has {} frames",
                    numbers(&clip).len()
                ),
            }
        }
    }
    let cut = &fs::read(path("first.mp4")).unwrap();
    let half = write("half.mp4", &cut[..cut.len() / 2]);
    let reason = message(&half, &options());
    assert!(reason.contains("cut off") || reason.contains("damaged at"), "{reason}");
    assert_eq!(numbers(&read(&half, &window(0.0, 0.2))), [0, 2]);

    let limits = Limits { pixels: 47 * 32, ..Limits::default() };
    let error = read_clip(&source, &options(), &limits).unwrap_err();
    assert!(matches!(error, Error::Limit { .. } | Error::Media { .. }), "{error}");
    let limits = Limits { duration_s: 1.0, ..Limits::default() };
    assert!(matches!(read_clip(&source, &options(), &limits), Err(Error::Limit { .. })));
    let limits = Limits { frame_bytes: 10_000, ..Limits::default() };
    assert!(matches!(read_clip(&source, &options(), &limits), Err(Error::Limit { .. })));
    let limits = Limits { frames: 5, ..Limits::default() };
    assert!(matches!(read_clip(&source, &options(), &limits), Err(Error::Limit { .. })));
    for bad in
        [window(-1.0, 1.0), window(0.0, 0.0), window(f64::NAN, 1.0), window(0.0, f64::INFINITY)]
    {
        let refused = read_clip(&source, &bad, &Limits::default());
        assert!(matches!(refused, Err(Error::Argument(_))), "{bad:?}");
    }
    assert!(read_clip(&source, &ClipOptions { fps: 0, ..options() }, &Limits::default()).is_err());
}

#[test]
fn what_mp4_cannot_hold_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.mp4");
    let write = |frames: &Frames, fps, sound: Option<&Waveform>| {
        write_mp4(&path, frames, fps, sound, "", false).unwrap_err().to_string()
    };
    assert!(write(&counted(15, 16, 2), 10, None).contains("even"));
    assert!(write(&counted(16, 15, 2), 10, None).contains("even"));
    assert!(write(&counted(16, 16, 2), 0, None).contains("0 frames a second"));
    let sound = burst(16_000);
    assert!(write(&counted(16, 16, 2), 10, Some(&sound)).contains("do not belong together"));
    let sound = Waveform::from_mono(vec![f32::NAN; 3200], RATE_HZ);
    assert!(write(&counted(16, 16, 2), 10, Some(&sound)).contains("not finite"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
