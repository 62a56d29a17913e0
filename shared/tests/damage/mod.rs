//! Damage to files, and the memory that reading them takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use shared::rng::Stream;

/// The system's allocator, counting.
pub struct Counting;

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

/// What `work` gives, and the most memory in bytes that the whole process took meanwhile beyond
/// what it had before. Needs [`Counting`] as the global allocator.
pub fn with_peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

pub fn pick<'a, T>(stream: &mut Stream, items: &'a [T]) -> &'a T {
    &items[stream.below(items.len())]
}

/// `file` with one to four pieces of damage: bits and bytes changed, numbers of either byte order
/// set to extremes, pieces cut off, cut out, doubled, taken from one of `others`, or replaced by
/// one of `words`.
pub fn damaged(file: &[u8], others: &[Vec<u8>], words: &[&[u8]], stream: &mut Stream) -> Vec<u8> {
    const NUMBERS: [u64; 10] = [0, 1, 2, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 1 << 62, u64::MAX];
    let mut bytes = file.to_vec();
    for _ in 0..1 + stream.below(4) {
        // Half of the damage is near the start, where the headers are.
        let range = if stream.below(2) == 0 { bytes.len().min(512) } else { bytes.len() };
        let at = stream.below(range);
        let end = bytes.len().min(at + 1 + stream.below(40));
        match stream.below(8) {
            0 => bytes[at] ^= 1 << stream.below(8),
            1 => bytes[at] = stream.bits() as u8,
            2 => {
                let number = *pick(stream, &NUMBERS);
                let width = (1 << stream.below(4)).min(bytes.len() - at);
                let little_endian = number.to_le_bytes();
                let big_endian = (number << (64 - 8 * width)).to_be_bytes();
                let number = if stream.below(2) == 0 { little_endian } else { big_endian };
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
                let other = pick(stream, others);
                let from = stream.below(other.len());
                let part = &other[from..other.len().min(from + 1 + stream.below(200))];
                bytes.splice(at..end, part.iter().copied());
            }
            _ => {
                bytes.splice(at..at + 1, pick(stream, words).iter().copied());
            }
        }
    }
    bytes
}
