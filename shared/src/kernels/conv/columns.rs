//! The column matrix of a convolution, which is never stored: its row `k` holds, for one channel
//! and tap, the element that the tap meets at each output position.

use std::ops::Range;

use super::Geometry;
use super::view::View;
use crate::kernels::gemm::{Right, RightMatrix, TileSize};

/// Offsets in the data of one item of the rows of a column matrix over time, for step 1: each row
/// is the channel's signal, shifted. Channels are `channel_stride` elements apart.
pub(super) fn shifted_rows(geometry: &Geometry, channel_stride: usize) -> Vec<usize> {
    let (taps, dilation) = (geometry.kernel[2], geometry.dilation[2]);
    (0..geometry.in_group())
        .flat_map(|channel| (0..taps).map(move |tap| channel * channel_stride + tap * dilation))
        .collect()
}

/// Copies `len` elements of each channel of a group, from `position` on, with zeros where there is
/// no signal, to `out` `[C/g, len]`.
pub(super) fn copy_padded(
    data: &[f32],
    channel_stride: usize,
    geometry: &Geometry,
    position: isize,
    len: usize,
    out: &mut [f32],
) {
    for (channel, out) in out.chunks_exact_mut(len).enumerate() {
        copy_run(&data[channel * channel_stride..][..geometry.input[2]], position, out);
    }
}

/// Copies the elements of `signal` from `position` on, with zeros where there is none.
pub(super) fn copy_run(signal: &[f32], position: isize, out: &mut [f32]) {
    let before = position.clamp(-(out.len() as isize), 0).unsigned_abs();
    let signal = usize::try_from(position).map_or(signal, |at| signal.get(at..).unwrap_or(&[]));
    let inner = signal.len().min(out.len() - before);
    out[..before].fill(0.0);
    out[before..before + inner].copy_from_slice(&signal[..inner]);
    out[before + inner..].fill(0.0);
}

/// A column matrix that is gathered a panel at a time.
pub(super) struct Patches<'a> {
    /// The input's elements from the first of the group's first channel on.
    data: &'a [f32],
    plan: &'a PatchPlan<'a>,
}

/// What the [`Patches`] of all items share.
pub(super) struct PatchPlan<'a> {
    geometry: &'a Geometry,
    strides: [usize; 5],
    panel_width: usize,
    /// Offset of each row in a packed panel.
    offsets: Vec<usize>,
    /// Offset of each row's channel, and its tap's distance from the first along each axis.
    rows: Vec<(usize, [isize; 3])>,
}

impl<'a> PatchPlan<'a> {
    /// The plan for inputs with the strides of `x`.
    pub fn new(x: &View<f32>, geometry: &'a Geometry) -> Self {
        let panel_width = TileSize::largest().columns;
        let rows: Vec<_> = (0..geometry.in_group())
            .flat_map(|channel| geometry.taps().map(move |tap| (channel, tap)))
            .map(|(channel, tap)| {
                let distance =
                    std::array::from_fn(|axis| (tap[axis] * geometry.dilation[axis]) as isize);
                (channel * x.strides[1], distance)
            })
            .collect();
        let offsets = (0..rows.len()).map(|row| row * panel_width).collect();
        Self { geometry, strides: x.strides, panel_width, offsets, rows }
    }

    /// The matrix of the item whose first channel `data` starts with.
    pub fn of(&'a self, data: &'a [f32]) -> Patches<'a> {
        Patches { data, plan: self }
    }
}

/// Neighbouring columns whose positions differ along the last axis only.
struct Run {
    columns: Range<usize>,
    /// First input position that the first tap meets (before padding is taken off).
    position: [isize; 3],
}

impl PatchPlan<'_> {
    fn runs(&self, columns: Range<usize>) -> Vec<Run> {
        let [_, height, width] = self.geometry.output;
        let first = columns.start;
        let mut runs = vec![];
        let mut column = columns.start;
        while column < columns.end {
            let (row, at) = (column / width, column % width);
            let end = columns.end.min(column + width - at);
            let output = [row / height, row % height, at];
            runs.push(Run {
                columns: column - first..end - first,
                position: std::array::from_fn(|axis| {
                    (output[axis] * self.geometry.stride[axis]) as isize
                        - self.geometry.padding_before[axis]
                }),
            });
            column = end;
        }
        runs
    }
}

impl RightMatrix for Patches<'_> {
    fn panel<'a>(
        &'a self,
        depth: Range<usize>,
        columns: Range<usize>,
        buffer: &'a mut Vec<f32>,
    ) -> Right<'a> {
        let plan = self.plan;
        let [_, _, d_stride, h_stride, w_stride] = plan.strides;
        let [d_size, h_size, w_size] = plan.geometry.input;
        let step = plan.geometry.stride[2];
        let inside = |at: isize, size: usize| usize::try_from(at).ok().filter(|&at| at < size);

        let count = columns.len();
        let runs = plan.runs(columns);
        buffer.resize(depth.len() * plan.panel_width, 0.0);
        let rows = buffer.chunks_exact_mut(plan.panel_width).zip(&plan.rows[depth.clone()]);
        for (out, &(channel, tap)) in rows {
            for run in &runs {
                let out = &mut out[run.columns.clone()];
                let at: [isize; 3] = std::array::from_fn(|axis| run.position[axis] + tap[axis]);
                let (Some(d), Some(h)) = (inside(at[0], d_size), inside(at[1], h_size)) else {
                    out.fill(0.0);
                    continue;
                };
                let row = &self.data[channel + d * d_stride + h * h_stride..];
                if step == 1 && w_stride == 1 {
                    copy_run(&row[..w_size], at[2], out);
                } else {
                    for (i, out) in out.iter_mut().enumerate() {
                        let w = inside(at[2] + (i * step) as isize, w_size);
                        *out = w.map_or(0.0, |w| row[w * w_stride]);
                    }
                }
            }
        }
        Right::new(buffer, &plan.offsets[..depth.len()], count)
    }
}
