//! Convolution in narrow numbers: packed weights times the virtual column matrix, whose rows are
//! shifted rows of the input in words.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ops::Range as Indices;

use super::Geometry;
use super::view::View;
use crate::Result;
use crate::kernels::epilogue::Epilogue;
use crate::kernels::gemm::threads;
use crate::kernels::isa::InstructionSet;
use crate::kernels::narrow::{
    Format, Operands, PackedLeft, Range, Right, RightMatrix, Rounding, SLACK, Scaling, Sums, Tiles,
    WeightRows, multiply,
};
use crate::kernels::parallel::{fill_rows, map_rows};

/// A weight in narrow numbers, arranged for the tiles of an instruction set.
#[derive(Debug)]
pub(crate) struct NarrowWeight {
    format: Format,
    tiles: Tiles,
    /// One left matrix for each group: rows are output channels, columns are groups of input
    /// channels that share a word, and taps.
    groups: Vec<PackedLeft>,
    scaling: Scaling,
}

impl NarrowWeight {
    /// The weight, contiguous, of a convolution with these sizes.
    ///
    /// # Errors
    /// When sums could overflow.
    pub fn new(
        format: Format,
        set: InstructionSet,
        weight: &[f32],
        geometry: &Geometry,
    ) -> Result<Self> {
        let tiles = Tiles::of(set);
        let sizes = [geometry.out_channels, geometry.in_group(), geometry.taps().len()];
        let WeightRows { words, depth, scaling } = WeightRows::new(format, weight, sizes)?;
        let rows = geometry.out_group();
        let pack = |group| {
            let mut packed = PackedLeft::default();
            packed.pack(tiles, [rows, depth], |row, out| {
                out.copy_from_slice(&words[(group * rows + row) * depth..][..depth]);
            });
            packed
        };
        Ok(Self { format, tiles, groups: (0..geometry.groups).map(pack).collect(), scaling })
    }
}

/// The input in words, with its padding: a plane for each group of channels that share a word.
struct Planes {
    /// Planes of an item.
    count: usize,
    /// Groups of channels that share a word, in each group of the convolution.
    per_group: usize,
    /// Spatial size of a plane: all positions that a tap meets.
    size: [usize; 3],
}

impl Planes {
    fn new(geometry: &Geometry, format: Format) -> Self {
        let per_group = geometry.in_group().div_ceil(format.parts());
        let size = std::array::from_fn(|axis| {
            (geometry.output[axis] - 1) * geometry.stride[axis] + geometry.span(axis) + 1
        });
        Self { count: geometry.groups * per_group, per_group, size }
    }

    /// Words in a plane.
    fn len(&self) -> usize {
        self.size.iter().product()
    }

    /// Writes plane number `plane` of `item`.
    fn fill(
        &self,
        x: &View<f32>,
        geometry: &Geometry,
        rounding: Rounding,
        parts: usize,
        [item, plane]: [usize; 2],
        out: &mut [u32],
    ) {
        let (group, first) = (plane / self.per_group, plane % self.per_group * parts);
        let [depth, height, width] = geometry.input;
        let [d_pad, h_pad, w_pad] = geometry.padding_before.map(|before| before.max(0) as usize);
        let before = w_pad.min(self.size[2]);
        let inner = width.min(self.size[2] - before);
        let missing = vec![0.0; inner];
        for (row, out) in out.chunks_exact_mut(self.size[2]).enumerate() {
            let d = (row / self.size[1]).checked_sub(d_pad).filter(|&d| d < depth);
            let h = (row % self.size[1]).checked_sub(h_pad).filter(|&h| h < height);
            let (Some(d), Some(h)) = (d, h) else {
                out.fill(rounding.zeros());
                continue;
            };
            let channels = [0, 1, 2, 3].map(|part| {
                let channel = first + part;
                if part >= parts || channel >= geometry.in_group() {
                    return &missing[..];
                }
                let data = x.channel(item, group * geometry.in_group() + channel);
                &data[d * x.strides[2] + h * x.strides[3]..][..inner]
            });
            out[..before].fill(rounding.zeros());
            rounding.interleave(channels, &mut out[before..before + inner]);
            out[before + inner..].fill(rounding.zeros());
        }
    }

    /// Offsets in the planes of a group of the rows of the column matrix.
    fn rows(&self, geometry: &Geometry) -> Vec<usize> {
        let [_, height, width] = self.size;
        (0..self.per_group)
            .flat_map(|plane| geometry.taps().map(move |tap| (plane, tap)))
            .map(|(plane, tap)| {
                let [d, h, w] = std::array::from_fn(|axis| tap[axis] * geometry.dilation[axis]);
                plane * self.len() + (d * height + h) * width + w
            })
            .collect()
    }
}

/// The column matrix of a group, whose rows start at `offsets` in its planes.
struct Columns<'a> {
    planes: &'a [u32],
    offsets: &'a [usize],
    /// How columns are gathered, when they are not the positions of a plane in order.
    gathering: Option<&'a Gathering<'a>>,
}

/// How the columns of a panel are gathered.
struct Gathering<'a> {
    geometry: &'a Geometry,
    /// Spatial size of a plane.
    size: [usize; 3],
    panel_width: usize,
    /// Offset of each row in a gathered panel.
    offsets: Vec<usize>,
}

/// Words that are copied at once, needed or not.
const CHUNK: usize = 16;

impl<'a> Gathering<'a> {
    /// The gathering of a convolution's columns; none when they are the positions of a plane in
    /// order.
    fn plan(
        geometry: &'a Geometry,
        planes: &Planes,
        depth: usize,
        panel_width: usize,
    ) -> Option<Self> {
        let [depths, heights, _] = geometry.output;
        let rows_follow = depths * heights == 1 || planes.size[2] == geometry.output[2];
        let layers_follow = depths == 1 || planes.size[1] == heights;
        if geometry.stride == [1; 3] && rows_follow && layers_follow {
            return None;
        }
        let offsets = (0..depth).map(|k| k * panel_width).collect();
        Some(Self { geometry, size: planes.size, panel_width, offsets })
    }

    /// The position in a plane of an output's first tap.
    fn position(&self, column: usize) -> usize {
        let [_, heights, widths] = self.geometry.output;
        let row = column / widths;
        let [d, h, w] = [row / heights, row % heights, column % widths];
        let [d_step, h_step, w_step] = self.geometry.stride;
        (d * d_step * self.size[1] + h * h_step) * self.size[2] + w * w_step
    }

    /// Where to copy each chunk of the columns to, and from where.
    fn chunks(&self, columns: Indices<usize>) -> Vec<(usize, usize)> {
        let width = self.geometry.output[2];
        let mut chunks = vec![];
        let mut column = columns.start;
        while column < columns.end {
            let end = columns.end.min((column / width + 1) * width).min(column + CHUNK);
            chunks.push((column - columns.start, self.position(column)));
            column = end;
        }
        chunks
    }
}

impl RightMatrix for Columns<'_> {
    fn panel<'a>(&'a self, columns: Indices<usize>, buffer: &'a mut Vec<u32>) -> Right<'a> {
        let Some(gathering) = self.gathering else {
            return Right { data: &self.planes[columns.start..], offsets: self.offsets };
        };
        let width = gathering.panel_width;
        buffer.resize(self.offsets.len() * width + SLACK, 0);
        if gathering.geometry.stride[2] == 1 {
            let chunks = gathering.chunks(columns);
            for (k, &offset) in self.offsets.iter().enumerate() {
                for &(to, from) in &chunks {
                    // What is too much is overwritten by the next chunk, or row.
                    let chunk = &self.planes[offset + from..][..CHUNK];
                    buffer[k * width + to..][..CHUNK].copy_from_slice(chunk);
                }
            }
        } else {
            let positions: Vec<usize> = columns.map(|c| gathering.position(c)).collect();
            for (out, &offset) in buffer.chunks_exact_mut(width).zip(self.offsets) {
                let row = &self.planes[offset..];
                for (out, &position) in out.iter_mut().zip(&positions) {
                    *out = row[position];
                }
            }
        }
        Right { data: buffer, offsets: &gathering.offsets }
    }
}

/// The convolution of `x`, whose last dimension is contiguous, with a weight, contiguous.
pub(super) fn forward(
    x: View<f32>,
    weight: &NarrowWeight,
    bias: Option<&[f32]>,
    geometry: &Geometry,
    epilogue: Epilogue,
) -> Vec<f32> {
    thread_local!(static PANEL: RefCell<Vec<u32>> = RefCell::default());

    let NarrowWeight { format, tiles, groups: left, scaling } = weight;
    let (rows, groups) = (geometry.out_group(), geometry.groups);
    let positions: usize = geometry.output.iter().product();
    let planes = Planes::new(geometry, *format);
    let offsets = planes.rows(geometry);
    let gathering = Gathering::plan(geometry, &planes, offsets.len(), tiles.columns);
    let operands = match format {
        Format::Bf16 => Operands::Bf16,
        Format::Int8 => Operands::SignedUnsigned,
    };

    // As many items at once as keep all threads busy, so that their words stay in the cache.
    let wave = geometry.batch.min(4 * rayon::current_num_threads());
    let mut words = vec![0; wave * planes.count * planes.len() + SLACK];
    let count = geometry.batch * geometry.out_channels * positions;
    let mut y: Vec<f32> = Vec::with_capacity(count);
    let sums = Sums { data: y.as_mut_ptr().cast(), stride: positions };
    for first in (0..geometry.batch).step_by(wave.max(1)) {
        let items = wave.min(geometry.batch - first);
        let roundings = roundings(&x, geometry, *format, first..first + items);
        let filled = &mut words[..items * planes.count * planes.len()];
        fill_rows(filled, planes.len(), |row, out| {
            let (item, plane) = (row / planes.count, row % planes.count);
            let at = [first + item, plane];
            planes.fill(&x, geometry, roundings[item], format.parts(), at, out);
        });

        let flops = 2 * items * geometry.out_channels * positions * offsets.len() * format.parts();
        let block = positions
            .div_ceil(threads::parts(items * groups, flops))
            .next_multiple_of(tiles.columns);
        let blocks = positions.div_ceil(block);
        threads::for_each(items * groups * blocks, flops, |task| {
            let (item, column) = (task / blocks, task % blocks * block);
            let (item, group) = (item / groups, item % groups);
            let part = column..positions.min(column + block);
            let right = Columns {
                planes: &words[(item * planes.count + group * planes.per_group) * planes.len()..],
                offsets: &offsets,
                gathering: gathering.as_ref(),
            };
            PANEL.with_borrow_mut(|panel| {
                let first_row = (first + item) * geometry.out_channels + group * rows;
                // SAFETY: the tasks write disjoint parts of `y`, which has room for all of them.
                unsafe {
                    let sums = sums.from(first_row, 0);
                    multiply(*tiles, operands, &left[group], &right, part.clone(), sums, panel);
                    for row in 0..rows {
                        let start = sums.from(row, part.start).data.cast::<f32>();
                        let row_sums = std::slice::from_raw_parts_mut(start, part.len());
                        let channel = group * rows + row;
                        scaling.finish_channel(row_sums, roundings[item], channel, bias);
                        let at = (first_row + row) * positions + part.start;
                        epilogue.finish(row_sums, channel, at);
                    }
                }
            });
        });
    }
    // SAFETY: the tasks wrote all elements.
    unsafe { y.set_len(count) };
    y
}

/// How each of some items is rounded.
fn roundings(
    x: &View<f32>,
    geometry: &Geometry,
    format: Format,
    items: Indices<usize>,
) -> Vec<Rounding> {
    if format == Format::Bf16 {
        return vec![Rounding::Bf16; items.len()];
    }
    let (channels, [depth, height, width]) = (geometry.in_channels, geometry.input);
    let ranges = map_rows(items.len() * channels, depth * height * width, |row| {
        let data = x.channel(items.start + row / channels, row % channels);
        let rows = (0..depth).flat_map(|d| (0..height).map(move |h| (d, h)));
        rows.map(|(d, h)| Range::of(&data[d * x.strides[2] + h * x.strides[3]..][..width]))
            .fold(Range::ZERO, Range::union)
    });
    let range = |item: usize| {
        ranges[item * channels..][..channels].iter().copied().fold(Range::ZERO, Range::union)
    };
    (0..items.len()).map(|item| Rounding::new(format, || range(item))).collect()
}
