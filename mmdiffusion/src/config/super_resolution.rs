//! The settings of the super-resolution network.

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use super::{DiffusionFlags, Flags, flags, level_channels};

/// Factors of the channels by the size of the large picture.
const CHANNEL_MULT: [(usize, &[f64]); 3] = [
    (512, &[1.0, 1.0, 2.0, 2.0, 4.0, 4.0]),
    (256, &[1.0, 1.0, 2.0, 2.0, 4.0, 4.0]),
    (64, &[1.0, 2.0, 3.0, 4.0]),
];
/// Names of the settings that have another one on the command line.
const ALIASES: [&str; 12] = [
    "sr_num_channels",
    "sr_num_res_blocks",
    "sr_num_heads",
    "sr_num_heads_upsample",
    "sr_num_head_channels",
    "sr_attention_resolutions",
    "sr_channel_mult",
    "sr_dropout",
    "sr_class_cond",
    "sr_use_scale_shift_norm",
    "sr_resblock_updown",
    "sr_learn_sigma",
];

/// The published settings of the super-resolution network; on the command line, most names begin
/// with `sr_`. `default()` is the published model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SuperResolutionConfig {
    /// Height and width of the pictures that come out.
    #[serde(deserialize_with = "flags::count")]
    pub large_size: usize,
    /// Height and width of the pictures that the network was trained to enlarge.
    #[serde(deserialize_with = "flags::count")]
    pub small_size: usize,
    /// Channels that the factors in `channel_mult` multiply.
    #[serde(alias = "sr_num_channels", deserialize_with = "flags::count")]
    pub num_channels: usize,
    /// Residual blocks a level of the encoder; the decoder has one more.
    #[serde(alias = "sr_num_res_blocks", deserialize_with = "flags::count")]
    pub num_res_blocks: usize,
    /// Heads of the attention where `num_head_channels` is none.
    #[serde(alias = "sr_num_heads", deserialize_with = "flags::count")]
    pub num_heads: usize,
    /// The same in the decoder; as many where there is none.
    #[serde(alias = "sr_num_heads_upsample", deserialize_with = "flags::optional")]
    pub num_heads_upsample: Option<usize>,
    /// Channels of each head.
    #[serde(alias = "sr_num_head_channels", deserialize_with = "flags::optional")]
    pub num_head_channels: Option<usize>,
    /// Down-sampling factors at which the picture attends to itself.
    #[serde(alias = "sr_attention_resolutions", deserialize_with = "flags::list")]
    pub attention_resolutions: Vec<usize>,
    /// Whole factors of the channels, one for each level; none for those that go with the size.
    #[serde(alias = "sr_channel_mult", deserialize_with = "flags::list")]
    pub channel_mult: Vec<usize>,
    /// Share of the features that training leaves out.
    #[serde(alias = "sr_dropout", deserialize_with = "flags::real")]
    pub dropout: f64,
    /// Not supported.
    #[serde(alias = "sr_class_cond", deserialize_with = "flags::truth")]
    pub class_cond: bool,
    /// Whether training computes residual blocks again instead of keeping what they computed.
    #[serde(deserialize_with = "flags::truth")]
    pub use_checkpoint: bool,
    /// Whether time scales and shifts the features, or only shifts them.
    #[serde(alias = "sr_use_scale_shift_norm", deserialize_with = "flags::truth")]
    pub use_scale_shift_norm: bool,
    /// Whether residual blocks change the resolution, or convolutions.
    #[serde(alias = "sr_resblock_updown", deserialize_with = "flags::truth")]
    pub resblock_updown: bool,
    /// Whether the original ran in half precision; nothing follows from it here.
    #[serde(deserialize_with = "flags::truth")]
    pub use_fp16: bool,
    /// Whether the network predicts variances, too.
    #[serde(alias = "sr_learn_sigma", deserialize_with = "flags::truth")]
    pub learn_sigma: bool,
}

impl Default for SuperResolutionConfig {
    fn default() -> Self {
        Self {
            large_size: 256,
            small_size: 64,
            num_channels: 192,
            num_res_blocks: 2,
            num_heads: 4,
            num_heads_upsample: None,
            num_head_channels: None,
            attention_resolutions: vec![8, 16, 32],
            channel_mult: vec![],
            dropout: 0.0,
            class_cond: false,
            use_checkpoint: false,
            use_scale_shift_norm: true,
            resblock_updown: true,
            use_fp16: false,
            learn_sigma: true,
        }
    }
}

impl SuperResolutionConfig {
    /// The network and its diffusion from published flags; those not given are the published model's.
    ///
    /// # Errors
    /// When a flag is unknown or its value makes no sense; as [`SuperResolutionConfig::check`].
    pub fn from_flags(mut flags: Flags) -> Result<(Self, DiffusionFlags)> {
        let diffusion = flags::take(&mut flags, &["sr_diffusion_steps", "sr_timestep_respacing"])?;
        let config: Self = flags::take(&mut flags, &ALIASES)?;
        flags::check_none_left(&flags)?;
        config.check()?;
        Ok((config, diffusion))
    }

    /// Channels that come out: 3, twice as many with [`SuperResolutionConfig::learn_sigma`].
    pub fn out_channels(&self) -> usize {
        if self.learn_sigma { 6 } else { 3 }
    }

    /// Channels of each level.
    ///
    /// # Errors
    /// When there are no factors for the size, or the channels are no multiples of 32.
    pub fn level_channels(&self) -> Result<Vec<usize>> {
        level_channels(
            self.num_channels,
            &self.channel_mult,
            ("large_size", self.large_size),
            &CHANNEL_MULT,
        )
        .map_err(wrong)
    }

    /// Heads of the encoder's and middle's attention of so many channels.
    pub fn heads(&self, channels: usize) -> usize {
        self.num_head_channels.map_or(self.num_heads, |size| channels / size.max(1))
    }

    /// Heads of the decoder's attention of so many channels.
    pub fn decoder_heads(&self, channels: usize) -> usize {
        match (self.num_head_channels, self.num_heads_upsample) {
            (None, Some(heads)) => heads,
            _ => self.heads(channels),
        }
    }

    /// Fails unless a network with these settings can be built.
    ///
    /// # Errors
    /// [`Error::Argument`] with the setting, its value and what is expected.
    pub fn check(&self) -> Result<()> {
        if self.class_cond {
            return Err(wrong("class_cond is not supported: no published network can use classes"));
        }
        for (name, value) in [
            ("large_size", self.large_size),
            ("small_size", self.small_size),
            ("num_channels", self.num_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("num_heads", self.num_heads),
            ("num_heads_upsample", self.num_heads_upsample.unwrap_or(1)),
            ("num_head_channels", self.num_head_channels.unwrap_or(1)),
        ] {
            if !(1..=1 << 12).contains(&value) {
                return Err(wrong(format!("{name} is {value}, expected 1 to 4096")));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(wrong(format!("dropout is {}, expected 0 to below 1", self.dropout)));
        }
        let levels = self.level_channels()?;
        for (level, &channels) in levels.iter().enumerate() {
            let attends =
                self.attention_resolutions.contains(&(1 << level)) || level + 1 == levels.len();
            for heads in [self.heads(channels), self.decoder_heads(channels)] {
                if attends && (heads == 0 || !channels.is_multiple_of(heads)) {
                    return Err(wrong(format!("{channels} channels cannot have {heads} heads")));
                }
            }
        }
        Ok(())
    }
}

fn wrong(reason: impl std::fmt::Display) -> Error {
    Error::Argument(format!("configuration of the super-resolution network: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::super::parse_flags;
    use super::*;

    #[test]
    fn published_flags_give_the_published_network() {
        let text = "--sr_num_channels 192 --sr_num_res_blocks 2 --sr_num_heads 4 \
            --sr_num_head_channels -1 --sr_attention_resolutions 8,16,32 --sr_dropout 0.0 \
            --sr_class_cond False --sr_use_scale_shift_norm True --sr_resblock_updown True \
            --large_size 256 --small_size 64 --sr_learn_sigma True --sr_diffusion_steps 1000 \
            --sr_timestep_respacing ddim25 --use_fp16 False";
        let flags = parse_flags(text).unwrap();
        let (config, diffusion) = SuperResolutionConfig::from_flags(flags).unwrap();
        assert_eq!(config, SuperResolutionConfig::default());
        assert_eq!(diffusion.timestep_respacing, "ddim25");
        assert_eq!(config.level_channels().unwrap(), [192, 192, 384, 384, 768, 768]);
    }

    #[test]
    fn unusable_settings_are_named() {
        for (flags, reason) in [
            ("--sr_class_cond True", "class_cond"),
            ("--large_size 100", "large_size of 100"),
            ("--sr_num_channels 33", "33 channels"),
            ("--sr_num_heads 5", "5 heads"),
            ("--sr_num_heads_upsample 7", "7 heads"),
            ("--num_chanels 5", "num_chanels"),
        ] {
            let found = SuperResolutionConfig::from_flags(parse_flags(flags).unwrap());
            let error = found.unwrap_err().to_string();
            assert!(error.contains(reason), "{flags}: {error}");
        }
    }
}
