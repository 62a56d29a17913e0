//! Clips and sounds that are given.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use clap::{Args, ValueEnum};
use mmdiffusion::clip::{audio_tensor, video_tensor};
use mmdiffusion::generate::ClipSize;
use mmdiffusion::{Pair, Rates};
use serde_json::{Map, Value, json};
use shared::cli::Common;
use shared::limits::Limits;
use shared::media::image::Letterbox;
use shared::media::video::{Channel, ClipOptions, VideoClip, read_clip};
use shared::media::{Waveform, audio};
use shared::{Error, Result};

/// Which part of given files is used, and how.
#[derive(Args, Debug)]
pub struct GivenOptions {
    /// Where in each file the clip begins
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub start: f64,
    /// What becomes of several channels of sound
    #[arg(long, value_enum, default_value = "mix")]
    pub channel: ChannelName,
    /// Smooth pictures before making them smaller; the published training did not
    #[arg(long)]
    pub smooth: bool,
}

/// What one channel of sound is made of.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ChannelName {
    /// The mean of all.
    Mix,
    /// The first.
    First,
}

impl GivenOptions {
    /// What the files say of what was given.
    pub fn facts(&self, files: &[PathBuf]) -> Map<String, Value> {
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        let channel = match self.channel {
            ChannelName::Mix => "mix",
            ChannelName::First => "first",
        };
        let facts = [
            ("given", json!(files)),
            ("start_s", json!(self.start)),
            ("channel", json!(channel)),
            ("smooth", json!(self.smooth)),
        ];
        facts.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
    }

    /// The clip in a video file that is `frames` long, in the size that the model makes.
    fn clip(&self, path: &Path, frames: usize, size: &ClipSize, rates: Rates) -> Result<VideoClip> {
        let [_, _, height, width] = size.video;
        let options = ClipOptions {
            fps: rates.fps,
            start_s: self.start,
            duration_s: Some(frames as f64 / f64::from(rates.fps)),
            letterbox: Some(Letterbox { width, height, smoothed: self.smooth }),
            rate_hz: rates.rate_hz,
            channel: match self.channel {
                ChannelName::Mix => Channel::Mix,
                ChannelName::First => Channel::First,
            },
        };
        read_clip(path, &options, &Limits::default())
    }

    /// The picture of a video file as `[1, F, 3, H, W]`.
    pub fn video(
        &self,
        path: &Path,
        frames: usize,
        size: &ClipSize,
        rates: Rates,
        common: &Common,
    ) -> Result<Tensor> {
        let clip = self.clip(path, frames, size, rates)?;
        picture(path, clip, frames, common)
    }

    /// Picture `[1, F, 3, H, W]` and sound `[1, 1, L]` of a video file.
    pub fn both(
        &self,
        path: &Path,
        frames: usize,
        size: &ClipSize,
        rates: Rates,
        common: &Common,
    ) -> Result<Pair> {
        let mut clip = self.clip(path, frames, size, rates)?;
        let sound = clip.sound.take().ok_or_else(|| missing(path, "sound"))?;
        let video = picture(path, clip, frames, common)?;
        let samples = frames * size.samples_per_frame()?;
        Ok(Pair { video, audio: cut(&sound, 0, samples)? })
    }

    /// The sound of a file as `[1, 1, L]`.
    pub fn sound(
        &self,
        path: &Path,
        samples: usize,
        rates: Rates,
        common: &Common,
    ) -> Result<Tensor> {
        if !(self.start >= 0.0 && self.start.is_finite()) {
            return Err(Error::Argument(format!("--start {} is no time", self.start)));
        }
        let sound = audio::read(path, &Limits::default())?;
        let sound = match self.channel {
            ChannelName::Mix => sound.mono(),
            ChannelName::First => sound.channel(0)?,
        };
        let sound = sound.resampled(rates.rate_hz)?;
        let first = (self.start * f64::from(rates.rate_hz)).round() as usize;
        let have = sound.samples.len().saturating_sub(first);
        if have == 0 {
            let duration_s = sound.duration_s();
            let reason = format!("has {duration_s:.2} s of sound, none after {} s", self.start);
            return Err(Error::media(path, reason));
        }
        if have < samples {
            let missing_s = (samples - have) as f64 / f64::from(rates.rate_hz);
            common.note(format!("{}: {missing_s:.2} s of silence are added", path.display()));
        }
        cut(&sound, first, samples)
    }
}

fn picture(path: &Path, clip: VideoClip, frames: usize, common: &Common) -> Result<Tensor> {
    let found = clip.frames.ok_or_else(|| missing(path, "picture"))?;
    if found.count() < frames {
        common.note(format!(
            "{}: there are only {} of {frames} frames, the last is repeated",
            path.display(),
            found.count()
        ));
    }
    Ok(video_tensor(&found.with_count(frames), &Device::Cpu)?.unsqueeze(0)?)
}

fn missing(path: &Path, what: &str) -> Error {
    Error::media(path, format!("has no {what}, which this command needs"))
}

/// So many samples from `first` on as `[1, 1, L]`, zeros at the end.
fn cut(sound: &Waveform, first: usize, samples: usize) -> Result<Tensor> {
    let part = sound.samples.iter().skip(first).copied().chain(std::iter::repeat(0.0));
    let part = Waveform::from_mono(part.take(samples).collect(), sound.rate_hz);
    Ok(audio_tensor(&part, &Device::Cpu)?.unsqueeze(0)?)
}
