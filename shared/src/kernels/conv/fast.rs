//! Convolution in `f32`: packed weights times the virtual column matrix, or [`winograd`].
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::columns::{PatchPlan, copy_padded, shifted_rows};
use super::view::View;
use super::winograd::{self, PlainKernel, Tiles, TransformedKernel};
use super::{Geometry, scatter};
use crate::kernels::epilogue::Epilogue;
use crate::kernels::gemm::{Matrix, Output, PackedLeft, Rows, Start, TileSize, multiply, threads};
use crate::kernels::parallel::{get_or_make, write_rows};

/// A weight, arranged for the tiles.
#[derive(Debug)]
pub(super) enum PackedWeight {
    /// A left matrix for each group.
    Groups(Vec<PackedLeft>),
    /// Transformed.
    Winograd(TransformedKernel),
}

impl PackedWeight {
    /// The weight of the forward pass, in the form for this geometry.
    pub fn new(weight: View<f32>, geometry: &Geometry) -> Self {
        Self::for_tiles(weight, geometry, Tiles::of(geometry))
    }

    /// The weight of the forward pass, for these tiles: rows are output channels, columns are input
    /// channels and taps.
    fn for_tiles(weight: View<f32>, geometry: &Geometry, tiles: Option<Tiles>) -> Self {
        let [out_stride, in_stride, ..] = weight.strides;
        let rows = Axis { len: geometry.out_group(), stride: out_stride };
        let columns = Axis { len: geometry.in_group(), stride: in_stride };
        let taps = tap_offsets(&weight, geometry);
        Self::pack(weight, geometry, rows, columns, &taps, tiles)
    }

    /// The weight of the convolution, of step 1, that computes the input gradient: rows are input
    /// channels, columns are output channels and taps, backwards.
    pub fn backwards(weight: View<f32>, geometry: &Geometry) -> Self {
        let [out_stride, in_stride, ..] = weight.strides;
        let rows = Axis { len: geometry.in_group(), stride: in_stride };
        let columns = Axis { len: geometry.out_group(), stride: out_stride };
        let mut taps = tap_offsets(&weight, geometry);
        taps.reverse();
        let tiles = geometry.backwards().and_then(|it| Tiles::of(&it));
        Self::pack(weight, geometry, rows, columns, &taps, tiles)
    }

    fn pack(
        weight: View<f32>,
        geometry: &Geometry,
        rows: Axis,
        columns: Axis,
        taps: &[usize],
        tiles: Option<Tiles>,
    ) -> Self {
        if let Some(tiles) = tiles {
            let kernel = PlainKernel {
                data: weight.data,
                rows: rows.len,
                row_stride: rows.stride,
                columns: columns.len,
                column_stride: columns.stride,
                taps,
            };
            let kernel = TransformedKernel::new(tiles, &kernel);
            return Self::Winograd(kernel);
        }
        // How far apart neighbours in a row lie, channels and taps together, when all are equally
        // far: then the weight is packed from where it is.
        let in_order = taps.iter().copied().eq(0..taps.len());
        let joint_stride = match taps.len() {
            1 => Some(columns.stride),
            count if in_order && (columns.len == 1 || columns.stride == count) => Some(1),
            _ => None,
        };
        let count = columns.len * taps.len();
        let pack = |group| {
            let data = weight.channel(group * geometry.out_group(), 0);
            if let Some(column_stride) = joint_stride {
                let (rows, row_stride) = (rows.len, rows.stride);
                let columns = count;
                return PackedLeft::new(Matrix { data, rows, columns, row_stride, column_stride });
            }
            let gather = |row: usize, out: &mut [MaybeUninit<f32>]| {
                for (column, out) in out.chunks_exact_mut(taps.len()).enumerate() {
                    let channel = &data[row * rows.stride + column * columns.stride..];
                    out.iter_mut().zip(taps).for_each(|(out, tap)| _ = out.write(channel[*tap]));
                }
            };
            // SAFETY: `gather` writes its whole row.
            let matrix = unsafe { write_rows(rows.len, count, gather) };
            PackedLeft::new(Matrix::row_major(&matrix, rows.len, count))
        };
        Self::Groups((0..geometry.groups).map(pack).collect())
    }
}

/// The forms of a weight that does not change.
#[derive(Debug)]
pub(crate) enum PackedForms {
    /// Each packed when it is needed first.
    All {
        /// For no tiles.
        groups: OnceLock<PackedWeight>,
        /// For [`Tiles::Line`].
        line: OnceLock<PackedWeight>,
        /// For [`Tiles::Square`].
        square: OnceLock<PackedWeight>,
    },
    /// One that serves inputs of all sizes.
    One(PackedWeight),
}

impl Default for PackedForms {
    fn default() -> Self {
        let [groups, line, square] = [const { OnceLock::new() }; 3];
        Self::All { groups, line, square }
    }
}

impl PackedForms {
    /// The one form for a layer with the groups, steps and dilations of `geometry`: transformed where
    /// it can be.
    pub fn one(weight: View<f32>, geometry: &Geometry) -> Self {
        Self::One(PackedWeight::for_tiles(weight, geometry, Tiles::fitting(geometry)))
    }

    /// The form of the forward pass with this geometry; `weight` is always the same.
    pub fn get(&self, weight: View<f32>, geometry: &Geometry) -> &PackedWeight {
        let form = match (self, Tiles::of(geometry)) {
            (Self::One(form), _) => return form,
            (Self::All { groups, .. }, None) => groups,
            (Self::All { line, .. }, Some(Tiles::Line)) => line,
            (Self::All { square, .. }, Some(Tiles::Square)) => square,
        };
        get_or_make(form, || PackedWeight::new(weight, geometry))
    }

    /// Whether there is only one.
    pub fn is_one(&self) -> bool {
        matches!(self, Self::One(_))
    }
}

/// Channels along one side of a weight.
#[derive(Clone, Copy)]
struct Axis {
    len: usize,
    stride: usize,
}

/// Where the taps of a channel of the weight lie, from its first.
fn tap_offsets(weight: &View<f32>, geometry: &Geometry) -> Vec<usize> {
    let [_, _, d_stride, h_stride, w_stride] = weight.strides;
    geometry.taps().map(|[d, h, w]| d * d_stride + h * h_stride + w * w_stride).collect()
}

/// How the column matrix is read.
enum Columns<'a> {
    /// Where the input lies, from `skip` elements after an item's first.
    Direct { offsets: Vec<usize>, skip: usize },
    /// From a copy of the part of the signal that a task reads, with its padding; of each channel
    /// `len` elements.
    Padded { offsets: Vec<usize>, len: usize },
    /// Gathered a panel at a time.
    Patches(PatchPlan<'a>),
}

impl<'a> Columns<'a> {
    fn plan(x: &View<f32>, geometry: &'a Geometry, block_columns: usize) -> Self {
        if geometry.is_pointwise() && x.is_space_contiguous(geometry.input) {
            return Self::Direct { offsets: shifted_rows(geometry, x.strides[1]), skip: 0 };
        }
        let is_signal = geometry.is_signal() && geometry.stride[2] == 1 && x.strides[4] == 1;
        if !is_signal {
            return Self::Patches(PatchPlan::new(x, geometry));
        }
        let span = geometry.span(2);
        match usize::try_from(-geometry.padding_before[2]) {
            Ok(skip) if skip + geometry.output[2] + span <= geometry.input[2] => {
                Self::Direct { offsets: shifted_rows(geometry, x.strides[1]), skip }
            }
            _ => {
                let len = block_columns + span;
                Self::Padded { offsets: shifted_rows(geometry, len), len }
            }
        }
    }
}

/// The convolution of `x` with a packed weight, contiguous.
pub(super) fn forward(
    x: View<f32>,
    weight: &PackedWeight,
    bias: Option<&[f32]>,
    geometry: &Geometry,
    epilogue: Epilogue,
) -> Vec<f32> {
    /// Working memory of a thread: panels, and padded signals.
    type Scratch = (Vec<f32>, Vec<f32>);
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());

    let weight = match weight {
        PackedWeight::Groups(weight) => weight,
        PackedWeight::Winograd(kernel) => {
            return winograd::forward(x, kernel, bias, geometry, epilogue);
        }
    };
    let (rows, groups) = (geometry.out_group(), geometry.groups);
    let positions: usize = geometry.output.iter().product();
    let count = geometry.batch * geometry.out_channels * positions;
    let flops = 2 * count * geometry.in_group() * geometry.taps().len();
    let items = geometry.batch * groups;
    let tile = TileSize::largest().columns;
    let block = tile * threads::block(items, positions.div_ceil(tile), flops);
    let blocks = positions.div_ceil(block);
    let columns = Columns::plan(&x, geometry, block.min(positions));

    let mut y = Vec::with_capacity(count);
    let output = Output { data: y.as_mut_ptr(), stride: positions };
    threads::for_each(items * blocks, flops, |task| {
        let (item, first) = (task / blocks, task % blocks * block);
        let (item, group) = (item / groups, item % groups);
        let part = first..positions.min(first + block);
        let data = x.channel(item, group * geometry.in_group());
        let left = &weight[group];
        let start = bias.map_or(Start::Zero, |bias| Start::RowBias(&bias[group * rows..]));
        SCRATCH.with_borrow_mut(|(panel, signals)| {
            // SAFETY: the tasks write disjoint parts of `y`, which has room for all of them.
            unsafe {
                let output = output.from(item * geometry.out_channels + group * rows, 0);
                match &columns {
                    Columns::Direct { offsets, skip } => {
                        let right = Rows { data: &data[*skip..], offsets };
                        multiply(left, &right, part.clone(), start, output, panel);
                    }
                    Columns::Padded { offsets, len } => {
                        let position = first as isize - geometry.padding_before[2];
                        signals.resize(geometry.in_group() * len, 0.0);
                        copy_padded(data, x.strides[1], geometry, position, *len, signals);
                        let right = Rows { data: signals, offsets };
                        multiply(left, &right, 0..part.len(), start, output.from(0, first), panel);
                    }
                    Columns::Patches(plan) => {
                        multiply(left, &plan.of(data), part.clone(), start, output, panel);
                    }
                }
                for row in 0..rows {
                    let elements = output.from(row, first).data;
                    let elements = std::slice::from_raw_parts_mut(elements, part.len());
                    let channel = group * rows + row;
                    let start = (item * geometry.out_channels + channel) * positions + first;
                    epilogue.finish(elements, channel, start);
                }
            }
        });
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { y.set_len(count) };
    y
}

/// Gradient at the input, contiguous, from the gradient `dy` at the output, whose space is
/// contiguous.
pub(super) fn input_gradient(dy: View<f32>, weight: View<f32>, geometry: &Geometry) -> Vec<f32> {
    match geometry.backwards() {
        Some(backwards) => {
            let packed = PackedWeight::backwards(weight, geometry);
            forward(dy, &packed, None, &backwards, Epilogue::default())
        }
        None => scatter::input_gradient(dy, weight, geometry),
    }
}
