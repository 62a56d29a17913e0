//! Spreading tasks over threads.
#![allow(unsafe_code)]

use crate::kernels::parallel::{RowBuffer, share};

/// Floating-point operations below which a fork costs more than the second thread brings: waking
/// one takes some microseconds, in which a core computes several hundred thousand.
const MIN_TASK_FLOPS: usize = 1 << 20;

/// Tasks a thread that even out unequal speed.
const MAX_TASKS: usize = 4;

/// Runs `task` for all of `0..count`, on all threads unless the whole is too small. One task
/// should take no less than some microseconds and must not wait for another.
pub(crate) fn for_each(count: usize, flops: usize, task: impl Fn(usize) + Sync + Send) {
    if flops < 2 * MIN_TASK_FLOPS {
        (0..count).for_each(task);
    } else {
        share(count, task);
    }
}

/// Parts into which each of `items` equal tasks is split, so that all threads have work: one where
/// there are enough items or each is small.
pub(crate) fn parts(items: usize, flops: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 || items >= MAX_TASKS * threads {
        return 1;
    }
    // Twice as many tasks as threads even out unequal speed.
    let wanted = (2 * threads).div_ceil(items.max(1));
    wanted.min(flops / items.max(1) / MIN_TASK_FLOPS).max(1)
}

/// Tiles of a block, when each of `items` equal items, of `tiles` tiles, is cut into blocks of one
/// size to be spread over all threads: the one that leaves least to the thread that has most.
pub(crate) fn block(items: usize, tiles: usize, flops: usize) -> usize {
    let threads = rayon::current_num_threads();
    let (items, tiles) = (items.max(1), tiles.max(1));
    if threads == 1 || items >= MAX_TASKS * threads {
        return tiles;
    }
    let worthwhile = (items * tiles * MIN_TASK_FLOPS).div_ceil(flops.max(1)).min(tiles);
    let smallest = (items * tiles).div_ceil(MAX_TASKS * threads).max(worthwhile).min(tiles);
    let most = |block: &usize| (items * tiles.div_ceil(*block)).div_ceil(threads) * block;
    (smallest..=tiles).min_by_key(most).unwrap_or(tiles)
}

/// The results of `task` for all of `0..count`, run as by [`for_each`].
pub(crate) fn map<T: Send>(
    count: usize,
    flops: usize,
    task: impl Fn(usize) -> T + Sync + Send,
) -> Vec<T> {
    let results = RowBuffer::new(count, 1);
    // SAFETY (both): every task writes its own.
    for_each(count, flops, |index| {
        unsafe { results.row(index)[0].write(task(index)) };
    });
    unsafe { results.finish() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_leave_all_threads_about_the_same() {
        let flops = 1 << 40;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            for (items, tiles, expected) in
                [(1, 10, 5), (1, 1, 1), (1, 800, 100), (3, 10, 5), (8, 10, 10), (1, 9, 5)]
            {
                assert_eq!(block(items, tiles, flops), expected, "{items} {tiles}");
            }
            // Too little to be cut.
            assert_eq!(block(1, 10, 1 << 20), 10);
        });
    }
}
