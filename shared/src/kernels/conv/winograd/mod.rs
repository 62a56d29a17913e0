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

use super::Geometry;
use super::view::View;
use crate::kernels::epilogue::Epilogue;
use crate::kernels::gemm::{Matrix, Output, PackedLeft, Rows, Start, TileSize, multiply, threads};
use crate::kernels::parallel::fill_rows;
use crate::kernels::real::Real;
use crate::kernels::vectorised::vectorised;

/// Fewest channels, read and written, for which the products outweigh the transforms: of pictures,
/// and in time.
const MIN_SQUARE_CHANNELS: usize = 64;
const MIN_LINE_CHANNELS: usize = 96;

/// Fewest tiles of a picture, and in time, for which it pays to transform the kernel.
const MIN_SQUARES: usize = 128;
const MIN_LINES: usize = 512;

/// Tiles that are transformed at once, unless there are too few: the more, the less often the kernel
/// is read, and the longer the pieces in which the input and output are.
const LEAST_TILES: usize = 64;

/// Elements of transformed tiles that may be more than [`LEAST_TILES`] have: 512 KiB, half of a usual
/// second-level cache.
const BLOCK_ELEMENTS: usize = 1 << 17;

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
        Self::fitting(geometry).filter(|tiles| match tiles {
            Self::Line => {
                geometry.batch * line::tiles(geometry) >= MIN_LINES
                    && line::share_of_use(geometry) >= 0.75
            }
            Self::Square => square::Squares::new(geometry).tiles() >= MIN_SQUARES,
        })
    }

    /// The tiles that a convolution can be computed with, whether or not it has enough of them to be
    /// worth it.
    pub fn fitting(geometry: &Geometry) -> Option<Self> {
        let fits = geometry.stride == [1; 3] && geometry.groups == 1;
        let channels = geometry.in_channels.min(geometry.out_channels);
        let is_picture = channels >= MIN_SQUARE_CHANNELS
            && geometry.kernel == [1, 3, 3]
            && geometry.dilation == [1; 3]
            && geometry.padding_before[0] == 0
            && geometry.input[0] == geometry.output[0];
        let is_signal =
            channels >= MIN_LINE_CHANNELS && geometry.kernel == [1, 1, 3] && geometry.is_signal();
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

/// A kernel as it is: the tap number `t` from output channel `row` and input channel `column` is
/// `data[row * row_stride + column * column_stride + taps[t]]`.
pub(super) struct PlainKernel<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub row_stride: usize,
    pub columns: usize,
    pub column_stride: usize,
    pub taps: &'a [usize],
}

impl TransformedKernel {
    /// Transforms a kernel for `tiles`.
    pub fn new(tiles: Tiles, kernel: &PlainKernel) -> Self {
        let places = match tiles {
            Tiles::Line => kernel.transform(line::PLACES, transform_taps),
            Tiles::Square => kernel.transform(square::PLACES, square::transform_kernel),
        };
        Self { tiles, places }
    }
}

impl PlainKernel<'_> {
    /// For each place, the matrix of what `transform` makes of the taps of each output channel:
    /// from `[taps, C]` to `[places, C]`.
    fn transform(
        &self,
        places: usize,
        transform: impl Fn(&[f32], &mut [f32]) + Sync,
    ) -> Vec<PackedLeft> {
        let (rows, columns) = (self.rows, self.columns);
        // `[O, places, C]`
        let mut transformed = vec![0.0; rows * places * columns];
        fill_rows(&mut transformed, places * columns, |row, out| {
            let mut taps = vec![0.0; self.taps.len() * columns];
            let data = &self.data[row * self.row_stride..];
            for column in 0..columns {
                let channel = &data[column * self.column_stride..];
                let targets = taps[column..].iter_mut().step_by(columns);
                targets.zip(self.taps).for_each(|(target, tap)| *target = channel[*tap]);
            }
            transform(&taps, out);
        });
        let matrix = |place: usize| Matrix {
            data: &transformed[place * columns..],
            rows,
            columns,
            row_stride: places * columns,
            column_stride: 1,
        };
        (0..places).map(|place| PackedLeft::new(matrix(place))).collect()
    }
}

/// `G g` of 3 taps, of several channels each.
fn transform_taps(taps: &[f32], places: &mut [f32]) {
    let channels = taps.len() / 3;
    let taps: [&[f32]; 3] = std::array::from_fn(|tap| &taps[tap * channels..][..channels]);
    for (place, out) in places.chunks_exact_mut(channels).enumerate() {
        match place {
            0 => out.copy_from_slice(taps[0]),
            1 => half_sum(taps[0], taps[1], taps[2], out),
            2 => half_alternating_sum(taps[0], taps[1], taps[2], out),
            _ => out.copy_from_slice(taps[2]),
        }
    }
}

/// The convolution of `x` with a transformed kernel, contiguous.
pub(super) fn forward(
    x: View<f32>,
    kernel: &TransformedKernel,
    bias: Option<&[f32]>,
    geometry: &Geometry,
    epilogue: Epilogue,
) -> Vec<f32> {
    let places = &kernel.places;
    match kernel.tiles {
        Tiles::Line => convolve(&line::Lines(geometry), x, places, bias, geometry, epilogue),
        Tiles::Square => {
            convolve(&square::Squares::new(geometry), x, places, bias, geometry, epilogue)
        }
    }
}

/// How the output is cut into tiles of `PLACES` places.
trait Cut<const PLACES: usize>: Sync {
    type Block: Block;

    /// Tiles that a block may have at most.
    const MOST_TILES: usize;

    /// Tiles of all items.
    fn tiles(&self) -> usize;

    /// All tiles in blocks of `most` tiles at most.
    fn blocks(&self, most: usize) -> Vec<Self::Block>;

    /// Transforms the elements of a channel that a block's tiles depend on.
    fn read(&self, x: &View<f32>, channel: usize, block: &Self::Block, read: &mut Transformed);

    /// Hands the block's elements of the output, `A^T m A` of the products of a channel and the bias,
    /// to `put`, which may change them: neighbours together, with their item and the number of the
    /// first of them in its channel.
    fn write(
        &self,
        written: &Transformed,
        channel: usize,
        block: &Self::Block,
        bias: f32,
        put: impl Fn(&mut [f32], [usize; 2]),
    );
}

/// Tiles that are transformed together.
trait Block: Sync {
    /// How many there are.
    fn tiles(&self) -> usize;
}

/// [`forward`] with the output cut in a certain way.
fn convolve<const PLACES: usize, C: Cut<PLACES>>(
    cut: &C,
    x: View<f32>,
    kernel: &[PackedLeft],
    bias: Option<&[f32]>,
    geometry: &Geometry,
    epilogue: Epilogue,
) -> Vec<f32> {
    let (in_channels, out_channels) = (geometry.in_channels, geometry.out_channels);
    let positions: usize = geometry.output.iter().product();
    let count = geometry.batch * out_channels * positions;
    let tiles = cut.tiles();
    let flops = 2 * PLACES * tiles * in_channels * out_channels;
    let width = TileSize::largest().columns;
    let fitting = BLOCK_ELEMENTS / (PLACES * (in_channels + out_channels)) / width * width;
    let most = tiles
        .div_ceil(threads::parts(1, flops))
        .next_multiple_of(width)
        .min(fitting.max(LEAST_TILES))
        .min(C::MOST_TILES);
    let blocks = cut.blocks(most);
    let mut y = Vec::with_capacity(count);
    let output = Output { data: y.as_mut_ptr(), stride: positions };
    threads::for_each(blocks.len(), flops, |task| {
        let block = &blocks[task];
        with_block(PLACES, geometry, most, |mut read, mut written| {
            for channel in 0..in_channels {
                cut.read(&x, channel, block, &mut read);
            }
            multiply_places(kernel, &read, &mut written, block.tiles());
            for channel in 0..out_channels {
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                let put = |elements: &mut [f32], [item, first]: [usize; 2]| {
                    let start = (item * out_channels + channel) * positions + first;
                    epilogue.finish(elements, channel, start);
                    // SAFETY: the blocks have disjoint elements of `y`, which has room for all.
                    unsafe {
                        let target = output.from(item * out_channels + channel, first).data;
                        std::ptr::copy_nonoverlapping(elements.as_ptr(), target, elements.len());
                    }
                };
                cut.write(&written, channel, block, bias, put);
            }
        });
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { y.set_len(count) };
    y
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

    /// Writes `(a + b + c) / 2`.
    fn half_sum<T: Real>(a: &[T], b: &[T], c: &[T], out: &mut [T]) {
        let half = T::from_f64(0.5);
        for (((out, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
            *out = half * (a + b + c);
        }
    }

    /// Writes `(a - b + c) / 2`.
    fn half_alternating_sum<T: Real>(a: &[T], b: &[T], c: &[T], out: &mut [T]) {
        let half = T::from_f64(0.5);
        for (((out, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
            *out = half * (a - b + c);
        }
    }
}
