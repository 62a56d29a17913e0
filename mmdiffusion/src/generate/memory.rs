//! How many clips fit into memory at once.

use shared::{Error, Result};

use crate::conditioning::Guidance;
use crate::config::{SuperResolutionConfig, UnetConfig};
use crate::samplers::Sampler;
use crate::super_resolution::plan as enlarging;
use crate::unet::plan::{LayerPlan, Plan, Resampling};

/// Bytes of a number.
const NUMBER_BYTES: u64 = 4;
/// How often the weights are in memory: as they are, and in the forms that convolutions read, which
/// are larger.
const WEIGHT_COPIES: u64 = 3;
/// How often the largest layer's input and output are in memory while it computes.
const WORKING_COPIES: u64 = 3;
/// How often every layer's input and output are kept for its gradient.
const GRADIENT_COPIES: u64 = 5;

/// What an evaluation of a network needs, by estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bytes for the network, whatever the batch.
    pub weights: u64,
    /// Bytes for each clip or picture of the batch.
    pub each: u64,
    /// The same where a gradient is taken through the evaluation.
    pub each_guided: u64,
}

impl Needs {
    /// The needs of a run: a gradient is taken through all evaluations of a step.
    pub fn of_run(self, sampler: &Sampler, guidance: Guidance) -> Self {
        let evaluations = sampler.evaluations_per_step() as u64;
        match guidance {
            Guidance::Replacement => self,
            Guidance::Gradient { .. } => Self { each: evaluations * self.each_guided, ..self },
        }
    }
}

/// The largest batch whose evaluation needs no more than `limit` bytes.
///
/// # Errors
/// When not even one clip or picture fits.
pub fn batch_within(limit: u64, needs: Needs) -> Result<usize> {
    let Needs { weights, each, .. } = needs;
    let fitting = limit.saturating_sub(weights) / each.max(1);
    if fitting > 0 {
        return Ok(usize::try_from(fitting).unwrap_or(usize::MAX));
    }
    let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(Error::Argument(format!(
        "a memory limit of {} MiB is too small: the network takes {} MiB, and {} MiB for one clip or \
         picture",
        mebibytes(limit),
        mebibytes(weights),
        mebibytes(each)
    )))
}

/// What the coupled network, with so many `parameters`, needs for clips of the size that it was made
/// for.
///
/// # Errors
/// When no network can be built with these settings.
pub fn coupled_needs(config: &UnetConfig, parameters: u64) -> Result<Needs> {
    let plan = Plan::new(config)?;
    let [frames, _, height, width] = config.video_size;
    let positions = |level: usize| {
        frames * (height >> level) * (width >> level) + (config.audio_size[1] >> (2 * level))
    };
    let blocks = plan.input.iter().chain([&plan.middle]).chain(&plan.output);
    let layers = blocks.flat_map(|block| {
        block.layers.iter().map(move |layer| match layer {
            LayerPlan::Residual(plan) => Layer {
                channels: plan.channels.iter().sum(),
                positions: positions(resampled(block.level, plan.resampling).min(block.level)),
            },
            LayerPlan::Cross(plan) => {
                Layer { channels: 2 * plan.channels, positions: positions(block.level) }
            }
        })
    });
    let skips = plan.input.iter().filter_map(|block| match block.layers.first() {
        Some(LayerPlan::Residual(plan)) => Some(Layer {
            channels: plan.channels[1],
            positions: positions(resampled(block.level, plan.resampling)),
        }),
        _ => None,
    });
    let stem = Layer { channels: plan.stem, positions: positions(0) };
    Ok(needs(skips.chain([stem]), layers, parameters))
}

/// What the super-resolution network, with so many `parameters`, needs for pictures of the size that it
/// was trained to make.
///
/// # Errors
/// When no network can be built with these settings.
pub fn super_resolution_needs(config: &SuperResolutionConfig, parameters: u64) -> Result<Needs> {
    use enlarging::LayerPlan::{Attention, Resampling, Residual};
    let plan = enlarging::Plan::new(config)?;
    let positions = |level: usize| (config.large_size >> level).pow(2);
    let (mut level, mut layers) = (0, vec![]);
    let mut skips = vec![Layer { channels: plan.stem, positions: positions(0) }];
    let encoder = plan.input.len();
    let blocks = plan.input.iter().chain([&plan.middle]).chain(&plan.output);
    for (index, block) in blocks.enumerate() {
        let mut written = 0;
        for layer in block {
            let (channels, resampling) = match *layer {
                Residual { channels, resampling, .. } => (channels, Some(resampling)),
                Attention { channels, .. } => ([channels; 2], None),
                Resampling { channels, resampling } => ([channels; 2], Some(resampling)),
            };
            let after = resampling.map_or(level, |resampling| resampled(level, resampling));
            layers.push(Layer {
                channels: channels.iter().sum(),
                positions: positions(level.min(after)),
            });
            (level, written) = (after, channels[1]);
        }
        if index < encoder {
            skips.push(Layer { channels: written, positions: positions(level) });
        }
    }
    Ok(needs(skips.into_iter(), layers.into_iter(), parameters))
}

/// A tensor's size.
struct Layer {
    channels: usize,
    positions: usize,
}

impl Layer {
    fn bytes(&self) -> u64 {
        NUMBER_BYTES * self.channels as u64 * self.positions as u64
    }
}

/// The `skips`, which are all in memory in the middle of the network, and the largest of its `layers`.
fn needs(
    skips: impl Iterator<Item = Layer>,
    layers: impl Iterator<Item = Layer>,
    parameters: u64,
) -> Needs {
    let skips: u64 = skips.map(|skip| skip.bytes()).sum();
    let (largest, all) = layers
        .map(|layer| layer.bytes())
        .fold((0, 0), |(largest, all), bytes| (bytes.max(largest), bytes + all));
    let each = skips + WORKING_COPIES * largest;
    Needs {
        weights: WEIGHT_COPIES * NUMBER_BYTES * parameters,
        each,
        each_guided: each + GRADIENT_COPIES * all,
    }
}

fn resampled(level: usize, resampling: Resampling) -> usize {
    match resampling {
        Resampling::None => level,
        Resampling::Down => level + 1,
        Resampling::Up => level.saturating_sub(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditioning::Loss;

    #[test]
    fn the_batch_is_what_fits() {
        let needs = Needs { weights: 100, each: 30, each_guided: 60 };
        for (limit, batch) in
            [(130, Some(1)), (159, Some(1)), (160, Some(2)), (129, None), (0, None)]
        {
            assert_eq!(batch_within(limit, needs).ok(), batch, "{limit}");
        }
    }

    /// The growth of the peak of resident memory with the batch, in MiB, was measured for the published
    /// networks, and for pictures of a quarter the size with gradients.
    #[test]
    fn estimates_are_somewhat_above_what_was_measured() {
        let coupled = coupled_needs(&UnetConfig::published(), 0).unwrap();
        let quarter = UnetConfig {
            video_size: [16, 3, 32, 32],
            audio_size: [1, 6400],
            channel_mult: vec![1, 2, 3, 4],
            ..UnetConfig::published()
        };
        let quarter = coupled_needs(&quarter, 0).unwrap();
        let enlarging = super_resolution_needs(&SuperResolutionConfig::default(), 0).unwrap();
        for (estimate, measured) in [
            (coupled.each, 364),
            (quarter.each, 176),
            (quarter.each_guided, 2071),
            (enlarging.each, 619),
        ] {
            let estimate = estimate >> 20;
            assert!((measured..=3 * measured).contains(&estimate), "{estimate} for {measured}");
        }
    }

    #[test]
    fn guided_steps_keep_all_their_evaluations() {
        let needs = Needs { weights: 1, each: 2, each_guided: 10 };
        let guidance = Guidance::Gradient { scale: 1.0, loss: Loss::PerSample };
        for (name, each) in [("ddpm", 10), ("dpm_solver", 30), ("dpm_solver++", 10), ("heun", 20)] {
            let sampler = Sampler::named(name, None).unwrap();
            assert_eq!(needs.of_run(&sampler, guidance).each, each, "{name}");
            assert_eq!(needs.of_run(&sampler, Guidance::Replacement), needs);
        }
    }
}
