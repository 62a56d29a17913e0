//! The weight gradient of a convolution: for each tap, the product of the gradient at the output
//! and the input that the tap meets, summed over positions and items.
//!
//! Positions are the depth of this product, so that both operands are transposed: the gradient
//! into panels of channels, the input so that the channels of a position lie side by side, zeros
//! for the padding included. Then each tap's operand is the same transposed input, shifted. Groups
//! of few channels over time do without, see [`direct_parts`].
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::Geometry;
use super::columns::{copy_padded, shifted_rows};
use super::view::View;
use crate::kernels::gemm::{
    DotRows, Matrix, Output, PackedLeft, Rows, SLACK, Start, TileSize, arrange, dots, multiply,
    threads,
};
use crate::kernels::parallel::{write_pieces, write_rows};

/// Sums over parts of the batch that are computed side by side, at most. The parts do not depend
/// on the number of threads, and so neither does the result.
const MAX_PARTS: usize = 8;

/// Elements of all these sums together, at most: 16 MiB.
const PART_ELEMENTS: usize = 1 << 22;

/// Most channels that a group reads for its gradient to be taken as dot products. Transposing widens
/// fewer to 8.
const MAX_DIRECT_CHANNELS: usize = 7;

/// Gradient at the weight, contiguous, from the input and the gradient `dy` at the output, whose
/// space is contiguous.
pub(super) fn weight_gradient(x: View<f32>, dy: View<f32>, geometry: &Geometry) -> Vec<f32> {
    let is_direct = geometry.is_signal()
        && geometry.stride[2] == 1
        && geometry.in_group() <= MAX_DIRECT_CHANNELS
        && (x.strides[4] == 1 || geometry.input[2] == 1);
    let order = if is_direct { Order::ChannelsFirst } else { Order::TapsFirst };
    let count = geometry.out_channels * geometry.in_group() * geometry.taps().len();
    let parts = geometry.batch.min(MAX_PARTS).min(PART_ELEMENTS / count).max(1);
    let part_items = geometry.batch.div_ceil(parts).max(1);
    let parts = geometry.batch.div_ceil(part_items);
    let mut sums: Vec<f32> = Vec::with_capacity(parts * count);
    let output = Output { data: sums.as_mut_ptr(), stride: count / geometry.out_channels.max(1) };
    // SAFETY (both): `sums` has room for all parts.
    match order {
        Order::ChannelsFirst => unsafe { direct_parts(x, dy, geometry, part_items, output) },
        Order::TapsFirst => unsafe { transposed_parts(x, dy, geometry, part_items, output) },
    }
    // SAFETY: all elements were written.
    unsafe { sums.set_len(parts * count) };
    match order {
        Order::ChannelsFirst => add_parts(&sums, count),
        Order::TapsFirst => {
            add_transposed_parts(&sums, count, geometry.taps().len(), geometry.in_group())
        }
    }
}

/// Order of a gradient's elements that belong to one output channel.
#[derive(Clone, Copy)]
enum Order {
    /// `[C/g, taps]`, as in the weight.
    ChannelsFirst,
    /// `[taps, C/g]`.
    TapsFirst,
}

/// Rows of output channels, of `blocks` a group, that are computed at once: all, unless there are
/// too few tasks for the threads.
fn block_rows(geometry: &Geometry, tasks: usize, flops: usize, multiple: usize) -> usize {
    let out_group = geometry.out_group();
    (multiple * threads::block(tasks, out_group.div_ceil(multiple), flops)).min(out_group)
}

/// Floating-point operations of a weight gradient.
fn flops(geometry: &Geometry) -> usize {
    let positions: usize = geometry.output.iter().product();
    let weights = geometry.out_channels * geometry.in_group() * geometry.taps().len();
    2 * geometry.batch * weights * positions
}

/// Writes the sums of all parts, `[O, C/g, taps]` each, for step 1 over time: dot products of the
/// gradient's channels and the padded input's, shifted, nothing transposed.
///
/// # Safety
/// The output must have room for all parts.
unsafe fn direct_parts(
    x: View<f32>,
    dy: View<f32>,
    geometry: &Geometry,
    part_items: usize,
    output: Output,
) {
    thread_local!(static PADDED: RefCell<Vec<f32>> = RefCell::default());
    let (groups, in_group, out_group) =
        (geometry.groups, geometry.in_group(), geometry.out_group());
    let parts = geometry.batch.div_ceil(part_items);
    let flops = flops(geometry);
    let block_rows = block_rows(geometry, groups * parts, flops, 4);
    let blocks = out_group.div_ceil(block_rows);
    let len = geometry.output[2] + geometry.span(2);
    let right_offsets = shifted_rows(geometry, len);
    let left_offsets: Vec<usize> = (0..block_rows).map(|row| row * dy.strides[1]).collect();
    threads::for_each(parts * groups * blocks, flops, |task| {
        let (part, index) = (task / (groups * blocks), task % (groups * blocks));
        let (group, first_row) = (index / blocks, index % blocks * block_rows);
        let first_channel = group * out_group + first_row;
        let items = part * part_items..geometry.batch.min((part + 1) * part_items);
        PADDED.with_borrow_mut(|padded| {
            padded.resize(items.len() * in_group * len, 0.0);
            for (item, padded) in items.clone().zip(padded.chunks_exact_mut(in_group * len)) {
                let data = x.channel(item, group * in_group);
                let position = -geometry.padding_before[2];
                copy_padded(data, x.strides[1], geometry, position, len, padded);
            }
            let left = DotRows {
                data: dy.channel(items.start, first_channel),
                item_stride: dy.strides[0],
                offsets: &left_offsets[..block_rows.min(out_group - first_row)],
            };
            let right =
                DotRows { data: padded, item_stride: in_group * len, offsets: &right_offsets };
            // SAFETY: the tasks write disjoint rows of the output, which has room for all of them.
            unsafe {
                let output = output.from(part * geometry.out_channels + first_channel, 0);
                dots(left, right, items.len(), geometry.output[2], output);
            }
        });
    });
}

/// Writes the sums of all parts, `[O, taps, C/g]` each.
///
/// # Safety
/// The output must have room for all parts.
unsafe fn transposed_parts(
    x: View<f32>,
    dy: View<f32>,
    geometry: &Geometry,
    part_items: usize,
    output: Output,
) {
    /// Working memory of a thread: the gradient and the input, arranged.
    type Scratch = (PackedLeft, Vec<f32>);
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

    let (groups, out_group) = (geometry.groups, geometry.out_group());
    let parts = geometry.batch.div_ceil(part_items);
    let positions: usize = geometry.output.iter().product();
    let flops = flops(geometry);
    let block_rows = block_rows(geometry, groups * parts, flops, TileSize::largest().rows);
    let blocks = out_group.div_ceil(block_rows);
    let transposed = Transposed::new(geometry);
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
                    // SAFETY: the tasks write disjoint rows of the output, which has room for all
                    // of them, and each row completely for its first item.
                    unsafe {
                        let row = part * geometry.out_channels + first_channel;
                        let output = output.from(row, *column);
                        multiply(left, &right, 0..*columns, start, output, &mut vec![]);
                    }
                }
            }
        });
    });
}

/// The sum of all parts, of `count` elements each.
fn add_parts(sums: &[f32], count: usize) -> Vec<f32> {
    let parts = sums.chunks_exact(count.max(1));
    let add = |first: usize, weight: &mut [MaybeUninit<f32>]| {
        for (i, weight) in weight.iter_mut().enumerate() {
            weight.write(parts.clone().map(|part| part[first + i]).sum());
        }
    };
    // SAFETY: `add` writes all elements.
    unsafe { write_pieces(count, add) }
}

/// The sum of all parts `[O, taps, C/g]` in the order `[O, C/g, taps]`.
fn add_transposed_parts(sums: &[f32], count: usize, taps: usize, in_group: usize) -> Vec<f32> {
    let len = taps * in_group;
    let parts = sums.chunks_exact(count.max(1));
    let add = |row: usize, weight: &mut [MaybeUninit<f32>]| {
        for (channel, weight) in weight.chunks_exact_mut(taps).enumerate() {
            for (tap, weight) in weight.iter_mut().enumerate() {
                let at = row * len + tap * in_group + channel;
                weight.write(parts.clone().map(|part| part[at]).sum());
            }
        }
    };
    // SAFETY: `add` writes its whole row.
    unsafe { write_rows(count / len.max(1), len, add) }
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
