//! A video and its sound, the state of every diffusion here.

use candle_core::Tensor;
use shared::Result;

/// Picture and sound of some clips, or the noise, gradients or predictions of such.
#[derive(Clone, Debug)]
pub struct Pair {
    /// `[B, F, C, H, W]`, frames before channels; pictures lie in -1..1.
    pub video: Tensor,
    /// `[B, C, L]`; waveforms lie in -1..1.
    pub audio: Tensor,
}

/// A network that a sampler asks for its prediction of a state: of pairs, or of pictures
/// `[N, C, H, W]` (`Denoiser<Tensor>`).
pub trait Denoiser<S = Pair> {
    /// The raw output of the network for the noisy `x` at `model_time [B]` (f32, in steps of the
    /// schedule that it was trained with), differentiable with respect to `x`. With learned
    /// variances it has twice the channels of `x`.
    ///
    /// `evaluation` counts the evaluations of a run from 0: what a network draws (window shifts) comes
    /// from a stream of it, so that a repeated evaluation draws the same.
    ///
    /// # Errors
    /// When the shapes do not fit the network.
    fn predict(&self, x: &S, model_time: &Tensor, evaluation: usize) -> Result<S>;
}
