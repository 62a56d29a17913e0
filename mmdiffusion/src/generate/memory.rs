//! How many clips fit into memory at once.

use shared::{Error, Result};

use crate::config::{SuperResolutionConfig, UnetConfig};
use crate::super_resolution::plan as enlarging;
use crate::unet::plan::{LayerPlan, Plan, Resampling};

/// Bytes of a number.
const NUMBER_BYTES: u64 = 4;
/// How often the largest layer's input and output are in memory while it computes.
const WORKING_COPIES: u64 = 3;

/// What an evaluation of a network without gradients needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bytes for the network, whatever the batch.
    pub weights: u64,
    /// Bytes for each clip or picture of the batch.
    pub each: u64,
}

/// The largest batch whose evaluation needs no more than `limit` bytes.
///
/// # Errors
/// When not even one clip or picture fits.
pub fn batch_within(limit: u64, needs: Needs) -> Result<usize> {
    let Needs { weights, each } = needs;
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
    let largest = layers.map(|layer| layer.bytes()).max().unwrap_or(0);
    Needs { weights: NUMBER_BYTES * parameters, each: skips + WORKING_COPIES * largest }
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

    #[test]
    fn the_batch_is_what_fits() {
        let needs = Needs { weights: 100, each: 30 };
        for (limit, batch) in
            [(130, Some(1)), (159, Some(1)), (160, Some(2)), (129, None), (0, None)]
        {
            assert_eq!(batch_within(limit, needs).ok(), batch, "{limit}");
        }
    }

    #[test]
    fn published_networks_need_about_what_was_measured() {
        let coupled = coupled_needs(&UnetConfig::published(), 0).unwrap().each;
        let enlarging = super_resolution_needs(&SuperResolutionConfig::default(), 0).unwrap().each;
        for (needs, mebibytes) in [(coupled, 300..1024), (enlarging, 500..3000)] {
            assert!(mebibytes.contains(&(needs >> 20)), "{} MiB", needs >> 20);
        }
    }
}
