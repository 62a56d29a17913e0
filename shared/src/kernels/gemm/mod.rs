//! Single-precision matrix products, the engine of convolutions and linear layers.
//!
//! The left matrix is packed into panels of as many rows as a register tile has. The right matrix
//! is read where it lies whenever the elements of its rows lie side by side, shifted rows of a
//! signal included, so that a convolution over time needs no column matrix at all.
#![allow(unsafe_code)]

mod arrange;
mod dots;
mod product;
pub(crate) mod threads;
mod tile;

use std::ops::Range;

use rayon::prelude::*;
use rten_simd::ops::BitOps;
use rten_simd::{Isa, SimdOp};

use crate::kernels::isa::dispatch;
pub(crate) use arrange::{Matrix, SLACK, arrange};
pub(crate) use dots::{DotRows, dots};
pub(crate) use product::{are_row_products, products, products_with};
use tile::{Left, MAX_VECTORS};
pub(crate) use tile::{Output, Right, Start};

/// Depth that a tile walks at once. Of 128 to 2048 the shorter ones lost up to 4 % at depth 512
/// (the output is read and written once a block), the longer ones gained nothing.
const DEPTH_BLOCK: usize = 512;

/// Elements of a right matrix that one thread packs at least.
const MIN_PACKED_ELEMENTS: usize = 1 << 16;

/// Size of a tile of the output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileSize {
    pub rows: usize,
    pub columns: usize,
}

impl TileSize {
    /// The largest tile of this processor.
    pub fn largest() -> Self {
        struct Size;
        impl SimdOp for Size {
            type Output = TileSize;

            #[inline(always)]
            fn eval<I: Isa>(self, isa: I) -> TileSize {
                TileSize { rows: tile::max_rows(isa), columns: MAX_VECTORS * isa.f32().len() }
            }
        }
        dispatch(Size)
    }

    /// Rows of a panel: the fewest tiles for `rows` rows, all about equally high.
    pub fn panel_height(self, rows: usize) -> usize {
        let panels = rows.div_ceil(self.rows).max(1);
        rows.div_ceil(panels).max(1)
    }
}

/// A left matrix, arranged for the tiles.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedLeft {
    data: Vec<f32>,
    rows: usize,
    depth: usize,
    panel_height: usize,
}

impl PackedLeft {
    /// Packs `matrix`.
    pub fn new(matrix: Matrix) -> Self {
        let mut packed = Self::default();
        packed.pack(matrix);
        packed
    }

    /// Packs `matrix` in the place of what was packed before.
    pub fn pack(&mut self, matrix: Matrix) {
        self.rows = matrix.rows;
        self.depth = matrix.columns;
        self.panel_height = TileSize::largest().panel_height(matrix.rows);
        let count = matrix.rows.next_multiple_of(self.panel_height) * matrix.columns + SLACK;
        if self.data.len() < count {
            self.data.resize(count, 0.0);
        }
        arrange(matrix, self.panel_height, &mut self.data);
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn depth(&self) -> usize {
        self.depth
    }
}

/// A right matrix, read a panel at a time.
pub(crate) trait RightMatrix: Sync {
    /// The elements of `columns` (no more than a tile has) at `depth`; in `buffer` unless they can
    /// be read where they are.
    fn panel<'a>(
        &'a self,
        depth: Range<usize>,
        columns: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> Right<'a>;
}

/// A right matrix whose row `k` is `data[offsets[k]..]`.
pub(crate) struct Rows<'a> {
    pub data: &'a [f32],
    pub offsets: &'a [usize],
}

impl RightMatrix for Rows<'_> {
    fn panel<'a>(
        &'a self,
        depth: Range<usize>,
        columns: Range<usize>,
        _buffer: &'a mut Vec<f32>,
    ) -> Right<'a> {
        Right::new(&self.data[columns.start..], &self.offsets[depth], columns.len())
    }
}

/// A right matrix in any layout, arranged for the tiles.
#[derive(Clone, Debug)]
pub(crate) struct PackedRight {
    data: Vec<f32>,
    /// Offset of each row in a panel.
    offsets: Vec<usize>,
    panel_width: usize,
}

impl PackedRight {
    /// Packs `matrix`.
    pub fn new(matrix: Matrix) -> Self {
        let panel_width = TileSize::largest().columns;
        let panel_len = panel_width * matrix.rows + SLACK;
        let mut data = vec![0.0; matrix.columns.div_ceil(panel_width) * panel_len];
        let pack = |(panel, out): (usize, &mut [f32])| {
            let first = panel * panel_width;
            let columns = panel_width.min(matrix.columns - first);
            arrange(matrix.t().rows_from(first, columns), panel_width, out);
        };
        let panels = data.par_chunks_exact_mut(panel_len).enumerate();
        panels.with_min_len(MIN_PACKED_ELEMENTS.div_ceil(panel_len)).for_each(pack);
        let offsets = (0..matrix.rows).map(|row| row * panel_width).collect();
        Self { data, offsets, panel_width }
    }
}

impl RightMatrix for PackedRight {
    fn panel<'a>(
        &'a self,
        depth: Range<usize>,
        columns: Range<usize>,
        _buffer: &'a mut Vec<f32>,
    ) -> Right<'a> {
        // Panels start at multiples of their width, as `multiply` walks them.
        let panel_len = self.panel_width * self.offsets.len() + SLACK;
        let start = columns.start / self.panel_width * panel_len + columns.start % self.panel_width;
        Right::new(&self.data[start..], &self.offsets[depth], columns.len())
    }
}

/// Computes the part `columns` of the product of `left` and `right` on this thread.
///
/// `columns` starts at a multiple of the tile's width; biases are those of the whole matrix;
/// `output` is the whole matrix. Every element is summed in the order of depth, whatever part it
/// is computed with.
///
/// # Safety
/// `output` must be valid for all rows of `left` at `columns`, and initialised for
/// [`Start::Output`]; nobody else may access these elements meanwhile.
pub(crate) unsafe fn multiply(
    left: &PackedLeft,
    right: &dyn RightMatrix,
    columns: Range<usize>,
    start: Start,
    output: Output,
    buffer: &mut Vec<f32>,
) {
    struct Multiply<'a> {
        left: &'a PackedLeft,
        right: &'a dyn RightMatrix,
        columns: Range<usize>,
        start: Start<'a>,
        output: Output,
        buffer: &'a mut Vec<f32>,
    }
    impl SimdOp for Multiply<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) {
            let Self { left, right, columns, start, output, buffer } = self;
            let height = left.panel_height;
            let width = MAX_VECTORS * isa.f32().len();
            for depth_start in (0..left.depth).step_by(DEPTH_BLOCK) {
                let depth = depth_start..left.depth.min(depth_start + DEPTH_BLOCK);
                for column in columns.clone().step_by(width) {
                    let panel = column..columns.end.min(column + width);
                    let right = right.panel(depth.clone(), panel, buffer);
                    for row in (0..left.rows).step_by(height) {
                        let operand = Left {
                            data: &left.data[row * left.depth + depth_start * height..],
                            stride: height,
                        };
                        let start =
                            if depth_start == 0 { start.from(row, column) } else { Start::Output };
                        let rows = height.min(left.rows - row);
                        // SAFETY: a tile of the output, which the caller vouches for.
                        unsafe {
                            tile::tile(isa, rows, operand, right, start, output.from(row, column));
                        }
                    }
                }
            }
        }
    }
    dispatch(Multiply { left, right, columns, start, output, buffer });
}
