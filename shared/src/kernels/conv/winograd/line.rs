//! Tiles of 2 elements in time, F(2, 3), which lie as far apart as the kernel's taps: with a dilation
//! of `d`, the tile with number `n` begins at the element `2 d (n / d) + n % d`. The `d` tiles of a
//! group follow each other, and so do the groups.

use std::cell::RefCell;

use super::{Block, Cut, Transformed, add, subtract};
use crate::kernels::conv::Geometry;
use crate::kernels::conv::columns::copy_run;
use crate::kernels::conv::view::View;
use crate::kernels::real::Real;
use crate::kernels::vectorised::vectorised;

/// Places in a transformed tile, and elements that a tile depends on.
pub(super) const PLACES: usize = 4;

/// Elements of a tile.
const TILE: usize = 2;

/// Share of the tiles' elements that are elements of the output: the last tiles may reach beyond.
pub(super) fn share_of_use(geometry: &Geometry) -> f64 {
    let elements = TILE * tiles(geometry);
    geometry.output[2] as f64 / elements.max(1) as f64
}

/// Tiles of an item.
pub(super) fn tiles(geometry: &Geometry) -> usize {
    let dilation = geometry.dilation[2];
    geometry.output[2].div_ceil(TILE * dilation) * dilation
}

/// The tiles of a signal.
pub(super) struct Lines<'a>(pub &'a Geometry);

/// Tiles of some whole groups, or neighbouring ones of a single group.
pub(super) struct Run {
    item: usize,
    /// Where the first tile begins.
    start: usize,
    tiles: usize,
}

impl Block for Run {
    fn tiles(&self) -> usize {
        self.tiles
    }
}

/// Most tiles of a block.
const MOST_TILES: usize = 256;

/// The elements of some groups of tiles: of each group, those at the tiles' first places, and those a
/// dilation behind.
struct Halves([[f32; 2 * MOST_TILES]; TILE]);

/// A thread's working memory: the elements that a channel's tiles are made of, in order and parted.
struct Scratch {
    elements: [f32; 4 * MOST_TILES],
    halves: Halves,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        let halves = Halves([[0.0; 2 * MOST_TILES]; TILE]);
        RefCell::new(Scratch { elements: [0.0; 4 * MOST_TILES], halves })
    };
}

impl Lines<'_> {
    fn dilation(&self) -> usize {
        self.0.dilation[2]
    }

    /// Whether a block holds whole groups.
    fn holds_groups(&self, block: &Run) -> bool {
        block.tiles.is_multiple_of(self.dilation())
    }
}

impl Cut<PLACES> for Lines<'_> {
    type Block = Run;

    const MOST_TILES: usize = MOST_TILES;

    fn tiles(&self) -> usize {
        self.0.batch * tiles(self.0)
    }

    fn blocks(&self, most: usize) -> Vec<Run> {
        let (dilation, tiles) = (self.dilation(), tiles(self.0));
        let groups = tiles / dilation;
        // Groups of a block, or blocks of a group.
        let joined = (most / dilation).max(1);
        let parts = dilation.div_ceil(most);
        let size = dilation.div_ceil(parts);
        let mut blocks = vec![];
        for item in 0..self.0.batch {
            for group in (0..groups).step_by(joined) {
                for first in (0..dilation).step_by(size) {
                    let tiles = match parts {
                        1 => dilation * joined.min(groups - group),
                        _ => size.min(dilation - first),
                    };
                    blocks.push(Run { item, start: TILE * dilation * group + first, tiles });
                }
            }
        }
        blocks
    }

    fn read(&self, x: &View<f32>, channel: usize, block: &Run, read: &mut Transformed) {
        let (count, dilation) = (block.tiles, self.dilation());
        let signal = &x.channel(block.item, channel)[..self.0.input[2]];
        let start = block.start as isize - self.0.padding_before[2];
        let places = read.tiles_mut(channel, 0, count);
        SCRATCH.with_borrow_mut(|Scratch { elements, halves }| {
            if self.holds_groups(block) {
                let elements = &mut elements[..TILE * (count + dilation)];
                copy_run(signal, start, elements);
                halves.part(elements, dilation);
                let [even, odd] = &halves.0;
                let next = dilation..dilation + count;
                transform([&even[..count], &odd[..count], &even[next.clone()], &odd[next]], places);
            } else {
                let runs = elements.chunks_exact_mut(count).take(PLACES).enumerate();
                runs.for_each(|(number, run)| {
                    copy_run(signal, start + (number * dilation) as isize, run);
                });
                transform(std::array::from_fn(|i| &elements[i * count..][..count]), places);
            }
        });
    }

    fn write(
        &self,
        written: &Transformed,
        channel: usize,
        block: &Run,
        bias: f32,
        put: impl Fn(&mut [f32], [usize; 2]),
    ) {
        let (count, dilation, length) = (block.tiles, self.dilation(), self.0.output[2]);
        let [m0, m1, m2, m3] = written.tiles(channel, 0, count);
        let put = |elements: &mut [f32], start: usize| {
            let count = elements.len().min(length.saturating_sub(start));
            if count > 0 {
                put(&mut elements[..count], [block.item, start]);
            }
        };
        SCRATCH.with_borrow_mut(|Scratch { elements, halves }| {
            let [first, second] = &mut halves.0;
            add_three(m0, m1, m2, bias, &mut first[..count]);
            subtract_two(m1, m2, m3, bias, &mut second[..count]);
            if self.holds_groups(block) {
                let elements = &mut elements[..TILE * count];
                halves.join(elements, dilation);
                put(elements, block.start);
            } else {
                for (number, half) in halves.0.iter_mut().enumerate() {
                    put(&mut half[..count], block.start + number * dilation);
                }
            }
        });
    }
}

/// Calls a function with the constant `0` and the dilation, or, for the dilations that models have,
/// with this as the constant: copies of known size are single instructions.
macro_rules! with_constant {
    ($dilation:expr, $function:ident($($argument:expr),*)) => {
        match $dilation {
            1 => $function::<1>(1, $($argument),*),
            2 => $function::<2>(2, $($argument),*),
            3 => $function::<3>(3, $($argument),*),
            4 => $function::<4>(4, $($argument),*),
            5 => $function::<5>(5, $($argument),*),
            8 => $function::<8>(8, $($argument),*),
            16 => $function::<16>(16, $($argument),*),
            dilation => $function::<0>(dilation, $($argument),*),
        }
    };
}

impl Halves {
    /// Parts the elements of groups of tiles.
    fn part(&mut self, elements: &[f32], dilation: usize) {
        let [even, odd] = &mut self.0;
        with_constant!(dilation, part(elements, even, odd));
    }

    /// Joins the elements of groups of tiles again.
    fn join(&self, elements: &mut [f32], dilation: usize) {
        let [even, odd] = &self.0;
        with_constant!(dilation, join(elements, even, odd));
    }
}

/// [`Halves::part`] with a dilation of `CONSTANT`, unless that is 0.
fn part<const CONSTANT: usize>(
    dilation: usize,
    elements: &[f32],
    even: &mut [f32],
    odd: &mut [f32],
) {
    let dilation = if CONSTANT == 0 { dilation } else { CONSTANT };
    let halves = even.chunks_exact_mut(dilation).zip(odd.chunks_exact_mut(dilation));
    for (group, (even, odd)) in elements.chunks_exact(TILE * dilation).zip(halves) {
        even.copy_from_slice(&group[..dilation]);
        odd.copy_from_slice(&group[dilation..]);
    }
}

/// [`Halves::join`] with a dilation of `CONSTANT`, unless that is 0.
fn join<const CONSTANT: usize>(dilation: usize, elements: &mut [f32], even: &[f32], odd: &[f32]) {
    let dilation = if CONSTANT == 0 { dilation } else { CONSTANT };
    let halves = even.chunks_exact(dilation).zip(odd.chunks_exact(dilation));
    for (group, (even, odd)) in elements.chunks_exact_mut(TILE * dilation).zip(halves) {
        group[..dilation].copy_from_slice(even);
        group[dilation..].copy_from_slice(odd);
    }
}

/// Writes `B^T d` of all tiles, place by place.
fn transform([d0, d1, d2, d3]: [&[f32]; PLACES], [a, b, c, d]: [&mut [f32]; PLACES]) {
    subtract(d0, d2, a);
    add(d1, d2, b);
    subtract(d2, d1, c);
    subtract(d1, d3, d);
}

vectorised! {
    /// Writes `a + b + c + bias`.
    fn add_three<T: Real>(a: &[T], b: &[T], c: &[T], bias: T, sum: &mut [T]) {
        for (((sum, &a), &b), &c) in sum.iter_mut().zip(a).zip(b).zip(c) {
            *sum = a + b + c + bias;
        }
    }

    /// Writes `a - b - c + bias`.
    fn subtract_two<T: Real>(a: &[T], b: &[T], c: &[T], bias: T, sum: &mut [T]) {
        for (((sum, &a), &b), &c) in sum.iter_mut().zip(a).zip(b).zip(c) {
            *sum = a - b - c + bias;
        }
    }
}
