//! Convolution with kernels of 3 or 3 x 3 elements by Winograd's minimal filtering (Lavin and Gray
//! 2016, "Fast algorithms for convolutional neural networks", sections 3 and 4.1).
//!
//! The output is computed in tiles. The elements that a tile depends on are transformed, multiplied
//! place by place with the transformed kernel, summed over channels, and transformed back. Tiles of
//! 2 in time take 4 products for each pair of channels where the definition has 6, tiles of 2 x 2 in
//! a picture 16 where it has 36. The transforms of the input add and subtract only, so that rounding
//! grows little; larger tiles would save more products, but their larger factors cost accuracy.
#![allow(unsafe_code)]

mod line;
mod square;

use std::cell::RefCell;

use rayon::prelude::*;

use super::Geometry;
use super::view::View;
use crate::kernels::activation::Activation;
use crate::kernels::gemm::{Matrix, Output, PackedLeft, Rows, Start, multiply};
use crate::kernels::real::Real;
use crate::kernels::vectorised::vectorised;

/// Fewest channels, read and written, for which the products outweigh the transforms.
const MIN_CHANNELS: usize = 64;

/// Fewest tiles of a picture, and in time, for which it pays to transform the kernel.
const MIN_SQUARES: usize = 128;
const MIN_LINES: usize = 512;

/// Tiles that are transformed at once, at most: the more, the less often the kernel is read; the
/// fewer, the longer they stay in the cache.
const BLOCK_TILES: usize = 64;

/// Elements between the places of transformed tiles beside those that are used: without them, all
/// places would fall on the same lines of the cache.
const SPACING: usize = 16;

/// How the output is cut into tiles.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tiles {
    /// Of 2 elements, a dilation apart, in time.
    Line,
    /// Of 2 x 2 elements of a picture.
    Square,
}

impl Tiles {
    /// The tiles that a convolution is computed with, if it is computed here.
    pub fn of(geometry: &Geometry) -> Option<Self> {
        let fits = geometry.stride == [1; 3]
            && geometry.groups == 1
            && geometry.in_channels.min(geometry.out_channels) >= MIN_CHANNELS;
        let is_picture = geometry.kernel == [1, 3, 3]
            && geometry.dilation == [1; 3]
            && geometry.padding_before[0] == 0
            && geometry.input[0] == geometry.output[0]
            && square::tiles(geometry) >= MIN_SQUARES;
        let is_signal = geometry.kernel == [1, 1, 3]
            && geometry.is_signal()
            && geometry.batch * line::tiles(geometry) >= MIN_LINES
            && line::share_of_use(geometry) >= 0.75;
        match (fits, is_signal, is_picture) {
            (true, true, _) => Some(Self::Line),
            (true, _, true) => Some(Self::Square),
            _ => None,
        }
    }
}

/// A transformed kernel: for each place of a tile, a matrix `[O, C]`.
#[derive(Debug)]
pub(super) struct TransformedKernel {
    tiles: Tiles,
    places: Vec<PackedLeft>,
}

impl TransformedKernel {
    /// Transforms a kernel for `tiles`; `element(row, column, tap)` is its element from output
    /// channel `row` and input channel `column`.
    pub fn new(
        tiles: Tiles,
        rows: usize,
        columns: usize,
        element: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let element = &element;
        let places = match tiles {
            Tiles::Line => transform(rows, columns, |row, column| {
                transform_taps(std::array::from_fn(|tap| element(row, column, tap)))
            }),
            Tiles::Square => transform(rows, columns, |row, column| {
                square::transform_kernel(std::array::from_fn(|tap| element(row, column, tap)))
            }),
        };
        Self { tiles, places }
    }
}

/// For each place, the matrix of what `tile(row, column)` gives for it.
fn transform<const PLACES: usize>(
    rows: usize,
    columns: usize,
    tile: impl Fn(usize, usize) -> [f32; PLACES] + Sync,
) -> Vec<PackedLeft> {
    // `[O, places, C]`
    let mut transformed = vec![0.0; rows * PLACES * columns];
    transformed.par_chunks_exact_mut(PLACES * columns).enumerate().for_each(|(row, out)| {
        for column in 0..columns {
            let places = out[column..].iter_mut().step_by(columns);
            places.zip(tile(row, column)).for_each(|(out, value)| *out = value);
        }
    });
    let matrix = |place: usize| Matrix {
        data: &transformed[place * columns..],
        rows,
        columns,
        row_stride: PLACES * columns,
        column_stride: 1,
    };
    (0..PLACES).into_par_iter().map(|place| PackedLeft::new(matrix(place))).collect()
}

/// `G g` of 3 taps.
fn transform_taps([a, b, c]: [f32; 3]) -> [f32; 4] {
    [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c]
}

/// The convolution of `x` with a transformed kernel, contiguous.
pub(super) fn forward(
    x: View<f32>,
    kernel: &TransformedKernel,
    bias: Option<&[f32]>,
    geometry: &Geometry,
    activation: Activation,
) -> Vec<f32> {
    match kernel.tiles {
        Tiles::Line => line::forward(x, &kernel.places, bias, geometry, activation),
        Tiles::Square => square::forward(x, &kernel.places, bias, geometry, activation),
    }
}

/// Transformed tiles: of each place, of each channel, a number for each tile of a block.
struct Transformed<'a> {
    data: &'a mut Vec<f32>,
    channels: usize,
    block: usize,
}

impl<'a> Transformed<'a> {
    fn new(data: &'a mut Vec<f32>, places: usize, channels: usize, block: usize) -> Self {
        data.resize(places * (channels * block + SPACING), 0.0);
        Self { data, channels, block }
    }

    /// Elements from one place to the next.
    fn place_len(&self) -> usize {
        self.channels * self.block + SPACING
    }

    /// The numbers of `count` tiles of `channel` from number `first` on, place by place.
    fn tiles<const PLACES: usize>(
        &self,
        channel: usize,
        first: usize,
        count: usize,
    ) -> [&[f32]; PLACES] {
        let start = channel * self.block + first;
        std::array::from_fn(|place| &self.data[place * self.place_len() + start..][..count])
    }

    /// [`Self::tiles`], to be written.
    fn tiles_mut<const PLACES: usize>(
        &mut self,
        channel: usize,
        first: usize,
        count: usize,
    ) -> [&mut [f32]; PLACES] {
        let start = channel * self.block + first;
        let place_len = self.place_len();
        let mut places = self.data.chunks_exact_mut(place_len);
        std::array::from_fn(|_| {
            places.next().map_or(&mut [][..], |place| &mut place[start..][..count])
        })
    }
}

/// Calls `work` with room for the transformed tiles of a block, those that the products read and
/// those that they write, kept by the thread.
fn with_block(
    places: usize,
    geometry: &Geometry,
    block: usize,
    work: impl FnOnce(Transformed, Transformed),
) {
    type Scratch = (Vec<f32>, Vec<f32>);
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
    SCRATCH.with_borrow_mut(|(read, written)| {
        work(
            Transformed::new(read, places, geometry.in_channels, block),
            Transformed::new(written, places, geometry.out_channels, block),
        );
    });
}

/// Writes the products of all places for the first `count` tiles.
fn multiply_places(
    kernel: &[PackedLeft],
    read: &Transformed,
    written: &mut Transformed,
    count: usize,
) {
    let offsets: Vec<usize> = (0..read.channels).map(|channel| channel * read.block).collect();
    let (read_len, written_len) = (read.place_len(), written.place_len());
    let places = read.data.chunks_exact(read_len).zip(written.data.chunks_exact_mut(written_len));
    for (left, (read, out)) in kernel.iter().zip(places) {
        let right = Rows { data: read, offsets: &offsets };
        let output = Output { data: out.as_mut_ptr(), stride: written.block };
        // SAFETY: a place has room for all output channels of the block's tiles.
        unsafe { multiply(left, &right, 0..count, Start::Zero, output, &mut vec![]) };
    }
}

vectorised! {
    /// Writes `a + b`.
    fn add<T: Real>(a: &[T], b: &[T], sum: &mut [T]) {
        for ((sum, &a), &b) in sum.iter_mut().zip(a).zip(b) {
            *sum = a + b;
        }
    }

    /// Writes `a - b`.
    fn subtract<T: Real>(a: &[T], b: &[T], difference: &mut [T]) {
        for ((difference, &a), &b) in difference.iter_mut().zip(a).zip(b) {
            *difference = a - b;
        }
    }
}
