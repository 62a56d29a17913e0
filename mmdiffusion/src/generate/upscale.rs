//! Enlarging the frames of clips.

use std::ops::Range;

use candle_core::{Device, Tensor};
use shared::{Error, Result};

use super::noise::Noise;
use crate::diffusion::{DiffusionConfig, Spacing};
use crate::pair::Denoiser;
use crate::samplers::{Ddim, Run, Sampler, Step};
use crate::state::Modality;
use crate::super_resolution::SuperResolutionUnet;

/// A network that enlarges pictures, at some small ones.
pub struct LowResolutionDenoiser<'a> {
    /// The network.
    pub network: &'a SuperResolutionUnet,
    /// What is enlarged, `[N, 3, h, w]`.
    pub low_resolution: Tensor,
}

impl Denoiser<Tensor> for LowResolutionDenoiser<'_> {
    fn predict(&self, x: &Tensor, model_time: &Tensor, _evaluation: usize) -> Result<Tensor> {
        self.network.forward(x, model_time, &self.low_resolution)
    }
}

/// Enlarges the frames of clips one by one. All frames of a clip are sampled from the same noise, by
/// which they hang together.
pub struct Upscaler<'a> {
    /// The network.
    pub network: &'a SuperResolutionUnet,
    /// The process that it was trained for.
    pub diffusion: DiffusionConfig,
    /// How pictures are sampled.
    pub sampler: Sampler,
    /// Seed of the noise.
    pub seed: u64,
    /// Most frames that are computed at once; an adaptive sampler computes them one by one.
    pub batch: usize,
    /// The device that computes.
    pub device: Device,
}

/// Told the frames that are computed, and each step.
pub type OnFrames<'a> = dyn FnMut(Range<usize>, &Step<Tensor>) -> Result<()> + 'a;

impl Upscaler<'_> {
    /// The published sampler: DDIM in 25 steps.
    pub fn default_sampler() -> Sampler {
        Sampler::Ddim(Ddim { spacing: Spacing::Stride(25), ..Ddim::default() })
    }

    /// The frames `video [F, 3, h, w]` of sample number `sample`, enlarged as much as the network was
    /// trained to. `observe` is told each step.
    ///
    /// # Errors
    /// Those of [`Sampler::sample`] and of `observe`, which ends the work;
    /// [`Error::Shape`] when the frames do not fit the network.
    pub fn upscale(&self, sample: u64, video: &Tensor, observe: &mut OnFrames) -> Result<Tensor> {
        let config = self.network.config();
        let (frames, channels, height, width) = video.dims4()?;
        let enlarged = |size: usize| size * config.large_size / config.small_size.max(1);
        let size = [channels, enlarged(height), enlarged(width)];
        let batch = if self.sampler.is_adaptive() { 1 } else { self.batch.max(1) };
        let mut finished = vec![];
        for first in (0..frames).step_by(batch) {
            let part = first..frames.min(first + batch);
            let low_resolution = video.narrow(0, first, part.len())?.contiguous()?;
            // Every part draws the clip's noise anew.
            let mut noise = Noise::new(self.seed, "super-resolution", &[sample]);
            let mut shared_noise = || -> Result<Tensor> {
                let noise = noise.draw(Modality::Image, &size, &self.device)?;
                Ok(noise.repeat((part.len(), 1, 1, 1))?)
            };
            let start = shared_noise()?;
            let run = Run {
                denoiser: &LowResolutionDenoiser { network: self.network, low_resolution },
                diffusion: &self.diffusion,
                condition: None,
                noise: &mut |_| shared_noise(),
                on_step: &mut |step| observe(part.clone(), step),
            };
            finished.push(self.sampler.sample(run, start)?);
        }
        if finished.is_empty() {
            return Err(Error::shape("video to enlarge", "at least one frame", video.dims()));
        }
        Ok(Tensor::cat(&finished, 0)?)
    }
}
