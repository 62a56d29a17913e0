//! How kernels use the processor: threads, vector instructions, and memory that is written once.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Work on fewer elements than this stays on the calling thread: a fork would cost more.
const FORK_ELEMENTS: usize = 16 << 10;

/// `work(i, items[i])` for every item, in order, spread over the threads when the items stand for
/// enough `elements`.
pub(crate) fn map<I: Send, R: Send>(
    items: Vec<I>,
    elements: usize,
    work: impl Fn(usize, I) -> R + Sync,
) -> Vec<R> {
    let work = |(index, item)| vectorised(|| work(index, item));
    if elements < FORK_ELEMENTS {
        items.into_iter().enumerate().map(work).collect()
    } else {
        items.into_par_iter().enumerate().map(work).collect()
    }
}

/// The result of `work`, compiled for the widest vectors of this processor as far as it is inlined.
///
/// Rust never fuses or reorders floating-point operations by itself, so that the result is the
/// same for every instruction set.
#[inline]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        #[target_feature(enable = "avx2")]
        fn avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the processor has the instructions that the function was compiled for.
            return unsafe { avx512(work) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(work) };
        }
    }
    work()
}

/// A vector of rows of `len` elements, and what `work(row, elements of the row)` returned for each
/// of the `count` rows. The memory is not cleared first, which on large tensors would cost as much
/// as the operation.
///
/// # Safety
/// `work` must write every element of its row.
pub(crate) unsafe fn write_rows<T: Copy + Send, R: Send>(
    count: usize,
    len: usize,
    work: impl Fn(usize, &mut [MaybeUninit<T>]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    let mut buffer = Vec::with_capacity(count * len);
    let rows = buffer.spare_capacity_mut()[..count * len].chunks_exact_mut(len.max(1));
    let results = map(rows.collect(), count * len, work);
    // SAFETY: the capacity is large enough, and `work` wrote every element.
    unsafe { buffer.set_len(count * len) };
    (buffer, results)
}

/// As [`write_rows`], but one call of `work` writes all rows of a set: row `r` belongs to set
/// `set_of(r)`.
///
/// # Safety
/// `work` must write every element of all its rows.
pub(crate) unsafe fn write_row_sets<T: Copy + Send, R: Send>(
    count: usize,
    len: usize,
    sets: usize,
    set_of: impl Fn(usize) -> usize,
    work: impl Fn(usize, Vec<&mut [MaybeUninit<T>]>) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    let mut buffer = Vec::with_capacity(count * len);
    let rows = buffer.spare_capacity_mut()[..count * len].chunks_exact_mut(len.max(1));
    let mut row_sets: Vec<_> = (0..sets).map(|_| Vec::with_capacity(count / sets)).collect();
    rows.enumerate().for_each(|(row, elements)| row_sets[set_of(row)].push(elements));
    let results = map(row_sets, count * len, work);
    // SAFETY: the capacity is large enough, and `work` wrote every element.
    unsafe { buffer.set_len(count * len) };
    (buffer, results)
}
