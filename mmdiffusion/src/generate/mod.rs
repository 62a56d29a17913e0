//! Generating clips: samples in batches, from nothing or from what is given, frame by frame enlarged.
//!
//! [`Generator`] makes pairs of picture and sound, [`Upscaler`] enlarges pictures. What a sample
//! becomes depends on the seed and its number alone, not on the batch it is in.

mod continuation;
mod memory;
mod noise;
#[cfg(test)]
mod tests;
mod upscale;

use candle_core::Device;
use shared::{Error, Result};

pub use continuation::Continuation;
pub use memory::{Needs, batch_within, coupled_needs, super_resolution_needs};
pub use upscale::{LowResolutionDenoiser, OnFrames, Upscaler};

use crate::conditioning::{Given, Guidance};
use crate::config::UnetConfig;
use crate::diffusion::DiffusionConfig;
use crate::pair::{Denoiser, Pair};
use crate::samplers::{Run, Sampler, Step};
pub(crate) use noise::Noise;

/// The size of a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipSize {
    /// Frames, channels, height and width.
    pub video: [usize; 4],
    /// Channels and samples.
    pub audio: [usize; 2],
}

impl ClipSize {
    /// The size that a network was made for.
    pub fn of(config: &UnetConfig) -> Self {
        Self { video: config.video_size, audio: config.audio_size }
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.video[0]
    }

    /// Samples of audio for each frame.
    ///
    /// # Errors
    /// When they are not as many for each.
    pub fn samples_per_frame(&self) -> Result<usize> {
        let (frames, samples) = (self.frames(), self.audio[1]);
        if frames > 0 && samples.is_multiple_of(frames) {
            return Ok(samples / frames);
        }
        Err(Error::Argument(format!(
            "clips of {frames} frames and {samples} samples cannot be put together: the samples do \
             not divide among the frames"
        )))
    }
}

/// What [`Generator`] tells while it works.
pub enum Event<'a> {
    /// A step of a batch is made.
    Step {
        /// Numbers of the samples in the batch.
        samples: &'a [u64],
        /// Which part of a longer clip it is, from 0; see [`Continuation`].
        window: usize,
        /// The step, with the clean clips as now predicted.
        step: &'a Step<'a, Pair>,
    },
    /// A sample is finished.
    Finished {
        /// Its number.
        sample: u64,
        /// The clip, a batch of one, in which what is given stands exactly.
        clip: Pair,
    },
}

/// Turns noise into clips.
pub struct Generator<'a> {
    /// The network.
    pub denoiser: &'a dyn Denoiser,
    /// The process that it was trained for.
    pub diffusion: DiffusionConfig,
    /// How clips are sampled.
    pub sampler: Sampler,
    /// How the rest of a clip is made to fit what is given.
    pub guidance: Guidance,
    /// The size of the clips.
    pub size: ClipSize,
    /// Seed of the noise.
    pub seed: u64,
    /// Most clips that are computed at once. An adaptive sampler computes them one by one, so that
    /// the steps of one do not depend on the others.
    pub batch: usize,
    /// The device that computes.
    pub device: Device,
}

/// Clips as sampled.
struct Sampled {
    /// As the sampler left them.
    predicted: Pair,
    /// With what is given put in exactly.
    clip: Pair,
}

impl Generator<'_> {
    /// Makes the samples of these numbers, in their order, each around `given` if there is anything. A
    /// single given sample serves all.
    ///
    /// # Errors
    /// Those of [`Sampler::sample`] and of `observe`, which ends the work;
    /// [`Error::Shape`] when `given` does not fit.
    pub fn generate(
        &self,
        samples: &[u64],
        given: Option<&Given>,
        observe: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        for batch in self.batches(samples) {
            let Sampled { clip, .. } = self.sample(batch, 0, given, observe)?;
            finish(batch, &clip, observe)?;
        }
        Ok(())
    }

    /// The samples of these numbers as one batch, as the sampler leaves them: with the network's
    /// prediction of what is given in the place of it.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn predict(&self, samples: &[u64], given: Option<&Given>) -> Result<Pair> {
        Ok(self.sample(samples, 0, given, &mut |_| Ok(()))?.predicted)
    }

    /// The numbers in batches.
    fn batches<'s>(&self, samples: &'s [u64]) -> std::slice::Chunks<'s, u64> {
        samples.chunks(if self.sampler.is_adaptive() { 1 } else { self.batch.max(1) })
    }

    /// Makes one batch, as part `window` of longer clips.
    fn sample(
        &self,
        samples: &[u64],
        window: usize,
        given: Option<&Given>,
        observe: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Sampled> {
        let mut noise = Noise::new(self.seed, format!("noise {window}"), samples);
        let start = noise.like(&self.empty(samples.len())?)?;
        let condition = given.map(|given| given.condition(&start, self.guidance)).transpose()?;
        let run = Run {
            denoiser: self.denoiser,
            diffusion: &self.diffusion,
            condition: condition.as_ref(),
            noise: &mut |x: &Pair| noise.like(x),
            on_step: &mut |step: &Step<Pair>| observe(Event::Step { samples, window, step }),
        };
        let predicted = self.sampler.sample(run, start)?;
        let clip = match &condition {
            Some(condition) => condition.restore(&predicted)?,
            None => predicted.clone(),
        };
        Ok(Sampled { predicted, clip })
    }

    /// Clips of zeros.
    fn empty(&self, samples: usize) -> Result<Pair> {
        let ClipSize { video: [frames, channels, height, width], audio: [sounds, length] } =
            self.size;
        let zeros = |shape: &[usize]| {
            candle_core::Tensor::zeros(shape, candle_core::DType::F32, &self.device)
        };
        Ok(Pair {
            video: zeros(&[samples, frames, channels, height, width])?,
            audio: zeros(&[samples, sounds, length])?,
        })
    }
}

/// Hands over the clips of a batch.
fn finish(
    samples: &[u64],
    clips: &Pair,
    observe: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<()> {
    for (index, sample) in samples.iter().enumerate() {
        let clip = Pair {
            video: clips.video.narrow(0, index, 1)?.contiguous()?,
            audio: clips.audio.narrow(0, index, 1)?.contiguous()?,
        };
        observe(Event::Finished { sample: *sample, clip })?;
    }
    Ok(())
}
