//! Linear layers in narrow numbers: rows of the input, rounded when they are packed, times a packed
//! weight.
#![allow(unsafe_code)]

use std::cell::RefCell;

use crate::Result;
use crate::kernels::epilogue::Epilogue;
use crate::kernels::gemm::threads;
use crate::kernels::isa::InstructionSet;
use crate::kernels::narrow::{
    Format, Operands, PackedLeft, PackedRight, Range, Rounding, Scaling, Sums, Tiles, WeightRows,
    multiply,
};
use crate::kernels::rows::Rows;

/// Words of the input that are packed at once: 512 KiB, half of a usual second-level cache.
const BLOCK_WORDS: usize = 1 << 17;

/// A weight in narrow numbers, arranged for the tiles of an instruction set.
#[derive(Debug)]
pub(crate) struct NarrowWeight {
    format: Format,
    tiles: Tiles,
    packed: PackedRight,
    scaling: Scaling,
    outputs: usize,
    depth: usize,
}

impl NarrowWeight {
    /// The weight `[O, I]`, contiguous.
    ///
    /// # Errors
    /// When sums could overflow.
    pub fn new(
        format: Format,
        set: InstructionSet,
        weight: &[f32],
        [outputs, inputs]: [usize; 2],
    ) -> Result<Self> {
        let tiles = Tiles::of(set);
        let WeightRows { words, depth, scaling } =
            WeightRows::new(format, weight, [outputs, inputs, 1])?;
        let packed = PackedRight::new(tiles, &words, depth);
        Ok(Self { format, tiles, packed, scaling, outputs, depth })
    }
}

/// `x W^T + bias` and what follows, `[N, O]`, contiguous.
pub(super) fn forward(
    x: &Rows<f32>,
    weight: &NarrowWeight,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
) -> Vec<f32> {
    /// Working memory of a thread: the packed input with the rounding of its rows, and panels.
    type Scratch = (PackedLeft, Vec<Rounding>, Vec<u32>);
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

    let NarrowWeight { format, tiles, packed, scaling, outputs, depth } = weight;
    let (rows, outputs, depth) = (x.count(), *outputs, *depth);
    let count = rows * outputs;
    if count == 0 {
        return vec![];
    }
    let operands = match format {
        Format::Bf16 => Operands::Bf16,
        Format::Int8 => Operands::UnsignedSigned,
    };
    let flops = 2 * count * x.len();
    let parts = threads::parts(1, flops);
    let tile_rows = tiles.rows;
    let fitting_rows = BLOCK_WORDS / depth.max(1) / tile_rows * tile_rows;
    let block_rows =
        rows.div_ceil(parts).next_multiple_of(tile_rows).min(fitting_rows).max(tile_rows);
    let row_blocks = rows.div_ceil(block_rows);
    // Few rows are split by columns.
    let block_columns =
        outputs.div_ceil(parts.div_ceil(row_blocks)).next_multiple_of(tiles.columns);
    let column_blocks = outputs.div_ceil(block_columns);

    let mut y: Vec<f32> = Vec::with_capacity(count);
    let sums = Sums { data: y.as_mut_ptr().cast(), stride: outputs };
    threads::for_each(row_blocks * column_blocks, flops, |task| {
        let first = task / column_blocks * block_rows;
        let column = task % column_blocks * block_columns;
        let columns = column..outputs.min(column + block_columns);
        let count = block_rows.min(rows - first);
        SCRATCH.with_borrow_mut(|(left, roundings, panel)| {
            roundings.clear();
            roundings.extend(
                (first..first + count).map(|row| Rounding::new(*format, || Range::of(x.row(row)))),
            );
            left.pack(*tiles, [count, depth], |row, out| {
                roundings[row].join(x.row(first + row), out);
            });
            // SAFETY: the tasks write disjoint parts of `y`, which has room for all of them.
            unsafe {
                let sums = sums.from(first, 0);
                multiply(*tiles, operands, left, packed, columns.clone(), sums, panel);
                for (row, &rounding) in roundings.iter().enumerate() {
                    let start = sums.from(row, columns.start).data.cast::<f32>();
                    let row_sums = std::slice::from_raw_parts_mut(start, columns.len());
                    scaling.finish_row(row_sums, rounding, columns.start, bias);
                    epilogue.finish(row_sums, 0, (first + row) * outputs + columns.start);
                }
            }
        });
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { y.set_len(count) };
    y
}
