//! What networks cost: parameters and multiply-accumulates.

use crate::config::{EncoderConfig, ExtractorMode, NetworkConfig, SupernetConfig};
use crate::subnet::Subnet;

/// Parameters of `subnet` in `supernet`, counted as in the published results: the mask embedding at
/// its full width, the magnitudes of the positional convolution's weight norm and the prediction heads
/// not at all.
pub fn parameters(supernet: &SupernetConfig, subnet: &Subnet) -> u64 {
    let keeps_inner = supernet.encoder.positional.depth > 1 && !supernet.prune_positional;
    let inner = keeps_inner.then_some(supernet.embed_dim);
    without_mask(&supernet.encoder, inner, subnet) + supernet.embed_dim as u64
}

/// Parameters of a plain network, prediction heads not counted.
pub fn plain_parameters(config: &NetworkConfig) -> u64 {
    let NetworkConfig { encoder, subnet } = config;
    without_mask(encoder, encoder.positional.inner_width, subnet) + subnet.embed_dim() as u64
}

/// All but the mask embedding and the heads.
fn without_mask(encoder: &EncoderConfig, inner: Option<usize>, subnet: &Subnet) -> u64 {
    let extractor = &encoder.extractor;
    let (embed, channels) = (subnet.embed_dim(), extractor.channels());
    let mut inputs = 1;
    let mut count = 0;
    for (i, layer) in extractor.layers.iter().enumerate() {
        let is_normalised = i == 0 || extractor.mode == ExtractorMode::LayerNorm;
        count += inputs * layer.channels * layer.kernel
            + if extractor.bias { layer.channels } else { 0 }
            + if is_normalised { 2 * layer.channels } else { 0 };
        inputs = layer.channels;
    }
    count += 2 * channels + (channels + 1) * embed + 2 * embed;
    let positional =
        crate::config::PositionalConfig { inner_width: inner, ..encoder.positional.clone() };
    for (inputs, outputs) in positional.widths(embed) {
        count += outputs * (inputs / positional.groups) * positional.kernel_each() + outputs;
    }
    for layer in subnet.layers() {
        let (attention, ffn) = (layer.attention_dim(), layer.ffn);
        count += 4 * attention * embed + 3 * attention + embed;
        count += 2 * ffn * embed + ffn + embed + 4 * embed;
    }
    count as u64
}

/// Multiply-accumulates of convolutions, linear maps and attention, without prediction heads, for one
/// utterance of so many samples.
pub fn macs(config: &NetworkConfig, samples: usize) -> u64 {
    let NetworkConfig { encoder, subnet } = config;
    let (mut inputs, mut length, mut count) = (1, samples, 0);
    for layer in &encoder.extractor.layers {
        length = length.checked_sub(layer.kernel).map_or(0, |rest| rest / layer.stride + 1);
        count += length * inputs * layer.channels * layer.kernel;
        inputs = layer.channels;
    }
    let (frames, embed) = (length, subnet.embed_dim());
    count += frames * inputs * embed;
    for (inputs, outputs) in encoder.positional.widths(embed) {
        let group = inputs / encoder.positional.groups;
        count += frames * outputs * group * encoder.positional.kernel_each();
    }
    for layer in subnet.layers() {
        let reach = match layer.window {
            crate::Window::Global => frames,
            crate::Window::Frames(window) => frames.min(window + 1),
        };
        let attention = layer.attention_dim();
        count += frames * (4 * attention * embed + 2 * reach * attention + 2 * layer.ffn * embed);
    }
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SpaceName;

    #[test]
    fn published_operations() {
        // The largest network of the base space with its prediction head needs 149 GFLOP for 10 s, a
        // third of them in the convolutions in front.
        let supernet = SupernetConfig::published();
        let macs =
            |subnet: &Subnet| 2e-9 * macs(&supernet.network(subnet).unwrap(), 160_000) as f64;
        let largest = macs(&SpaceName::Base.space().largest());
        let head = 2e-9 * (499 * 768 * 768) as f64;
        assert!((largest + head - 149.0).abs() < 0.5, "{largest}");
        let front = |space: SpaceName| 49.1 / macs(&space.space().smallest());
        assert!((front(SpaceName::Base) - 0.53).abs() < 0.01);
        assert!((front(SpaceName::Small) - 0.83).abs() < 0.01);
    }

    #[test]
    fn plain_networks_have_a_narrower_mask_embedding() {
        let supernet = SupernetConfig::published();
        let subnet = SpaceName::Small.default_subnet();
        let plain = plain_parameters(&supernet.network(&subnet).unwrap());
        assert_eq!(plain, parameters(&supernet, &subnet) - (768 - 384));
    }
}
