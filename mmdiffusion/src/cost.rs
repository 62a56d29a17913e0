//! What a network costs: operations of its products, as if each convolution were computed by its
//! definition.
//!
//! A multiplication and its addition count as two. Convolutions, linear layers and the two products of
//! attention count; norms, activations and sums do not.

use serde::Serialize;
use shared::Result;

use crate::config::{SuperResolutionConfig, UnetConfig};
use crate::network::NetworkConfig;
use crate::super_resolution::plan::{self as enlarging, LayerPlan as EnlargingLayer};
use crate::unet::plan::{CrossPlan, LayerPlan, Plan, Resampling, ResidualPlan};

/// Operations of one block for one clip or picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockCost {
    /// As in the names of its tensors.
    pub name: String,
    /// Its layers in words.
    pub layers: String,
    /// Channels that it writes.
    pub channels: usize,
    /// Operations.
    pub flop: u64,
}

/// The blocks of a network at the size that it was made for, in the order of their execution.
///
/// # Errors
/// When no network can be built with these settings.
pub fn blocks(network: &NetworkConfig) -> Result<Vec<BlockCost>> {
    match network {
        NetworkConfig::Coupled(config) => coupled_blocks(config),
        NetworkConfig::SuperResolution(config) => super_resolution_blocks(config),
    }
}

/// Operations for one clip or picture of the size that the network was made for.
///
/// # Errors
/// When no network can be built with these settings.
pub fn flop(network: &NetworkConfig) -> Result<u64> {
    Ok(blocks(network)?.iter().map(|block| block.flop).sum())
}

fn product([inputs, outputs]: [usize; 2], taps: usize, positions: usize) -> u64 {
    2 * (inputs * outputs * taps) as u64 * positions as u64
}

/// Attention with its projections: `queries` tokens, of which each attends to `keys`.
fn attention(channels: usize, queries: usize, keys: usize) -> u64 {
    projections(channels, queries) + scores(channels, queries, keys)
}

/// To queries, keys and values, and back.
fn projections(channels: usize, tokens: usize) -> u64 {
    product([channels, 4 * channels], 1, tokens)
}

fn scores(channels: usize, queries: usize, keys: usize) -> u64 {
    2 * product([channels, 1], 1, queries) * keys as u64
}

fn time(channels: usize, width: usize) -> BlockCost {
    let flop = product([channels + width, width], 1, 1);
    BlockCost { name: "time_embed".into(), layers: "time".into(), channels: width, flop }
}

/// Positions of one clip at a resolution.
#[derive(Clone, Copy)]
struct Positions {
    frames: usize,
    pixels: usize,
    samples: usize,
}

impl Positions {
    fn of(config: &UnetConfig, level: usize) -> Self {
        let [frames, _, height, width] = config.video_size;
        Self {
            frames,
            pixels: (height >> level) * (width >> level),
            samples: config.audio_size[1] >> (2 * level),
        }
    }

    fn resampled(self, resampling: Resampling) -> Self {
        let Self { frames, pixels, samples } = self;
        match resampling {
            Resampling::None => self,
            Resampling::Down => Self { frames, pixels: pixels / 4, samples: samples / 4 },
            Resampling::Up => Self { frames, pixels: pixels * 4, samples: samples * 4 },
        }
    }

    fn tokens(self) -> usize {
        self.frames * self.pixels
    }
}

fn coupled_blocks(config: &UnetConfig) -> Result<Vec<BlockCost>> {
    let plan = Plan::new(config)?;
    let full = Positions::of(config, 0);
    let [video, audio] = config.in_channels();
    let [video_out, audio_out] = config.out_channels();
    let (stem, width) = (plan.stem, config.num_channels);
    let stem_flop = product([video, stem], 9, full.tokens())
        + product([stem; 2], 3, full.tokens())
        + product([audio, stem], 3, full.samples);
    let mut costs = vec![
        time(width, width),
        BlockCost {
            name: "input_blocks.0".into(),
            layers: "stem".into(),
            channels: stem,
            flop: stem_flop,
        },
    ];
    let inputs = (1..).map(|i| format!("input_blocks.{i}")).zip(&plan.input);
    let middle = std::iter::once(("middle_blocks".to_string(), &plan.middle));
    let outputs = (0..).map(|i| format!("output_blocks.{i}")).zip(&plan.output);
    for (name, block) in inputs.chain(middle).chain(outputs) {
        let positions = Positions::of(config, block.level);
        let layers = block.layers.iter();
        let channels = match block.layers.last() {
            Some(LayerPlan::Residual(plan)) => plan.channels[1],
            Some(LayerPlan::Cross(plan)) => plan.channels,
            None => 0,
        };
        costs.push(BlockCost {
            name,
            layers: layers.clone().map(layer_words).collect::<Vec<_>>().join(", "),
            channels,
            flop: layers.map(|layer| layer_flop(layer, positions, width)).sum(),
        });
    }
    let heads =
        product([stem, video_out], 27, full.tokens()) + product([stem, audio_out], 3, full.samples);
    costs.push(BlockCost {
        name: "video_out, audio_out".into(),
        layers: "heads".into(),
        channels: video_out + audio_out,
        flop: heads,
    });
    Ok(costs)
}

fn layer_words(layer: &LayerPlan) -> String {
    match layer {
        LayerPlan::Residual(plan) => {
            let mut words = format!("residual (dilation {})", plan.dilation);
            if plan.video_heads.is_some() {
                words += " + attention";
            }
            if plan.audio_heads.is_some() {
                words += " + audio attention";
            }
            words + resampling_words(plan.resampling)
        }
        LayerPlan::Cross(plan) => format!("cross attention ({} frames)", plan.window),
    }
}

fn resampling_words(resampling: Resampling) -> &'static str {
    match resampling {
        Resampling::None => "",
        Resampling::Down => ", down",
        Resampling::Up => ", up",
    }
}

fn layer_flop(layer: &LayerPlan, positions: Positions, width: usize) -> u64 {
    match layer {
        LayerPlan::Residual(plan) => residual_flop(plan, positions, width),
        LayerPlan::Cross(CrossPlan { channels, window, .. }) => {
            let Positions { frames, pixels, samples } = positions;
            let (seen, heard) = (window * (samples / frames), window * pixels);
            attention(*channels, positions.tokens(), seen) + attention(*channels, samples, heard)
        }
    }
}

fn residual_flop(plan: &ResidualPlan, positions: Positions, width: usize) -> u64 {
    let [inputs, outputs] = plan.channels;
    let after = positions.resampled(plan.resampling);
    let vectors = if plan.scales { 2 } else { 1 };
    let skip = if inputs == outputs { 0 } else { inputs };
    let mut flop = product([width, vectors * outputs], 1, 1)
        + product([inputs, outputs], 9, positions.tokens())
        + product([outputs; 2], 3, positions.tokens())
        + product([inputs, outputs], 3, positions.samples)
        + product([outputs + skip, outputs], 1, after.tokens() + after.samples);
    if plan.video_heads.is_some() {
        let Positions { frames, pixels, .. } = after;
        flop +=
            attention(outputs, after.tokens(), pixels) + attention(outputs, after.tokens(), frames);
    }
    if plan.audio_heads.is_some() {
        flop += attention(outputs, after.samples, after.samples);
    }
    flop
}

fn super_resolution_blocks(config: &SuperResolutionConfig) -> Result<Vec<BlockCost>> {
    let plan = enlarging::Plan::new(config)?;
    let width = crate::super_resolution::EMBEDDING_FACTOR * config.num_channels;
    let pixels = |level: usize| (config.large_size >> level).pow(2);
    let ends = |inputs: usize, outputs: usize| product([inputs, outputs], 9, pixels(0));
    let block = |name: &str, layers: &str, channels, flop| BlockCost {
        name: name.into(),
        layers: layers.into(),
        channels,
        flop,
    };
    let mut costs = vec![
        time(config.num_channels, width),
        block("input_blocks.0", "stem", plan.stem, ends(6, plan.stem)),
    ];
    let inputs = (1..).map(|i| format!("input_blocks.{i}")).zip(&plan.input);
    let middle = std::iter::once(("middle_block".to_string(), &plan.middle));
    let outputs = (0..).map(|i| format!("output_blocks.{i}")).zip(&plan.output);
    let mut level = 0;
    for (name, layers) in inputs.chain(middle).chain(outputs) {
        let (mut words, mut flop, mut channels) = (vec![], 0, 0);
        for layer in layers {
            let (kind, resampling) = match *layer {
                EnlargingLayer::Residual { resampling, .. } => ("residual", resampling),
                EnlargingLayer::Attention { .. } => ("attention", Resampling::None),
                EnlargingLayer::Resampling { resampling, .. } => ("convolution", resampling),
            };
            words.push(format!("{kind}{}", resampling_words(resampling)));
            match resampling {
                Resampling::None => {}
                Resampling::Down => level += 1,
                Resampling::Up => level -= 1,
            }
            (flop, channels) = match *layer {
                EnlargingLayer::Residual { channels: [inputs, outputs], scales, .. } => {
                    let vectors = if scales { 2 } else { 1 };
                    let skip = if inputs == outputs { 0 } else { inputs };
                    let added = product([width, vectors * outputs], 1, 1)
                        + product([inputs + outputs, outputs], 9, pixels(level))
                        + product([skip, outputs], 1, pixels(level));
                    (flop + added, outputs)
                }
                EnlargingLayer::Attention { channels, .. } => {
                    (flop + attention(channels, pixels(level), pixels(level)), channels)
                }
                EnlargingLayer::Resampling { channels, .. } => {
                    (flop + product([channels; 2], 9, pixels(level)), channels)
                }
            };
        }
        costs.push(block(&name, &words.join(", "), channels, flop));
    }
    let outputs = config.out_channels();
    costs.push(block("out", "end", outputs, ends(plan.stem, outputs)));
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_networks_cost_what_is_known() {
        let coupled = NetworkConfig::Coupled(UnetConfig::published());
        let enlarging = NetworkConfig::SuperResolution(SuperResolutionConfig::default());
        for (network, tflop) in [(coupled, 1.33), (enlarging, 1.26)] {
            let found = flop(&network).unwrap() as f64 * 1e-12;
            assert!((found - tflop).abs() < 0.005, "{}: {found}", network.kind());
        }
    }
}
