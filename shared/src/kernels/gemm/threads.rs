//! Spreading tasks over threads.

use rayon::prelude::*;

/// Floating-point operations below which a fork costs more than the second thread brings: waking
/// one takes some microseconds, in which a core computes several hundred thousand.
const MIN_TASK_FLOPS: usize = 1 << 20;

/// Runs `task` for all of `0..count`, on all threads unless the whole is too small. One task
/// should take no less than some microseconds and must not wait for another.
pub(crate) fn for_each(count: usize, flops: usize, task: impl Fn(usize) + Sync + Send) {
    if count < 2 || flops < 2 * MIN_TASK_FLOPS || rayon::current_num_threads() == 1 {
        (0..count).for_each(task);
    } else {
        (0..count).into_par_iter().for_each(task);
    }
}

/// Parts into which each of `items` equal tasks is split, so that all threads have work: one where
/// there are enough items or each is small.
pub(crate) fn parts(items: usize, flops: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 || items >= 4 * threads {
        return 1;
    }
    // Twice as many tasks as threads even out unequal speed.
    let wanted = (2 * threads).div_ceil(items.max(1));
    wanted.min(flops / items.max(1) / MIN_TASK_FLOPS).max(1)
}

/// The results of `task` for all of `0..count`, run as by [`for_each`].
pub(crate) fn map<T: Send>(
    count: usize,
    flops: usize,
    task: impl Fn(usize) -> T + Sync + Send,
) -> Vec<T> {
    if count < 2 || flops < 2 * MIN_TASK_FLOPS || rayon::current_num_threads() == 1 {
        (0..count).map(task).collect()
    } else {
        (0..count).into_par_iter().map(task).collect()
    }
}
