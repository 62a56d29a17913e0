//! Reading audio piece by piece.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::files::open_regular;
use crate::limits::Limits;
use crate::media::audio::container::{ContainerDecoder, Opening};
use crate::media::audio::guard::Guarded;
use crate::media::audio::wav::{self, WavDecoder};
use crate::media::audio::waveform::{check_finite, mix_down};
use crate::media::audio::{Resampler, Waveform};
use crate::{Error, Result};

/// Memory set aside on the word of a header.
const MOST_RESERVED_SAMPLES: u64 = 1 << 24;

/// What is known of a sound before its samples.
#[derive(Clone, Debug, Default)]
pub(super) struct AudioInfo {
    pub(super) rate_hz: u32,
    pub(super) channels: usize,
    /// Frames that the file states.
    pub(super) frames: Option<u64>,
    /// Container and codec, for people.
    pub(super) format: String,
}

/// Turns a file into samples.
pub(super) trait Decoder {
    /// Complete once the first samples or the end are there.
    fn info(&self) -> &AudioInfo;

    /// Appends the next interleaved samples, perhaps none, to the empty `block`; false at the end.
    fn next_block(&mut self, block: &mut Vec<f32>) -> Result<bool>;

    /// Oddities met so far, each once.
    fn notes(&mut self) -> Vec<String>;
}

/// An audio file read in blocks of interleaved samples, in memory that does not grow with its
/// length.
///
/// As an iterator it ends after the last block or after the first error.
pub struct AudioReader {
    path: PathBuf,
    decoder: Box<dyn Decoder + Send>,
    limits: Limits,
    frames_read: u64,
    ended: bool,
    notes: Vec<String>,
}

impl AudioReader {
    /// Opens an audio file of any supported format; the first audio track if there are several.
    ///
    /// # Errors
    /// [`Error::Io`] for what is no readable regular file, [`Error::Media`] for an empty file, one
    /// in no supported format or a damaged one, [`Error::Limit`] for one above `limits`.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let (file, bytes) = open_regular(path)?;
        if bytes == 0 {
            return Err(Error::media(path, "the file is empty"));
        }
        let reader = Self {
            path: path.to_path_buf(),
            decoder: open_decoder(path, file, limits)?,
            limits: limits.clone(),
            frames_read: 0,
            ended: false,
            notes: vec![],
        };
        let info = reader.decoder.info();
        check_limits(path, info.rate_hz, info.channels, limits)?;
        reader.check_length(info.frames.unwrap_or(0))?;
        Ok(reader)
    }

    /// Frames a second.
    pub fn rate_hz(&self) -> u32 {
        self.decoder.info().rate_hz
    }

    /// Samples in a frame.
    pub fn channels(&self) -> usize {
        self.decoder.info().channels
    }

    /// Frames that the file states to have, if it does; it may be wrong.
    pub fn stated_frames(&self) -> Option<u64> {
        self.decoder.info().frames
    }

    /// Container and codec, e.g. `WAV, 16-bit`.
    pub fn format(&self) -> &str {
        &self.decoder.info().format
    }

    /// What is odd about the file but did not keep it from being read, a sentence each; complete
    /// once all blocks are read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// All samples from here on, and the notes.
    ///
    /// # Errors
    /// As the iterator, and [`Error::Limit`] above [`Limits::waveform_bytes`].
    pub fn into_waveform(mut self) -> Result<(Waveform, Vec<String>)> {
        let sample_bytes = size_of::<f32>() as u64;
        let stated = self.stated_frames().unwrap_or(0).saturating_mul(self.channels() as u64);
        self.check_size(stated.saturating_mul(sample_bytes))?;
        let mut samples: Vec<f32> = vec![];
        while let Some(block) = self.next() {
            let block = block?;
            self.check_size((samples.len() + block.len()) as u64 * sample_bytes)?;
            if samples.is_empty() {
                samples.reserve(stated.min(MOST_RESERVED_SAMPLES) as usize);
            }
            samples.extend_from_slice(&block);
        }
        let waveform = Waveform { samples, rate_hz: self.rate_hz(), channels: self.channels() };
        Ok((waveform, self.notes))
    }

    /// A reader of the mean of all channels at `rate_hz`; its samples are exactly those of
    /// `waveform.mono().resampled(rate_hz)`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a rate out of the [`Resampler`]'s range.
    pub fn into_mono(self, rate_hz: u32) -> Result<MonoReader> {
        let resampler = Some(Resampler::new(self.rate_hz(), rate_hz)?);
        Ok(MonoReader { reader: self, rate_hz, resampler })
    }

    fn read_block(&mut self) -> Result<Option<Vec<f32>>> {
        let mut block = vec![];
        while block.is_empty() {
            let more = self.decoder.next_block(&mut block)?;
            self.notes.append(&mut self.decoder.notes());
            if !more {
                return Ok(None);
            }
        }
        let (channels, rate_hz) = (self.channels(), self.rate_hz());
        let name = self.path.display().to_string();
        check_finite(&block, channels, rate_hz, self.frames_read, &name)?;
        self.frames_read += (block.len() / channels) as u64;
        self.check_length(self.frames_read)?;
        Ok(Some(block))
    }

    fn check_length(&self, frames: u64) -> Result<()> {
        let duration_s = frames as f64 / f64::from(self.rate_hz());
        if duration_s <= self.limits.duration_s {
            return Ok(());
        }
        Err(Error::Limit {
            path: self.path.clone(),
            quantity: "duration in seconds",
            actual: duration_s.ceil() as u64,
            limit: self.limits.duration_s as u64,
        })
    }

    fn check_size(&self, bytes: u64) -> Result<()> {
        if bytes <= self.limits.waveform_bytes {
            return Ok(());
        }
        Err(Error::Limit {
            path: self.path.clone(),
            quantity: "size of the samples in bytes",
            actual: bytes,
            limit: self.limits.waveform_bytes,
        })
    }
}

impl Iterator for AudioReader {
    type Item = Result<Vec<f32>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let block = self.read_block().transpose();
        self.ended = !matches!(block, Some(Ok(_)));
        block
    }
}

/// An audio file read as one channel at a rate of choice, in memory that does not grow with its
/// length.
///
/// As an iterator it ends after the last block or after the first error.
pub struct MonoReader {
    reader: AudioReader,
    rate_hz: u32,
    /// `None` once the end is reached.
    resampler: Option<Resampler>,
}

impl MonoReader {
    /// The rate of the samples that come out.
    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// The file that is being read.
    pub fn source(&self) -> &AudioReader {
        &self.reader
    }
}

impl Iterator for MonoReader {
    type Item = Result<Vec<f32>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut out = vec![];
        let mut mono = vec![];
        while out.is_empty() {
            let resampler = self.resampler.as_mut()?;
            let converted = match self.reader.next() {
                Some(Ok(block)) => {
                    mono.clear();
                    mix_down(&block, self.reader.channels(), &mut mono);
                    resampler.process(&mono, &mut out)
                }
                Some(Err(error)) => Err(error),
                None => {
                    let finished = resampler.finish(&mut out);
                    self.resampler = None;
                    finished
                }
            };
            if let Err(error) = converted {
                self.resampler = None;
                return Some(Err(error));
            }
        }
        Some(Ok(out))
    }
}

/// Refuses what is above the limits or makes no sense, before memory is set aside for it.
pub(in crate::media) fn check_limits(
    path: &Path,
    rate_hz: u32,
    channels: usize,
    limits: &Limits,
) -> Result<()> {
    if rate_hz == 0 || channels == 0 {
        return Err(Error::media(path, "no channels or a sampling rate of 0"));
    }
    let above = |quantity, actual, limit| {
        Err(Error::Limit { path: path.to_path_buf(), quantity, actual, limit })
    };
    if rate_hz > limits.rate_hz {
        return above("sampling rate in Hz", rate_hz.into(), limits.rate_hz.into());
    }
    if channels > limits.channels {
        return above("number of channels", channels as u64, limits.channels as u64);
    }
    Ok(())
}

/// Finds the decoder for a file by its content.
fn open_decoder(path: &Path, mut file: File, limits: &Limits) -> Result<Box<dyn Decoder + Send>> {
    let start = id3_bytes(&mut file).map_err(Error::io(path))?;
    let head = head(&mut file, start, 12).map_err(Error::io(path))?;
    if wav::is_wav(&head)
        && let Some(decoder) = WavDecoder::open(path, &file, start)?
    {
        return Ok(Box::new(decoder));
    }
    file.rewind().map_err(Error::io(path))?;
    let (owned_path, limits) = (path.to_path_buf(), limits.clone());
    Ok(Box::new(Guarded::open(path, move || open_container(&owned_path, file, &limits))?))
}

fn open_container(path: &Path, file: File, limits: &Limits) -> Result<Box<dyn Decoder>> {
    match ContainerDecoder::open(path, &file, limits)? {
        Opening::Ready(decoder) => Ok(decoder),
        Opening::Unsupported(reason) => open_foreign(path, file, limits, &reason),
    }
}

#[cfg(feature = "video")]
fn open_foreign(path: &Path, file: File, limits: &Limits, _: &str) -> Result<Box<dyn Decoder>> {
    use crate::media::audio::ffmpeg::FfmpegDecoder;
    Ok(Box::new(FfmpegDecoder::open(path, file, limits)?))
}

#[cfg(not(feature = "video"))]
fn open_foreign(path: &Path, _: File, _: &Limits, reason: &str) -> Result<Box<dyn Decoder>> {
    let reason = format!(
        "{reason}; a build with the feature `video` decodes Opus and further formats through FFmpeg"
    );
    Err(Error::media(path, reason))
}

/// Length of the ID3v2 tag that some programs put before files of any format.
fn id3_bytes(file: &mut File) -> io::Result<u64> {
    match head(file, 0, 10)?.as_slice() {
        [b'I', b'D', b'3', _, _, flags, size @ ..] if size.len() == 4 => {
            let size = size.iter().fold(0, |size, &byte| size << 7 | u64::from(byte & 0x7f));
            let footer = if flags & 0x10 == 0 { 0 } else { 10 };
            Ok(10 + size + footer)
        }
        _ => Ok(0),
    }
}

/// At most `length` bytes from `start` on.
fn head(file: &mut File, start: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![];
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}
