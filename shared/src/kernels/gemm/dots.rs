//! Products of two matrices whose rows both lie along the depth: each element is the dot product of
//! two rows, read where they are. Nothing is packed, which pays where there are few rows on one
//! side or few elements in all.
#![allow(unsafe_code)]

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::Output;
use crate::kernels::isa::dispatch;

/// Rows along the depth: element `k` of row `r` of item `i` is
/// `data[i * item_stride + offsets[r] + k]`.
#[derive(Clone, Copy)]
pub(crate) struct DotRows<'a> {
    pub data: &'a [f32],
    pub item_stride: usize,
    pub offsets: &'a [usize],
}

impl DotRows<'_> {
    /// Whether all elements of `items` items of rows of `len` elements lie within the data.
    fn holds(&self, items: usize, len: usize) -> bool {
        let last = self.offsets.iter().fold(0, |last, &offset| last.max(offset));
        items == 0
            || (items - 1)
                .checked_mul(self.item_stride)
                .and_then(|start| start.checked_add(last)?.checked_add(len))
                .is_some_and(|end| end <= self.data.len())
    }
}

/// Most rows of a tile on the left.
const LEFT_ROWS: usize = 4;

/// Writes to the output's element of row `r` and column `c` the dot product of row `r` on the left
/// and row `c` on the right, summed over `items` items of `len` elements.
///
/// # Panics
/// When a row lies outside its data.
///
/// # Safety
/// The output must be valid for all rows on the left and on the right; nobody else may access
/// these elements meanwhile.
pub(crate) unsafe fn dots(left: DotRows, right: DotRows, items: usize, len: usize, output: Output) {
    struct Dots<'a>(DotRows<'a>, DotRows<'a>, usize, usize, Output);
    impl SimdOp for Dots<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) {
            let Self(left, right, items, len, output) = self;
            // As many sums as registers hold: 24 of 32, 12 of 16.
            let width = if super::tile::max_rows(isa) > 6 { 6 } else { 3 };
            for (i, left_offsets) in left.offsets.chunks(LEFT_ROWS).enumerate() {
                for (j, right_offsets) in right.offsets.chunks(width).enumerate() {
                    let left = DotRows { offsets: left_offsets, ..left };
                    let right = DotRows { offsets: right_offsets, ..right };
                    // SAFETY: a part of the output.
                    unsafe {
                        let output = output.from(i * LEFT_ROWS, j * width);
                        tile(isa, left, right, items, len, output);
                    }
                }
            }
        }
    }
    assert!(left.holds(items, len) && right.holds(items, len));
    dispatch(Dots(left, right, items, len, output));
}

/// # Safety
/// As [`dots`], for at most [`LEFT_ROWS`] rows on the left and 6 on the right, which lie within
/// their data.
#[inline(always)]
unsafe fn tile<I: Isa>(
    isa: I,
    left: DotRows,
    right: DotRows,
    items: usize,
    len: usize,
    output: Output,
) {
    macro_rules! dispatch {
        ($($rows:literal: $($columns:literal)*;)*) => {
            match (left.offsets.len(), right.offsets.len()) {
                // SAFETY: as the caller promises.
                $($(($rows, $columns) => unsafe {
                    fixed::<I, $rows, $columns>(isa, left, right, items, len, output)
                },)*)*
                (rows, columns) => unreachable!("a tile of {rows} x {columns} dot products"),
            }
        };
    }
    dispatch!(1: 1 2 3 4 5 6; 2: 1 2 3 4 5 6; 3: 1 2 3 4 5 6; 4: 1 2 3 4 5 6;);
}

/// # Safety
/// As [`tile`], for exactly `ROWS` and `COLUMNS` rows.
#[allow(clippy::needless_range_loop)] // Counted loops are unrolled before registers are assigned.
#[inline(always)]
unsafe fn fixed<I: Isa, const ROWS: usize, const COLUMNS: usize>(
    isa: I,
    left: DotRows,
    right: DotRows,
    items: usize,
    len: usize,
    output: Output,
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let whole = len - len % lanes;
    let mask = ops.first_n_mask(len - whole);
    let mut sums = [[ops.zero(); COLUMNS]; ROWS];
    for item in 0..items {
        // SAFETY: all rows of all items lie within the data, as the caller promises.
        unsafe {
            let a: [*const f32; ROWS] = std::array::from_fn(|r| {
                left.data.as_ptr().add(item * left.item_stride + left.offsets[r])
            });
            let b: [*const f32; COLUMNS] = std::array::from_fn(|c| {
                right.data.as_ptr().add(item * right.item_stride + right.offsets[c])
            });
            let mut k = 0;
            while k < whole {
                let mut x = [ops.zero(); ROWS];
                for r in 0..ROWS {
                    x[r] = ops.load_ptr(a[r].add(k));
                }
                for c in 0..COLUMNS {
                    let y = ops.load_ptr(b[c].add(k));
                    for r in 0..ROWS {
                        sums[r][c] = ops.mul_add(x[r], y, sums[r][c]);
                    }
                }
                k += lanes;
            }
            if whole < len {
                let mut x = [ops.zero(); ROWS];
                for r in 0..ROWS {
                    x[r] = ops.load_ptr_mask(a[r].add(whole), mask);
                }
                for c in 0..COLUMNS {
                    let y = ops.load_ptr_mask(b[c].add(whole), mask);
                    for r in 0..ROWS {
                        sums[r][c] = ops.mul_add(x[r], y, sums[r][c]);
                    }
                }
            }
        }
    }
    for r in 0..ROWS {
        for c in 0..COLUMNS {
            // SAFETY: an element of the output.
            unsafe { *output.data.add(r * output.stride + c) = ops.sum(sums[r][c]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn tiles_of_all_sizes_match_loops() {
        let mut stream = Stream::new(1, "dots", 0);
        let mut numbers =
            |count: usize| -> Vec<f32> { (0..count).map(|_| stream.normal() as f32).collect() };
        for (rows, columns, items, len) in [
            (1, 1, 1, 1),
            (1, 13, 1, 100),
            (4, 6, 3, 33),
            (9, 8, 2, 16),
            (3, 31, 2, 77),
            (2, 2, 0, 5),
        ] {
            let (a, b) = (numbers(4000), numbers(4000));
            let left_offsets: Vec<usize> = (0..rows).map(|r| r * len).collect();
            // Overlapping rows, as the taps of a convolution have.
            let right_offsets: Vec<usize> = (0..columns).map(|c| 3 * c).collect();
            let left = DotRows { data: &a, item_stride: rows * len, offsets: &left_offsets };
            let right = DotRows { data: &b, item_stride: 200, offsets: &right_offsets };
            let mut out = vec![f32::NAN; rows * columns];
            let output = Output { data: out.as_mut_ptr(), stride: columns };
            // SAFETY: `out` has the size of the product.
            unsafe { dots(left, right, items, len, output) };
            for (index, found) in out.iter().enumerate() {
                let (r, c) = (index / columns, index % columns);
                let products = (0..items * len).map(|at| {
                    let (i, k) = (at / len, at % len);
                    f64::from(a[i * rows * len + r * len + k]) * f64::from(b[i * 200 + 3 * c + k])
                });
                let expected: f64 = products.sum();
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{rows} {columns} {len}");
            }
        }
    }
}
