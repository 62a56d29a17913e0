//! Weights in narrow numbers.

use rten_simd::{Isa, SimdOp};

use super::numbers::{Affine, Format, Range, Rounding, bf16_word, round, step};
use crate::kernels::isa::dispatch;
use crate::{Error, Result};

/// Most products of 8-bit integers whose sum an `i32` holds: each is at most 255 * 127.
const MOST_INTEGER_PRODUCTS: usize = i32::MAX as usize / (255 * 127);

/// A weight `[O, C, taps]`, rounded: a row of words for each output channel, first along the
/// taps, then along the groups of input channels that share a word.
pub(crate) struct WeightRows {
    /// The words, row by row.
    pub words: Vec<u32>,
    /// Words in a row.
    pub depth: usize,
    /// What turns sums of products into outputs.
    pub scaling: Scaling,
}

/// What turns sums of products with a weight into outputs.
#[derive(Clone, Debug)]
pub(crate) enum Scaling {
    /// Sums are outputs.
    None,
    /// For each output channel, its scale, and the sum of its integers: what the sum grows by for
    /// each step of the inputs' zero point.
    Integer(Vec<(f32, i32)>),
}

impl WeightRows {
    /// The weight rounded to `format`.
    ///
    /// # Errors
    /// When its integers could overflow in a sum.
    pub fn new(
        format: Format,
        weight: &[f32],
        [outputs, channels, taps]: [usize; 3],
    ) -> Result<Self> {
        let count = channels * taps;
        if format == Format::Int8 && count > MOST_INTEGER_PRODUCTS {
            return Err(Error::Argument(format!(
                "a layer in 8-bit integers sums at most {MOST_INTEGER_PRODUCTS} products, this one \
                 has {count}; use bf16"
            )));
        }
        let parts = format.parts();
        let depth = channels.div_ceil(parts) * taps;
        let mut words = Vec::with_capacity(outputs * depth);
        let mut scales = Vec::with_capacity(outputs);
        for row in 0..outputs {
            let weight = &weight[row * count..][..count];
            let (scale, inverse) = step(Range::of(weight).magnitude(), 127.0);
            let integer = |x: f32| round(x * inverse).clamp(-127, 127);
            for (first, tap) in (0..channels)
                .step_by(parts)
                .flat_map(|first| (0..taps).map(move |tap| (first, tap)))
            {
                let at = |part: usize| {
                    let channel = first + part;
                    if channel < channels { weight[channel * taps + tap] } else { 0.0 }
                };
                words.push(match format {
                    Format::Bf16 => bf16_word([at(0), at(1)]),
                    Format::Int8 => {
                        u32::from_le_bytes([0, 1, 2, 3].map(|part| integer(at(part)) as u8))
                    }
                });
            }
            scales.push((scale, weight.iter().map(|&x| integer(x)).sum()));
        }
        let scaling = match format {
            Format::Bf16 => Scaling::None,
            Format::Int8 => Scaling::Integer(scales),
        };
        Ok(Self { words, depth, scaling })
    }
}

impl Scaling {
    /// Turns the sums of one output channel, all of inputs that were rounded alike, into outputs.
    pub fn finish_channel(
        &self,
        sums: &mut [f32],
        rounding: Rounding,
        channel: usize,
        bias: Option<&[f32]>,
    ) {
        let bias = bias.map_or(0.0, |bias| bias[channel]);
        match (self, rounding) {
            (Self::Integer(channels), Rounding::Int8(affine)) => {
                let (scale, sum) = channels[channel];
                let (scale, offset) = (affine.scale * scale, affine.zero.wrapping_mul(sum));
                dispatch(Finish(sums, |_, sum: f32| rescale(sum, offset, scale) + bias));
            }
            _ if bias != 0.0 => dispatch(Finish(sums, |_, sum| sum + bias)),
            _ => {}
        }
    }

    /// Turns the sums of consecutive output channels, the first of number `first`, of one row of
    /// inputs into outputs.
    pub fn finish_row(
        &self,
        sums: &mut [f32],
        rounding: Rounding,
        first: usize,
        bias: Option<&[f32]>,
    ) {
        let end = first + sums.len();
        if let (Self::Integer(channels), Rounding::Int8(Affine { scale, zero, .. })) =
            (self, rounding)
        {
            let channels = &channels[first..end];
            dispatch(Finish(sums, |at: usize, sum| {
                let (channel_scale, channel_sum) = channels[at];
                rescale(sum, zero.wrapping_mul(channel_sum), scale * channel_scale)
            }));
        }
        if let Some(bias) = bias {
            let bias = &bias[first..end];
            dispatch(Finish(sums, |at: usize, sum| sum + bias[at]));
        }
    }
}

/// The output for a sum of integers, whose bits `sum` has.
#[inline(always)]
fn rescale(sum: f32, offset: i32, scale: f32) -> f32 {
    (sum.to_bits() as i32).wrapping_sub(offset) as f32 * scale
}

/// Replaces every number by what the function makes of its place and itself.
struct Finish<'a, F>(&'a mut [f32], F);

impl<F: Fn(usize, f32) -> f32> SimdOp for Finish<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        for (at, sum) in self.0.iter_mut().enumerate() {
            *sum = (self.1)(at, *sum);
        }
    }
}
