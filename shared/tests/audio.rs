//! Audio files of all formats, good and bad, through the public interface.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use shared::Error;
use shared::limits::Limits;
use shared::media::audio::{AudioReader, Waveform, read, write_wav_f32};
use shared::rng::Stream;

fn media(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/media").join(name)
}

fn reference() -> Waveform {
    read(&media("reference.wav"), &Limits::default()).unwrap()
}

/// Root mean square of the difference, relative to that of `expected`.
fn relative_error(actual: &Waveform, expected: &Waveform) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|value| f64::from(value).powi(2)).sum()
    };
    let pairs = actual.samples.iter().zip(&expected.samples);
    let error = square(&mut pairs.map(|(a, b)| a - b));
    (error / square(&mut expected.samples.iter().copied())).sqrt()
}

#[test]
fn lossless_formats_give_the_exact_samples() {
    let expected = reference();
    assert_eq!((expected.frames(), expected.rate_hz, expected.channels), (4800, 16_000, 2));
    for name in [
        "alac.caf",
        "alac.m4a",
        "flac.flac",
        "flac.mkv",
        "flac.ogg",
        "float.wav",
        "pcm.aiff",
        "pcm.caf",
        "rf64.wav",
    ] {
        let reader = AudioReader::open(&media(name), &Limits::default()).unwrap();
        let (waveform, notes) = reader.into_waveform().unwrap();
        assert!(waveform == expected, "{name}");
        assert!(notes.is_empty(), "{name}: {notes:?}");
    }
}

#[test]
fn lossy_formats_give_nearly_the_samples_at_the_right_place() {
    let expected = reference();
    // Frames decoded and frames before the sound; these follow from the codec where the container
    // says nothing of them.
    for (name, frames, delay, largest_error) in [
        ("aac.m4a", 4800, 0, 0.1),
        ("fragmented.mp4", 5120, 0, 0.1),
        ("adts.aac", 6144, 1024, 0.1),
        ("mp3.mp3", 4800, 0, 0.1),
        ("mp2.mp2", 5760, 481, 0.1),
        ("vorbis.ogg", 4800, 0, 0.1),
        ("vorbis.webm", 4864, 0, 0.1),
        ("adpcm.wav", 5060, 0, 0.1),
    ] {
        let reader = AudioReader::open(&media(name), &Limits::default()).unwrap();
        let (mut waveform, notes) = reader.into_waveform().unwrap();
        assert_eq!((waveform.frames(), waveform.rate_hz), (frames, 16_000), "{name}");
        waveform.samples.drain(..2 * delay);
        let error = relative_error(&waveform, &expected);
        assert!(error < largest_error, "{name}: {error}");
        assert!(notes.is_empty(), "{name}: {notes:?}");
    }
}

#[cfg(feature = "video")]
#[test]
fn opus_is_decoded() {
    let expected = reference().resampled(48_000).unwrap();
    for name in ["opus.ogg", "opus.webm"] {
        let (waveform, notes) =
            AudioReader::open(&media(name), &Limits::default()).unwrap().into_waveform().unwrap();
        assert_eq!((waveform.frames(), waveform.rate_hz), (14_400, 48_000), "{name}");
        let error = relative_error(&waveform, &expected);
        assert!(error < 0.1, "{name}: {error}");
        assert!(notes.is_empty(), "{name}: {notes:?}");
    }
}

#[cfg(not(feature = "video"))]
#[test]
fn opus_is_refused_with_advice() {
    for name in ["opus.ogg", "opus.webm"] {
        let error = read(&media(name), &Limits::default()).unwrap_err().to_string();
        assert!(error.contains("Opus; a build with the feature `video`"), "{error}");
    }
}

#[test]
fn streaming_gives_the_samples_of_the_whole() {
    for name in ["reference.wav", "flac.flac", "vorbis.ogg", "mp3.mp3"] {
        let whole = read(&media(name), &Limits::default()).unwrap();
        for rate_hz in [16_000, 8000, 44_100] {
            let expected = whole.mono().resampled(rate_hz).unwrap();
            let reader = AudioReader::open(&media(name), &Limits::default()).unwrap();
            let blocks = reader.into_mono(rate_hz).unwrap();
            let samples: Vec<f32> = blocks.flat_map(|block| block.unwrap()).collect();
            assert!(samples == expected.samples, "{name} at {rate_hz} Hz");
        }
    }
}

#[test]
fn long_files_come_in_small_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.wav");
    let mut stream = Stream::new(1, "noise", 0);
    let samples = (0..2_000_000).map(|_| stream.uniform_in(-1.0, 1.0) as f32).collect();
    let waveform = Waveform { samples, rate_hz: 48_000, channels: 2 };
    write_wav_f32(&path, &waveform, false).unwrap();
    let mut samples = vec![];
    for block in AudioReader::open(&path, &Limits::default()).unwrap() {
        let block = block.unwrap();
        assert!(block.len() <= 100_000);
        samples.extend(block);
    }
    assert!(samples == waveform.samples);
}

#[test]
fn what_is_no_audio_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (path, reason) in [
        (folder.path().to_path_buf(), "is a folder"),
        (folder.path().join("missing"), "No such file"),
        (pipe, "is a pipe or device"),
        (file("empty", b""), "is empty"),
        (file("byte", b"R"), "in no known audio format"),
        (file("text.wav", b"RIFF, said the wave, and broke.\n"), "in no known audio format"),
        (file("zeros.mp3", &[0; 5000]), "in no known audio format"),
    ] {
        let result = read(&path, &Limits::default()).map(|waveform| waveform.frames());
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Io { .. } | Error::Media { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}, expected: {reason}");
        assert!(error.to_string().contains(&*path.display().to_string()), "{error}");
    }
}

#[test]
fn the_name_of_a_file_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let expected = reference();
    let names: [&std::ffi::OsStr; 3] = ["x.mp3".as_ref(), "http:x?y=1".as_ref(), not_utf8()];
    for name in names {
        let path = folder.path().join(name);
        fs::copy(media("flac.flac"), &path).unwrap();
        assert!(read(&path, &Limits::default()).unwrap() == expected, "{name:?}");
    }
}

#[cfg(unix)]
fn not_utf8() -> &'static std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(b"\xff.wav")
}

#[cfg(not(unix))]
fn not_utf8() -> &'static std::ffi::OsStr {
    "x.wav".as_ref()
}

#[test]
fn a_tag_before_a_file_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["flac.flac", "mp3.mp3", "vorbis.ogg", "pcm.aiff", "flac.mkv"] {
        let mut bytes = b"ID3\x04\0\0\0\0\x01\x03".to_vec();
        bytes.extend([0; 131]);
        bytes.extend(fs::read(media(name)).unwrap());
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let expected = read(&media(name), &Limits::default()).unwrap();
        assert!(read(&path, &Limits::default()).unwrap() == expected, "{name}");
    }
}

#[test]
fn a_file_cut_off_is_read_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let expected = reference();
    for name in ["reference.wav", "flac.flac", "flac.mkv", "pcm.aiff"] {
        let bytes = fs::read(media(name)).unwrap();
        let path = folder.path().join(name);
        fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
        let (waveform, notes) =
            AudioReader::open(&path, &Limits::default()).unwrap().into_waveform().unwrap();
        let length = waveform.samples.len();
        assert!((2000..2 * 4800).contains(&length), "{name}: {length}");
        assert!(waveform.samples == expected.samples[..length], "{name}");
        assert!(!notes.is_empty(), "{name}");
    }
}

#[test]
fn damage_in_the_middle_is_an_error_with_its_time() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["flac.flac", "vorbis.ogg"] {
        let path = folder.path().join(name);
        let mut bytes = fs::read(media(name)).unwrap();
        // The first half of the FLAC file is no sound.
        let place = bytes.len() * 4 / 5;
        bytes[place..place + 10].fill(0xaa);
        fs::write(&path, bytes).unwrap();
        let result = read(&path, &Limits::default()).map(|waveform| waveform.frames());
        let error = result.unwrap_err().to_string();
        assert!(error.contains("damaged at 0."), "{error}");
        assert!(error.ends_with("samples of each channel are missing"), "{error}");
    }
}

#[test]
fn limits_are_kept() {
    let reasonable = Limits { duration_s: 0.5, channels: 2, rate_hz: 48_000, ..Limits::default() };
    let cases = [
        ("duration", Limits { duration_s: 0.2, ..reasonable.clone() }),
        ("channels", Limits { channels: 1, ..reasonable.clone() }),
        ("rate", Limits { rate_hz: 11_025, ..reasonable.clone() }),
        ("size", Limits { waveform_bytes: 10_000, ..reasonable.clone() }),
    ];
    for name in ["reference.wav", "flac.flac", "mp3.mp3", "vorbis.webm", "aac.m4a"] {
        read(&media(name), &reasonable).unwrap();
        for (quantity, limits) in &cases {
            match read(&media(name), limits) {
                Err(Error::Limit { quantity: found, actual, limit, .. }) => {
                    assert!(found.contains(quantity), "{found}, expected: {quantity}");
                    assert!(actual > limit, "{actual} {limit}");
                }
                other => {
                    panic!("{name}: {quantity}: {:?}", other.map(|waveform| waveform.frames()))
                }
            }
        }
    }
}

#[test]
fn samples_that_are_no_numbers_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.wav");
    let mut bytes = fs::read(media("float.wav")).unwrap();
    let place = bytes.len() - 8 * 1600;
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = read(&path, &Limits::default()).unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error:?}");
    assert!(error.to_string().contains("x.wav: the sample at 0.200 s"), "{error}");
}

#[test]
fn a_reader_ends_after_its_first_error() {
    let limits = Limits { duration_s: 0.1, ..Limits::default() };
    // Its header does not tell the length.
    let mut reader = AudioReader::open(&media("vorbis.webm"), &limits).unwrap();
    assert!(reader.any(|block| block.is_err()));
    assert!(reader.next().is_none());
}
