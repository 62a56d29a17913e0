//! The sound of a clip.

use std::path::Path;

use ffmpeg_next::frame;

use super::Channel;
use crate::limits::Limits;
use crate::media::audio::Waveform;
use crate::media::ffmpeg::append_samples;
use crate::{Error, Result};

/// A time stamp that is later than the samples before it by more than this means silence; smaller
/// differences are rounding.
const LONGEST_JITTER_S: f64 = 0.1;

/// Sound being decoded: one channel at the rate of the file.
pub(super) struct Sound {
    channel: Channel,
    /// Rate and channels; known with the first samples.
    form: Option<(u32, usize)>,
    /// Time of the first sample.
    first_s: f64,
    samples: Vec<f32>,
}

impl Sound {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, form: None, first_s: 0.0, samples: vec![] }
    }

    /// Whether samples have come.
    pub(super) fn has_begun(&self) -> bool {
        self.form.is_some()
    }

    /// Time up to which there are samples.
    pub(super) fn end_s(&self) -> f64 {
        self.first_s
            + self.form.map_or(0.0, |(rate_hz, _)| self.samples.len() as f64 / f64::from(rate_hz))
    }

    /// Appends samples that begin at `time_s`, as far as is known.
    pub(super) fn take(
        &mut self,
        path: &Path,
        decoded: &frame::Audio,
        time_s: Option<f64>,
        limits: &Limits,
    ) -> Result<()> {
        let (rate_hz, channels) = (decoded.rate(), usize::from(decoded.channels()));
        crate::media::audio::check_limits(path, rate_hz, channels, limits)?;
        match self.form {
            None => {
                self.form = Some((rate_hz, channels));
                self.first_s = time_s.unwrap_or(0.0);
            }
            Some(form) if form != (rate_hz, channels) => {
                return Err(Error::media(
                    path,
                    format!(
                        "its sound changes from {} channels at {} Hz to {channels} at {rate_hz} \
                         Hz; convert it to one form first",
                        form.1, form.0
                    ),
                ));
            }
            Some(_) => {}
        }
        let gap_s = time_s.map_or(0.0, |time_s| time_s - self.end_s());
        let silence =
            if gap_s > LONGEST_JITTER_S { (gap_s * f64::from(rate_hz)) as u64 } else { 0 };
        let bytes = 4 * (self.samples.len() as u64 + silence + decoded.samples() as u64);
        if bytes > limits.waveform_bytes {
            return Err(Error::Limit {
                path: path.to_path_buf(),
                quantity: "size of the samples in bytes",
                actual: bytes,
                limit: limits.waveform_bytes,
            });
        }
        self.samples.resize(self.samples.len() + silence as usize, 0.0);
        let mut block = vec![];
        if !append_samples(decoded, &mut block) {
            let reason = format!("has sound of a kind not known: {:?}", decoded.format());
            return Err(Error::media(path, reason));
        }
        let block = Waveform { samples: block, rate_hz, channels };
        let block = match self.channel {
            Channel::First => block.channel(0)?,
            Channel::Mix => block.mono(),
        };
        self.samples.extend_from_slice(&block.samples);
        Ok(())
    }

    /// The part from `start_s` on, `samples` long at `rate_hz`, zeros where there is no sound.
    pub(super) fn cut(
        self,
        path: &Path,
        start_s: f64,
        samples: usize,
        rate_hz: u32,
    ) -> Result<Waveform> {
        let own_rate_hz = self.form.map_or(rate_hz, |(rate_hz, _)| rate_hz);
        let whole = Waveform::from_mono(self.samples, own_rate_hz);
        whole.check_finite(&path.display().to_string())?;
        let whole = whole.resampled(rate_hz)?;
        let offset = ((start_s - self.first_s) * f64::from(rate_hz)).round() as i64;
        let mut cut = vec![0.0; samples];
        let silent = usize::try_from(-offset).unwrap_or(0);
        let skipped = usize::try_from(offset).unwrap_or(0);
        let places = cut.iter_mut().skip(silent);
        places.zip(whole.samples.iter().skip(skipped)).for_each(|(to, from)| *to = *from);
        Ok(Waveform::from_mono(cut, rate_hz))
    }
}
