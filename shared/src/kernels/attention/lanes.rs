//! Attention over frames in `f32`, in which every position attends for itself: 16 positions, side by
//! side in memory, are the lanes of all computations.
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

/// Positions that are read and written together. Every channel of every frame of a chunk may be in a
/// memory page of its own, which takes longer to find than to read.
const CHUNK: usize = 4 * LANES;

/// Positions of all items.
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

impl Chunk {
    /// Number of groups of lanes.
    fn groups(self) -> usize {
        self.count.div_ceil(LANES)
    }
}

impl Positions {
    /// Calls `work` with chunks of positions for all heads, on all threads.
    fn for_each(self, heads: usize, flops_each: usize, work: impl Fn(Chunk) + Sync + Send) {
        let chunks = self.of_item.div_ceil(CHUNK);
        let count = self.items * heads * chunks;
        threads::for_each(count, count * flops_each, |task| {
            let (at, head, item) =
                (task % chunks * CHUNK, task / chunks % heads, task / chunks / heads);
            let count = CHUNK.min(self.of_item - at);
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
    let flops = 4 * CHUNK * operands.queries * operands.keys * operands.k.place.size;
    positions.for_each(operands.heads, flops, |chunk| {
        Scratch::with(|scratch| {
            let Scratch { q, k, v, weights, outputs: [result, ..], .. } = scratch;
            let [q, k, v] = load_operands(operands, chunk, [q, k, v]);
            result.resize(operands.queries, operands.v.place.size);
            for group in 0..chunk.groups() {
                weigh(q.of(group), k.of(group), weights);
                multiply(weights.of(0), v.of(group).t(), result.of_mut(group));
            }
            // SAFETY: as the caller promises; chunks have positions of their own.
            unsafe { result.store(chunk, output, 1.0) };
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
    let flops = 10 * CHUNK * operands.queries * operands.keys * operands.k.place.size;
    let (queries, keys) = (operands.queries, operands.keys);
    let (size, value_size) = (operands.k.place.size, operands.v.place.size);
    positions.for_each(operands.heads, flops, |chunk| {
        Scratch::with(|scratch| {
            let Scratch { q, k, v, gradient, weights, products, outputs: [dq, dk, dv] } = scratch;
            let [q, k, v] = load_operands(operands, chunk, [q, k, v]);
            gradient.load(dy, queries, chunk, 1.0);
            products.resize(queries, keys);
            dq.resize(queries, size);
            dk.resize(keys, size);
            dv.resize(keys, value_size);
            for group in 0..chunk.groups() {
                weigh(q.of(group), k.of(group), weights);
                multiply(gradient.of(group), v.of(group), products.of_mut(0));
                multiply(weights.of(0).t(), gradient.of(group).t(), dv.of_mut(group));
                let (weights, products_mut) = (weights.of(0).data, products.of_mut(0));
                dispatch(Differentiate { weights, products: products_mut, keys });
                multiply(products.of(0), k.of(group).t(), dq.of_mut(group));
                multiply(products.of(0).t(), q.of(group).t(), dk.of_mut(group));
            }
            // SAFETY: as the caller promises; chunks have positions of their own. The queries came
            // with the factor that makes powers of 2.
            unsafe {
                dq.store(chunk, targets.q, operands.scale as f32);
                dk.store(chunk, targets.k, LN_2 as f32);
                dv.store(chunk, targets.v, 1.0);
            }
        });
    });
}

/// The memory of a thread.
#[derive(Default)]
struct Scratch {
    q: Groups,
    k: Groups,
    v: Groups,
    gradient: Groups,
    weights: Groups,
    products: Groups,
    outputs: [Groups; 3],
}

impl Scratch {
    fn with(work: impl FnOnce(&mut Self)) {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        SCRATCH.with_borrow_mut(work);
    }
}

/// Loads queries (with the factor that makes their scores those of powers of 2), keys and values.
fn load_operands<'a>(
    operands: Operands<f32>,
    chunk: Chunk,
    [q, k, v]: [&'a mut Groups; 3],
) -> [&'a Groups; 3] {
    q.load(operands.q, operands.queries, chunk, (operands.scale * LOG2_E) as f32);
    k.load(operands.k, operands.keys, chunk, 1.0);
    v.load(operands.v, operands.keys, chunk, 1.0);
    [q, k, v]
}

/// Computes the weights of a group.
fn weigh(q: Lanes, k: Lanes, weights: &mut Groups) {
    weights.resize(q.rows, k.rows);
    multiply(q, k, weights.of_mut(0));
    dispatch(Softmax { scores: weights.of_mut(0), keys: k.rows });
}

/// A matrix for each group of [`LANES`] positions of a chunk, one after the other.
#[derive(Default)]
struct Groups {
    data: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Groups {
    /// Makes room for matrices of another size, in the place of what was there.
    fn resize(&mut self, rows: usize, columns: usize) {
        (self.rows, self.columns) = (rows, columns);
        let count = rows * columns * CHUNK;
        if self.data.len() < count {
            self.data.resize(count, 0.0);
        }
    }

    /// Loads `factor` times all channels of a chunk. Lanes that are left over keep what they hold.
    fn load(&mut self, operand: Operand<f32>, tokens: usize, chunk: Chunk, factor: f32) {
        let operand = operand.of_head(chunk.first, chunk.head);
        let size = operand.place.size;
        self.resize(tokens, size);
        for i in 0..tokens * size {
            let from = &operand.data[operand.place.at(i / size, i % size)..][..chunk.count];
            for (group, from) in from.chunks(LANES).enumerate() {
                let to = &mut self.data[(group * tokens * size + i) * LANES..];
                to.iter_mut().zip(from).for_each(|(to, x)| *to = factor * x);
            }
        }
    }

    /// Writes `factor` times all channels of a chunk.
    ///
    /// # Safety
    /// The chunk must lie within the target, and nobody else may access it meanwhile.
    unsafe fn store(&self, chunk: Chunk, target: Target, factor: f32) {
        let target = target.of_head(chunk.first, chunk.head);
        let count = self.rows * self.columns;
        for i in 0..count {
            let offset = target.place.at(i / self.columns, i % self.columns);
            // SAFETY: as the caller promises.
            let to =
                unsafe { std::slice::from_raw_parts_mut(target.data.add(offset), chunk.count) };
            for (group, to) in to.chunks_mut(LANES).enumerate() {
                let from = &self.data[(group * count + i) * LANES..];
                to.iter_mut().zip(from).for_each(|(to, x)| *to = factor * x);
            }
        }
    }

    /// The matrix of a group.
    fn of(&self, group: usize) -> Lanes<'_> {
        let count = self.rows * self.columns * LANES;
        Lanes {
            data: &self.data[group * count..][..count],
            rows: self.rows,
            columns: self.columns,
            row_stride: self.columns * LANES,
            column_stride: LANES,
        }
    }

    /// The elements of the matrix of a group.
    fn of_mut(&mut self, group: usize) -> &mut [f32] {
        let count = self.rows * self.columns * LANES;
        &mut self.data[group * count..][..count]
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

impl Lanes<'_> {
    /// The transpose.
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
fn multiply(a: Lanes, b: Lanes, out: &mut [f32]) {
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
