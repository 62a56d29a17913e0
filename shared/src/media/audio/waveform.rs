//! Sound in memory.

use crate::media::audio::Resampler;
use crate::{Error, Result};

/// Sound: samples, and what they need to be understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waveform {
    /// The channels' samples in turn, frame after frame, full scale at 1.
    pub samples: Vec<f32>,
    /// Frames a second.
    pub rate_hz: u32,
    /// Samples in a frame.
    pub channels: usize,
}

impl Waveform {
    /// A waveform with one channel.
    pub fn from_mono(samples: Vec<f32>, rate_hz: u32) -> Self {
        Self { samples, rate_hz, channels: 1 }
    }

    /// Number of frames, that is of samples in each channel.
    pub fn frames(&self) -> usize {
        self.samples.len().checked_div(self.channels).unwrap_or(0)
    }

    /// Length in seconds.
    pub fn duration_s(&self) -> f64 {
        self.frames() as f64 / f64::from(self.rate_hz.max(1))
    }

    /// The mean of all channels, as a waveform of one.
    pub fn mono(&self) -> Self {
        let mut samples = Vec::with_capacity(self.frames());
        mix_down(&self.samples, self.channels, &mut samples);
        Self::from_mono(samples, self.rate_hz)
    }

    /// One channel, counted from 0.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no such channel.
    pub fn channel(&self, index: usize) -> Result<Self> {
        if index >= self.channels {
            return Err(Error::Argument(format!(
                "no channel {index}: there are {}, counted from 0",
                self.channels
            )));
        }
        let samples = self.samples.iter().skip(index).step_by(self.channels).copied().collect();
        Ok(Self::from_mono(samples, self.rate_hz))
    }

    /// The same sound at another sampling rate, of `ceil(frames * rate_hz / self.rate_hz)` frames;
    /// see [`Resampler`] for the accuracy.
    ///
    /// # Errors
    /// [`Error::Argument`] for a rate out of the [`Resampler`]'s range.
    pub fn resampled(&self, rate_hz: u32) -> Result<Self> {
        let frames = Resampler::new(self.rate_hz, rate_hz)?.output_samples(self.frames() as u64);
        let mut samples = vec![0.0; frames as usize * self.channels];
        for index in 0..self.channels {
            let mut resampler = Resampler::new(self.rate_hz, rate_hz)?;
            let mut converted = Vec::with_capacity(frames as usize);
            resampler.process(&self.channel(index)?.samples, &mut converted)?;
            resampler.finish(&mut converted)?;
            let places = samples.iter_mut().skip(index).step_by(self.channels);
            places.zip(converted).for_each(|(place, sample)| *place = sample);
        }
        Ok(Self { samples, rate_hz, channels: self.channels })
    }

    /// Checks that every sample is a finite number.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with `name` and the time of the first that is not.
    pub fn check_finite(&self, name: &str) -> Result<()> {
        check_finite(&self.samples, self.channels, self.rate_hz, 0, name)
    }
}

/// Appends the mean of each frame's channels.
pub(super) fn mix_down(interleaved: &[f32], channels: usize, mono: &mut Vec<f32>) {
    match channels {
        0 => {}
        1 => mono.extend_from_slice(interleaved),
        _ => mono.extend(
            interleaved
                .chunks_exact(channels)
                .map(|frame| frame.iter().sum::<f32>() / channels as f32),
        ),
    }
}

/// Checks a block of samples that starts at frame `first_frame` of the sound called `name`.
pub(super) fn check_finite(
    block: &[f32],
    channels: usize,
    rate_hz: u32,
    first_frame: u64,
    name: &str,
) -> Result<()> {
    match block.iter().position(|sample| !sample.is_finite()) {
        None => Ok(()),
        Some(place) => {
            let frame = first_frame + (place / channels.max(1)) as u64;
            let time_s = frame as f64 / f64::from(rate_hz.max(1));
            Err(Error::NonFinite { what: format!("{name}: the sample at {time_s:.3} s") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stereo() -> Waveform {
        Waveform { samples: vec![0.5, -0.5, 1.0, 0.0, 0.25, 0.75], rate_hz: 2, channels: 2 }
    }

    #[test]
    fn channels_are_taken_apart_and_mixed() {
        assert_eq!(stereo().frames(), 3);
        assert_eq!(stereo().duration_s(), 1.5);
        assert_eq!(stereo().mono(), Waveform::from_mono(vec![0.0, 0.5, 0.5], 2));
        assert_eq!(stereo().channel(1).unwrap(), Waveform::from_mono(vec![-0.5, 0.0, 0.75], 2));
        assert!(matches!(stereo().channel(2), Err(Error::Argument(_))));
    }

    #[test]
    fn resampling_keeps_channels_apart() {
        let mut stream = crate::rng::Stream::new(1, "noise", 0);
        let samples = (0..3 * 5000).map(|_| stream.uniform_in(-1.0, 1.0) as f32).collect();
        let waveform = Waveform { samples, rate_hz: 22_050, channels: 3 };
        let resampled = waveform.resampled(16_000).unwrap();
        assert_eq!((resampled.frames(), resampled.channels, resampled.rate_hz), (3629, 3, 16_000));
        for index in 0..3 {
            let alone = waveform.channel(index).unwrap().resampled(16_000).unwrap();
            assert_eq!(resampled.channel(index).unwrap(), alone);
        }
        assert_eq!(waveform.resampled(22_050).unwrap(), waveform);
    }

    #[test]
    fn an_empty_waveform_has_no_length() {
        let empty = Waveform::default();
        assert_eq!((empty.frames(), empty.duration_s()), (0, 0.0));
        assert!(empty.mono().samples.is_empty());
        assert!(empty.channel(0).is_err());
    }

    #[test]
    fn non_finite_samples_are_found() {
        stereo().check_finite("x").unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut waveform = stereo();
            waveform.samples[3] = bad;
            let error = waveform.check_finite("x.wav").unwrap_err();
            assert_eq!(error.to_string(), "x.wav: the sample at 0.500 s is not finite");
        }
    }
}
