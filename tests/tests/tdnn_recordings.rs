//! What the speaker-verification tool makes of recordings of every form, sound and damaged: a
//! result, with a note where something is odd, or an error with the file's name and a reason.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use shared::limits::Limits;
use shared::media::audio::{Waveform, read, write_wav};
use shared::rng::Stream;
use tests::tool::{Run, Workplace, media, root};
use tests::wave::{Header, Stored, wave};

/// The recording that the others are made from, and compared with.
const ORIGINAL: &str = "librivox/0870.flac";

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

/// The samples of [`ORIGINAL`] at 16 kHz.
fn original() -> Waveform {
    read(media(ORIGINAL).as_ref(), &Limits::default()).unwrap()
}

/// A recording of [`Stored::S16`] with a plain header.
fn plain(samples: &[f32]) -> Vec<u8> {
    wave(samples, 16_000, Stored::S16, Header::Plain, None)
}

fn tagged(content: &[u8]) -> Vec<u8> {
    [b"ID3\x04\0\0\0\0\x01\x03".as_slice(), &[0; 131], content].concat()
}

/// The score of `name` against `reference`, and what is said of it.
fn score(place: &Workplace, reference: &str, name: &str, extra: &[&str]) -> (f64, Run) {
    let verify = ["verify", reference, name, "--json", "--threshold", "0"];
    let run = place.run(verify.iter().chain(extra)).success();
    (run.json()["score"].as_f64().unwrap(), run)
}

#[test]
fn recordings_that_cannot_be_used_are_refused_with_a_reason() {
    let place = Workplace::new("tdnn");
    let speech = bursts(16_000, 3.0);
    place.write("good.wav", plain(&speech));
    place.write("no-samples.wav", plain(&[]));
    place.write("one-sample.wav", plain(&[0.5]));
    place.write("short.wav", plain(&speech[..200]));
    place.write("silence.wav", plain(&[0.0; 48_000]));
    place.write("constant.wav", plain(&[0.3; 48_000]));
    for (name, value) in [("nan.wav", f32::NAN), ("infinite.wav", f32::INFINITY)] {
        let samples = [speech.as_slice(), &[value]].concat();
        place.write(name, wave(&samples, 16_000, Stored::F32, Header::Plain, None));
    }
    let mut no_rate = plain(&speech);
    no_rate[24..28].fill(0);
    place.write("no-rate.wav", no_rate);
    place.write("empty.wav", "");
    place.write("text.wav", "this is no recording at all, but a line of text\n".repeat(100));
    let good = fs::read(place.path("good.wav")).unwrap();
    place.write("header-only.wav", &good[..44]);
    place.write("half-a-header.wav", &good[..20]);
    let flac = fs::read(media(ORIGINAL)).unwrap();
    place.write("half-a-header.flac", &flac[..20]);
    let mut damaged = flac.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 50].fill(0xaa);
    place.write("damaged.flac", damaged);
    let files = place.files();
    let cases: [(&str, &[&str]); 16] = [
        ("no-samples.wav", &["no-samples.wav"]),
        ("one-sample.wav", &["one-sample.wav", "too short"]),
        ("short.wav", &["short.wav", "too short"]),
        ("silence.wav", &["silence.wav", "no speech"]),
        ("constant.wav", &["constant.wav", "no speech"]),
        ("nan.wav", &["nan.wav", "3.000 s is not finite"]),
        ("infinite.wav", &["infinite.wav", "3.000 s is not finite"]),
        ("no-rate.wav", &["no-rate.wav", "rate of 0"]),
        ("empty.wav", &["empty.wav", "is empty"]),
        ("text.wav", &["text.wav", "no known audio format"]),
        ("header-only.wav", &["header-only.wav"]),
        ("half-a-header.wav", &["half-a-header.wav", "without a data chunk"]),
        ("half-a-header.flac", &["half-a-header.flac"]),
        ("damaged.flac", &["damaged.flac", "damaged at", "missing"]),
        ("missing.wav", &["missing.wav", "No such file"]),
        (".", &["folder"]),
    ];
    for (name, words) in cases {
        place.run(["verify", "good.wav", name]).failure(2, words);
        let json = place.run(["verify", name, "good.wav", "--json"]).failure(2, words).json();
        assert!(json["error"].is_string() && json["kind"].is_string(), "{name}: {json}");
        // To this command a folder is a list of recordings.
        if name != "." {
            place.run(["embed", name, "--out", "out.safetensors"]).failure(2, words);
        }
        place.run(["enroll", "Nobody", name]).failure(2, words);
    }
    assert_eq!(place.files(), files, "something was left behind");
}

#[cfg(unix)]
#[test]
fn a_pipe_does_not_hang() {
    let place = Workplace::new("tdnn");
    let made = Command::new("mkfifo").arg(place.path("pipe")).status();
    assert!(made.is_ok_and(|status| status.success()));
    place.run(["verify", "pipe", "pipe"]).failure(2, &["pipe"]);
}

#[cfg(unix)]
#[test]
fn an_unreadable_file_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = Workplace::new("tdnn");
    let path = place.write("secret.wav", plain(&bursts(16_000, 1.0)));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        println!("not tested: this user may read everything");
        return;
    }
    place.run(["verify", "secret.wav", "secret.wav"]).failure(2, &["secret.wav", "ermission"]);
}

#[test]
fn every_rate_and_channel_count_gives_about_the_same_voice() {
    let place = Workplace::new("tdnn");
    for rate_hz in [22_050, 44_100, 48_000, 96_000] {
        let mono = original().resampled(rate_hz).unwrap().samples;
        let stereo = mono.iter().flat_map(|sample| [*sample; 2]).collect();
        let surround = mono.iter().flat_map(|sample| [*sample; 6]).collect();
        for (channels, samples) in [(1, mono), (2, stereo), (6, surround)] {
            let waveform = Waveform { samples, rate_hz, channels };
            write_wav(&place.path("other.wav"), &waveform, true).unwrap();
            let (score, run) = score(&place, &media(ORIGINAL), "other.wav", &[]);
            assert!(score > 0.97, "{rate_hz} Hz, {channels} channels: {score}");
            assert_eq!(run.stderr, "", "{rate_hz} Hz, {channels} channels");
        }
    }
}

#[test]
fn every_kind_of_sample_and_header_gives_about_the_same_voice() {
    use {Header::*, Stored::*};
    let place = Workplace::new("tdnn");
    let samples = original().samples;
    for (stored, header, least) in [
        (U8, Plain, 0.8),
        (S16, Plain, 0.9999),
        (S24, Plain, 0.9999),
        (S32, Plain, 0.9999),
        (F32, Plain, 0.9999),
        (F64, Plain, 0.9999),
        (S16, Extensible, 0.9999),
        (S24, Extensible, 0.9999),
        (F32, Extensible, 0.9999),
        (S16, Rf64, 0.9999),
        (F32, Rf64, 0.9999),
    ] {
        place.write("other.wav", wave(&samples, 16_000, stored, header, None));
        let (score, run) = score(&place, &media(ORIGINAL), "other.wav", &[]);
        assert!(score > least, "{stored:?} {header:?}: {score}");
        assert_eq!(run.stderr, "", "{stored:?} {header:?}");
    }
}

#[test]
fn odd_recordings_are_used_with_a_note_that_says_what_is_odd() {
    let place = Workplace::new("tdnn");
    let samples = original().samples;
    let stating = |bytes| wave(&samples, 16_000, Stored::S16, Header::Plain, Some(bytes));
    let whole = plain(&samples);
    let loud: Vec<f32> = samples.iter().map(|sample| sample * 8.0).collect();
    let narrow = original().resampled(8000).unwrap().samples;
    let flac = fs::read(media(ORIGINAL)).unwrap();
    let no_note: &[&str] = &[];
    let cases: [(&str, Vec<u8>, f64, &[&str]); 12] = [
        ("clipped.wav", plain(&loud), 0.7, no_note),
        (
            "narrow.wav",
            wave(&narrow, 8000, Stored::S16, Header::Plain, None),
            0.7,
            &["recorded at 8000 Hz", "nothing above 4000 Hz"],
        ),
        ("no-length.wav", stating(0), 0.9999, &["the header states another (0 bytes) length"]),
        ("endless.wav", stating(u32::MAX), 0.9999, &["the header states no length"]),
        ("too-long.wav", stating(u32::MAX - 100), 0.9999, &["the header states another"]),
        ("cut.wav", whole[..whole.len() / 2].to_vec(), 0.7, &["the header states another"]),
        ("odd-cut.wav", whole[..whole.len() / 2 + 1].to_vec(), 0.7, &["the last frame is cut off"]),
        ("cut.flac", flac[..flac.len() / 2].to_vec(), 0.7, &["cut off"]),
        ("tagged.wav", tagged(&whole), 0.9999, no_note),
        ("tagged.flac", tagged(&flac), 0.9999, no_note),
        ("flac-called.wav", flac.clone(), 0.9999, no_note),
        ("wav-called.mp3", whole.clone(), 0.9999, no_note),
    ];
    for (name, content, least, words) in cases {
        place.write(name, content);
        let (found, run) = score(&place, &media(ORIGINAL), name, &[]);
        assert!(found > least, "{name}: {found}");
        for word in words {
            assert!(
                run.stderr.contains(word) && run.stderr.contains(name),
                "{name}: {}",
                run.stderr
            );
        }
        assert_eq!(run.stderr.is_empty(), words.is_empty(), "{name}: {}", run.stderr);
        assert_eq!(score(&place, &media(ORIGINAL), name, &["--quiet"]).1.stderr, "", "{name}");
        for command in [vec!["embed", name, "--out", "x.npy", "--force"], vec!["enroll", "X", name]]
        {
            let run = place.run(&command).success();
            assert!(words.iter().all(|word| run.stderr.contains(word)), "{name}: {}", run.stderr);
        }
    }
}

#[test]
fn compressed_recordings_need_no_right_name() {
    let place = Workplace::new("tdnn");
    let folder = root().join("tests/media");
    for (file, name) in [
        ("mp3.mp3", "mp3.flac"),
        ("vorbis.ogg", "vorbis.mp3"),
        ("aac.m4a", "aac.wav"),
        ("flac.mkv", "no-ending"),
        ("pcm.aiff", "aiff.ogg"),
        ("pcm.caf", "caf.webm"),
    ] {
        let content = fs::read(folder.join(file)).unwrap();
        // An MP4 file has its own place for what others put before the file.
        for content in [tagged(&content), content].into_iter().skip((file == "aac.m4a").into()) {
            place.write(name, content);
            let reference = folder.join(file).display().to_string();
            let (score, run) = score(&place, &reference, name, &["--no-speech-detection"]);
            assert!(score > 0.9999, "{name}: {score}");
            assert_eq!(run.stderr, "", "{name}");
        }
    }
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_work_everywhere() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;
    let place = Workplace::new("tdnn");
    let name = |ending: &str| -> OsString {
        OsStr::from_bytes(&[b"voix-\xe9\xff.", ending.as_bytes()].concat()).to_owned()
    };
    let (recording, wav) = (plain(&original().samples), name("wav"));
    fs::create_dir(place.path("folder")).unwrap();
    for path in [place.path("").join(&wav), place.path("folder").join(&wav)] {
        if fs::write(path, &recording).is_err() {
            println!("not tested: the file system has no such names");
            return;
        }
    }
    let of = |text: &str| OsString::from(text);
    place.run([of("verify"), wav.clone(), wav.clone(), of("--json")]).success().json();
    let error = place.run([of("verify"), name("lost"), wav.clone()]).failure(2, &["voix-"]);
    assert!(error.stderr.contains("No such file"), "{}", error.stderr);
    for (input, ending) in
        [(wav.clone(), "safetensors"), (of("folder"), "npy"), (wav.clone(), "ark")]
    {
        let out = name(ending);
        place.run([of("embed"), input, of("--out"), out.clone()]).success();
        assert!(place.path("").join(out).is_file());
    }
    let book = [of("--book"), name("book")];
    let enroll = [of("enroll"), of("Reader"), wav.clone()];
    place.run(enroll.iter().chain(&book)).success();
    let identify = [of("identify"), wav.clone(), of("--json")];
    let found = place.run(identify.iter().chain(&book)).success().json();
    assert_eq!(found["speaker"], "Reader");
    // Names that look alike once they are text would be one in the output.
    let other = place.path("folder").join(OsStr::from_bytes(b"voix-\xe8\xff.wav"));
    fs::write(other, &recording).unwrap();
    place.run(["embed", "folder", "--out", "x.npy"]).failure(2, &["folder", "not UTF-8"]);
    assert!(!place.path("x.npy").exists());
}

/// The most memory in bytes that a process took until its end, asked for as long as it runs; `None`
/// where the system does not tell.
fn peak_bytes(child: &mut Child) -> Option<u64> {
    let mut peak = None;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kilobytes.map(|count| count << 10));
        sleep(Duration::from_millis(50));
    }
    peak
}

#[test]
fn three_hours_are_embedded_in_little_memory() {
    let place = Workplace::new("tdnn");
    let mut header = plain(&bursts(16_000, 60.0));
    let minute = header.split_off(44);
    let bytes = 180 * minute.len() as u32;
    header[4..8].copy_from_slice(&(36 + bytes).to_le_bytes());
    header[40..].copy_from_slice(&bytes.to_le_bytes());
    let mut file = fs::File::create(place.path("long.wav")).unwrap();
    file.write_all(&header).unwrap();
    (0..180).for_each(|_| file.write_all(&minute).unwrap());
    let started = Instant::now();
    let mut child = place
        .command(["embed", "long.wav", "--out", "long.safetensors", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let peak = peak_bytes(&mut child);
    Run::of(child.wait_with_output().unwrap()).success();
    println!("{peak:?} bytes at most, {:.1} s", started.elapsed().as_secs_f64());
    assert!(peak.is_none_or(|peak| peak < 400_000_000), "{peak:?} bytes of memory");
    assert_eq!(place.files(), ["long.safetensors", "long.wav"]);
}
