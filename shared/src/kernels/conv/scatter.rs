//! The input gradient of a convolution with any step: the transposed weight times the gradient
//! gives what each tap sends back, which is then added where the tap met the input.
#![allow(unsafe_code)]

use std::cell::RefCell;

use super::Geometry;
use super::view::View;
use crate::kernels::gemm::{Matrix, Output, PackedLeft, Rows, Start, multiply, threads};

/// Elements sent back that are held at once: 1 MiB.
const BLOCK_ELEMENTS: usize = 1 << 18;

/// Gradient at the input, contiguous, from the gradient `dy` at the output, whose space is
/// contiguous.
pub(super) fn input_gradient(dy: View<f32>, weight: View<f32>, geometry: &Geometry) -> Vec<f32> {
    type Scratch = (Vec<f32>, Vec<f32>);
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

    let (groups, in_group, out_group) =
        (geometry.groups, geometry.in_group(), geometry.out_group());
    let taps: Vec<_> = geometry.taps().collect();
    let positions: usize = geometry.output.iter().product();
    let space: usize = geometry.input.iter().product();
    let block = (BLOCK_ELEMENTS / (taps.len() * positions)).clamp(1, in_group);
    let blocks = in_group.div_ceil(block);
    let packed: Vec<PackedLeft> = (0..groups * blocks)
        .map(|index| {
            let (group, first) = (index / blocks, index % blocks * block);
            let channels = first..in_group.min(first + block);
            let rows = channels.len() * taps.len();
            let mut matrix = Vec::with_capacity(rows * out_group);
            for (channel, [d, h, w]) in channels.flat_map(|c| taps.iter().map(move |&tap| (c, tap)))
            {
                let row =
                    (0..out_group).map(|o| weight.at([group * out_group + o, channel, d, h, w]));
                matrix.extend(row);
            }
            PackedLeft::new(Matrix::row_major(&matrix, rows, out_group))
        })
        .collect();
    let offsets: Vec<usize> = (0..out_group).map(|o| o * dy.strides[1]).collect();

    let count = geometry.batch * geometry.in_channels * space;
    let flops = 2 * geometry.batch * geometry.out_channels * positions * in_group * taps.len();
    let mut dx: Vec<f32> = Vec::with_capacity(count);
    let output = Output { data: dx.as_mut_ptr(), stride: space };
    threads::for_each(geometry.batch * groups * blocks, flops, |task| {
        let (item, index) = (task / (groups * blocks), task % (groups * blocks));
        let (group, first) = (index / blocks, index % blocks * block);
        let left = &packed[index];
        let right = Rows { data: dy.channel(item, group * out_group), offsets: &offsets };
        SCRATCH.with_borrow_mut(|(panel, sent)| {
            sent.resize(left.rows() * positions, 0.0);
            let target = Output { data: sent.as_mut_ptr(), stride: positions };
            let channels = left.rows() / taps.len();
            // SAFETY: `sent` has the size of the product. The tasks write disjoint channels of
            // `dx`, which has room for all of them.
            let dx = unsafe {
                multiply(left, &right, 0..positions, Start::Zero, target, panel);
                let row = item * geometry.in_channels + group * in_group + first;
                let dx = output.from(row, 0).data;
                dx.write_bytes(0, channels * space);
                std::slice::from_raw_parts_mut(dx, channels * space)
            };
            for (dx, sent) in
                dx.chunks_exact_mut(space).zip(sent.chunks_exact(taps.len() * positions))
            {
                for (&tap, sent) in taps.iter().zip(sent.chunks_exact(positions)) {
                    add_tap(geometry, tap, sent, dx);
                }
            }
        });
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { dx.set_len(count) };
    dx
}

/// Adds what `tap` sends back from all output positions to a channel's gradient.
fn add_tap(geometry: &Geometry, tap: [usize; 3], sent: &[f32], dx: &mut [f32]) {
    let [_, height, width] = geometry.output;
    let [_, in_height, in_width] = geometry.input;
    // Outputs of a row whose tap meets the input: all between the first and the last that do.
    let meets = |w: &usize| geometry.met(2, *w, tap[2]).is_some();
    let (Some(first), Some(last)) = ((0..width).find(meets), (0..width).rev().find(meets)) else {
        return;
    };
    let start = geometry.met(2, first, tap[2]).unwrap_or(0);
    for (row, sent) in sent.chunks_exact(width).enumerate() {
        let (d, h) = (geometry.met(0, row / height, tap[0]), geometry.met(1, row % height, tap[1]));
        let (Some(d), Some(h)) = (d, h) else { continue };
        let dx = &mut dx[(d * in_height + h) * in_width..][..in_width][start..];
        for (dx, &sent) in dx.iter_mut().step_by(geometry.stride[2]).zip(&sent[first..=last]) {
            *dx += sent;
        }
    }
}
