//! The mathematics that plain and dynamic layers share: how their convolutions and linear maps
//! are put together.

use candle_core::{D, Tensor};
use shared::Result;

use crate::architecture::RES2_SCALE;

/// Res2 cascade over `x` `[B, C, T]`, C a multiple of [`RES2_SCALE`]: the channels are split into
/// groups; `convolution(j, ..)` sees group j plus the result of group j-1; the last group passes
/// unchanged.
///
/// # Errors
/// Those of `convolution`, and when C does not divide.
pub(crate) fn res2(
    x: &Tensor,
    convolution: impl Fn(usize, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut groups = x.chunk(RES2_SCALE, 1)?;
    let mut previous: Option<Tensor> = None;
    for (j, group) in groups.iter_mut().enumerate().take(RES2_SCALE - 1) {
        let input = match &previous {
            Some(previous) => (&*group + previous)?,
            None => group.clone(),
        };
        *group = convolution(j, &input)?;
        previous = Some(group.clone());
    }
    Ok(Tensor::cat(&groups, 1)?)
}

/// Squeeze and excitation of `x` `[B, C, T]`: each channel times `gate` of the means over time
/// (`[B, C]` to `[B, C]`).
///
/// # Errors
/// Those of `gate`.
pub(crate) fn squeeze_excite(
    x: &Tensor,
    gate: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let gate = gate(&x.mean(D::Minus1)?)?;
    Ok(x.broadcast_mul(&gate.unsqueeze(D::Minus1)?)?)
}

/// The stem's output through `depth` blocks, concatenated: `[B, C, T]` to `[B, C * depth, T]`. A
/// block's input is the previous block's output; to what `block` returns the sum of *all* earlier
/// outputs is added.
///
/// # Errors
/// Those of `block`.
pub(crate) fn trunk(
    stem: Tensor,
    depth: usize,
    block: impl Fn(usize, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut sum = stem.clone();
    let mut outputs = vec![stem];
    for i in 0..depth {
        let output = (block(i, &outputs[i])? + &sum)?;
        if i + 1 < depth {
            sum = (sum + &output)?;
        }
        outputs.push(output);
    }
    Ok(Tensor::cat(&outputs[1..], 1)?)
}
