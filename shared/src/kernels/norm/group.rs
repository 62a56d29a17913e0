//! Group normalisation.

use std::sync::{Arc, OnceLock};

use candle_core::Tensor;

use super::row_sets::{Normalise, RowSets, Source};
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
    let &[batch, channels, ..] = x.dims() else {
        return Err(Error::shape("input of group norm", "[B, C, ..]", x.dims()));
    };
    if groups == 0 || !channels.is_multiple_of(groups) {
        let expected = format!("[B, C, ..], C divisible by {groups} groups");
        return Err(Error::shape("input of group norm", expected, x.dims()));
    }
    let dtype = x.dtype();
    let compute = to_compute_dtype("group norm", x)?;
    let weight = super::vector("weight of group norm", weight, 1.0, channels, &compute)?;
    let bias = super::vector("bias of group norm", bias, 0.0, channels, &compute)?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let sets = RowSets::groups(batch, channels, groups);
    let source = Source::Input(Arc::new(OnceLock::new()));
    let rows = contiguous_rows(&compute, 2)?;
    to_dtype(rows.apply_op3(&weight, &bias, Normalise { sets, eps, source })?, dtype)
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
    fn unusable_input_is_refused() {
        let x = check::normal(0, &[2, 6, 3]);
        for groups in [0, 4, 7] {
            assert!(group_norm(&x, groups, None, None, 1e-5).is_err(), "{groups}");
        }
        assert!(group_norm(&x, 2, Some(&check::normal(0, &[3])), None, 1e-5).is_err());
        assert!(group_norm(&check::normal(0, &[6]), 2, None, None, 1e-5).is_err());
    }
}
