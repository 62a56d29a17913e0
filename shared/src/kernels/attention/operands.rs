//! Queries, keys and values as the kernels read them.

use std::ops::Range;

use super::place::Place;
use crate::kernels::gemm::Matrix;

/// An operand: all of its tensor's elements, and where in them it lies.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a, T> {
    pub(super) data: &'a [T],
    pub(super) place: Place,
}

impl<'a, T: Copy> Operand<'a, T> {
    /// That of a head.
    pub(super) fn of_head(self, item: usize, head: usize) -> Self {
        Self { place: self.place.of_head(item, head), ..self }
    }

    /// An element.
    pub(super) fn at(&self, token: usize, channel: usize) -> T {
        self.data[self.place.at(token, channel)]
    }

    /// `tokens` of one frame as the rows of a matrix, their channels as columns.
    pub(super) fn matrix(&self, tokens: &Range<usize>) -> Matrix<'a, T> {
        Matrix {
            data: &self.data[self.place.at(tokens.start, 0)..],
            rows: tokens.len(),
            columns: self.place.size,
            row_stride: self.place.token,
            column_stride: self.place.channel,
        }
    }
}

/// Queries, keys and values of all heads of all items.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a, T> {
    pub(super) q: Operand<'a, T>,
    pub(super) k: Operand<'a, T>,
    pub(super) v: Operand<'a, T>,
    pub(super) heads: usize,
    /// Queries of each head.
    pub(super) queries: usize,
    /// Keys of each head.
    pub(super) keys: usize,
    /// Factor of the scores.
    pub(super) scale: f64,
}

impl<T: Copy> Operands<'_, T> {
    /// Those of a head.
    pub(super) fn of_head(self, item: usize, head: usize) -> Self {
        let [q, k, v] = [self.q, self.k, self.v].map(|operand| operand.of_head(item, head));
        Self { q, k, v, ..self }
    }
}
