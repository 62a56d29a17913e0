//! Tiles of 2 elements in time, F(2, 3), which lie as far apart as the kernel's taps: with a dilation
//! of `d`, the tile with number `n` begins at the element `2 d (n / d) + n % d`.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{BLOCK_TILES, add, multiply_places, subtract, with_block};
use crate::kernels::activation::{Activation, activate_in_place};
use crate::kernels::conv::Geometry;
use crate::kernels::conv::columns::copy_run;
use crate::kernels::conv::view::View;
use crate::kernels::gemm::{Output, PackedLeft, TileSize, threads};
use crate::kernels::real::Real;
use crate::kernels::vectorised::vectorised;

/// Places in a transformed tile, and elements that a tile depends on.
const PLACES: usize = 4;

/// Elements of a tile.
const TILE: usize = 2;

/// Dilations from which on runs of neighbouring tiles are read and written as one piece.
const MIN_RUN: usize = 16;

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

/// The convolution of `x` with a transformed kernel, contiguous.
pub(super) fn forward(
    x: View<f32>,
    kernel: &[PackedLeft],
    bias: Option<&[f32]>,
    geometry: &Geometry,
    activation: Activation,
) -> Vec<f32> {
    let (in_channels, out_channels) = (geometry.in_channels, geometry.out_channels);
    let (length, tiles) = (geometry.output[2], tiles(geometry));
    let count = geometry.batch * out_channels * length;
    let flops = 2 * PLACES * geometry.batch * tiles * in_channels * out_channels;
    let block = tiles
        .div_ceil(threads::parts(geometry.batch, flops))
        .next_multiple_of(TileSize::largest().columns)
        .min(BLOCK_TILES);
    let blocks = tiles.div_ceil(block);
    let mut y = Vec::with_capacity(count);
    let output = Output { data: y.as_mut_ptr(), stride: length };
    threads::for_each(geometry.batch * blocks, flops, |task| {
        let (item, first) = (task / blocks, task % blocks * block);
        let numbers = first..tiles.min(first + block);
        let places = Elements::new(numbers.clone(), geometry);
        with_block(PLACES, geometry, block, |mut read, mut written| {
            let mut elements = [[0.0; BLOCK_TILES]; PLACES];
            for channel in 0..in_channels {
                let signal = Signal {
                    data: x.channel(item, channel),
                    step: x.strides[4],
                    length: geometry.input[2],
                };
                places.load(&signal, -geometry.padding_before[2], &mut elements);
                let elements = elements.each_ref().map(|e| &e[..numbers.len()]);
                transform(elements, read.tiles_mut(channel, 0, numbers.len()));
            }
            multiply_places(kernel, &read, &mut written, numbers.len());
            for channel in 0..out_channels {
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                let products = written.tiles(channel, 0, numbers.len());
                // SAFETY: the tasks write disjoint tiles of `y`, which has room for all.
                unsafe {
                    let output = output.from(item * out_channels + channel, 0);
                    places.write(products, bias, activation, length, output);
                }
            }
        });
    });
    // SAFETY: the tasks wrote all elements.
    unsafe { y.set_len(count) };
    y
}

/// One channel of the input.
struct Signal<'a> {
    data: &'a [f32],
    step: usize,
    length: usize,
}

/// Where the first elements of a block's tiles lie, counted from the output's first.
struct Elements {
    dilation: usize,
    /// Of each tile.
    places: Vec<usize>,
    /// Of each run of tiles that are neighbours, and which of the block they are; where runs are
    /// too short to be of use, none.
    runs: Vec<(usize, Range<usize>)>,
}

impl Elements {
    fn new(numbers: Range<usize>, geometry: &Geometry) -> Self {
        let dilation = geometry.dilation[2];
        let place = |number: usize| TILE * dilation * (number / dilation) + number % dilation;
        let mut runs = vec![];
        let mut number = if dilation < MIN_RUN { numbers.end } else { numbers.start };
        while number < numbers.end {
            let end = numbers.end.min((number / dilation + 1) * dilation);
            runs.push((place(number), number - numbers.start..end - numbers.start));
            number = end;
        }
        Self { dilation, places: numbers.map(place).collect(), runs }
    }

    /// Copies to `elements[i]` the elements that the tiles' first elements would have `i` dilations
    /// behind them, counted from `start` on, with zeros where there is no signal.
    fn load(&self, signal: &Signal, start: isize, elements: &mut [[f32; BLOCK_TILES]; PLACES]) {
        for (shift, elements) in elements.iter_mut().enumerate() {
            let start = start + (shift * self.dilation) as isize;
            if signal.step != 1 || self.runs.is_empty() {
                for (place, out) in self.places.iter().zip(elements) {
                    let at = usize::try_from(start + *place as isize).unwrap_or(usize::MAX);
                    *out = if at < signal.length { signal.data[at * signal.step] } else { 0.0 };
                }
                continue;
            }
            for (place, tiles) in &self.runs {
                let signal = &signal.data[..signal.length];
                copy_run(signal, start + *place as isize, &mut elements[tiles.clone()]);
            }
        }
    }

    /// Writes the tiles, `A^T m` of their `products` and the bias, after the activation.
    ///
    /// # Safety
    /// The output must be valid for `length` elements; nobody else may access the block's tiles
    /// meanwhile.
    unsafe fn write(
        &self,
        products: [&[f32]; PLACES],
        bias: f32,
        activation: Activation,
        length: usize,
        output: Output,
    ) {
        let [m0, m1, m2, m3] = products;
        for shift in 0..TILE {
            let mut elements = [bias; BLOCK_TILES];
            let elements = &mut elements[..m0.len()];
            match shift {
                0 => accumulate(m0, m1, m2, elements),
                _ => accumulate_difference(m1, m2, m3, elements),
            }
            activate_in_place(activation, elements);
            let shift = shift * self.dilation;
            // SAFETY (both): within the output, as the caller promises.
            if self.runs.is_empty() {
                for (place, element) in self.places.iter().zip(&*elements) {
                    if place + shift < length {
                        unsafe { *output.data.add(place + shift) = *element };
                    }
                }
            }
            for (place, tiles) in &self.runs {
                let count = tiles.len().min(length.saturating_sub(place + shift));
                let run = &elements[tiles.start..tiles.start + count];
                if count > 0 {
                    let target = output.data.wrapping_add(place + shift);
                    unsafe { std::ptr::copy_nonoverlapping(run.as_ptr(), target, count) };
                }
            }
        }
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
