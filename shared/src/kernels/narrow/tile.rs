//! The innermost product: a tile of sums that is held in registers while the depth is walked once.
#![allow(unsafe_code)]

use super::words::{Product, Words};

/// Vectors in a row of a tile.
pub(super) const VECTORS: usize = 2;

/// The left operand of a tile: the word of row `r` at depth `k` is `data[k * stride + r]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub data: &'a [u32],
    pub stride: usize,
}

/// The right operand of a tile: the word of column `c` at depth `k` is `data[offsets[k] + c]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub data: &'a [u32],
    pub offsets: &'a [usize],
}

impl Right<'_> {
    /// Checks that every row can be read for `width` columns.
    ///
    /// # Panics
    /// When not.
    pub(super) fn check(&self, width: usize) {
        let last = self.offsets.iter().fold(0, |last, &offset| last.max(offset));
        assert!(last.checked_add(width).is_some_and(|end| end <= self.data.len()));
    }
}

/// Where sums are written: that of row `r` and column `c` to `data[r * stride + c]`.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub data: *mut u32,
    pub stride: usize,
}

// SAFETY: whoever writes through the pointer vouches for being alone in doing so.
unsafe impl Send for Sums {}
// SAFETY: as above.
unsafe impl Sync for Sums {}

impl Sums {
    /// The part from `row` and `column` on.
    ///
    /// # Safety
    /// The part must not be empty.
    pub unsafe fn from(self, row: usize, column: usize) -> Self {
        // SAFETY: an element, as the part is not empty.
        Self { data: unsafe { self.data.add(row * self.stride + column) }, stride: self.stride }
    }
}

/// Computes a tile of some rows and columns.
///
/// # Safety
/// Every row of the right operand must be readable for the columns rounded up to whole vectors.
/// `sums` must be valid for all elements of the tile, and nobody else may access them meanwhile.
#[inline(always)]
pub(super) unsafe fn tile<W: Words, P: Product>(
    words: W,
    [rows, columns]: [usize; 2],
    left: Left,
    right: Right,
    sums: Sums,
) {
    let depth = right.offsets.len();
    assert!(rows > 0);
    assert!(depth == 0 || (depth - 1) * left.stride + rows <= left.data.len());
    macro_rules! dispatch {
        ($($count:literal)*) => {
            match (rows, columns.div_ceil(words.len())) {
                // SAFETY: the left operand covers the tile, as was just checked; the others do as
                // the caller promises.
                $(
                    ($count, 1) => unsafe {
                        fixed::<W, P, $count, 1>(words, columns, left, right, sums)
                    },
                    ($count, 2) => unsafe {
                        fixed::<W, P, $count, 2>(words, columns, left, right, sums)
                    },
                )*
                (rows, vectors) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
            }
        };
    }
    // The first condition is constant, so that high tiles are compiled only where there are
    // registers for them.
    if W::ROWS > 4 && rows > 4 {
        dispatch!(5 6 7 8 9 10 11 12);
    } else {
        dispatch!(1 2 3 4);
    }
}

/// [`tile`] for fixed numbers of rows and of vectors in each.
///
/// # Safety
/// As [`tile`]; the left operand must have `ROWS` rows, and `columns` must fill `VECTORS`, the last of
/// which may be partial.
// Counted loops are unrolled before registers are assigned, see the tile of `f32`.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn fixed<W: Words, P: Product, const ROWS: usize, const VECTORS: usize>(
    words: W,
    columns: usize,
    left: Left,
    right: Right,
    sums: Sums,
) {
    let lanes = words.len();
    let mut totals = [[words.splat(0); VECTORS]; ROWS];
    let mut column = left.data.as_ptr();
    let right_start = right.data.as_ptr();
    for &offset in right.offsets {
        // SAFETY: every offset leaves room for the vectors, as the caller promises; the left operand
        // has `ROWS` rows at every depth.
        unsafe {
            let row = right_start.add(offset);
            let mut vectors = [words.splat(0); VECTORS];
            for v in 0..VECTORS {
                vectors[v] = words.load(row.add(v * lanes));
            }
            for r in 0..ROWS {
                let factor = words.splat(*column.add(r));
                for v in 0..VECTORS {
                    totals[r][v] = P::add(words, totals[r][v], factor, vectors[v]);
                }
            }
        }
        column = column.wrapping_add(left.stride);
    }
    for r in 0..ROWS {
        for v in 0..VECTORS {
            let count = (columns - v * lanes).min(lanes);
            // SAFETY: `count` elements of row `r` of the tile.
            unsafe {
                let at = sums.data.add(r * sums.stride + v * lanes);
                if count == lanes {
                    words.store(totals[r][v], at);
                } else {
                    // No instruction set has more lanes.
                    let mut part = [0; 16];
                    words.store(totals[r][v], part.as_mut_ptr());
                    at.copy_from_nonoverlapping(part.as_ptr(), count);
                }
            }
        }
    }
}
