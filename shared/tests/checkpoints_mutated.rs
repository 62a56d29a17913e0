//! Damaged checkpoints by the ten thousand: whatever the bytes, reading ends with a result or an
//! error, and takes no more memory than its limits allow.
#![allow(clippy::unwrap_used)]

mod damage;

use std::fs;
use std::path::Path;

use shared::checkpoint::read_bytes;
use shared::limits::Limits;
use shared::rng::Stream;

/// Damaged files of each format.
const FILES: u64 = 40_000;

/// Most memory that one file may take: the tensors that a small file may describe, twice while
/// they are converted, and its values.
const MAX_BYTES: usize = 160 << 20;

#[global_allocator]
static ALLOCATOR: damage::Counting = damage::Counting;

/// The files of the test data whose names contain `part`.
fn files(part: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_str().unwrap().contains(part));
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What means much in one format or another: numbers as text, and instructions of pickles.
const WORDS: [&[u8]; 12] = [
    b"0",
    b"9",
    b"18446744073709551615",
    b"-1",
    b"[]",
    b"\"F64\"",
    b"\"I8\"",
    b"h\0",
    b"q\0",
    b"R",
    b"((",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
];

fn read_damaged(part: &str) {
    let files = files(part);
    let limits = Limits::default();
    let (mut read, mut refused) = (0, 0);
    for index in 0..FILES {
        let mut stream = Stream::new(1, part, index);
        let file = damage::pick(&mut stream, &files);
        let bytes = damage::damaged(file, &files, &WORDS, &mut stream);
        let (result, taken) =
            damage::with_peak_bytes(|| read_bytes(&bytes, Path::new("damaged"), &limits));
        match result {
            Ok(_) => read += 1,
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("damaged"), "{part} {index}: {error}");
            }
        }
        assert!(taken < MAX_BYTES, "{part} {index}: {taken} bytes of memory");
    }
    println!("{part}: {read} read, {refused} refused");
    assert!(read > FILES / 100 && refused > FILES / 100);
}

// One test, since the memory is that of the whole process.
#[test]
fn damaged_files_are_read_or_refused() {
    ["zip", "stream", "tar.tar", ".safetensors"].into_iter().for_each(read_damaged);
}
