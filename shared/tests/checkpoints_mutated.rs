//! Damaged checkpoints by the ten thousand: whatever the bytes, reading ends with a result or an
//! error, and takes no more memory than its limits allow.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use shared::checkpoint::read_bytes;
use shared::limits::Limits;
use shared::rng::Stream;

/// Damaged files of each format.
const FILES: u64 = 40_000;

/// Most memory that one file may take: the tensors that a small file may describe, twice while
/// they are converted, and its values.
const MAX_BYTES: usize = 160 << 20;

/// The system's allocator, counting.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: both methods pass their arguments on to the system's allocator unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The files of the test data whose names contain `part`.
fn files(part: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_str().unwrap().contains(part));
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn pick<'a, T>(stream: &mut Stream, items: &'a [T]) -> &'a T {
    &items[stream.below(items.len())]
}

/// One of `files` with one to four pieces of damage.
fn damaged(files: &[Vec<u8>], stream: &mut Stream) -> Vec<u8> {
    const NUMBERS: [u64; 10] = [0, 1, 2, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 1 << 62, u64::MAX];
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
    let mut bytes = pick(stream, files).clone();
    for _ in 0..1 + stream.below(4) {
        let at = stream.below(bytes.len());
        let end = bytes.len().min(at + 1 + stream.below(40));
        match stream.below(8) {
            0 => bytes[at] ^= 1 << stream.below(8),
            1 => bytes[at] = stream.bits() as u8,
            2 => {
                let number = pick(stream, &NUMBERS).to_le_bytes();
                let width = (1 << stream.below(4)).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            3 => bytes.truncate(at.max(1)),
            4 => drop(bytes.drain(at..end.min(at + bytes.len() - 1))),
            5 => {
                let copy = bytes[at..end].to_vec();
                let to = stream.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            6 => {
                let other = pick(stream, files);
                let from = stream.below(other.len());
                let part = &other[from..other.len().min(from + 1 + stream.below(200))];
                bytes.splice(at..end, part.iter().copied());
            }
            _ => {
                bytes.splice(at..at + 1, pick(stream, &WORDS).iter().copied());
            }
        }
    }
    bytes
}

fn read_damaged(part: &str) {
    let files = files(part);
    let limits = Limits::default();
    let (mut read, mut refused) = (0, 0);
    for index in 0..FILES {
        let bytes = damaged(&files, &mut Stream::new(1, part, index));
        let before = IN_USE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        match read_bytes(&bytes, Path::new("damaged"), &limits) {
            Ok(_) => read += 1,
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("damaged"), "{part} {index}: {error}");
            }
        }
        let taken = PEAK.load(Ordering::Relaxed) - before;
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
