//! Tiles of 2 elements in time, F(2, 3), which lie as far apart as the kernel's taps: with a dilation
//! of `d`, the tile with number `n` begins at the element `2 d (n / d) + n % d`. The `d` tiles of a
//! group follow each other, and so do the groups.

use super::{BLOCK_TILES, Block, Cut, Transformed, add, subtract};
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

/// The elements of some groups of tiles: of each group, those at the tiles' first places, and those a
/// dilation behind.
struct Halves([[f32; 2 * BLOCK_TILES]; TILE]);

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
        if self.holds_groups(block) {
            let mut elements = [0.0; 4 * BLOCK_TILES];
            let elements = &mut elements[..TILE * (count + dilation)];
            copy_run(signal, start, elements);
            let mut halves = Halves([[0.0; 2 * BLOCK_TILES]; TILE]);
            halves.part(elements, dilation);
            let [even, odd] = &halves.0;
            let behind = dilation..dilation + count;
            transform([&even[..count], &odd[..count], &even[behind.clone()], &odd[behind]], places);
        } else {
            let mut elements = [[0.0; BLOCK_TILES]; PLACES];
            for (number, elements) in elements.iter_mut().enumerate() {
                copy_run(signal, start + (number * dilation) as isize, &mut elements[..count]);
            }
            transform(elements.each_ref().map(|elements| &elements[..count]), places);
        }
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
        let mut halves = Halves([[bias; 2 * BLOCK_TILES]; TILE]);
        accumulate(m0, m1, m2, &mut halves.0[0][..count]);
        accumulate_difference(m1, m2, m3, &mut halves.0[1][..count]);
        let put = |elements: &mut [f32], start: usize| {
            let count = elements.len().min(length.saturating_sub(start));
            if count > 0 {
                put(&mut elements[..count], [block.item, start]);
            }
        };
        if self.holds_groups(block) {
            let mut elements = [0.0; 4 * BLOCK_TILES];
            let elements = &mut elements[..TILE * count];
            halves.join(elements, dilation);
            put(elements, block.start);
        } else {
            for (number, half) in halves.0.iter_mut().enumerate() {
                put(&mut half[..count], block.start + number * dilation);
            }
        }
    }
}

impl Halves {
    /// Parts the elements of groups of tiles.
    fn part(&mut self, elements: &[f32], dilation: usize) {
        let [even, odd] = &mut self.0;
        let groups = elements.chunks_exact(TILE * dilation);
        let halves = even.chunks_exact_mut(dilation).zip(odd.chunks_exact_mut(dilation));
        for_dilation(dilation, groups.zip(halves), |(group, (even, odd)), dilation| {
            even[..dilation].copy_from_slice(&group[..dilation]);
            odd[..dilation].copy_from_slice(&group[dilation..][..dilation]);
        });
    }

    /// Joins the elements of groups of tiles again.
    fn join(&self, elements: &mut [f32], dilation: usize) {
        let [even, odd] = &self.0;
        let groups = elements.chunks_exact_mut(TILE * dilation);
        let halves = even.chunks_exact(dilation).zip(odd.chunks_exact(dilation));
        for_dilation(dilation, groups.zip(halves), |(group, (even, odd)), dilation| {
            group[..dilation].copy_from_slice(&even[..dilation]);
            group[dilation..][..dilation].copy_from_slice(&odd[..dilation]);
        });
    }
}

/// Calls `work(group, dilation)` for all groups, with constants for the dilations that models have:
/// copies of known size are single instructions.
#[inline(always)]
fn for_dilation<G>(
    dilation: usize,
    groups: impl Iterator<Item = G>,
    work: impl Fn(G, usize) + Copy,
) {
    macro_rules! constant {
        ($($known:literal)*) => {
            match dilation {
                $($known => groups.for_each(#[inline(always)] |group| work(group, $known)),)*
                _ => groups.for_each(|group| work(group, dilation)),
            }
        };
    }
    constant!(1 2 3 4 5 8 16);
}

/// Writes `B^T d` of all tiles, place by place.
fn transform([d0, d1, d2, d3]: [&[f32]; PLACES], [a, b, c, d]: [&mut [f32]; PLACES]) {
    subtract(d0, d2, a);
    add(d1, d2, b);
    subtract(d2, d1, c);
    subtract(d1, d3, d);
}

vectorised! {
    /// Adds `a + b + c` to `sum`.
    fn accumulate<T: Real>(a: &[T], b: &[T], c: &[T], sum: &mut [T]) {
        for (((sum, &a), &b), &c) in sum.iter_mut().zip(a).zip(b).zip(c) {
            *sum += a + b + c;
        }
    }

    /// Adds `a - b - c` to `sum`.
    fn accumulate_difference<T: Real>(a: &[T], b: &[T], c: &[T], sum: &mut [T]) {
        for (((sum, &a), &b), &c) in sum.iter_mut().zip(a).zip(b).zip(c) {
            *sum += a - b - c;
        }
    }
}
