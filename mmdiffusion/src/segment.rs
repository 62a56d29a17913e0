//! Parts of a network that training computes again instead of keeping what they computed.

use candle_core::Tensor;
use shared::nn::Dropout;
use shared::train::Tape;
use shared::{Error, Result};

use crate::layers::Modulator;
use crate::state::State;

/// What training does beside computing the output.
#[derive(Clone, Copy, Default)]
pub struct Training<'t, 'a> {
    /// Leaves out features in the residual blocks.
    pub dropout: Option<&'t Dropout>,
    /// Keeps the results of blocks only; see [`Tape`].
    pub tape: Option<&'t Tape<'a>>,
}

/// The activated embedding `[B, C]` of `model_time [B]`, which all blocks share.
///
/// # Errors
/// Those of `compute`.
pub(crate) fn embed<'a>(
    tape: Option<&Tape<'a>>,
    model_time: &Tensor,
    compute: impl Fn(&Tensor) -> Result<Tensor> + 'a,
) -> Result<Tensor> {
    segment(tape, model_time, model_time.clone(), None, move |time, _, _| {
        Modulator::activate(&compute(time)?)
    })
}

/// What `compute` makes of an embedding, of `x` and of what an encoder block left, on the tape if there
/// is one.
///
/// # Errors
/// Those of `compute`.
pub(crate) fn segment<'a, S: State>(
    tape: Option<&Tape<'a>>,
    embedding: &Tensor,
    x: S,
    skip: Option<S>,
    compute: impl Fn(&Tensor, S, Option<S>) -> Result<S> + 'a,
) -> Result<S> {
    let Some(tape) = tape else { return compute(embedding, x, skip) };
    let has_skip = skip.is_some();
    let mut inputs = vec![embedding.clone()];
    for state in [Some(x), skip].into_iter().flatten() {
        inputs.extend(state.tensors().into_iter().map(|(_, tensor)| tensor.clone()));
    }
    let outputs = tape.segment(inputs, move |inputs| {
        let mut inputs = inputs.iter();
        let embedding = inputs.next().ok_or_else(too_few)?;
        let x = take(&mut inputs)?;
        let skip = if has_skip { Some(take(&mut inputs)?) } else { None };
        let y: S = compute(embedding, x, skip)?;
        Ok(y.tensors().into_iter().map(|(_, tensor)| tensor.clone()).collect())
    })?;
    take(&mut outputs.iter())
}

/// The state of the next tensors.
pub(crate) fn take<'t, S: State>(tensors: &mut impl Iterator<Item = &'t Tensor>) -> Result<S> {
    S::each(|_| tensors.next().cloned().ok_or_else(too_few))
}

fn too_few() -> Error {
    Error::Argument("a segment has too few tensors".into())
}
