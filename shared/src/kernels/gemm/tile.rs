//! The innermost product: a tile of the output that is held in registers while the depth is
//! walked once.
#![allow(unsafe_code)]

use rten_simd::Isa;
use rten_simd::ops::{BitOps, NumOps};

/// Most rows of a tile. With two vectors a row, 24 accumulators: as many as 32 registers hold
/// beside the operands.
const MAX_ROWS: usize = 12;

/// Most vectors in a row of a tile.
pub(super) const MAX_VECTORS: usize = 2;

/// Most rows of a tile for `isa`: with 16 registers 12 accumulators, with 32 registers 24.
#[inline(always)]
pub(super) fn max_rows<I: Isa>(isa: I) -> usize {
    let has_32_registers = isa.f32().len() == 16 || cfg!(target_arch = "aarch64");
    if has_32_registers { MAX_ROWS } else { MAX_ROWS / 2 }
}

/// What a tile starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    /// Zero.
    Zero,
    /// A number for each row.
    RowBias(&'a [f32]),
    /// A number for each column.
    ColumnBias(&'a [f32]),
    /// What the output holds.
    Output,
}

impl Start<'_> {
    /// What the part from `row` and `column` on starts from.
    pub(super) fn from(self, row: usize, column: usize) -> Self {
        match self {
            Self::RowBias(bias) => Self::RowBias(&bias[row..]),
            Self::ColumnBias(bias) => Self::ColumnBias(&bias[column..]),
            other => other,
        }
    }
}

/// The left operand of a tile: the element of row `r` at depth `k` is `data[k * stride + r]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// The right operand of a tile: the element of column `c` at depth `k` is `data[offsets[k] + c]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    data: &'a [f32],
    offsets: &'a [usize],
    columns: usize,
}

impl<'a> Right<'a> {
    /// The operand of `columns` columns.
    ///
    /// # Panics
    /// When an element lies outside of `data`.
    pub fn new(data: &'a [f32], offsets: &'a [usize], columns: usize) -> Self {
        let last = offsets.iter().fold(0, |last, &offset| last.max(offset));
        assert!(last.checked_add(columns).is_some_and(|end| end <= data.len()));
        Self { data, offsets, columns }
    }
}

/// Where a product is written: the element of row `r` and column `c` is `data[r * stride + c]`.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub data: *mut f32,
    pub stride: usize,
}

// SAFETY: whoever writes through the pointer vouches for being alone in doing so.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// The part from `row` and `column` on.
    ///
    /// # Safety
    /// The part must not be empty.
    pub unsafe fn from(self, row: usize, column: usize) -> Self {
        // SAFETY: an element of the output, as the part is not empty.
        Self { data: unsafe { self.data.add(row * self.stride + column) }, stride: self.stride }
    }
}

/// Computes the tile of `rows` rows and the right operand's columns.
///
/// # Safety
/// The output must be valid for all elements of the tile, and initialised for [`Start::Output`];
/// nobody else may access them meanwhile.
#[inline(always)]
pub(super) unsafe fn tile<I: Isa>(
    isa: I,
    rows: usize,
    left: Left,
    right: Right,
    start: Start,
    output: Output,
) {
    let lanes = isa.f32().len();
    let depth = right.offsets.len();
    assert!(rows > 0 && depth > 0 && (depth - 1) * left.stride + rows <= left.data.len());
    match start {
        Start::RowBias(bias) => assert!(rows <= bias.len()),
        Start::ColumnBias(bias) => assert!(right.columns <= bias.len()),
        Start::Zero | Start::Output => {}
    }
    macro_rules! dispatch {
        ($($count:literal)*) => {
            match (rows, right.columns.div_ceil(lanes), right.columns % lanes == 0) {
                // SAFETY: the operands cover the tile, as was just checked; the output does as
                // the caller promises.
                $(
                    ($count, 1, _) => unsafe {
                        fixed::<I, $count, 1, true>(isa, left, right, start, output)
                    },
                    ($count, 2, true) => unsafe {
                        fixed::<I, $count, 2, false>(isa, left, right, start, output)
                    },
                    ($count, 2, false) => unsafe {
                        fixed::<I, $count, 2, true>(isa, left, right, start, output)
                    },
                )*
                (rows, vectors, _) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
            }
        };
    }
    // The first condition is constant for each instruction set, so that high tiles are compiled
    // for those only that have the registers.
    if max_rows(isa) > MAX_ROWS / 2 && rows > MAX_ROWS / 2 {
        dispatch!(7 8 9 10 11 12);
    } else {
        dispatch!(1 2 3 4 5 6);
    }
}

/// [`tile`] for a fixed size. With `MASKED`, the last vector of each row may be partial.
///
/// # Safety
/// As [`tile`]; the left operand must have `ROWS` rows, the right one columns for `VECTORS`.
// Counted loops over everything are unrolled before registers are assigned. With iterators, and with
// `start` matched within the loops, tiles of 11 and 12 rows were kept in memory: 45 instead of 112
// GFLOP/s on one core.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn fixed<I: Isa, const ROWS: usize, const VECTORS: usize, const MASKED: bool>(
    isa: I,
    left: Left,
    right: Right,
    start: Start,
    output: Output,
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let mask = ops.first_n_mask(right.columns - (VECTORS - 1) * lanes);
    // SAFETY (both): within the row that starts at `row`, as the caller promises.
    let load = |row: *const f32, vector: usize| unsafe {
        let at = row.add(vector * lanes);
        if MASKED && vector == VECTORS - 1 { ops.load_ptr_mask(at, mask) } else { ops.load_ptr(at) }
    };
    let store = |value, row: *mut f32, vector: usize| unsafe {
        let at = row.add(vector * lanes);
        if MASKED && vector == VECTORS - 1 {
            ops.store_ptr_mask(value, at, mask)
        } else {
            ops.store_ptr(value, at)
        }
    };

    let mut sums = [[ops.zero(); VECTORS]; ROWS];
    match start {
        Start::Zero => {}
        Start::RowBias(bias) => {
            for r in 0..ROWS {
                sums[r] = [ops.splat(bias[r]); VECTORS];
            }
        }
        Start::ColumnBias(bias) => {
            for v in 0..VECTORS {
                let bias = load(bias.as_ptr(), v);
                for r in 0..ROWS {
                    sums[r][v] = bias;
                }
            }
        }
        Start::Output => {
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    // SAFETY: row `r` of the tile is part of the output.
                    sums[r][v] = load(unsafe { output.data.add(r * output.stride) }, v);
                }
            }
        }
    }
    let mut column = left.data.as_ptr();
    let right_start = right.data.as_ptr();
    for &offset in right.offsets {
        // SAFETY: every offset leaves room for the columns, by the construction of `right`; the
        // left operand has `ROWS` rows at every depth.
        unsafe {
            let row = right_start.add(offset);
            let mut vectors = [ops.zero(); VECTORS];
            for v in 0..VECTORS {
                vectors[v] = load(row, v);
            }
            for r in 0..ROWS {
                let factor = ops.splat(*column.add(r));
                for v in 0..VECTORS {
                    sums[r][v] = ops.mul_add(factor, vectors[v], sums[r][v]);
                }
            }
        }
        column = column.wrapping_add(left.stride);
    }
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: row `r` of the tile is part of the output.
            store(sums[r][v], unsafe { output.data.add(r * output.stride) }, v);
        }
    }
}
