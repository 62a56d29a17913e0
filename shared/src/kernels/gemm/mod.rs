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

use std::mem::MaybeUninit;
use std::ops::Range;

use rten_simd::ops::BitOps;
use rten_simd::{Isa, SimdOp};

use crate::kernels::isa::dispatch;
use crate::kernels::parallel::write_rows;
pub(crate) use arrange::{Matrix, SLACK, arrange};
pub(crate) use dots::{DotRows, dots};
pub(crate) use product::{are_row_products, products, products_with};
use tile::{Left, MAX_VECTORS};
pub(crate) use tile::{Output, Right, Start};

/// Depth that a tile walks at once. Of 128 to 2048 the shorter ones lost up to 4 % at depth 512
/// (the output is read and written once a block), the longer ones gained nothing.
const DEPTH_BLOCK: usize = 512;

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
    /// Packs `matrix`, on all threads.
    pub fn new(matrix: Matrix) -> Self {
        let panel_height = TileSize::largest().panel_height(matrix.rows);
        let data = pack_panels(matrix, panel_height);
        Self { data, rows: matrix.rows, depth: matrix.columns, panel_height }
    }

    /// Packs `matrix` in the place of what was packed before, on this thread.
    pub fn pack(&mut self, matrix: Matrix) {
        self.rows = matrix.rows;
        self.depth = matrix.columns;
        self.panel_height = TileSize::largest().panel_height(matrix.rows);
        let count = matrix.rows.div_ceil(self.panel_height) * self.panel_len();
        if self.data.len() < count {
            self.data.resize(count, 0.0);
        }
        let panels = self.data.chunks_exact_mut(panel_len(self.panel_height, self.depth));
        for (out, first) in panels.zip((0..matrix.rows).step_by(self.panel_height)) {
            let rows = self.panel_height.min(matrix.rows - first);
            arrange(matrix.rows_from(first, rows), self.panel_height, out);
        }
    }

    /// Elements from one panel to the next.
    fn panel_len(&self) -> usize {
        panel_len(self.panel_height, self.depth)
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
    /// Packs `matrix`, on all threads.
    pub fn new(matrix: Matrix) -> Self {
        let panel_width = TileSize::largest().columns;
        let data = pack_panels(matrix.t(), panel_width);
        let offsets = (0..matrix.rows).map(|row| row * panel_width).collect();
        Self { data, offsets, panel_width }
    }
}

/// Elements of a panel of `height` rows.
fn panel_len(height: usize, columns: usize) -> usize {
    height * columns + SLACK
}

/// The rows of `matrix` in panels of `height` rows, packed on all threads.
fn pack_panels(matrix: Matrix, height: usize) -> Vec<f32> {
    let pack = |panel: usize, out: &mut [MaybeUninit<f32>]| {
        out.fill(MaybeUninit::new(0.0));
        let first = panel * height;
        let part = matrix.rows_from(first, height.min(matrix.rows - first));
        // SAFETY: all elements were just written.
        arrange(part, height, unsafe { out.assume_init_mut() });
    };
    // SAFETY: `pack` writes all elements of its panel.
    unsafe { write_rows(matrix.rows.div_ceil(height), panel_len(height, matrix.columns), pack) }
}

impl RightMatrix for PackedRight {
    fn panel<'a>(
        &'a self,
        depth: Range<usize>,
        columns: Range<usize>,
        _buffer: &'a mut Vec<f32>,
    ) -> Right<'a> {
        // Panels start at multiples of their width, as `multiply` walks them.
        let panel_len = panel_len(self.panel_width, self.offsets.len());
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
                            data: &left.data
                                [row / height * left.panel_len() + depth_start * height..],
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
