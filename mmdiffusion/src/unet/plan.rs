//! Which layers the coupled network has, from its settings.

use shared::Result;

use crate::config::UnetConfig;

/// The dilations of the sound's convolutions double from block to block and begin again after so many.
const DILATION_CYCLE: usize = 10;

/// What a residual block does to the resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// It keeps it.
    None,
    /// Pictures of half the height and width, a fourth of the samples.
    Down,
    /// Pictures of twice the height and width, four times the samples.
    Up,
}

/// A residual block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidualPlan {
    /// Channels read and written.
    pub channels: [usize; 2],
    /// Distance between the taps of the sound's convolution.
    pub dilation: usize,
    /// What happens to the resolution.
    pub resampling: Resampling,
    /// Heads with which pictures attend to themselves, if they do.
    pub video_heads: Option<usize>,
    /// Heads with which the sound attends to itself, if it does.
    pub audio_heads: Option<usize>,
    /// Whether the time scales features, or only shifts them.
    pub scales: bool,
}

/// Attention between picture and sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossPlan {
    /// Channels.
    pub channels: usize,
    /// Heads.
    pub heads: usize,
    /// Frames of the window.
    pub window: usize,
    /// Which of the windows that are shifted at random it is, in the order of execution, if any.
    pub shift: Option<usize>,
}

/// A layer of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerPlan {
    /// A residual block.
    Residual(ResidualPlan),
    /// Attention between picture and sound.
    Cross(CrossPlan),
}

/// A block: layers that run one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPlan {
    /// Layers in order.
    pub layers: Vec<LayerPlan>,
    /// Times that the picture was halved before the block.
    pub level: usize,
}

/// All blocks of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Channels of the stem, and of what the heads read.
    pub stem: usize,
    /// Blocks of the encoder after the stem.
    pub input: Vec<BlockPlan>,
    /// The middle.
    pub middle: BlockPlan,
    /// Blocks of the decoder; each reads what the last one left and what an encoder block did.
    pub output: Vec<BlockPlan>,
}

impl Plan {
    /// The plan for a network with these settings.
    ///
    /// # Errors
    /// As [`UnetConfig::check`].
    pub fn new(config: &UnetConfig) -> Result<Self> {
        config.check()?;
        let levels = config.level_channels()?;
        let stem = levels.first().copied().unwrap_or_default();
        let mut planner = Planner { config, channels: stem, counter: 1, shifting: 0 };
        let mut skips = vec![stem];

        let mut input = vec![];
        for (level, &channels) in levels.iter().enumerate() {
            for _ in 0..config.num_res_blocks {
                let mut layers = vec![planner.residual(0, channels, level)];
                planner.counter += 1;
                layers.extend(planner.cross(level));
                input.push(BlockPlan { layers, level });
                skips.push(channels);
            }
            if level + 1 < levels.len() {
                let layers = vec![planner.resampling(Resampling::Down)];
                planner.counter += 1;
                input.push(BlockPlan { layers, level });
                skips.push(channels);
            }
        }

        let level = levels.len() - 1;
        let mut layers = vec![planner.middle_residual()];
        if config.has_middle_cross_attention() {
            layers.push(LayerPlan::Cross(planner.cross_over(config.frames(), None)));
            layers.push(planner.middle_residual());
        } else {
            layers.push(planner.middle_residual());
        }
        let middle = BlockPlan { layers, level };
        planner.counter -= 1;

        let mut output = vec![];
        for (level, &channels) in levels.iter().enumerate().rev() {
            for i in 0..=config.num_res_blocks {
                let skipped = skips.pop().unwrap_or_default();
                let mut layers = vec![planner.residual(skipped, channels, level)];
                planner.counter = planner.counter.saturating_sub(1);
                layers.extend(planner.cross(level));
                if level > 0 && i == config.num_res_blocks {
                    layers.push(planner.resampling(Resampling::Up));
                }
                output.push(BlockPlan { layers, level });
            }
        }
        Ok(Self { stem, input, middle, output })
    }

    /// All blocks in the order of their execution.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockPlan> {
        self.input.iter().chain([&self.middle]).chain(&self.output)
    }

    /// Windows in frames of the attention that is shifted at random, in the order of execution.
    pub fn shifting_windows(&self) -> Vec<usize> {
        let layers = self.blocks().flat_map(|block| &block.layers);
        let windows = layers.filter_map(|layer| match layer {
            LayerPlan::Cross(CrossPlan { window, shift: Some(_), .. }) => Some(*window),
            _ => None,
        });
        windows.collect()
    }
}

/// Where the plan stands.
struct Planner<'a> {
    config: &'a UnetConfig,
    channels: usize,
    /// Counts the residual blocks, up in the encoder and down in the decoder.
    counter: usize,
    /// Number of windows so far that are shifted at random.
    shifting: usize,
}

impl Planner<'_> {
    /// A block from the channels at hand and `skipped` more to `channels`.
    fn residual(&mut self, skipped: usize, channels: usize, level: usize) -> LayerPlan {
        let config = self.config;
        let factor = 1 << level;
        let attends = |factors: &[usize]| factors.contains(&factor).then_some(config.num_heads);
        let plan = ResidualPlan {
            channels: [self.channels + skipped, channels],
            video_heads: attends(&config.video_attention_resolutions),
            audio_heads: attends(&config.audio_attention_resolutions),
            ..self.plain()
        };
        self.channels = channels;
        LayerPlan::Residual(plan)
    }

    fn resampling(&self, resampling: Resampling) -> LayerPlan {
        LayerPlan::Residual(ResidualPlan { resampling, ..self.plain() })
    }

    fn middle_residual(&self) -> LayerPlan {
        let heads = Some(self.config.num_heads);
        LayerPlan::Residual(ResidualPlan { video_heads: heads, audio_heads: heads, ..self.plain() })
    }

    fn plain(&self) -> ResidualPlan {
        ResidualPlan {
            channels: [self.channels; 2],
            dilation: 1 << (self.counter % DILATION_CYCLE),
            resampling: Resampling::None,
            video_heads: None,
            audio_heads: None,
            scales: self.config.use_scale_shift_norm,
        }
    }

    fn cross(&mut self, level: usize) -> Option<LayerPlan> {
        let window = self.config.window(1 << level)?;
        let shift = self.config.cross_attention_shift.then_some(self.shifting);
        self.shifting += usize::from(shift.is_some());
        Some(LayerPlan::Cross(self.cross_over(window, shift)))
    }

    fn cross_over(&self, window: usize, shift: Option<usize>) -> CrossPlan {
        let heads = self.config.cross_heads(self.channels);
        CrossPlan { channels: self.channels, heads, window, shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dilations_follow_the_published_network() {
        let plan = Plan::new(&UnetConfig::published()).unwrap();
        let dilations = |blocks: &[BlockPlan]| -> Vec<usize> {
            let layers = blocks.iter().flat_map(|block| &block.layers);
            let residual = |layer: &LayerPlan| match layer {
                LayerPlan::Residual(plan) => Some(plan.dilation),
                LayerPlan::Cross(_) => None,
            };
            layers.filter_map(residual).collect()
        };
        assert_eq!(dilations(&plan.input), [2, 4, 8, 16, 32, 64, 128, 256, 512, 1, 2]);
        assert_eq!(dilations(std::slice::from_ref(&plan.middle)), [4, 4]);
        let expected = [2, 1, 512, 256, 256, 128, 64, 32, 32, 16, 8, 4, 4, 2, 1];
        assert_eq!(dilations(&plan.output), expected);
        assert_eq!(plan.shifting_windows(), [1, 1, 4, 4, 8, 8, 8, 8, 8, 4, 4, 4, 1, 1, 1]);
    }
}
