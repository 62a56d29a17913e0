//! Writing WAV files.

use std::path::Path;

use hound::{SampleFormat, WavSpec, WavWriter};

use crate::files::OutputFile;
use crate::media::audio::Waveform;
use crate::{Error, Result};

/// What the 32-bit length fields of a WAV file leave for samples beside its header.
const LARGEST_DATA_BYTES: u64 = u32::MAX as u64 - 128;

/// Writes `waveform` as a WAV file of 16-bit integers, rounded; returns how many samples were
/// beyond full scale and clipped.
///
/// The file appears whole or not at all, see [`OutputFile`].
///
/// # Errors
/// [`Error::Exists`] when the file is there and `force` is not given, [`Error::NonFinite`] for NaN
/// and infinite samples, [`Error::Argument`] when a WAV file cannot hold the waveform (above 4 GiB,
/// no channels or more than 65535), [`Error::Io`].
pub fn write_wav(path: &Path, waveform: &Waveform, force: bool) -> Result<usize> {
    write(path, waveform, force, 16, SampleFormat::Int)?;
    Ok(waveform.samples.iter().filter(|sample| sample.abs() > 1.0).count())
}

/// Writes `waveform` as a WAV file of 32-bit floating-point numbers, exactly as they are.
///
/// # Errors
/// As [`write_wav`].
pub fn write_wav_f32(path: &Path, waveform: &Waveform, force: bool) -> Result<()> {
    write(path, waveform, force, 32, SampleFormat::Float)
}

fn write(
    path: &Path,
    waveform: &Waveform,
    force: bool,
    bits_per_sample: u16,
    sample_format: SampleFormat,
) -> Result<()> {
    waveform.check_finite(&path.display().to_string())?;
    let bytes = waveform.samples.len() as u64 * u64::from(bits_per_sample / 8);
    let channels = u16::try_from(waveform.channels).ok().filter(|&channels| channels > 0);
    let Some(channels) = channels.filter(|_| bytes <= LARGEST_DATA_BYTES) else {
        return Err(Error::Argument(format!(
            "{}: a WAV file cannot hold {} samples in {} channels",
            path.display(),
            waveform.samples.len(),
            waveform.channels
        )));
    };
    let spec = WavSpec { channels, sample_rate: waveform.rate_hz, bits_per_sample, sample_format };
    let mut file = OutputFile::create(path, force)?;
    encode(&mut file, &waveform.samples, spec).map_err(|error| match error {
        hound::Error::IoError(error) => Error::io(path)(error),
        other => Error::media(path, other.to_string()),
    })?;
    file.finish()
}

fn encode(file: &mut OutputFile, samples: &[f32], spec: WavSpec) -> hound::Result<()> {
    let mut writer = WavWriter::new(file, spec)?;
    for &sample in samples {
        match spec.sample_format {
            SampleFormat::Float => writer.write_sample(sample)?,
            // The conversion saturates at the ends of the range.
            SampleFormat::Int => writer.write_sample((sample * 32768.0).round() as i16)?,
        }
    }
    writer.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::media::audio::read;

    #[test]
    fn floats_come_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.wav");
        let samples = vec![0.1, -0.2, 1.5, -7.25, f32::MIN_POSITIVE, 0.0];
        for channels in [1, 2, 3] {
            let waveform = Waveform { samples: samples.clone(), rate_hz: 16_000, channels };
            write_wav_f32(&path, &waveform, true).unwrap();
            assert_eq!(read(&path, &Limits::default()).unwrap(), waveform);
        }
    }

    #[test]
    fn integers_are_rounded_and_clipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.wav");
        let lsb = 1.0 / 32768.0;
        let cases = [
            (0.6 * lsb, lsb),
            (0.4 * lsb, 0.0),
            (-0.6 * lsb, -lsb),
            (1.0, 1.0 - lsb),
            (-1.0, -1.0),
            (1.01, 1.0 - lsb),
            (-3.0, -1.0),
        ];
        let waveform = Waveform::from_mono(cases.iter().map(|case| case.0).collect(), 8000);
        assert_eq!(write_wav(&path, &waveform, false).unwrap(), 2);
        let expected: Vec<f32> = cases.iter().map(|case| case.1).collect();
        assert_eq!(read(&path, &Limits::default()).unwrap().samples, expected);
    }

    #[test]
    fn what_cannot_be_stored_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.wav");
        let no_channels = Waveform { samples: vec![], rate_hz: 8000, channels: 0 };
        assert!(matches!(write_wav(&path, &no_channels, false), Err(Error::Argument(_))));
        let not_a_number = Waveform::from_mono(vec![f32::NAN], 8000);
        assert!(matches!(write_wav(&path, &not_a_number, false), Err(Error::NonFinite { .. })));
        assert!(!path.exists());
        let waveform = Waveform::from_mono(vec![0.0], 8000);
        write_wav(&path, &waveform, false).unwrap();
        assert!(matches!(write_wav(&path, &waveform, false), Err(Error::Exists { .. })));
    }
}
