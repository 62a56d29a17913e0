//! The gradients of attention in `f32`, from the result and the sums of powers; scores are computed
//! again, tile by tile (Dao et al. 2022, algorithm 4).
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::f64::consts::LOG2_E;
use std::ops::Range;

use super::forward::{KEY_STEP, KEYS, QUERIES, Target, flops, product, transpose};
use super::operands::{Operand, Operands};
use super::scores::{LANES, differentiate_tile};
use super::windows::Job;
use crate::kernels::gemm::{Matrix, PackedLeft, Start, threads};

/// What the gradients follow from, beside the operands.
#[derive(Clone, Copy)]
pub(super) struct Results<'a> {
    /// The result.
    pub(super) output: Operand<'a, f32>,
    /// The gradient at the result.
    pub(super) gradient: Operand<'a, f32>,
    /// The logarithm (base 2) of the sum of powers of every query, `[B, H, Tq]`.
    pub(super) log_sums: &'a [f32],
}

/// Where gradients are added up.
#[derive(Clone, Copy)]
pub(super) struct Targets {
    pub(super) q: Target,
    pub(super) k: Target,
    pub(super) v: Target,
}

/// Number of parts in which the gradients are computed side by side, each in memory of its own: one
/// where there are enough heads to keep all threads busy.
pub(super) fn parts(operands: &Operands<f32>, jobs: &[Vec<Job>]) -> usize {
    threads::parts(jobs.len() * operands.heads, 5 * flops(operands, jobs))
}

/// Adds the gradients of all jobs of all items, part by part, to `targets`.
///
/// # Safety
/// All targets must lie within their memory, which must be initialised and which nobody else may access
/// meanwhile.
pub(super) unsafe fn run(
    operands: Operands<f32>,
    results: Results,
    jobs: &[Vec<Job>],
    targets: &[Targets],
) {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    let (heads, parts) = (operands.heads, targets.len());
    let flops = 5 * flops(&operands, jobs);
    threads::for_each(jobs.len() * heads * parts, flops, |task| {
        let (part, head, item) = (task % parts, task / parts % heads, task / parts / heads);
        let operands = operands.of_head(item, head);
        let results = Results {
            output: results.output.of_head(item, head),
            gradient: results.gradient.of_head(item, head),
            log_sums: &results.log_sums[(item * heads + head) * operands.queries..],
        };
        let Targets { q, k, v } = targets[part];
        let [q, k, v] = [q, k, v].map(|target| target.of_head(item, head));
        SCRATCH.with_borrow_mut(|scratch| {
            for job in &jobs[item] {
                let blocks = operands.q.place.blocks(job.queries.clone(), QUERIES, LANES);
                let of_part = blocks.len() * part / parts..blocks.len() * (part + 1) / parts;
                let keys = Keys { runs: &job.keys, k, v };
                // SAFETY: tasks of one part have heads of their own, those of different parts
                // have memory of their own.
                unsafe {
                    scratch.differentiate(operands, results, keys, &blocks[of_part], q);
                }
            }
        });
    });
}

/// The keys of a job, and where their gradients and those of their values are added up.
struct Keys<'a> {
    runs: &'a [Range<usize>],
    k: Target,
    v: Target,
}

/// A tile of keys, packed for all products, and what has been added up for it.
#[derive(Default)]
struct Tile {
    keys: PackedLeft,
    keys_t: PackedLeft,
    values: PackedLeft,
    key_gradient: Vec<f32>,
    value_gradient: Vec<f32>,
}

/// A block of queries, or of their results, in both orders.
#[derive(Default)]
struct Block {
    /// Rows are tokens.
    rows: Vec<f32>,
    /// Rows are channels.
    columns: Vec<f32>,
}

impl Block {
    fn fill(&mut self, matrix: Matrix) {
        transpose(matrix.t(), &mut self.rows);
        transpose(matrix, &mut self.columns);
    }
}

/// The memory of a thread.
#[derive(Default)]
struct Scratch {
    tiles: Vec<Tile>,
    queries: Block,
    gradient: Block,
    output: Vec<f32>,
    means: Vec<f32>,
    log_sums: Vec<f32>,
    weights: Vec<f32>,
    products: Vec<f32>,
    query_gradient: Vec<f32>,
    packed: PackedLeft,
    buffer: Vec<f32>,
    offsets: Vec<usize>,
}

impl Scratch {
    /// Adds the gradients of a head for some blocks of queries of a job.
    ///
    /// # Safety
    /// As [`run`], for these queries and keys.
    unsafe fn differentiate(
        &mut self,
        operands: Operands<f32>,
        results: Results,
        keys: Keys,
        blocks: &[Range<usize>],
        query_target: Target,
    ) {
        let Operands { q, k, v, scale, .. } = operands;
        let (scale, scale_log2) = (scale as f32, (scale * LOG2_E) as f32);
        let (size, value_size) = (q.place.size, v.place.size);
        let tiles: Vec<Range<usize>> =
            keys.runs.iter().flat_map(|run| k.place.blocks(run.clone(), KEYS, KEY_STEP)).collect();
        if blocks.is_empty() || tiles.is_empty() {
            return;
        }
        if self.tiles.len() < tiles.len() {
            self.tiles.resize_with(tiles.len(), Tile::default);
        }
        for (sums, tile) in self.tiles.iter_mut().zip(&tiles) {
            sums.keys.pack(k.matrix(tile));
            sums.keys_t.pack(k.matrix(tile).t());
            sums.values.pack(v.matrix(tile));
            for (sum, size) in
                [(&mut sums.key_gradient, size), (&mut sums.value_gradient, value_size)]
            {
                sum.clear();
                sum.resize(tile.len() * size, 0.0);
            }
        }
        for block in blocks {
            let count = block.len();
            let columns = count.next_multiple_of(LANES);
            self.queries.fill(q.matrix(block));
            self.queries.columns[..size * count].iter_mut().for_each(|q| *q *= scale_log2);
            self.gradient.fill(results.gradient.matrix(block));
            transpose(results.output.matrix(block), &mut self.output);
            self.means.clear();
            self.means.resize(columns, 0.0);
            let rows =
                self.gradient.columns.chunks_exact(count).zip(self.output.chunks_exact(count));
            for (gradient, output) in rows.take(value_size) {
                let products = gradient.iter().zip(output);
                self.means.iter_mut().zip(products).for_each(|(mean, (g, o))| *mean += g * o);
            }
            self.log_sums.clear();
            self.log_sums.extend_from_slice(&results.log_sums[block.clone()]);
            self.log_sums.resize(columns, 0.0);
            self.query_gradient.clear();
            self.query_gradient.resize(size * columns, 0.0);
            for (sums, tile) in self.tiles.iter_mut().zip(&tiles) {
                let scores = tile.len() * columns;
                for values in [&mut self.weights, &mut self.products] {
                    if values.len() < scores {
                        values.resize(scores, 0.0);
                    }
                }
                let (weights, products) =
                    (&mut self.weights[..scores], &mut self.products[..scores]);
                let offsets = &mut self.offsets;
                let right = (&self.queries.columns[..], count, count);
                product(&sums.keys, right, Start::Zero, (weights, columns), offsets);
                let right = (&self.gradient.columns[..], count, count);
                product(&sums.values, right, Start::Zero, (products, columns), offsets);
                differentiate_tile(weights, products, &self.log_sums, &self.means);

                let over_queries = |values| Matrix {
                    columns: count,
                    ..Matrix::row_major(values, tile.len(), columns)
                };
                self.packed.pack(over_queries(weights));
                let right = (&self.gradient.rows[..], value_size, value_size);
                let sum = (&mut sums.value_gradient[..], value_size);
                product(&self.packed, right, Start::Output, sum, offsets);
                self.packed.pack(over_queries(products));
                let right = (&self.queries.rows[..], size, size);
                let sum = (&mut sums.key_gradient[..], size);
                product(&self.packed, right, Start::Output, sum, offsets);
                let right = (&*products, columns, count);
                let sum = (&mut self.query_gradient[..], columns);
                product(&sums.keys_t, right, Start::Output, sum, offsets);
            }
            self.query_gradient.iter_mut().for_each(|gradient| *gradient *= scale);
            // SAFETY: as the caller promises.
            unsafe { query_target.write(block, &self.query_gradient, columns, &mut self.buffer) };
        }
        for (sums, tile) in self.tiles.iter().zip(&tiles) {
            // SAFETY: as the caller promises.
            unsafe {
                keys.k.add(tile, &sums.key_gradient, scale, &mut self.buffer);
                keys.v.add(tile, &sums.value_gradient, 1.0, &mut self.buffer);
            }
        }
    }
}
