//! How kernels spread over the threads and write their results.
//!
//! Work is handed out row by row in the order of memory, so that the processor's prefetching works,
//! and every row's result is computed alone, so that the number of threads changes nothing.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use rayon::prelude::*;

/// Work on fewer elements than this stays on one thread: a fork would cost more.
const FORK_ELEMENTS: usize = 16 << 10;

/// `work(row)` for each of `count` rows of `len` elements.
pub(crate) fn map_rows<R: Send>(
    count: usize,
    len: usize,
    work: impl Fn(usize) -> R + Sync,
) -> Vec<R> {
    if count * len < FORK_ELEMENTS {
        return (0..count).map(work).collect();
    }
    (0..count).into_par_iter().with_min_len(FORK_ELEMENTS.div_ceil(len)).map(&work).collect()
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
pub(crate) fn fill_rows<T: Send>(
    rows: &mut [T],
    len: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let len = len.max(1);
    if rows.len() < FORK_ELEMENTS {
        rows.chunks_exact_mut(len).enumerate().for_each(|(row, y)| work(row, y));
    } else {
        let rows = rows.par_chunks_exact_mut(len).with_min_len(FORK_ELEMENTS.div_ceil(len));
        rows.enumerate().for_each(|(row, y)| work(row, y));
    }
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
    let elements = count * len;
    let mut buffer = Vec::with_capacity(elements);
    let rows = &mut buffer.spare_capacity_mut()[..elements];
    let len = len.max(1);
    if elements < FORK_ELEMENTS {
        rows.chunks_exact_mut(len).enumerate().for_each(|(row, y)| work(row, y));
    } else {
        let least = FORK_ELEMENTS.div_ceil(len);
        let rows = rows.par_chunks_exact_mut(len).with_min_len(least);
        rows.enumerate().for_each(|(row, y)| work(row, y));
    }
    // SAFETY: the capacity is large enough, and `work` wrote every element.
    unsafe { buffer.set_len(elements) };
    buffer
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
    let elements = count * len;
    let mut buffers = [0, 1].map(|_| Vec::with_capacity(elements));
    let [first, second] = buffers.each_mut().map(|b| &mut b.spare_capacity_mut()[..elements]);
    let len = len.max(1);
    if elements < FORK_ELEMENTS {
        let pairs = first.chunks_exact_mut(len).zip(second.chunks_exact_mut(len));
        pairs.enumerate().for_each(|(row, (y, z))| work(row, y, z));
    } else {
        let pairs = first.par_chunks_exact_mut(len).zip(second.par_chunks_exact_mut(len));
        let pairs = pairs.with_min_len(FORK_ELEMENTS.div_ceil(len)).enumerate();
        pairs.for_each(|(row, (y, z))| work(row, y, z));
    }
    // SAFETY: the capacities are large enough, and `work` wrote every element.
    buffers.iter_mut().for_each(|buffer| unsafe { buffer.set_len(elements) });
    buffers
}

/// The rows of a result, to be written in any order.
pub(crate) struct RowBuffer<T> {
    memory: Vec<T>,
    data: *mut MaybeUninit<T>,
    count: usize,
    len: usize,
}

// SAFETY: whoever takes a row vouches for being alone in doing so.
unsafe impl<T: Send> Sync for RowBuffer<T> {}

impl<T: Copy> RowBuffer<T> {
    /// `count` rows of `len` elements.
    pub(crate) fn new(count: usize, len: usize) -> Self {
        let mut memory = Vec::with_capacity(count * len);
        let data = memory.spare_capacity_mut().as_mut_ptr();
        Self { memory, data, count, len }
    }

    /// Row number `row`.
    ///
    /// # Safety
    /// Nobody else may hold the row.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row(&self, row: usize) -> &mut [MaybeUninit<T>] {
        assert!(row < self.count);
        // SAFETY: a row of the memory, which the caller holds alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.len), self.len) }
    }

    /// The elements of all rows.
    ///
    /// # Safety
    /// All of them must have been written.
    pub(crate) unsafe fn finish(mut self) -> Vec<T> {
        // SAFETY: the memory has room for them, and they were written.
        unsafe { self.memory.set_len(self.count * self.len) };
        self.memory
    }
}
