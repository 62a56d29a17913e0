//! What a network costs: multiply-accumulates and parameters.

use crate::architecture::{ATTENTION_CHANNELS, NetworkConfig, RES2_SCALE, SE_REDUCTION};

/// Multiply-accumulates for one input of `frames` frames, by the rule of the paper's figures:
/// convolutions and linear layers without their biases, two for each element that a batch norm
/// sees, nothing for all the rest. 3 s of audio are 301 frames.
pub fn macs(config: &NetworkConfig, frames: u64) -> u64 {
    let weights = WeightCount::of(config);
    weights.framewise * frames + weights.pooled
}

/// Parameters of the plain network, without the kernel transforms of a supernet and without the
/// running statistics.
pub fn parameters(config: &NetworkConfig) -> u64 {
    let weights = WeightCount::of(config);
    weights.framewise + weights.pooled + weights.biases
}

/// Parameters by how often they are used. By the rule above each costs one multiply-accumulate a
/// use: a batch norm has two parameters a channel and counts for two.
struct WeightCount {
    /// Used once a frame.
    framewise: u64,
    /// Used once an utterance.
    pooled: u64,
    /// Biases of linear layers, which cost nothing.
    biases: u64,
}

impl WeightCount {
    fn of(config: &NetworkConfig) -> Self {
        let architecture = &config.architecture;
        let count = |size: usize| size as u64;
        let (features, embedding) = (count(config.features), count(config.embedding));
        let (trunk, cat) = (count(architecture.trunk()), count(architecture.cat()));
        let (depth, reduced) = (count(architecture.depth()), trunk / count(SE_REDUCTION));
        let res2_convolutions = count(RES2_SCALE) - 1;

        let stem = features * trunk * count(architecture.stem_kernel()) + 2 * trunk;
        let blocks = architecture.blocks().iter().map(|block| {
            let (mid, split) = (count(block.mid), count(block.split()));
            let first = trunk * mid + 2 * mid;
            let res2 = res2_convolutions * (split * split * count(block.kernel) + 2 * split);
            let last = mid * trunk + 2 * trunk;
            first + res2 + last
        });
        let aggregation = trunk * depth * cat;
        let attention = 2 * cat * count(ATTENTION_CHANNELS);

        let squeeze_excitation = 2 * trunk * reduced;
        let norms = 2 * (2 * cat) + 2 * embedding;
        let linear = 2 * cat * embedding;
        Self {
            framewise: stem + blocks.sum::<u64>() + aggregation + attention,
            pooled: depth * squeeze_excitation + norms + linear,
            biases: depth * (reduced + trunk) + embedding,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;

    #[test]
    fn published_networks_cost_what_is_published() {
        for (name, macs_3s, macs_300, expected_parameters) in [
            ("max", 1_935_688_576, 1_929_261_440, 7_550_528),
            ("Kmin", 1_748_288_384, 1_742_483_840, 6_927_936),
            ("Dmin", 939_939_968, 936_820_096, 3_979_840),
            ("C1min", 268_326_144, 267_435_904, 1_254_976),
            ("C2min", 83_752_256, 83_474_560, 443_968),
            ("Base", 1_445_211_648, 1_440_413_568, 5_789_760),
            ("Mobile", 570_984_384, 569_089_152, 2_416_416),
            ("Small", 204_072_768, 203_395_520, 899_200),
        ] {
            let config = NetworkConfig::published(Architecture::named(name).unwrap());
            assert_eq!(macs(&config, 301), macs_3s, "{name}");
            assert_eq!(macs(&config, 300), macs_300, "{name}");
            assert_eq!(parameters(&config), expected_parameters, "{name}");
        }
    }

    #[test]
    fn the_other_supernets_have_their_sizes() {
        for (config, expected) in [
            (NetworkConfig::tdnn8m2g(), 7_550_528),
            (NetworkConfig::tdnn14m4g(), 14_048_960),
            (NetworkConfig::tdnn16m4g(), 15_726_144),
            (NetworkConfig::tdnn26m7g(), 25_275_968),
            (NetworkConfig::ecapa_tdnn(), 5_789_760),
        ] {
            assert_eq!(parameters(&config), expected);
        }
    }
}
