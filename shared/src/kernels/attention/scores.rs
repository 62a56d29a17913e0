//! The arithmetic on tiles of scores: rows are keys, columns are queries, so that everything about a
//! query happens in one lane of the vectors.
//!
//! Scores come in units of `ln(2)`: powers of 2 take a multiplication less than those of e.

use rten_simd::ops::{BitOps, IntOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use crate::kernels::isa::dispatch;

/// Columns of the tiles in memory are a multiple of this, so that no vector is partial.
pub(super) const LANES: usize = 16;

/// Vectors that are processed side by side. A row of a tile lies in several cache lines.
const GROUP: usize = 4;

/// What is kept about each query while its keys are walked.
#[derive(Default)]
pub(super) struct Running {
    /// Largest score so far.
    pub(super) max: Vec<f32>,
    /// Sum of the powers `2^(score - max)` so far.
    pub(super) sum: Vec<f32>,
}

impl Running {
    /// Starts anew, with `queries` queries.
    pub(super) fn start(&mut self, queries: usize) {
        for (values, value) in [(&mut self.max, f32::NEG_INFINITY), (&mut self.sum, 0.0)] {
            values.clear();
            values.resize(queries, value);
        }
    }
}

/// Replaces `scores` (rows of as many elements as there are queries) by `2^(score - max)`, where the
/// maximum includes these scores; updates `running`, and rescales the rows of `output` to the new
/// maximum (online softmax, Milakov and Gimelshein 2018, algorithm 3).
pub(super) fn add_tile(scores: &mut [f32], running: &mut Running, output: &mut [f32]) {
    struct AddTile<'a> {
        scores: &'a mut [f32],
        running: &'a mut Running,
        output: &'a mut [f32],
    }
    impl SimdOp for AddTile<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) {
            let Self { scores, running, output } = self;
            let columns = running.max.len();
            for_groups(columns, isa.f32().len(), |column, vectors| match vectors {
                GROUP => add_columns::<I, GROUP>(isa, scores, running, output, column),
                _ => add_columns::<I, 1>(isa, scores, running, output, column),
            });
        }
    }
    dispatch(AddTile { scores, running, output });
}

#[inline(always)]
fn add_columns<I: Isa, const N: usize>(
    isa: I,
    scores: &mut [f32],
    running: &mut Running,
    output: &mut [f32],
    column: usize,
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let columns = running.max.len();
    let range = column..column + N * lanes;
    let before = ops.load_many::<N>(&running.max[range.clone()]);
    let mut max = before;
    for row in scores.chunks_exact(columns) {
        let row = ops.load_many::<N>(&row[range.clone()]);
        for v in 0..N {
            max[v] = ops.max(max[v], row[v]);
        }
    }
    let mut sums = ops.load_many::<N>(&running.sum[range.clone()]);
    let mut scale = [ops.zero(); N];
    for v in 0..N {
        scale[v] = exp2(isa, ops.sub(before[v], max[v]));
        sums[v] = ops.mul(sums[v], scale[v]);
    }
    for row in scores.chunks_exact_mut(columns) {
        let row = &mut row[range.clone()];
        let values = ops.load_many::<N>(row);
        for v in 0..N {
            let power = exp2(isa, ops.sub(values[v], max[v]));
            sums[v] = ops.add(sums[v], power);
            ops.store(power, &mut row[v * lanes..]);
        }
    }
    for row in output.chunks_exact_mut(columns) {
        let row = &mut row[range.clone()];
        let values = ops.load_many::<N>(row);
        for v in 0..N {
            ops.store(ops.mul(values[v], scale[v]), &mut row[v * lanes..]);
        }
    }
    for v in 0..N {
        ops.store(max[v], &mut running.max[column + v * lanes..]);
        ops.store(sums[v], &mut running.sum[column + v * lanes..]);
    }
}

/// From `scores`, the logarithms (to base 2) of the sums of powers, the gradients `products` at the
/// weights and their weighted means (of each query): the weights in the place of `scores`, and the
/// gradients at the scores in the place of `products`.
pub(super) fn differentiate_tile(
    scores: &mut [f32],
    products: &mut [f32],
    log_sums: &[f32],
    means: &[f32],
) {
    struct Differentiate<'a> {
        scores: &'a mut [f32],
        products: &'a mut [f32],
        log_sums: &'a [f32],
        means: &'a [f32],
    }
    impl SimdOp for Differentiate<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) {
            let Self { scores, products, log_sums, means } = self;
            let ops = isa.f32();
            let lanes = ops.len();
            let columns = log_sums.len();
            let rows = scores.chunks_exact_mut(columns).zip(products.chunks_exact_mut(columns));
            for (scores, products) in rows {
                for column in (0..columns).step_by(lanes) {
                    let range = column..column + lanes;
                    let score = ops.load(&scores[range.clone()]);
                    let log_sum = ops.load(&log_sums[range.clone()]);
                    let weight = exp2(isa, ops.sub(score, log_sum));
                    let product = ops.load(&products[range.clone()]);
                    let excess = ops.sub(product, ops.load(&means[range.clone()]));
                    ops.store(weight, &mut scores[range.clone()]);
                    ops.store(ops.mul(weight, excess), &mut products[range]);
                }
            }
        }
    }
    dispatch(Differentiate { scores, products, log_sums, means });
}

/// Multiplies every row of `values` by `factors`.
pub(super) fn scale_columns(values: &mut [f32], factors: &[f32]) {
    struct ScaleColumns<'a> {
        values: &'a mut [f32],
        factors: &'a [f32],
    }
    impl SimdOp for ScaleColumns<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, _: I) {
            for row in self.values.chunks_exact_mut(self.factors.len()) {
                row.iter_mut().zip(self.factors).for_each(|(value, factor)| *value *= factor);
            }
        }
    }
    dispatch(ScaleColumns { values, factors });
}

/// Calls `work` with the first column and the number of vectors (`GROUP` or 1) of each group of columns.
#[inline(always)]
fn for_groups(columns: usize, lanes: usize, mut work: impl FnMut(usize, usize)) {
    let mut column = 0;
    while column < columns {
        let vectors = if column + GROUP * lanes <= columns { GROUP } else { 1 };
        work(column, vectors);
        column += vectors * lanes;
    }
}

/// 2 to the power of `x`, which must not be much above 0, to 2^-23 of the result (without fused
/// multiply-add the last steps round 4 times); 2e-38 where it is less. NaN stays.
#[inline(always)]
pub(super) fn exp2<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    // 2^x = 2^n 2^r with |r| <= 1/2. Adding 1.5 * 2^23 rounds to an integer, and leaves it in the
    // low bits, from where it is added to the exponent.
    const ROUND: f32 = 12_582_912.0;
    // 2^r (minimax fit, relative error 2e-9).
    const POWER: [f32; 7] = [
        1.0,
        std::f32::consts::LN_2,
        0.240_226_47,
        0.055_503_29,
        0.009_618_489,
        0.001_339_993_1,
        0.000_153_458_12,
    ];
    let ops = isa.f32();
    // Not every instruction set lets NaN pass a maximum.
    let x = ops.select(ops.max(ops.splat(-125.0), x), x, ops.eq(x, x));
    let shifted = ops.add(x, ops.splat(ROUND));
    let r = ops.sub(x, ops.sub(shifted, ops.splat(ROUND)));
    let mut power = ops.splat(POWER[6]);
    for coefficient in POWER[..6].iter().rev() {
        power = ops.mul_add(power, r, ops.splat(*coefficient));
    }
    let exponent = isa.i32().shift_left::<23>(shifted.reinterpret_cast());
    let bits: I::I32 = power.reinterpret_cast();
    isa.i32().add(bits, exponent).reinterpret_cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_2_are_accurate() {
        struct Powers(Vec<f32>);
        impl SimdOp for Powers {
            type Output = Vec<f32>;

            fn eval<I: Isa>(mut self, isa: I) -> Vec<f32> {
                let ops = isa.f32();
                for x in self.0.chunks_exact_mut(ops.len()) {
                    ops.store(exp2(isa, ops.load(x)), x);
                }
                self.0
            }
        }
        let x: Vec<f32> =
            (0..1 << 20).map(|i| 1.0 - i as f32 * (126.0 / (1 << 20) as f32)).collect();
        for (x, power) in x.iter().zip(dispatch(Powers(x.clone()))) {
            let error = f64::from(power) / f64::from(*x).exp2() - 1.0;
            assert!(error.abs() < f64::from(f32::EPSILON), "{x}: {error:e}");
        }
        let special = dispatch(Powers([f32::NAN, f32::NEG_INFINITY, -1e30, 0.0].repeat(LANES)));
        assert!(special[0].is_nan());
        assert!(special[1] < 1e-37 && special[2] < 1e-37 && (special[3] - 1.0).abs() < 1e-7);
    }

    #[test]
    fn tiles_give_the_softmax_of_all_keys() {
        // 3 tiles of 5 keys, 80 queries: of both group sizes.
        let (keys, columns) = (5, 80);
        let score = |key: usize, query: usize| ((key * 37 + query * 11) % 101) as f32 * 0.3 - 10.0;
        let mut running = Running::default();
        running.start(columns);
        let mut output = vec![0.0; columns];
        for tile in 0..3 {
            let mut scores: Vec<f32> = (0..keys * columns)
                .map(|i| score(tile * keys + i / columns, i % columns))
                .collect();
            add_tile(&mut scores, &mut running, &mut output);
            // The values are the numbers of the keys.
            for (i, power) in scores.iter().enumerate() {
                output[i % columns] += power * (tile * keys + i / columns) as f32;
            }
        }
        for (query, output) in output.iter().enumerate() {
            let powers = |key| f64::from(score(key, query)).exp2();
            let sum: f64 = (0..3 * keys).map(powers).sum();
            let expected = (0..3 * keys).map(|key| key as f64 * powers(key)).sum::<f64>() / sum;
            let found = f64::from(output / running.sum[query]);
            assert!((found / expected - 1.0).abs() < 1e-6, "{query}: {found} {expected}");
            let log_sum = f64::from(running.max[query] + running.sum[query].log2());
            assert!((log_sum - sum.log2()).abs() < 1e-5);
        }
    }
}
