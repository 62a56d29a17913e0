//! The settings of the coupled network.

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use super::{DiffusionFlags, Flags, flags, level_channels};

/// Factors of the channels by the width of the picture.
const CHANNEL_MULT: [(usize, &[f64]); 4] = [
    (512, &[0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]),
    (256, &[1.0, 1.0, 2.0, 2.0, 4.0, 4.0]),
    (128, &[1.0, 1.0, 2.0, 3.0, 4.0]),
    (64, &[1.0, 2.0, 3.0, 4.0]),
];
/// The only windows with which the published network has cross attention in its middle.
const MIDDLE_WINDOWS: [usize; 3] = [1, 4, 8];

/// The published settings of the coupled network. `default()` is the published library's;
/// [`UnetConfig::published`] the base model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnetConfig {
    /// Frames, channels, height and width that the network was made for.
    #[serde(deserialize_with = "flags::sizes")]
    pub video_size: [usize; 4],
    /// Channels and samples that the network was made for.
    #[serde(deserialize_with = "flags::sizes")]
    pub audio_size: [usize; 2],
    /// Channels that the factors in [`UnetConfig::channel_mult`] multiply.
    #[serde(deserialize_with = "flags::count")]
    pub num_channels: usize,
    /// Residual blocks a level of the encoder; the decoder has one more.
    #[serde(deserialize_with = "flags::count")]
    pub num_res_blocks: usize,
    /// Heads of the attention within a modality, and across where `num_head_channels` is none.
    #[serde(deserialize_with = "flags::count")]
    pub num_heads: usize,
    /// Stored, and ignored as in the original.
    #[serde(deserialize_with = "flags::optional")]
    pub num_heads_upsample: Option<usize>,
    /// Channels of each head of the attention across modalities.
    #[serde(deserialize_with = "flags::optional")]
    pub num_head_channels: Option<usize>,
    /// Down-sampling factors of the picture at which the modalities attend to each other.
    #[serde(deserialize_with = "flags::list")]
    pub cross_attention_resolutions: Vec<usize>,
    /// Frames of the window for each of them.
    #[serde(deserialize_with = "flags::list")]
    pub cross_attention_windows: Vec<usize>,
    /// Whether the windows are shifted at random.
    #[serde(deserialize_with = "flags::truth")]
    pub cross_attention_shift: bool,
    /// Down-sampling factors at which the picture attends to itself.
    #[serde(deserialize_with = "flags::list")]
    pub video_attention_resolutions: Vec<usize>,
    /// Down-sampling factors at which the sound attends to itself.
    #[serde(deserialize_with = "flags::list")]
    pub audio_attention_resolutions: Vec<usize>,
    /// Whole factors of the channels, one for each level; none for those that go with the width.
    #[serde(deserialize_with = "flags::list")]
    pub channel_mult: Vec<usize>,
    /// Share of the features that training leaves out.
    #[serde(deserialize_with = "flags::real")]
    pub dropout: f64,
    /// Not supported, as in the original.
    #[serde(deserialize_with = "flags::truth")]
    pub class_cond: bool,
    /// Whether training computes residual blocks again instead of keeping what they computed.
    #[serde(deserialize_with = "flags::truth")]
    pub use_checkpoint: bool,
    /// Whether time scales and shifts the features, or only shifts them.
    #[serde(deserialize_with = "flags::truth")]
    pub use_scale_shift_norm: bool,
    /// Whether residual blocks change the resolution. Must be set: the original fails without.
    #[serde(deserialize_with = "flags::truth")]
    pub resblock_updown: bool,
    /// Whether the original ran in half precision; nothing follows from it here.
    #[serde(deserialize_with = "flags::truth")]
    pub use_fp16: bool,
    /// Kind of the picture's convolutions, `2d+1d`.
    pub video_type: String,
    /// Kind of the sound's convolutions, `1d` or `linear`, which are the same.
    pub audio_type: String,
    /// Whether the network predicts variances, too.
    #[serde(deserialize_with = "flags::truth")]
    pub learn_sigma: bool,
}

impl Default for UnetConfig {
    fn default() -> Self {
        Self {
            video_size: [16, 3, 64, 64],
            audio_size: [1, 25_600],
            num_channels: 128,
            num_res_blocks: 2,
            num_heads: 4,
            num_heads_upsample: None,
            num_head_channels: None,
            cross_attention_resolutions: vec![2, 4, 8],
            cross_attention_windows: MIDDLE_WINDOWS.to_vec(),
            cross_attention_shift: true,
            video_attention_resolutions: vec![2, 4, 8],
            audio_attention_resolutions: vec![],
            channel_mult: vec![],
            dropout: 0.0,
            class_cond: false,
            use_checkpoint: false,
            use_scale_shift_norm: true,
            resblock_updown: false,
            use_fp16: false,
            video_type: "2d+1d".into(),
            audio_type: "1d".into(),
            learn_sigma: false,
        }
    }
}

impl UnetConfig {
    /// The published base model.
    pub fn published() -> Self {
        Self { num_head_channels: Some(64), resblock_updown: true, ..Self::default() }
    }

    /// The network and its diffusion from published flags; those not given are the library's defaults.
    ///
    /// # Errors
    /// When a flag is unknown or its value makes no sense; as [`UnetConfig::check`].
    pub fn from_flags(mut flags: Flags) -> Result<(Self, DiffusionFlags)> {
        let diffusion = flags::take(&mut flags, &[])?;
        let config: Self = flags::take(&mut flags, &[])?;
        flags::check_none_left(&flags)?;
        config.check()?;
        Ok((config, diffusion))
    }

    /// Frames that the network was made for.
    pub fn frames(&self) -> usize {
        self.video_size[0]
    }

    /// Channels of the picture and of the sound that go in.
    pub fn in_channels(&self) -> [usize; 2] {
        [self.video_size[1], self.audio_size[0]]
    }

    /// Channels that come out: 3 and 1, twice as many with [`UnetConfig::learn_sigma`].
    pub fn out_channels(&self) -> [usize; 2] {
        if self.learn_sigma { [6, 2] } else { [3, 1] }
    }

    /// Channels of each level.
    ///
    /// # Errors
    /// When there are no factors for the width, or the channels are no multiples of 32.
    pub fn level_channels(&self) -> Result<Vec<usize>> {
        level_channels(
            self.num_channels,
            &self.channel_mult,
            ("width", self.video_size[3]),
            &CHANNEL_MULT,
        )
        .map_err(wrong)
    }

    /// Window in frames of the cross attention at a down-sampling factor; `None` where there is none.
    pub fn window(&self, factor: usize) -> Option<usize> {
        let at = self.cross_attention_resolutions.iter().position(|at| *at == factor)?;
        self.cross_attention_windows.get(at).copied()
    }

    /// Whether the middle has cross attention: with windows 1, 4, 8 only, as in the original.
    pub fn has_middle_cross_attention(&self) -> bool {
        self.cross_attention_windows == MIDDLE_WINDOWS
    }

    /// Heads of the cross attention of so many channels.
    pub fn cross_heads(&self, channels: usize) -> usize {
        self.num_head_channels.map_or(self.num_heads, |size| channels / size.max(1))
    }

    /// Fails unless a network with these settings can be built.
    ///
    /// # Errors
    /// [`Error::Argument`] with the setting, its value and what is expected.
    pub fn check(&self) -> Result<()> {
        if !self.resblock_updown {
            return Err(wrong("resblock_updown must be true: without it, the original fails, too"));
        }
        if self.class_cond {
            return Err(wrong("class_cond is not supported: no published network can use classes"));
        }
        if self.video_type != "2d+1d" {
            return Err(wrong(format!("video_type {:?}, expected \"2d+1d\"", self.video_type)));
        }
        if !["1d", "linear"].contains(&self.audio_type.as_str()) {
            return Err(wrong(format!("audio_type {:?}, expected \"1d\"", self.audio_type)));
        }
        for (name, value) in [
            ("num_channels", self.num_channels),
            ("num_res_blocks", self.num_res_blocks),
            ("num_heads", self.num_heads),
            ("num_head_channels", self.num_head_channels.unwrap_or(1)),
        ] {
            if !(1..=1 << 12).contains(&value) {
                return Err(wrong(format!("{name} is {value}, expected 1 to 4096")));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(wrong(format!("dropout is {}, expected 0 to below 1", self.dropout)));
        }
        let (windows, factors) = (&self.cross_attention_windows, &self.cross_attention_resolutions);
        if windows.len() < factors.len() {
            return Err(wrong(format!(
                "cross_attention_windows has {} windows for {} cross_attention_resolutions",
                windows.len(),
                factors.len()
            )));
        }
        let levels = self.level_channels()?;
        let used = (0..levels.len()).filter_map(|level| self.window(1 << level));
        if let Some(window) = used.max().filter(|window| *window > self.frames()) {
            return Err(wrong(format!(
                "cross_attention_windows has {window} frames, the video only {}",
                self.frames()
            )));
        }
        self.check_heads(&levels)
    }

    fn check_heads(&self, levels: &[usize]) -> Result<()> {
        let last = levels.last().copied().unwrap_or_default();
        let factors: Vec<usize> = (0..levels.len()).map(|level| 1 << level).collect();
        for (&channels, factor) in levels.iter().zip(factors) {
            let attends = self.video_attention_resolutions.contains(&factor)
                || self.audio_attention_resolutions.contains(&factor)
                || channels == last;
            if attends && !channels.is_multiple_of(self.num_heads) {
                return Err(wrong(format!(
                    "num_heads {} does not divide {channels} channels",
                    self.num_heads
                )));
            }
            let crosses = self.window(factor).is_some()
                || (channels == last && self.has_middle_cross_attention());
            let heads = self.cross_heads(channels);
            if crosses && (heads == 0 || !channels.is_multiple_of(heads)) {
                return Err(wrong(format!(
                    "num_head_channels {:?} leaves {heads} heads for {channels} channels",
                    self.num_head_channels
                )));
            }
        }
        Ok(())
    }
}

fn wrong(reason: impl std::fmt::Display) -> Error {
    Error::Argument(format!("configuration of the coupled network: {reason}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::parse_flags;
    use super::*;

    #[test]
    fn published_flags_give_the_published_network() {
        let text = "--cross_attention_resolutions 2,4,8 --cross_attention_windows 1,4,8 \
            --cross_attention_shift True --dropout 0.1 --video_attention_resolutions 2,4,8 \
            --audio_attention_resolutions -1 --video_size 16,3,64,64 --audio_size 1,25600 \
            --learn_sigma False --num_channels 128 --num_head_channels 64 --num_res_blocks 2 \
            --resblock_updown True --use_fp16 True --use_scale_shift_norm True \
            --diffusion_steps 1000 --noise_schedule linear";
        let (config, diffusion) = UnetConfig::from_flags(parse_flags(text).unwrap()).unwrap();
        let published = UnetConfig { dropout: 0.1, use_fp16: true, ..UnetConfig::published() };
        assert_eq!(config, published);
        assert_eq!(diffusion, DiffusionFlags::default());
        assert_eq!(config.level_channels().unwrap(), [128, 256, 384, 512]);
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(serde_json::from_value::<UnetConfig>(json).unwrap(), published);
    }

    #[test]
    fn unusable_settings_are_named() {
        for (name, value, reason) in [
            ("resblock_updown", json!(false), "resblock_updown"),
            ("class_cond", json!("yes"), "class_cond"),
            ("video_type", json!("3d"), "video_type"),
            ("video_size", json!("16,3,64"), "expected 4 sizes"),
            ("video_size", json!("16,3,60,60"), "width of 60"),
            ("num_channels", json!(24), "24 channels"),
            ("num_channels", json!("many"), "whole number"),
            ("channel_mult", json!("0.5,1"), "whole numbers"),
            ("cross_attention_windows", json!("1,4"), "2 windows"),
            ("cross_attention_windows", json!("1,4,17"), "17 frames"),
            ("num_heads", json!(7), "num_heads 7"),
            ("num_head_channels", json!(1000), "num_head_channels"),
            ("dropout", json!(1.5), "dropout"),
            ("nm_channels", json!(1), "nm_channels"),
        ] {
            let mut flags = parse_flags("--resblock_updown True").unwrap();
            flags.insert(name.into(), value.clone());
            let error = UnetConfig::from_flags(flags).unwrap_err().to_string();
            assert!(error.contains(reason), "{name} {value}: {error}");
        }
    }
}
