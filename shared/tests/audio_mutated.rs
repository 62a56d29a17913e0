//! Damaged audio files by the ten thousand: whatever the bytes, reading ends with samples or an
//! error before the decoder's time is up, and takes no more memory than its limits allow.
#![allow(clippy::unwrap_used)]

mod damage;

use std::fs;
use std::path::Path;

use shared::limits::Limits;
use shared::media::audio::read;
use shared::rng::Stream;

/// Damaged files made from each sound one.
const FILES: u64 = 4000;

/// Damaged files in all.
const LEAST_FILES: u64 = 100_000;

/// Most memory that one file may take: its samples, twice while they grow, and what decoders set
/// aside on the word of a header.
const MAX_BYTES: usize = 64 << 20;

/// Most memory of the whole process, with that of C libraries.
const MAX_RESIDENT_BYTES: u64 = 512 << 20;

/// What means much in one container or another: names of chunks, and lengths.
const WORDS: [&[u8]; 16] = [
    b"data",
    b"LIST",
    b"fmt ",
    b"ID3\x04\0\0\0\0\x7f\x7f",
    b"fLaC",
    b"OggS",
    b"moov",
    b"trak",
    b"elst",
    b"stsz",
    b"moof",
    b"pakt",
    b"desc",
    b"\xff\xff\xff\xff",
    b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xfb\x90\x64",
];

#[global_allocator]
static ALLOCATOR: damage::Counting = damage::Counting;

/// The name and content of every recording of the test data.
fn recordings() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/media");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension != "sh"));
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

/// Leaves out the messages of panics in the decoders of other projects, which become errors.
fn silence_decoders() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some("decoder") {
            report(panic);
        }
    }));
}

/// The most memory in bytes that this process ever had from the system, where the system tells.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Gives the pages of an Ogg file their right checksums (RFC 3533, section 6), without which no
/// damage gets past the first check.
fn correct_checksums(bytes: &mut [u8]) {
    let starts: Vec<usize> =
        (0..bytes.len()).filter(|&i| bytes[i..].starts_with(b"OggS")).collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    for (start, end) in starts.iter().zip(ends) {
        let page = &mut bytes[*start..end];
        if page.len() >= 26 {
            page[22..26].fill(0);
            let checksum = page.iter().fold(0, |sum: u32, byte| {
                (0..8).fold(sum ^ u32::from(*byte) << 24, |sum, _| {
                    sum << 1 ^ if sum >> 31 == 1 { 0x04c1_1db7 } else { 0 }
                })
            });
            page[22..26].copy_from_slice(&checksum.to_le_bytes());
        }
    }
}

// One test, since the memory is that of the whole process.
#[test]
fn damaged_files_are_read_or_refused() {
    silence_decoders();
    let recordings = recordings();
    assert!(recordings.len() as u64 * FILES >= LEAST_FILES);
    let contents: Vec<Vec<u8>> = recordings.iter().map(|(_, content)| content.clone()).collect();
    let limits = Limits { duration_s: 60.0, waveform_bytes: 16 << 20, ..Limits::default() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recording");
    let start_of_messages = format!("{}: ", path.display());
    for (name, content) in &recordings {
        let (mut taken_most, mut read_files, mut refused, mut panicked) = (0, 0, 0, 0);
        for index in 0..FILES {
            let mut stream = Stream::new(1, name, index);
            let mut bytes = damage::damaged(content, &contents, &WORDS, &mut stream);
            if stream.below(2) == 0 {
                correct_checksums(&mut bytes);
            }
            fs::write(&path, bytes).unwrap();
            let (result, taken) = damage::with_peak_bytes(|| read(&path, &limits));
            match result {
                Ok(waveform) => {
                    read_files += 1;
                    let bytes = size_of_val(waveform.samples.as_slice()) as u64;
                    assert!(bytes <= limits.waveform_bytes, "{name} {index}: {bytes}");
                    assert!(waveform.duration_s() <= limits.duration_s, "{name} {index}");
                }
                Err(error) => {
                    refused += 1;
                    let message = error.to_string();
                    panicked += u64::from(message.contains("the decoder failed"));
                    assert!(message.starts_with(&start_of_messages), "{name} {index}: {message}");
                    assert!(!message.contains("no progress"), "{name} {index}: {message}");
                }
            }
            assert!(taken < MAX_BYTES, "{name} {index}: {taken} bytes of memory");
            taken_most = taken_most.max(taken);
        }
        println!(
            "{name}: {read_files} read, {refused} refused, {panicked} of them by a panic, at most \
             {taken_most} bytes"
        );
        assert!(read_files > FILES / 100 && refused > FILES / 100, "{name}");
    }
    if let Some(resident) = peak_resident_bytes() {
        println!("at most {resident} bytes of the whole process");
        assert!(resident < MAX_RESIDENT_BYTES, "{resident}");
    }
}
