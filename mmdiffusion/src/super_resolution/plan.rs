//! Which layers the super-resolution network has, from its settings.

use shared::Result;

use crate::config::SuperResolutionConfig;
use crate::unet::plan::Resampling;

/// A layer of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerPlan {
    /// A residual block.
    Residual {
        /// Channels read and written.
        channels: [usize; 2],
        /// What happens to the resolution.
        resampling: Resampling,
        /// Whether the time scales features, or only shifts them.
        scales: bool,
    },
    /// Attention of the picture to itself.
    Attention {
        /// Channels.
        channels: usize,
        /// Heads.
        heads: usize,
    },
    /// A convolution that changes the resolution.
    Resampling {
        /// Channels.
        channels: usize,
        /// What happens to the resolution.
        resampling: Resampling,
    },
}

/// All blocks of the network: layers that run one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Channels of the stem, and of what the end reads.
    pub stem: usize,
    /// Number of resolutions.
    pub levels: usize,
    /// Blocks of the encoder after the stem.
    pub input: Vec<Vec<LayerPlan>>,
    /// The middle.
    pub middle: Vec<LayerPlan>,
    /// Blocks of the decoder; each reads what the last one left and what an encoder block did.
    pub output: Vec<Vec<LayerPlan>>,
}

impl Plan {
    /// The plan for a network with these settings.
    ///
    /// # Errors
    /// As [`SuperResolutionConfig::check`].
    pub fn new(config: &SuperResolutionConfig) -> Result<Self> {
        config.check()?;
        let levels = config.level_channels()?;
        let stem = levels.first().copied().unwrap_or_default();
        let scales = config.use_scale_shift_norm;
        let residual = |channels, resampling| LayerPlan::Residual { channels, resampling, scales };
        let resample = |channels, resampling| {
            if config.resblock_updown {
                residual([channels; 2], resampling)
            } else {
                LayerPlan::Resampling { channels, resampling }
            }
        };
        let attends = |level: usize| config.attention_resolutions.contains(&(1 << level));
        let keep = Resampling::None;
        let mut last = stem;
        let mut skips = vec![stem];

        let mut input = vec![];
        for (level, &channels) in levels.iter().enumerate() {
            for _ in 0..config.num_res_blocks {
                let mut layers = vec![residual([last, channels], keep)];
                if attends(level) {
                    let heads = config.heads(channels);
                    layers.push(LayerPlan::Attention { channels, heads });
                }
                input.push(layers);
                skips.push(channels);
                last = channels;
            }
            if level + 1 < levels.len() {
                input.push(vec![resample(channels, Resampling::Down)]);
                skips.push(channels);
            }
        }
        let attention = LayerPlan::Attention { channels: last, heads: config.heads(last) };
        let middle = vec![residual([last; 2], keep), attention, residual([last; 2], keep)];

        let mut output = vec![];
        for (level, &channels) in levels.iter().enumerate().rev() {
            for i in 0..=config.num_res_blocks {
                let skipped = skips.pop().unwrap_or_default();
                let mut layers = vec![residual([last + skipped, channels], keep)];
                if attends(level) {
                    let heads = config.decoder_heads(channels);
                    layers.push(LayerPlan::Attention { channels, heads });
                }
                if level > 0 && i == config.num_res_blocks {
                    layers.push(resample(channels, Resampling::Up));
                }
                output.push(layers);
                last = channels;
            }
        }
        Ok(Self { stem, levels: levels.len(), input, middle, output })
    }
}
