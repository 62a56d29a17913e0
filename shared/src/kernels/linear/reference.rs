//! Matrix product as plain loops: the path of `f64`, and what the fast path is tested against.

use candle_core::WithDType;

/// A matrix in any layout.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub data: &'a [T],
    pub row_stride: usize,
    pub column_stride: usize,
}

/// Writes the product of `a` `[rows, depth]` and `b` `[depth, columns]` to the row-major `out`.
pub(super) fn product<T: WithDType>(
    a: Matrix<T>,
    b: Matrix<T>,
    [depth, columns]: [usize; 2],
    out: &mut [T],
) {
    for (row, out) in out.chunks_mut(columns.max(1)).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = T::zero();
            for k in 0..depth {
                *out += a.data[row * a.row_stride + k * a.column_stride]
                    * b.data[k * b.row_stride + column * b.column_stride];
            }
        }
    }
}
