//! The weight gradient of a convolution: for each tap, the product of the gradient at the output
//! and the input that the tap meets, summed over positions and items.
//!
//! Positions are the depth of this product, so that both operands are transposed: the gradient
//! into panels of channels, the input so that the channels of a position lie side by side, zeros
//! for the padding included. Then each tap's operand is the same transposed input, shifted.
#![allow(unsafe_code)]

use std::cell::RefCell;

use super::Geometry;
use super::view::View;
use crate::kernels::gemm::{
    Matrix, Output, PackedLeft, Rows, SLACK, Start, TileSize, arrange, multiply, threads,
};

/// Sums over parts of the batch that are computed side by side, at most. The parts do not depend
/// on the number of threads, and so neither does the result.
const MAX_PARTS: usize = 8;

/// Elements of all these sums together, at most: 16 MiB.
const PART_ELEMENTS: usize = 1 << 22;

/// Gradient at the weight, contiguous, from the input and the gradient `dy` at the output, whose
/// space is contiguous.
pub(super) fn weight_gradient(x: View<f32>, dy: View<f32>, geometry: &Geometry) -> Vec<f32> {
    /// Working memory of a thread: the gradient and the input, arranged.
    type Scratch = (PackedLeft, Vec<f32>);
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

    let (groups, in_group, out_group) =
        (geometry.groups, geometry.in_group(), geometry.out_group());
    let taps = geometry.taps().len();
    let count = geometry.out_channels * in_group * taps;
    let positions: usize = geometry.output.iter().product();
    let flops = 2 * geometry.batch * count * positions;
    let parts = geometry.batch.min(MAX_PARTS).min(PART_ELEMENTS / count).max(1);
    let part_items = geometry.batch.div_ceil(parts).max(1);
    let parts = geometry.batch.div_ceil(part_items);
    let tile = TileSize::largest();
    let block_rows = out_group
        .div_ceil(threads::parts(groups * parts, flops))
        .next_multiple_of(tile.rows)
        .min(out_group);
    let blocks = out_group.div_ceil(block_rows);
    let transposed = Transposed::new(geometry);

    // Of each part `[O, taps, C/g]`.
    let mut sums: Vec<f32> = Vec::with_capacity(parts * count);
    let output = Output { data: sums.as_mut_ptr(), stride: taps * in_group };
    threads::for_each(parts * groups * blocks, flops, |task| {
        let (part, index) = (task / (groups * blocks), task % (groups * blocks));
        let (group, first_row) = (index / blocks, index % blocks * block_rows);
        let rows = block_rows.min(out_group - first_row);
        let first_channel = group * out_group + first_row;
        let items = part * part_items..geometry.batch.min((part + 1) * part_items);
        SCRATCH.with_borrow_mut(|(left, input)| {
            for item in items.clone() {
                left.pack(Matrix {
                    data: dy.channel(item, first_channel),
                    rows,
                    columns: positions,
                    row_stride: dy.strides[1],
                    column_stride: 1,
                });
                transposed.fill(&x, item, group, input);
                let start = if item == items.start { Start::Zero } else { Start::Output };
                for (shift, column, columns) in &transposed.operands {
                    let right = Rows { data: &input[*shift..], offsets: &transposed.offsets };
                    // SAFETY: the tasks write disjoint rows of `sums`, which has room for all of
                    // them, and each row completely for its first item.
                    unsafe {
                        let row = part * geometry.out_channels + first_channel;
                        let output = output.from(row, *column);
                        multiply(left, &right, 0..*columns, start, output, &mut vec![]);
                    }
                }
            }
        });
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { sums.set_len(parts * count) };
    add_parts(&sums, count, taps, in_group)
}

/// The sum of all parts `[O, taps, C/g]` in the order `[O, C/g, taps]`.
fn add_parts(sums: &[f32], count: usize, taps: usize, in_group: usize) -> Vec<f32> {
    let mut weight = vec![0.0f32; count];
    for part in sums.chunks_exact(count) {
        let rows = weight.chunks_exact_mut(taps * in_group);
        for (weight, sums) in rows.zip(part.chunks_exact(taps * in_group)) {
            for (tap, sums) in sums.chunks_exact(in_group).enumerate() {
                for (weight, sum) in weight[tap..].iter_mut().step_by(taps).zip(sums) {
                    *weight += sum;
                }
            }
        }
    }
    weight
}

/// The transposed input of an item and group: of each position, padding included, the channels.
struct Transposed<'a> {
    geometry: &'a Geometry,
    /// Positions along each axis that some tap meets.
    size: [usize; 3],
    /// Elements of a position: the channels, and what keeps blocks of 8 from reaching the next.
    width: usize,
    /// Offset of the first tap's position for each output position.
    offsets: Vec<usize>,
    /// Shift, first column of the result and number of columns: of each tap, or of each row of
    /// taps where these lie side by side.
    operands: Vec<(usize, usize, usize)>,
}

impl<'a> Transposed<'a> {
    fn new(geometry: &'a Geometry) -> Self {
        let in_group = geometry.in_group();
        let size: [usize; 3] = std::array::from_fn(|axis| {
            (geometry.output[axis] - 1) * geometry.stride[axis] + geometry.span(axis) + 1
        });
        let width = in_group.next_multiple_of(8);
        let offset = |[d, h, w]: [usize; 3]| ((d * size[1] + h) * size[2] + w) * width;
        let [depth, height, length] = geometry.output;
        let [d_step, h_step, w_step] = geometry.stride;
        let mut offsets = Vec::with_capacity(depth * height * length);
        for d in 0..depth {
            for h in 0..height {
                offsets.extend((0..length).map(|w| offset([d * d_step, h * h_step, w * w_step])));
            }
        }
        let joined =
            if width == in_group && geometry.dilation[2] == 1 { geometry.kernel[2] } else { 1 };
        let operands = geometry
            .taps()
            .enumerate()
            .step_by(joined)
            .map(|(index, tap)| {
                let shift = offset(std::array::from_fn(|axis| tap[axis] * geometry.dilation[axis]));
                (shift, index * in_group, joined * in_group)
            })
            .collect();
        Self { geometry, size, width, offsets, operands }
    }

    fn fill(&self, x: &View<f32>, item: usize, group: usize, out: &mut Vec<f32>) {
        let Self { geometry, size, width, .. } = self;
        let in_group = geometry.in_group();
        out.resize(size.iter().product::<usize>() * width + SLACK, 0.0);
        let before = geometry.padding_before.map(|padding| padding.max(0) as usize);
        // Of each axis the elements that are there and met.
        let inner: [usize; 3] = std::array::from_fn(|axis| {
            geometry.input[axis].min(size[axis].saturating_sub(before[axis]))
        });
        if inner != *size {
            out.fill(0.0);
        }
        if inner.contains(&0) {
            return;
        }
        let data = x.channel(item, group * in_group);
        for d in 0..inner[0] {
            for h in 0..inner[1] {
                let row = (d + before[0]) * size[1] + h + before[1];
                let matrix = Matrix {
                    data: &data[d * x.strides[2] + h * x.strides[3]..],
                    rows: in_group,
                    columns: inner[2],
                    row_stride: x.strides[1],
                    column_stride: x.strides[4],
                };
                arrange(matrix, *width, &mut out[(row * size[2] + before[2]) * width..]);
            }
        }
    }
}
