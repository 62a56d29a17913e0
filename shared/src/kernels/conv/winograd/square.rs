//! Tiles of 2 x 2 elements of a picture, F(2x2, 3x3).

use std::ops::Range;

use super::{Block, Cut, Transformed, add, subtract, transform_taps};
use crate::kernels::conv::Geometry;
use crate::kernels::conv::view::View;
use crate::kernels::real::Real;
use crate::kernels::vectorised::vectorised;

/// Most tiles of a block.
const BLOCK_TILES: usize = 64;

/// Places in a transformed tile.
pub(super) const PLACES: usize = 16;

/// `G g G^T` of 3 x 3 taps, of several channels each.
pub(super) fn transform_kernel(taps: &[f32], places: &mut [f32]) {
    let channels = taps.len() / 9;
    // `G g` of each column of taps; then of each row of that, whose elements become neighbours.
    let mut columns = vec![0.0; 4 * 3 * channels];
    let mut of_column = vec![0.0; 4 * channels];
    let mut taps_of_column = vec![0.0; 3 * channels];
    for x in 0..3 {
        for (y, out) in taps_of_column.chunks_exact_mut(channels).enumerate() {
            out.copy_from_slice(&taps[(3 * y + x) * channels..][..channels]);
        }
        transform_taps(&taps_of_column, &mut of_column);
        for (y, of_column) in of_column.chunks_exact(channels).enumerate() {
            columns[(3 * y + x) * channels..][..channels].copy_from_slice(of_column);
        }
    }
    let rows = columns.chunks_exact(3 * channels).zip(places.chunks_exact_mut(4 * channels));
    rows.for_each(|(row, places)| transform_taps(row, places));
}

/// The tiles of pictures, numbered: columns first, then rows, frames, items.
pub(super) struct Squares<'a> {
    geometry: &'a Geometry,
    rows: usize,
    columns: usize,
}

/// Tiles of one frame that lie side by side.
pub(super) struct Run {
    item: usize,
    frame: usize,
    /// Row and columns of tiles.
    row: usize,
    columns: Range<usize>,
    /// Tiles of the block before these.
    first: usize,
}

impl Block for Vec<Run> {
    fn tiles(&self) -> usize {
        self.iter().map(|run| run.columns.len()).sum()
    }
}

impl<'a> Squares<'a> {
    pub fn new(geometry: &'a Geometry) -> Self {
        let [_, height, width] = geometry.output;
        Self { geometry, rows: height.div_ceil(2), columns: width.div_ceil(2) }
    }

    /// The runs of the tiles with these numbers.
    fn runs(&self, tiles: Range<usize>) -> Vec<Run> {
        let frames = self.geometry.output[0];
        let mut runs = vec![];
        let mut tile = tiles.start;
        while tile < tiles.end {
            let (line, column) = (tile / self.columns, tile % self.columns);
            let columns = column..self.columns.min(column + tiles.end - tile);
            let (plane, row) = (line / self.rows, line % self.rows);
            let (item, frame, first) = (plane / frames, plane % frames, tile - tiles.start);
            tile += columns.len();
            runs.push(Run { item, frame, row, columns, first });
        }
        runs
    }
}

impl Cut<PLACES> for Squares<'_> {
    type Block = Vec<Run>;

    const MOST_TILES: usize = BLOCK_TILES;

    fn tiles(&self) -> usize {
        self.geometry.batch * self.geometry.output[0] * self.rows * self.columns
    }

    fn blocks(&self, most: usize) -> Vec<Vec<Run>> {
        let tiles = self.tiles();
        let blocks = (0..tiles).step_by(most).map(|first| first..tiles.min(first + most));
        blocks.map(|numbers| self.runs(numbers)).collect()
    }

    fn read(&self, x: &View<f32>, channel: usize, block: &Vec<Run>, read: &mut Transformed) {
        for run in block {
            let lines = Lines::load(x, channel, run, self.geometry);
            lines.transform(read.tiles_mut(channel, run.first, run.columns.len()));
        }
    }

    fn write(
        &self,
        written: &Transformed,
        channel: usize,
        block: &Vec<Run>,
        bias: f32,
        put: impl Fn(&mut [f32], [usize; 2]),
    ) {
        let [_, height, width] = self.geometry.output;
        for run in block {
            let count = run.columns.len();
            let places: [&[f32]; PLACES] = written.tiles(channel, run.first, count);
            let lines = (0..2).filter(|lower| 2 * run.row + lower < height);
            for lower in lines {
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
                let start = (run.frame * height + 2 * run.row + lower) * width + first;
                put(&mut pairs[..(2 * count).min(width - first)], [run.item, start]);
            }
        }
    }
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
