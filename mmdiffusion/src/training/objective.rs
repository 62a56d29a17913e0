//! The training loss.

use candle_core::{D, Device, Tensor};
use shared::Result;

use crate::diffusion::{Diffusion, Target};
use crate::state::{State, weighted_sum};

/// The losses of a batch, `[B]` each.
#[derive(Clone, Debug)]
pub struct Losses {
    /// The sum of all terms.
    pub total: Tensor,
    /// Each term with its name: `mse_video`, `vb_audio` and so on.
    pub terms: Vec<(String, Tensor)>,
}

/// What a network is trained to do: predict the target of its diffusion, with equal weights for picture
/// and sound, and where it learns variances also lower the variational bound, by the variance alone
/// (Nichol and Dhariwal 2021, section 3.1).
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// The diffusion.
    pub diffusion: &'a Diffusion,
    /// Whether the terms of the bound are scaled by the number of steps over 1000, that is, as is
    /// their sum over all steps.
    pub rescale_bound: bool,
}

impl Objective<'_> {
    /// The losses of a network on `clean` samples with `noise` at steps `t`, one for each sample.
    /// `predict` is the network: its output for noisy samples at model times `[B]`.
    ///
    /// # Errors
    /// When shapes or steps do not fit; those of `predict`.
    pub fn losses<S: State>(
        &self,
        clean: &S,
        noise: &S,
        t: &[usize],
        predict: impl FnOnce(&S, &Tensor) -> Result<S>,
    ) -> Result<Losses> {
        let diffusion = self.diffusion;
        let device =
            clean.tensors().first().map_or(Device::Cpu, |(_, first)| first.device().clone());
        let noisy = S::each(|part| diffusion.q_sample(part.of(clean), t, part.of(noise)))?;
        let times = diffusion.model_times(t)?.into_iter().map(|time| time as f32).collect();
        let output = predict(&noisy, &Tensor::from_vec::<_, f32>(times, t.len(), &device)?)?;

        let mut terms: Vec<(String, Tensor)> = vec![];
        let states = clean.tensors().into_iter().zip(noise.tensors()).zip(noisy.tensors());
        for ((((modality, clean), (_, noise)), (_, noisy)), (_, output)) in
            states.zip(output.tensors())
        {
            let (name, axis) = (modality.name(), modality.channel_axis());
            let (predicted, spread) = diffusion.split(noisy, output, axis)?;
            let target = match diffusion.config().target {
                Target::Epsilon => noise.clone(),
                Target::Clean => clean.clone(),
                Target::Previous => diffusion.q_posterior(clean, noisy, t)?.mean,
            };
            let error = (target - &predicted)?.sqr()?.flatten_from(1)?.mean(D::Minus1)?;
            terms.push((format!("mse_{name}"), error));
            if let Some(spread) = spread {
                let frozen = Tensor::cat(&[predicted.detach(), spread], axis)?;
                let implied = diffusion.predicted_clean(noisy, &frozen, t, axis, false)?;
                let previous = diffusion.predicted_previous(noisy, &frozen, &implied, t, axis)?;
                let bound = diffusion.variational_bits(clean, noisy, t, &previous)?;
                let scale =
                    if self.rescale_bound { diffusion.steps() as f64 / 1000.0 } else { 1.0 };
                terms.push((format!("vb_{name}"), (bound * scale)?));
            }
        }
        let total = weighted_sum(terms.iter().map(|(_, term)| (1.0, term)))?;
        Ok(Losses { total, terms })
    }
}
