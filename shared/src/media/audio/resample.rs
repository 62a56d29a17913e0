//! Change of the sampling rate.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler as _, WindowFunction};

use crate::{Error, Result};

/// Lowest rate that can be converted from or to.
const LOWEST_RATE_HZ: u32 = 100;
/// Shortest filter, in periods of the lower of the two rates.
const FILTER_PERIODS: usize = 1024;

/// Changes the sampling rate of a sound that comes in pieces.
///
/// The result does not depend on how the sound is cut into pieces; for `n` frames it has
/// `ceil(n * rate_out / rate_in)`, and output frame `i` is at the time `i / rate_out` of the input.
pub struct Resampler {
    rate_in_hz: u64,
    rate_out_hz: u64,
    channels: usize,
    /// `None` when the two rates are the same.
    transform: Option<Fft<f32>>,
    /// Interleaved input that does not fill a chunk yet.
    pending: Vec<f32>,
    /// Interleaved output of one chunk.
    chunk: Vec<f32>,
    /// Output frames still to be dropped: the delay of the filter.
    delay_left: usize,
    frames_in: u64,
    frames_out: u64,
}

impl Resampler {
    /// A resampler for `channels` interleaved channels.
    ///
    /// # Errors
    /// [`Error::Argument`] for a rate below 100 Hz or no channels.
    pub fn new(rate_in_hz: u32, rate_out_hz: u32, channels: usize) -> Result<Self> {
        if channels == 0 {
            return Err(Error::Argument("cannot resample a sound without channels".into()));
        }
        if rate_in_hz.min(rate_out_hz) < LOWEST_RATE_HZ {
            return Err(Error::Argument(format!(
                "cannot resample from {rate_in_hz} Hz to {rate_out_hz} Hz: both rates must be at \
                 least {LOWEST_RATE_HZ} Hz"
            )));
        }
        let transform = if rate_in_hz == rate_out_hz {
            None
        } else {
            Some(transform(rate_in_hz as usize, rate_out_hz as usize, channels)?)
        };
        let (chunk_frames, delay_left) = transform
            .as_ref()
            .map_or((0, 0), |transform| (transform.output_frames_max(), transform.output_delay()));
        Ok(Self {
            rate_in_hz: rate_in_hz.into(),
            rate_out_hz: rate_out_hz.into(),
            channels,
            transform,
            pending: vec![],
            chunk: vec![0.0; chunk_frames * channels],
            delay_left,
            frames_in: 0,
            frames_out: 0,
        })
    }

    /// The number of frames that `frames` become.
    pub fn output_frames(&self, frames: u64) -> u64 {
        let scaled = u128::from(frames) * u128::from(self.rate_out_hz);
        scaled.div_ceil(u128::from(self.rate_in_hz)) as u64
    }

    /// Takes interleaved `samples` and appends to `out` what they complete.
    ///
    /// # Errors
    /// [`Error::Argument`] when `samples` is no whole number of frames.
    pub fn process(&mut self, samples: &[f32], out: &mut Vec<f32>) -> Result<()> {
        if !samples.len().is_multiple_of(self.channels) {
            return Err(Error::Argument(format!(
                "{} samples are no whole number of frames of {} channels",
                samples.len(),
                self.channels
            )));
        }
        self.frames_in += (samples.len() / self.channels) as u64;
        let Some(transform) = &self.transform else {
            out.extend_from_slice(samples);
            return Ok(());
        };
        let need = transform.input_frames_next() * self.channels;
        let mut rest = samples;
        if !self.pending.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(need - self.pending.len()));
            self.pending.extend_from_slice(head);
            rest = tail;
            if self.pending.len() < need {
                return Ok(());
            }
            let full = std::mem::take(&mut self.pending);
            self.convert(&full, out)?;
            self.pending = full;
            self.pending.clear();
        }
        let chunks = rest.chunks_exact(need);
        self.pending.extend_from_slice(chunks.remainder());
        for chunk in chunks {
            self.convert(chunk, out)?;
        }
        Ok(())
    }

    /// Appends to `out` what remains, as if silence followed. The resampler is then spent.
    ///
    /// # Errors
    /// None on sound that [`Resampler::process`] took.
    pub fn finish(&mut self, out: &mut Vec<f32>) -> Result<()> {
        if self.transform.is_none() {
            return Ok(());
        }
        let last = std::mem::take(&mut self.pending);
        self.convert(&last, out)?;
        let total = self.output_frames(self.frames_in);
        while self.frames_out < total {
            self.convert(&[], out)?;
        }
        let excess = (self.frames_out - total) as usize * self.channels;
        out.truncate(out.len() - excess);
        self.frames_out = total;
        Ok(())
    }

    /// Converts one chunk; a short one is filled up with silence.
    fn convert(&mut self, input: &[f32], out: &mut Vec<f32>) -> Result<()> {
        let Some(transform) = &mut self.transform else { return Ok(()) };
        let failed =
            |error: &dyn std::fmt::Display| Error::Argument(format!("resampling failed: {error}"));
        let frames = input.len() / self.channels;
        let source = InterleavedSlice::new(input, self.channels, frames).map_err(|e| failed(&e))?;
        let chunk_frames = self.chunk.len() / self.channels;
        let mut target = InterleavedSlice::new_mut(&mut self.chunk, self.channels, chunk_frames)
            .map_err(|e| failed(&e))?;
        let (_, written) = transform
            .process_into_buffer(&source, &mut target, Some(&Indexing::new().partial_len(frames)))
            .map_err(|e| failed(&e))?;
        let skipped = written.min(self.delay_left);
        self.delay_left -= skipped;
        self.frames_out += (written - skipped) as u64;
        out.extend_from_slice(&self.chunk[skipped * self.channels..written * self.channels]);
        Ok(())
    }
}

/// The band-limiting filter and its block convolution. Its length is an even number of the
/// shortest periods that both rates share, so that its delay is a whole number of frames.
fn transform(rate_in_hz: usize, rate_out_hz: usize, channels: usize) -> Result<Fft<f32>> {
    let gcd = gcd(rate_in_hz, rate_out_hz);
    let shared_periods = rate_in_hz.min(rate_out_hz) / gcd;
    let blocks = FILTER_PERIODS.div_ceil(shared_periods).next_multiple_of(2);
    Fft::new_custom(
        rate_in_hz,
        rate_out_hz,
        blocks * (rate_in_hz / gcd),
        1,
        channels,
        WindowFunction::BlackmanHarris2,
        FixedSync::Both,
    )
    .map_err(|error| {
        Error::Argument(format!("cannot resample from {rate_in_hz} to {rate_out_hz} Hz: {error}"))
    })
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn noise(frames: usize, channels: usize) -> Vec<f32> {
        let mut stream = Stream::new(5, "noise", 0);
        (0..frames * channels).map(|_| stream.uniform_in(-1.0, 1.0) as f32).collect()
    }

    fn convert(rate_in_hz: u32, rate_out_hz: u32, channels: usize, pieces: &[&[f32]]) -> Vec<f32> {
        let mut resampler = Resampler::new(rate_in_hz, rate_out_hz, channels).unwrap();
        let mut out = vec![];
        for piece in pieces {
            resampler.process(piece, &mut out).unwrap();
        }
        resampler.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn cutting_the_input_changes_nothing() {
        for (rate_in_hz, rate_out_hz) in [(44_100, 16_000), (8000, 16_000), (16_000, 16_000)] {
            let samples = noise(30_001, 2);
            let whole = convert(rate_in_hz, rate_out_hz, 2, &[&samples]);
            for piece in [1, 7, 1000, 4096, 50_000] {
                let pieces: Vec<&[f32]> = samples.chunks(2 * piece).collect();
                assert_eq!(whole, convert(rate_in_hz, rate_out_hz, 2, &pieces), "{piece}");
            }
        }
    }

    #[test]
    fn channels_are_converted_alone() {
        let samples = noise(5000, 3);
        let whole = convert(22_050, 16_000, 3, &[&samples]);
        for channel in 0..3 {
            let one: Vec<f32> = samples.iter().skip(channel).step_by(3).copied().collect();
            let expected = convert(22_050, 16_000, 1, &[&one]);
            let actual: Vec<f32> = whole.iter().skip(channel).step_by(3).copied().collect();
            assert_eq!(actual, expected);
        }
    }

    #[test]
    fn the_length_is_rounded_up() {
        for frames in [0, 1, 2, 3, 147, 441, 442, 5000] {
            let out = convert(44_100, 16_000, 1, &[&noise(frames, 1)]);
            assert_eq!(out.len(), (frames * 160).div_ceil(441), "{frames}");
        }
    }

    #[test]
    fn rates_and_channels_out_of_range_are_refused() {
        for (rate_in_hz, rate_out_hz, channels) in
            [(0, 16_000, 1), (16_000, 0, 1), (99, 16_000, 1), (16_000, 8000, 0)]
        {
            let refused = Resampler::new(rate_in_hz, rate_out_hz, channels);
            assert!(matches!(refused, Err(Error::Argument(_))));
        }
        let mut stereo = Resampler::new(8000, 16_000, 2).unwrap();
        assert!(stereo.process(&[0.0; 3], &mut vec![]).is_err());
    }
}
