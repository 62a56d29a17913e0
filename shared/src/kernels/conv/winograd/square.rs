//! Tiles of 2 x 2 elements of a picture, F(2x2, 3x3).
#![allow(unsafe_code)]

use std::ops::Range;

use super::{BLOCK_TILES, add, multiply_places, subtract, transform_taps, with_block};
use crate::kernels::activation::{Activation, activate_in_place};
use crate::kernels::conv::Geometry;
use crate::kernels::conv::view::View;
use crate::kernels::gemm::{Output, PackedLeft, TileSize, threads};
use crate::kernels::real::Real;
use crate::kernels::vectorised::vectorised;

/// Places in a transformed tile.
const PLACES: usize = 16;

/// `G g G^T` of 3 x 3 taps.
pub(super) fn transform_kernel(taps: [f32; 9]) -> [f32; PLACES] {
    let column = |x: usize| transform_taps([taps[x], taps[3 + x], taps[6 + x]]);
    let columns = [column(0), column(1), column(2)];
    let mut out = [0.0; PLACES];
    for (y, out) in out.chunks_exact_mut(4).enumerate() {
        out.copy_from_slice(&transform_taps([columns[0][y], columns[1][y], columns[2][y]]));
    }
    out
}

/// Tiles of one frame that lie side by side.
struct Run {
    item: usize,
    frame: usize,
    /// Row and columns of tiles.
    row: usize,
    columns: Range<usize>,
}

/// How the tiles of the output are numbered: columns first, then rows, frames, items.
struct Tiling {
    frames: usize,
    rows: usize,
    columns: usize,
}

impl Tiling {
    fn new(geometry: &Geometry) -> Self {
        let [frames, height, width] = geometry.output;
        Self { frames, rows: height.div_ceil(2), columns: width.div_ceil(2) }
    }

    fn count(&self) -> usize {
        self.frames * self.rows * self.columns
    }

    /// The tiles with these numbers, and for each run the number of tiles before it.
    fn runs(&self, tiles: Range<usize>) -> Vec<(Run, usize)> {
        let mut runs = vec![];
        let mut tile = tiles.start;
        while tile < tiles.end {
            let (line, column) = (tile / self.columns, tile % self.columns);
            let columns = column..self.columns.min(column + tiles.end - tile);
            let (plane, row) = (line / self.rows, line % self.rows);
            let (item, frame, at) = (plane / self.frames, plane % self.frames, tile - tiles.start);
            tile += columns.len();
            runs.push((Run { item, frame, row, columns }, at));
        }
        runs
    }
}

/// Tiles of all items.
pub(super) fn tiles(geometry: &Geometry) -> usize {
    geometry.batch * Tiling::new(geometry).count()
}

/// The convolution of `x` with a transformed kernel, contiguous.
pub(super) fn forward(
    x: View<f32>,
    kernel: &[PackedLeft],
    bias: Option<&[f32]>,
    geometry: &Geometry,
    activation: Activation,
) -> Vec<f32> {
    let (in_channels, out_channels) = (geometry.in_channels, geometry.out_channels);
    let tiling = Tiling::new(geometry);
    let tiles = tiles(geometry);
    let positions: usize = geometry.output.iter().product();
    let count = geometry.batch * out_channels * positions;
    let flops = 2 * PLACES * tiles * in_channels * out_channels;
    let block = tiles
        .div_ceil(threads::parts(1, flops))
        .next_multiple_of(TileSize::largest().columns)
        .min(BLOCK_TILES);
    let mut y = Vec::with_capacity(count);
    let output = Output { data: y.as_mut_ptr(), stride: positions };
    threads::for_each(tiles.div_ceil(block), flops, |task| {
        let numbers = task * block..tiles.min((task + 1) * block);
        let runs = tiling.runs(numbers.clone());
        with_block(PLACES, geometry, block, |mut read, mut written| {
            for channel in 0..in_channels {
                for (run, first) in &runs {
                    let lines = Lines::load(&x, channel, run, geometry);
                    lines.transform(read.tiles_mut(channel, *first, run.columns.len()));
                }
            }
            multiply_places(kernel, &read, &mut written, numbers.len());
            for channel in 0..out_channels {
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                for (run, first) in &runs {
                    let places = written.tiles(channel, *first, run.columns.len());
                    // SAFETY: the tasks write disjoint tiles of `y`, which has room for all.
                    unsafe {
                        let output = output.from(run.item * out_channels + channel, 0);
                        write_run(&places, bias, activation, run, geometry, output);
                    }
                }
            }
        });
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { y.set_len(count) };
    y
}

/// The elements of one channel that a run of tiles depends on, by the four lines of a tile:
/// those at even and at odd places, which neighbouring tiles share.
struct Lines {
    even: [[f32; BLOCK_TILES + 1]; 4],
    odd: [[f32; BLOCK_TILES + 1]; 4],
}

impl Lines {
    fn load(x: &View<f32>, channel: usize, run: &Run, geometry: &Geometry) -> Self {
        let [_, height, width] = geometry.input;
        let [_, _, frame_stride, line_stride, step] = x.strides;
        let [_, line_padding, padding] = geometry.padding_before;
        let frame = &x.channel(run.item, channel)[run.frame * frame_stride..];
        let count = run.columns.len() + 1;
        // Of the pair with number `k`, the place of the even element.
        let place = |k: usize| (2 * (run.columns.start + k)) as isize - padding;
        let is_inside = |k: &usize| place(*k) >= 0 && place(*k) + 1 < width as isize;
        let first = (0..count).find(is_inside).unwrap_or(count);
        let end = (first..count).rev().find(is_inside).map_or(first, |last| last + 1);
        let mut lines =
            Self { even: [[0.0; BLOCK_TILES + 1]; 4], odd: [[0.0; BLOCK_TILES + 1]; 4] };
        for (number, (even, odd)) in lines.even.iter_mut().zip(&mut lines.odd).enumerate() {
            let at = (2 * run.row + number) as isize - line_padding;
            let Some(at) = usize::try_from(at).ok().filter(|at| *at < height) else { continue };
            let line = &frame[at * line_stride..];
            let element = |place: isize| {
                let place = usize::try_from(place).ok().filter(|place| *place < width);
                place.map_or(0.0, |place| line[place * step])
            };
            for k in (0..first).chain(end..count) {
                (even[k], odd[k]) = (element(place(k)), element(place(k) + 1));
            }
            if step == 1 && first < end {
                let pairs = line[place(first) as usize..].chunks_exact(2);
                let targets = even[first..end].iter_mut().zip(&mut odd[first..end]);
                for ((even, odd), pair) in targets.zip(pairs) {
                    (*even, *odd) = (pair[0], pair[1]);
                }
            } else {
                for k in first..end {
                    (even[k], odd[k]) = (element(place(k)), element(place(k) + 1));
                }
            }
        }
        lines
    }

    /// Writes `B^T d B` of all tiles, place by place.
    fn transform(&self, mut places: [&mut [f32]; PLACES]) {
        let count = places[0].len();
        let [even, odd] =
            [&self.even, &self.odd].map(|lines| lines.each_ref().map(|line| &line[..=count]));
        for (number, places) in places.chunks_exact_mut(4).enumerate() {
            let mut sums = [[0.0; BLOCK_TILES + 1]; 2];
            for (sum, lines) in sums.iter_mut().zip([even, odd]) {
                let sum = &mut sum[..=count];
                match number {
                    0 => subtract(lines[0], lines[2], sum),
                    1 => add(lines[1], lines[2], sum),
                    2 => subtract(lines[2], lines[1], sum),
                    _ => subtract(lines[1], lines[3], sum),
                }
            }
            let [even, odd] = &sums;
            let ([even, next_even], [odd, next_odd]) =
                ([&even[..count], &even[1..=count]], [&odd[..count], &odd[1..=count]]);
            if let [a, b, c, d] = places {
                subtract(even, next_even, a);
                add(odd, next_even, b);
                subtract(next_even, odd, c);
                subtract(odd, next_odd, d);
            }
        }
    }
}

/// Writes the tiles of a run, `A^T m A` and the bias, after the activation.
///
/// # Safety
/// The output must be the run's item and channel, and valid for all tiles of the run; nobody else
/// may access these elements meanwhile.
unsafe fn write_run(
    places: &[&[f32]; PLACES],
    bias: f32,
    activation: Activation,
    run: &Run,
    geometry: &Geometry,
    output: Output,
) {
    let [_, height, width] = geometry.output;
    let count = run.columns.len();
    for lower in 0..2 {
        let line = 2 * run.row + lower;
        if line >= height {
            continue;
        }
        let mut sums = [[0.0; BLOCK_TILES]; 4];
        for (column, sum) in sums.iter_mut().enumerate() {
            let [a, b, c, d] = std::array::from_fn(|row| places[4 * row + column]);
            match lower {
                0 => add_three(a, b, c, &mut sum[..count]),
                _ => subtract_two(b, c, d, &mut sum[..count]),
            }
        }
        let mut pairs = [0.0; 2 * BLOCK_TILES];
        join(sums.each_ref().map(|sum| &sum[..count]), bias, &mut pairs[..2 * count]);
        let first = 2 * run.columns.start;
        let len = (2 * count).min(width - first);
        activate_in_place(activation, &mut pairs[..len]);
        // SAFETY: a part of the run's line, as the caller promises.
        unsafe {
            let at = output.data.add((run.frame * height + line) * width + first);
            std::ptr::copy_nonoverlapping(pairs.as_ptr(), at, len);
        }
    }
}

vectorised! {
    fn add_three<T: Real>(a: &[T], b: &[T], c: &[T], sum: &mut [T]) {
        for (((sum, &a), &b), &c) in sum.iter_mut().zip(a).zip(b).zip(c) {
            *sum = a + b + c;
        }
    }

    fn subtract_two<T: Real>(a: &[T], b: &[T], c: &[T], difference: &mut [T]) {
        for (((difference, &a), &b), &c) in difference.iter_mut().zip(a).zip(b).zip(c) {
            *difference = a - b - c;
        }
    }

    /// The two elements of a tile's line, side by side.
    fn join<T: Real>(sums: [&[T]; 4], bias: T, pairs: &mut [T]) {
        let [a, b, c, d] = sums;
        for ((((pair, &a), &b), &c), &d) in pairs.chunks_exact_mut(2).zip(a).zip(b).zip(c).zip(d) {
            pair[0] = a + b + c + bias;
            pair[1] = b - c - d + bias;
        }
    }
}
