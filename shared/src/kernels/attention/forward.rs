//! Attention in `f32`, tile by tile of keys and block by block of queries (Dao et al. 2022,
//! algorithm 1, in the transposed form: keys are rows).
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::f64::consts::LOG2_E;
use std::ops::Range;

use super::operands::Operands;
use super::place::Place;
use super::scores::{LANES, Running, add_tile, scale_columns};
use super::windows::Job;
use crate::kernels::gemm::{
    Matrix, Output, PackedLeft, Rows, SLACK, Start, arrange, multiply, threads,
};

/// Most keys of a tile. With the queries of a block its scores take 66 KiB, a sixteenth of a usual
/// second-level cache.
pub(super) const KEYS: usize = 264;

/// Tiles have a multiple of so many keys, the rows of the largest register tile.
pub(super) const KEY_STEP: usize = 12;

/// Most queries of a block. In the backward pass they are the depth of the products that give the
/// gradients of keys and values.
pub(super) const QUERIES: usize = 64;

/// Floating-point operations of all scores, or of their products with the values.
pub(super) fn flops(operands: &Operands<f32>, jobs: &[Vec<Job>]) -> usize {
    let scores = jobs.iter().flatten().map(|job| job.queries.len() * job.key_count());
    2 * operands.heads * operands.q.place.size.max(operands.v.place.size) * scores.sum::<usize>()
}

/// Memory that tasks write to, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) data: *mut f32,
    pub(super) place: Place,
}

// SAFETY: whoever writes vouches for being alone in doing so.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    pub(super) fn of_head(self, item: usize, head: usize) -> Self {
        Self { place: self.place.of_head(item, head), ..self }
    }

    /// Writes `block` for `tokens` of one frame; its rows are channels, of `columns` elements.
    /// Channels or tokens must lie side by side.
    ///
    /// # Safety
    /// The place must lie within the memory; nobody else may access these elements meanwhile.
    pub(super) unsafe fn write(
        self,
        tokens: &Range<usize>,
        block: &[f32],
        columns: usize,
        buffer: &mut Vec<f32>,
    ) {
        let (size, count) = (self.place.size, tokens.len());
        // SAFETY: the place lies within the memory, as the caller promises.
        let row = |offset: usize, len: usize| unsafe {
            std::slice::from_raw_parts_mut(self.data.add(offset), len)
        };
        if self.place.token == 1 {
            for (channel, values) in block.chunks_exact(columns).enumerate().take(size) {
                let target = row(self.place.at(tokens.start, channel), count);
                target.copy_from_slice(&values[..count]);
            }
        } else {
            let matrix = Matrix { columns: count, ..Matrix::row_major(block, size, columns) };
            transpose(matrix, buffer);
            for (token, values) in tokens.clone().zip(buffer.chunks_exact(size)) {
                row(self.place.of_token(token), size).copy_from_slice(values);
            }
        }
    }

    /// Adds `factor` times `block` for `tokens` of one frame; its rows are tokens. Channels or
    /// tokens must lie side by side.
    ///
    /// # Safety
    /// As [`Target::write`]; the elements must be initialised.
    pub(super) unsafe fn add(
        self,
        tokens: &Range<usize>,
        block: &[f32],
        factor: f32,
        buffer: &mut Vec<f32>,
    ) {
        let (size, count) = (self.place.size, tokens.len());
        let add_row = |offset: usize, values: &[f32]| {
            // SAFETY: the place lies within the memory, as the caller promises.
            let target =
                unsafe { std::slice::from_raw_parts_mut(self.data.add(offset), values.len()) };
            target.iter_mut().zip(values).for_each(|(target, value)| *target += factor * value);
        };
        if self.place.channel == 1 {
            for (token, values) in tokens.clone().zip(block.chunks_exact(size)) {
                add_row(self.place.of_token(token), values);
            }
        } else {
            transpose(Matrix::row_major(block, count, size), buffer);
            for (channel, values) in buffer.chunks_exact(count).enumerate().take(size) {
                add_row(self.place.at(tokens.start, channel), values);
            }
        }
    }
}

/// The transpose of `matrix`, row by row, at the start of `out`.
pub(super) fn transpose(matrix: Matrix, out: &mut Vec<f32>) {
    let count = matrix.rows * matrix.columns;
    if out.len() < count + SLACK {
        out.resize(count + SLACK, 0.0);
    }
    arrange(matrix, matrix.rows, &mut out[..count + SLACK]);
}

/// Multiplies `left` by `right`, whose rows have `stride` elements, of which the first `columns`
/// are used, to rows of `stride_out` elements in `out`.
pub(super) fn product(
    left: &PackedLeft,
    (right, stride, columns): (&[f32], usize, usize),
    start: Start,
    (out, stride_out): (&mut [f32], usize),
    offsets: &mut Vec<usize>,
) {
    let depth = left.depth();
    offsets.clear();
    offsets.extend((0..depth).map(|row| row * stride));
    let right = Rows { data: right, offsets };
    assert!(left.rows() * stride_out <= out.len() && columns <= stride_out);
    let output = Output { data: out.as_mut_ptr(), stride: stride_out };
    // SAFETY: the output has as many rows and columns, all initialised.
    unsafe { multiply(left, &right, 0..columns, start, output, &mut Vec::new()) };
}

/// The keys of a job, packed.
#[derive(Default)]
struct Tile {
    keys: PackedLeft,
    values: PackedLeft,
}

/// The memory of a thread.
#[derive(Default)]
struct Scratch {
    tiles: Vec<Tile>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    output: Vec<f32>,
    running: Running,
    buffer: Vec<f32>,
    offsets: Vec<usize>,
}

/// Writes the result of attention for all jobs of all items to `output`, and the logarithm (base
/// 2) of every query's sum of powers to `log_sums [B, H, Tq]`.
///
/// # Safety
/// The output's place must lie within its memory, `log_sums` must have room for all queries, and
/// nobody else may access them meanwhile.
pub(super) unsafe fn run(
    operands: Operands<f32>,
    jobs: &[Vec<Job>],
    output: Target,
    log_sums: Output,
) {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    let flops = 2 * flops(&operands, jobs);
    let count: usize = jobs.iter().map(|jobs| jobs.len() * operands.heads).sum();
    let parts = threads::parts(count, flops);
    let mut tasks = vec![];
    for (item, jobs) in jobs.iter().enumerate() {
        for head in 0..operands.heads {
            for job in jobs {
                let len = job.queries.len().div_ceil(parts).next_multiple_of(QUERIES);
                let parts = job.queries.clone().step_by(len);
                let parts = parts.map(|start| start..job.queries.end.min(start + len));
                tasks.extend(parts.map(|queries| (item, head, &job.keys, queries)));
            }
        }
    }
    threads::for_each(tasks.len(), flops, |task| {
        let (item, head, keys, queries) = &tasks[task];
        let operands = operands.of_head(*item, *head);
        let output = output.of_head(*item, *head);
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: the tasks write different heads or queries, all within the output.
            unsafe {
                let log_sums = log_sums.from(item * operands.heads + head, 0);
                scratch.attend(operands, keys, queries.clone(), output, log_sums.data);
            }
        });
    });
}

impl Scratch {
    /// # Safety
    /// As [`run`], for `queries`.
    unsafe fn attend(
        &mut self,
        operands: Operands<f32>,
        keys: &[Range<usize>],
        queries: Range<usize>,
        output: Target,
        log_sums: *mut f32,
    ) {
        let Operands { q, k, v, scale, .. } = operands;
        let scale_log2 = (scale * LOG2_E) as f32;
        let tiles: Vec<Range<usize>> =
            keys.iter().flat_map(|run| k.place.blocks(run.clone(), KEYS, KEY_STEP)).collect();
        if self.tiles.len() < tiles.len() {
            self.tiles.resize_with(tiles.len(), Tile::default);
        }
        for (packed, tile) in self.tiles.iter_mut().zip(&tiles) {
            packed.keys.pack(k.matrix(tile));
            packed.values.pack(v.matrix(tile).t());
        }
        let size = v.place.size;
        for block in q.place.blocks(queries, QUERIES, LANES) {
            let count = block.len();
            let columns = count.next_multiple_of(LANES);
            transpose(q.matrix(&block), &mut self.queries);
            self.queries[..q.place.size * count].iter_mut().for_each(|q| *q *= scale_log2);
            self.running.start(columns);
            self.output.clear();
            self.output.resize(size * columns, 0.0);
            for (packed, tile) in self.tiles.iter().zip(&tiles) {
                let scores = tile.len() * columns;
                if self.scores.len() < scores {
                    self.scores.resize(scores, 0.0);
                }
                let scores = &mut self.scores[..scores];
                let right = (&self.queries[..], count, count);
                product(&packed.keys, right, Start::Zero, (scores, columns), &mut self.offsets);
                add_tile(scores, &mut self.running, &mut self.output);
                let right = (&*scores, columns, count);
                let output = (&mut self.output[..], columns);
                product(&packed.values, right, Start::Output, output, &mut self.offsets);
            }
            let Running { max, sum } = &mut self.running;
            for (query, (max, sum)) in block.clone().zip(max.iter().zip(&*sum)) {
                // SAFETY: one of the queries that the caller vouches for.
                unsafe { log_sums.add(query).write(max + sum.log2()) };
            }
            if !tiles.is_empty() {
                sum.iter_mut().for_each(|sum| *sum = 1.0 / *sum);
                scale_columns(&mut self.output, sum);
            }
            // SAFETY: as above.
            unsafe { output.write(&block, &self.output, columns, &mut self.buffer) };
        }
    }
}
