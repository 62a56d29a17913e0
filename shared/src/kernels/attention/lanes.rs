//! Attention over frames in `f32`, in which every position attends for itself: 16 positions, side by
//! side in memory, are 16 lanes of all computations.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::f64::consts::{LN_2, LOG2_E};

use rten_simd::ops::{BitOps, FloatOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::backward::Targets;
use super::forward::Target;
use super::operands::{Operand, Operands};
use super::scores::{LANES, exp2};
use crate::kernels::gemm::threads;
use crate::kernels::isa::dispatch;

/// Rows and columns of the blocks that products are computed in.
const BLOCK: usize = 4;

/// Positions of an item, all of its heads.
#[derive(Clone, Copy)]
pub(super) struct Positions {
    pub(super) items: usize,
    pub(super) of_item: usize,
}

/// Some neighbouring positions.
#[derive(Clone, Copy)]
struct Chunk {
    /// The first, counted over all items.
    first: usize,
    head: usize,
    count: usize,
}

impl Positions {
    /// Calls `work` with chunks of positions for all heads, on all threads.
    fn for_each(self, heads: usize, flops_each: usize, work: impl Fn(Chunk) + Sync + Send) {
        let chunks = self.of_item.div_ceil(LANES);
        let count = self.items * heads * chunks;
        threads::for_each(count, count * flops_each, |task| {
            let (at, head, item) =
                (task % chunks * LANES, task / chunks % heads, task / chunks / heads);
            let count = LANES.min(self.of_item - at);
            work(Chunk { first: item * self.of_item + at, head, count });
        });
    }
}

/// Writes the result of attention to `output`.
///
/// # Safety
/// Positions must lie side by side in all operands and the output, whose place must lie within its memory,
/// which nobody else may access meanwhile.
pub(super) unsafe fn forward(operands: Operands<f32>, positions: Positions, output: Target) {
    let flops = 4 * LANES * operands.queries * operands.keys * operands.k.place.size;
    positions.for_each(operands.heads, flops, |chunk| {
        Scratch::with(|scratch| {
            scratch.weigh(operands, chunk);
            let Scratch { v, weights, output: result, .. } = scratch;
            let (queries, keys, size) = (operands.queries, operands.keys, operands.v.place.size);
            multiply(Lanes::rows(weights, queries, keys), Lanes::rows(v, keys, size).t(), result);
            // SAFETY: as the caller promises; chunks have positions of their own.
            unsafe { store(result, queries, chunk, output, 1.0) };
        });
    });
}

/// Writes the gradients for the gradient `dy` at the result to `targets`. With `w` the weights and
/// `dw = dy v^T`: `ds = w (dw - sum(w dw))`.
///
/// # Safety
/// As [`forward`], for all targets.
pub(super) unsafe fn backward(
    operands: Operands<f32>,
    positions: Positions,
    dy: Operand<f32>,
    targets: Targets,
) {
    let flops = 10 * LANES * operands.queries * operands.keys * operands.k.place.size;
    let (queries, keys) = (operands.queries, operands.keys);
    let (size, value_size) = (operands.k.place.size, operands.v.place.size);
    positions.for_each(operands.heads, flops, |chunk| {
        Scratch::with(|scratch| {
            scratch.weigh(operands, chunk);
            load(dy, queries, chunk, 1.0, &mut scratch.gradient);
            let Scratch { q, k, v, weights, gradient, products, output } = scratch;
            let gradient = Lanes::rows(gradient, queries, value_size);
            multiply(gradient, Lanes::rows(v, keys, value_size), products);
            // SAFETY (three times): as the caller promises; chunks have positions of their own.
            multiply(Lanes::rows(weights, queries, keys).t(), gradient.t(), output);
            unsafe { store(output, keys, chunk, targets.v, 1.0) };
            let count = queries * keys * LANES;
            let (weights, slopes) = (&weights[..count], &mut products[..count]);
            dispatch(Differentiate { weights, products: slopes, keys });
            let slopes = Lanes::rows(products, queries, keys);
            multiply(slopes, Lanes::rows(k, keys, size).t(), output);
            unsafe { store(output, queries, chunk, targets.q, operands.scale as f32) };
            // The queries come with the factor that makes powers of 2.
            multiply(slopes.t(), Lanes::rows(q, queries, size).t(), output);
            unsafe { store(output, keys, chunk, targets.k, LN_2 as f32) };
        });
    });
}

/// The memory of a thread: all matrices have [`LANES`] numbers for each element.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    products: Vec<f32>,
    output: Vec<f32>,
}

impl Scratch {
    fn with(work: impl FnOnce(&mut Self)) {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        SCRATCH.with_borrow_mut(work);
    }

    /// Loads a chunk and computes its weights.
    fn weigh(&mut self, operands: Operands<f32>, chunk: Chunk) {
        let (queries, keys, size) = (operands.queries, operands.keys, operands.q.place.size);
        let scale = (operands.scale * LOG2_E) as f32;
        load(operands.q, queries, chunk, scale, &mut self.q);
        load(operands.k, keys, chunk, 1.0, &mut self.k);
        load(operands.v, keys, chunk, 1.0, &mut self.v);
        let (q, k) = (Lanes::rows(&self.q, queries, size), Lanes::rows(&self.k, keys, size));
        multiply(q, k, &mut self.weights);
        let scores = &mut self.weights[..queries * keys * LANES];
        dispatch(Softmax { scores, keys });
    }
}

/// Loads `factor` times all channels of a chunk; lanes that are left over are 0.
fn load(operand: Operand<f32>, tokens: usize, chunk: Chunk, factor: f32, out: &mut Vec<f32>) {
    let operand = operand.of_head(chunk.first, chunk.head);
    let size = operand.place.size;
    out.clear();
    out.resize(tokens * size * LANES, 0.0);
    for (i, out) in out.chunks_exact_mut(LANES).enumerate() {
        let from = &operand.data[operand.place.at(i / size, i % size)..][..chunk.count];
        out.iter_mut().zip(from).for_each(|(out, x)| *out = factor * x);
    }
}

/// Writes `factor` times all channels of a chunk.
///
/// # Safety
/// The chunk must lie within the target, and nobody else may access it meanwhile.
unsafe fn store(values: &[f32], tokens: usize, chunk: Chunk, target: Target, factor: f32) {
    let target = target.of_head(chunk.first, chunk.head);
    let size = target.place.size;
    for (i, values) in values.chunks_exact(LANES).enumerate().take(tokens * size) {
        let offset = target.place.at(i / size, i % size);
        // SAFETY: as the caller promises.
        let to = unsafe { std::slice::from_raw_parts_mut(target.data.add(offset), chunk.count) };
        to.iter_mut().zip(values).for_each(|(to, x)| *to = factor * x);
    }
}

/// A matrix of lanes.
#[derive(Clone, Copy)]
struct Lanes<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Lanes<'a> {
    /// The matrix of `rows` rows, one after the other.
    fn rows(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(rows * columns * LANES <= data.len());
        Self { data, rows, columns, row_stride: columns * LANES, column_stride: LANES }
    }

    fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Writes the product of `a` and the transpose of `b` to `out`, row by row.
fn multiply(a: Lanes, b: Lanes, out: &mut Vec<f32>) {
    struct Multiply<'a> {
        a: Lanes<'a>,
        b: Lanes<'a>,
        out: &'a mut [f32],
    }
    impl SimdOp for Multiply<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) {
            let Self { a, b, out } = self;
            for lane in (0..LANES).step_by(isa.f32().len()) {
                for row in (0..a.rows).step_by(BLOCK) {
                    for column in (0..b.rows).step_by(BLOCK) {
                        if row + BLOCK <= a.rows && column + BLOCK <= b.rows {
                            multiply_block::<I, BLOCK>(isa, a, b, out, [row, column, lane]);
                            continue;
                        }
                        for row in row..a.rows.min(row + BLOCK) {
                            for column in column..b.rows.min(column + BLOCK) {
                                multiply_block::<I, 1>(isa, a, b, out, [row, column, lane]);
                            }
                        }
                    }
                }
            }
        }
    }
    assert_eq!(a.columns, b.columns);
    let count = a.rows * b.rows * LANES;
    if out.len() < count {
        out.resize(count, 0.0);
    }
    dispatch(Multiply { a, b, out });
}

/// A block of `N` rows and columns of the product, one vector of lanes of it.
// Counted loops are unrolled before registers are assigned.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn multiply_block<I: Isa, const N: usize>(
    isa: I,
    a: Lanes,
    b: Lanes,
    out: &mut [f32],
    [row, column, lane]: [usize; 3],
) {
    let ops = isa.f32();
    let mut sums = [[ops.zero(); N]; N];
    let a_start = row * a.row_stride + lane;
    let b_start = column * b.row_stride + lane;
    for k in 0..a.columns {
        let mut factors = [ops.zero(); N];
        for i in 0..N {
            factors[i] = ops.load(&b.data[b_start + i * b.row_stride + k * b.column_stride..]);
        }
        for i in 0..N {
            let factor = ops.load(&a.data[a_start + i * a.row_stride + k * a.column_stride..]);
            for j in 0..N {
                sums[i][j] = ops.mul_add(factor, factors[j], sums[i][j]);
            }
        }
    }
    for i in 0..N {
        for j in 0..N {
            let at = ((row + i) * b.rows + column + j) * LANES + lane;
            ops.store(sums[i][j], &mut out[at..]);
        }
    }
}

/// Replaces the scores of every query by `2^score`, divided by their sum over the keys.
struct Softmax<'a> {
    scores: &'a mut [f32],
    keys: usize,
}

impl SimdOp for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        for scores in self.scores.chunks_exact_mut(self.keys * LANES) {
            for lane in (0..LANES).step_by(ops.len()) {
                let mut max = ops.splat(f32::NEG_INFINITY);
                for score in scores.chunks_exact(LANES) {
                    max = ops.max(max, ops.load(&score[lane..]));
                }
                let mut sum = ops.zero();
                for score in scores.chunks_exact_mut(LANES) {
                    let power = exp2(isa, ops.sub(ops.load(&score[lane..]), max));
                    sum = ops.add(sum, power);
                    ops.store(power, &mut score[lane..]);
                }
                let scale = ops.div(ops.one(), sum);
                for score in scores.chunks_exact_mut(LANES) {
                    let weight = ops.mul(ops.load(&score[lane..]), scale);
                    ops.store(weight, &mut score[lane..]);
                }
            }
        }
    }
}

/// Replaces the gradients at the weights by those at the scores.
struct Differentiate<'a> {
    weights: &'a [f32],
    products: &'a mut [f32],
    keys: usize,
}

impl SimdOp for Differentiate<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let row = self.keys * LANES;
        let rows = self.weights.chunks_exact(row).zip(self.products.chunks_exact_mut(row));
        for (weights, products) in rows {
            for lane in (0..LANES).step_by(ops.len()) {
                let mut mean = ops.zero();
                for (weight, product) in
                    weights.chunks_exact(LANES).zip(products.chunks_exact(LANES))
                {
                    let (weight, product) = (ops.load(&weight[lane..]), ops.load(&product[lane..]));
                    mean = ops.mul_add(weight, product, mean);
                }
                for (weight, product) in
                    weights.chunks_exact(LANES).zip(products.chunks_exact_mut(LANES))
                {
                    let excess = ops.sub(ops.load(&product[lane..]), mean);
                    let slope = ops.mul(ops.load(&weight[lane..]), excess);
                    ops.store(slope, &mut product[lane..]);
                }
            }
        }
    }
}
