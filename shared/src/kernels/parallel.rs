//! How kernels spread over the threads and write their results.
//!
//! Work is handed out row by row in the order of memory, so that the processor's prefetching works,
//! and every row's result is computed alone, so that the number of threads changes nothing.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Work on fewer elements than this stays on one thread: a fork would cost more.
const FORK_ELEMENTS: usize = 16 << 10;

/// Pieces of work for each thread, at most: more than one evens out unequal speed.
const MAX_PIECES: usize = 8;

/// Calls `work` for all of `0..count`, spread over the threads of rayon's pool. The calling thread is
/// one of them: rayon's own iterators hand everything to threads of the pool, and for each call two
/// more have to wake up.
pub(crate) fn share(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let run = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            work(index);
        }
    };
    let others = rayon::current_num_threads().min(count).saturating_sub(1);
    if others == 0 {
        return (0..count).for_each(work);
    }
    rayon::in_place_scope(|scope| {
        (0..others).for_each(|_| scope.spawn(|_| run()));
        run();
    });
}

/// Keeps candle's own operations on the thread that calls them. Else large ones run in a pool of
/// candle's, whose threads go on spinning after each for longer than many a kernel takes, on the
/// cores that the kernels' threads need: on 2 cores that other
/// programs used, too, forward and backward together took 0.69 of the time without, in geometric mean over
/// 14 layers.
///
/// It has an effect only before candle's first operation, and sets an environment variable: to be
/// called first thing in a process, before other threads run.
pub(crate) fn keep_candle_on_one_thread() {
    const VARIABLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread reads the environment, as said above.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

/// Calls `work` for each of `count` rows of `len` elements.
fn for_each_row(count: usize, len: usize, work: impl Fn(usize) + Sync) {
    let len = len.max(1);
    if count * len < FORK_ELEMENTS {
        return (0..count).for_each(work);
    }
    let pieces = MAX_PIECES * rayon::current_num_threads();
    let piece = FORK_ELEMENTS.div_ceil(len).max(count.div_ceil(pieces));
    share(count.div_ceil(piece), |index| {
        (index * piece..count.min((index + 1) * piece)).for_each(&work);
    });
}

/// `work(row)` for each of `count` rows of `len` elements.
pub(crate) fn map_rows<R: Send>(
    count: usize,
    len: usize,
    work: impl Fn(usize) -> R + Sync,
) -> Vec<R> {
    let results = RowBuffer::new(count, 1);
    for_each_row(count, len, |row| {
        // SAFETY: every row is taken once.
        unsafe { results.row(row)[0].write(work(row)) };
    });
    // SAFETY: all were written.
    unsafe { results.finish() }
}

/// What `cell` holds, made first if need be. It is made before the cell is entered: `make` may spread
/// over the threads, and one of them come here again while it waits for the others.
pub(crate) fn get_or_make<T>(cell: &OnceLock<T>, make: impl FnOnce() -> T) -> &T {
    match cell.get() {
        Some(made) => made,
        None => {
            let made = make();
            cell.get_or_init(|| made)
        }
    }
}

/// Calls `work(row, elements of the row)` for all rows of `len` elements in `rows`.
pub(crate) fn fill_rows<T: Copy + Send + Sync>(
    rows: &mut [T],
    len: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let count = rows.len() / len.max(1);
    let rows = RowPointer { data: rows.as_mut_ptr().cast(), count, len };
    for_each_row(count, len, |row| {
        // SAFETY: every row is taken once, and initialised.
        work(row, unsafe { rows.rows(row..row + 1).assume_init_mut() });
    });
}

/// The `count` rows of `len` elements that `work(row, elements of the row)` writes. The memory is
/// not cleared first, which on large tensors would cost as much as the operation.
///
/// # Safety
/// `work` must write every element of its row.
pub(crate) unsafe fn write_rows<T: Copy + Send>(
    count: usize,
    len: usize,
    work: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    let rows = RowBuffer::new(count, len);
    // SAFETY (both): every row is taken once, and written by `work`.
    for_each_row(count, len, |row| work(row, unsafe { rows.row(row) }));
    unsafe { rows.finish() }
}

/// The `count` elements that `work(first, elements from there)` writes, in pieces of any length.
///
/// # Safety
/// `work` must write every element of its piece.
pub(crate) unsafe fn write_pieces<T: Copy + Send>(
    count: usize,
    work: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    let pieces = (MAX_PIECES * rayon::current_num_threads()).min(count / FORK_ELEMENTS).max(1);
    let piece = count.div_ceil(pieces);
    let elements = RowBuffer::new(count, 1);
    share(pieces, |index| {
        let part = (index * piece).min(count)..((index + 1) * piece).min(count);
        // SAFETY: the pieces are disjoint.
        work(part.start, unsafe { elements.rows(part) });
    });
    // SAFETY: `work` wrote every piece.
    unsafe { elements.finish() }
}

/// As [`write_rows`] for two results of the same shape, whose rows `work` writes together.
///
/// # Safety
/// `work` must write every element of both its rows.
pub(crate) unsafe fn write_row_pairs<T: Copy + Send>(
    count: usize,
    len: usize,
    work: impl Fn(usize, &mut [MaybeUninit<T>], &mut [MaybeUninit<T>]) + Sync,
) -> [Vec<T>; 2] {
    let [first, second] = [0, 1].map(|_| RowBuffer::new(count, len));
    // SAFETY (both): every row is taken once, and written by `work`.
    for_each_row(count, len, |row| unsafe { work(row, first.row(row), second.row(row)) });
    [first, second].map(|rows| unsafe { rows.finish() })
}

/// The rows of some memory, to be written in any order.
struct RowPointer<T> {
    data: *mut MaybeUninit<T>,
    count: usize,
    len: usize,
}

// SAFETY: whoever takes a row vouches for being alone in doing so.
unsafe impl<T: Send> Sync for RowPointer<T> {}

impl<T> RowPointer<T> {
    /// The elements of some rows.
    ///
    /// # Safety
    /// Nobody else may hold one of the rows.
    #[allow(clippy::mut_from_ref)]
    unsafe fn rows(&self, rows: Range<usize>) -> &mut [MaybeUninit<T>] {
        assert!(rows.start <= rows.end && rows.end <= self.count);
        let (first, len) = (rows.start * self.len, rows.len() * self.len);
        // SAFETY: rows of the memory, which the caller holds alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(first), len) }
    }
}

/// The rows of a result, to be written in any order.
pub(crate) struct RowBuffer<T> {
    memory: Vec<T>,
    rows: RowPointer<T>,
}

// SAFETY: the memory is reached through the rows alone until all are there.
unsafe impl<T: Send> Sync for RowBuffer<T> {}

impl<T> RowBuffer<T> {
    /// `count` rows of `len` elements.
    pub(crate) fn new(count: usize, len: usize) -> Self {
        let mut memory = Vec::with_capacity(count * len);
        let data = memory.spare_capacity_mut().as_mut_ptr();
        Self { memory, rows: RowPointer { data, count, len } }
    }

    /// Row number `row`.
    ///
    /// # Safety
    /// Nobody else may hold the row.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row(&self, row: usize) -> &mut [MaybeUninit<T>] {
        // SAFETY: as the caller promises.
        unsafe { self.rows(row..row + 1) }
    }

    /// The elements of some rows.
    ///
    /// # Safety
    /// Nobody else may hold one of the rows.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn rows(&self, rows: Range<usize>) -> &mut [MaybeUninit<T>] {
        // SAFETY: as the caller promises.
        unsafe { self.rows.rows(rows) }
    }

    /// The elements of all rows.
    ///
    /// # Safety
    /// All of them must have been written.
    pub(crate) unsafe fn finish(mut self) -> Vec<T> {
        // SAFETY: the memory has room for them, and they were written.
        unsafe { self.memory.set_len(self.rows.count * self.rows.len) };
        self.memory
    }
}
