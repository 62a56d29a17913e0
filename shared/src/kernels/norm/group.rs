//! Group normalisation.

use std::sync::{Arc, OnceLock};

use candle_core::Tensor;

use super::row_sets::{Normalise, RowSets, Source};
use crate::kernels::activation::Activation;
use crate::kernels::rows::contiguous_rows;
use crate::kernels::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Group norm of `x [B, C, ..]`: each item's channels, in `groups` groups of neighbours, are
/// normalised together: `(x - mean) / sqrt(variance + eps) * weight + bias` with `weight [C]` and
/// `bias [C]`, 1 and 0 where there is none (Wu and He 2018, section 3). With as many groups as
/// channels it is instance norm.
///
/// # Errors
/// When the shapes do not fit, or the groups do not divide the channels.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let options = GroupNormOptions { groups, weight, bias, eps, ..GroupNormOptions::default() };
    group_norm_with(x, &options)
}

/// A group norm and what is fused with it.
#[derive(Clone, Copy, Debug)]
pub struct GroupNormOptions<'a> {
    /// Number of groups of neighbouring channels.
    pub groups: usize,
    /// Scale after normalising, `[C]`; 1 where there is none.
    pub weight: Option<&'a Tensor>,
    /// Shift after scaling, `[C]`; 0 where there is none.
    pub bias: Option<&'a Tensor>,
    /// Added to the variance.
    pub eps: f64,
    /// Whether the input is `[B, F, C, ..]` instead of `[B, C, ..]`: the groups of channels of all
    /// frames of an item are normalised together.
    pub has_frames: bool,
    /// `s [B, C]` of a factor `1 + s` for each item; 0 where there is none.
    pub scale: Option<&'a Tensor>,
    /// A shift for each item, `[B, C]`; 0 where there is none.
    pub shift: Option<&'a Tensor>,
    /// Applied at the end.
    pub activation: Activation,
}

impl Default for GroupNormOptions<'_> {
    fn default() -> Self {
        Self {
            groups: 1,
            weight: None,
            bias: None,
            eps: 1e-5,
            has_frames: false,
            scale: None,
            shift: None,
            activation: Activation::Identity,
        }
    }
}

/// `activation(group_norm(x) * (1 + scale) + shift)` in the shape of `x`: group norm, modulation of
/// the features (FiLM, Perez et al. 2018, equation 2) and activation in one pass over `x`, after one for
/// the statistics.
///
/// # Errors
/// When the shapes do not fit, or the groups do not divide the channels.
pub fn group_norm_with(x: &Tensor, options: &GroupNormOptions) -> Result<Tensor> {
    let &GroupNormOptions { groups, weight, bias, eps, has_frames, scale, shift, activation } =
        options;
    let what = "input of group norm";
    let (batch, frames, channels, leading) = match x.dims() {
        &[batch, frames, channels, ..] if has_frames => (batch, frames, channels, 3),
        &[batch, channels, ..] if !has_frames => (batch, 1, channels, 2),
        dims => {
            let expected = if has_frames { "[B, F, C, ..]" } else { "[B, C, ..]" };
            return Err(Error::shape(what, expected, dims));
        }
    };
    if groups == 0 || !channels.is_multiple_of(groups) {
        let expected = format!("C divisible by {groups} groups");
        return Err(Error::shape(what, expected, x.dims()));
    }
    let dtype = x.dtype();
    let compute = to_compute_dtype("group norm", x)?;
    let mut weight = super::vector("weight of group norm", weight, 1.0, channels, &compute)?;
    let mut bias = super::vector("bias of group norm", bias, 0.0, channels, &compute)?;
    let modulation = |name: &str, vectors: &Tensor| -> Result<Tensor> {
        if vectors.dims() == [batch, channels] {
            return Ok(vectors.to_dtype(compute.dtype())?);
        }
        let expected = format!("[{batch}, {channels}]");
        Err(Error::shape(format!("{name} of group norm"), expected, vectors.dims()))
    };
    if let Some(scale) = scale {
        let factor = (modulation("scale", scale)? + 1.0)?;
        weight = factor.broadcast_mul(&weight)?;
        bias = factor.broadcast_mul(&bias)?;
    }
    if let Some(shift) = shift {
        bias = modulation("shift", shift)?.broadcast_add(&bias)?;
        weight = weight.broadcast_as((batch, channels))?.contiguous()?;
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let sets = RowSets::groups([batch, frames, channels], groups);
    let source = Source::Input(Arc::new(OnceLock::new()));
    let rows = contiguous_rows(&compute, leading)?;
    let op = Normalise { sets, leading, eps, source, activation };
    to_dtype(rows.apply_op3(&weight, &bias, op)?, dtype)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::kernels::check;

    #[test]
    fn values_match_loops() {
        for (dims, groups) in
            [([1, 1, 2], 1), ([3, 6, 7], 3), ([2, 6, 101], 1), ([3, 4, 33], 4), ([2, 4, 1], 2)]
        {
            let [batch, channels, positions] = dims;
            let x = (check::normal(0, &dims) + 2.0).unwrap();
            let (weight, bias) = (check::normal(1, &[channels]), check::normal(2, &[channels]));
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
                let [x, weight, bias] = [&x, &weight, &bias].map(|t| t.to_dtype(dtype).unwrap());
                let y = group_norm(&x, groups, Some(&weight), Some(&bias), 1e-5).unwrap();
                let [x, weight, bias, y] = [&x, &weight, &bias, &y].map(check::to_vec);
                let size = channels / groups * positions;
                for group in 0..batch * groups {
                    let at = group * size;
                    let n = size as f64;
                    let mean = x[at..at + size].iter().sum::<f64>() / n;
                    let squares = x[at..at + size].iter().map(|x| (x - mean).powi(2));
                    let std = (squares.sum::<f64>() / n + 1e-5).sqrt();
                    for i in at..at + size {
                        let channel = i / positions % channels;
                        let expected = (x[i] - mean) / std * weight[channel] + bias[channel];
                        let error = (y[i] - expected).abs() / expected.abs().max(1.0);
                        assert!(error < tolerance, "{dims:?} {dtype:?} {i}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_match_differences() {
        let cases: [(&[usize], usize); 5] =
            [(&[1, 2, 5], 1), (&[3, 4, 5], 2), (&[3, 3, 4], 3), (&[2, 4], 2), (&[2, 4, 3, 2], 2)];
        for (dims, groups) in cases {
            let name = format!("group norm {dims:?} {groups}");
            check::gradients(&name, &[dims, &dims[1..2], &dims[1..2]], |inputs| {
                group_norm(&inputs[0], groups, Some(&inputs[1]), Some(&inputs[2]), 0.1)
            });
            check::gradients(&format!("{name} alone"), &[dims], |inputs| {
                group_norm(&inputs[0], groups, None, None, 0.1)
            });
        }
    }

    #[test]
    fn fused_values_match_loops_with_frames_and_without() {
        // Statistics over the frames too; more than one piece of a row in the last case.
        let cases =
            [([2, 1, 6, 5], 3), ([3, 4, 4, 7], 2), ([1, 3, 2, 33], 1), ([2, 2, 64, 2100], 32)];
        for (dims @ [batch, frames, channels, positions], groups) in cases {
            let x = (check::normal(0, &dims) + 2.0).unwrap();
            let [weight, bias] = [1, 2].map(|i| check::normal(i, &[channels]));
            let [scale, shift] = [3, 4].map(|i| check::normal(i, &[batch, channels]));
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
                let to = |t: &Tensor| t.to_dtype(dtype).unwrap();
                let [weight, bias, scale, shift] = [&weight, &bias, &scale, &shift].map(to);
                let options = GroupNormOptions {
                    groups,
                    weight: Some(&weight),
                    bias: Some(&bias),
                    has_frames: true,
                    scale: Some(&scale),
                    shift: Some(&shift),
                    activation: Activation::Silu,
                    ..GroupNormOptions::default()
                };
                let y = check::to_vec(&group_norm_with(&to(&x), &options).unwrap());
                // The same with channels before frames.
                let channels_first = to(&x).transpose(1, 2).unwrap();
                let options = GroupNormOptions { has_frames: false, ..options };
                let transposed = group_norm_with(&channels_first, &options).unwrap();
                let transposed = check::to_vec(&transposed.transpose(1, 2).unwrap());
                let [x, weight, bias, scale, shift] =
                    [&to(&x), &weight, &bias, &scale, &shift].map(check::to_vec);
                let at = |b, f, c, p| ((b * frames + f) * channels + c) * positions + p;
                let size = channels / groups;
                for (b, group) in (0..batch).flat_map(|b| (0..groups).map(move |g| (b, g))) {
                    let indices: Vec<(usize, usize)> = (0..frames)
                        .flat_map(|f| (group * size..(group + 1) * size).map(move |c| (f, c)))
                        .flat_map(|(f, c)| (0..positions).map(move |p| (at(b, f, c, p), c)))
                        .collect();
                    let n = indices.len() as f64;
                    let mean = indices.iter().map(|&(i, _)| x[i]).sum::<f64>() / n;
                    let squares = indices.iter().map(|&(i, _)| (x[i] - mean).powi(2)).sum::<f64>();
                    let std = (squares / n + 1e-5).sqrt();
                    for (i, c) in indices {
                        let normalised = (x[i] - mean) / std * weight[c] + bias[c];
                        let u =
                            normalised * (1.0 + scale[b * channels + c]) + shift[b * channels + c];
                        let expected = u / (1.0 + (-u).exp());
                        for y in [y[i], transposed[i]] {
                            let error = (y - expected).abs() / expected.abs().max(1.0);
                            assert!(error < tolerance, "{dims:?} {dtype:?} {i}: {error:e}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn fused_gradients_match_differences() {
        // Both schedules: few groups, and many of several channels.
        let cases: [([usize; 4], usize); 3] =
            [([2, 3, 4, 5], 2), ([1, 2, 6, 3], 1), ([3, 1, 8, 3], 4)];
        for (dims @ [batch, _, channels, _], groups) in cases {
            for activation in [Activation::Silu, Activation::Tanh, Activation::Identity] {
                let vector: &[usize] = &[channels];
                let film: &[usize] = &[batch, channels];
                let shapes = [&dims, vector, vector, film, film];
                check::gradients(&format!("{dims:?} {activation:?}"), &shapes, |inputs| {
                    let options = GroupNormOptions {
                        groups,
                        weight: Some(&inputs[1]),
                        bias: Some(&inputs[2]),
                        eps: 0.1,
                        has_frames: true,
                        scale: Some(&inputs[3]),
                        shift: Some(&inputs[4]),
                        activation,
                    };
                    group_norm_with(&inputs[0], &options)
                });
            }
        }
        let shapes: [&[usize]; 2] = [&[3, 4, 5], &[3, 4]];
        for which in 0..2 {
            check::gradients(&format!("scale or shift alone, {which}"), &shapes, |inputs| {
                let [scale, shift] = [0, 1].map(|i| (i == which).then_some(&inputs[1]));
                let options = GroupNormOptions {
                    groups: 2,
                    scale,
                    shift,
                    eps: 0.1,
                    activation: Activation::Silu,
                    ..GroupNormOptions::default()
                };
                group_norm_with(&inputs[0], &options)
            });
        }
        let shapes: [&[usize]; 3] = [&[2, 3, 64, 300], &[2, 64], &[2, 64]];
        check::f32_agrees_with_f64("group norm, FiLM, SiLU", &shapes, |inputs| {
            let options = GroupNormOptions {
                groups: 32,
                has_frames: true,
                scale: Some(&inputs[1]),
                shift: Some(&inputs[2]),
                activation: Activation::Silu,
                ..GroupNormOptions::default()
            };
            group_norm_with(&inputs[0], &options)
        });
    }

    #[test]
    fn unusable_input_is_refused() {
        let x = check::normal(0, &[2, 6, 4]);
        for groups in [0, 4, 7] {
            assert!(group_norm(&x, groups, None, None, 1e-5).is_err(), "{groups}");
        }
        assert!(group_norm(&x, 2, Some(&check::normal(0, &[3])), None, 1e-5).is_err());
        assert!(group_norm(&check::normal(0, &[6]), 2, None, None, 1e-5).is_err());
        let wrong = check::normal(0, &[6]);
        let options = GroupNormOptions { groups: 2, ..GroupNormOptions::default() };
        let refused = [
            GroupNormOptions { scale: Some(&wrong), ..options },
            GroupNormOptions { shift: Some(&wrong), ..options },
            GroupNormOptions { groups: 3, has_frames: true, ..options },
        ];
        assert!(group_norm_with(&x, &GroupNormOptions { has_frames: false, ..options }).is_ok());
        for options in refused {
            assert!(group_norm_with(&x, &options).is_err(), "{options:?}");
        }
    }
}
