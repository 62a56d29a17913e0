//! Clips as tensors and as files.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use shared::checkpoint::safetensors;
use shared::files::check_output;
use shared::limits::Limits;
use shared::media::audio::write_wav;
use shared::media::image::{write_gif, write_png};
use shared::media::video::write_mp4;
use shared::media::{Frames, Picture, Waveform};
use shared::report::spectrogram;
use shared::{Error, Result};

use crate::Pair;

/// Metadata entry of a tensor file under which a clip's rates stand.
const RATES: &str = "clip";
/// Ending of the pictures that show frames and sound together.
pub(crate) const STRIP_EXTENSION: &str = "strip.png";
/// Frames of a strip are enlarged to about this height.
const STRIP_FRAME_PIXELS: usize = 64;
/// Height of a strip's spectrogram.
const STRIP_SPECTROGRAM_PIXELS: usize = 128;
/// Metadata entry under which stands how a clip came about.
const ORIGIN: &str = "origin";

/// How many frames and samples a second has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Frames a second.
    pub fps: u32,
    /// Samples a second.
    pub rate_hz: u32,
}

/// Picture and sound of one clip, in numbers from -1 to 1.
#[derive(Clone, Debug)]
pub struct Clip {
    /// `[F, 3, H, W]`.
    pub video: Tensor,
    /// `[C, L]`.
    pub audio: Tensor,
    /// Their rates.
    pub rates: Rates,
}

/// A kind of file that a clip can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClipFormat {
    /// H.264 and AAC.
    Mp4,
    /// The picture alone, 256 colours a frame.
    Gif,
    /// The sound alone, 16 bits.
    Wav,
    /// All frames in a grid.
    Png,
    /// All frames in a row, above the spectrogram of the sound.
    Strip,
    /// The exact numbers.
    Safetensors,
}

impl ClipFormat {
    const ALL: [Self; 6] =
        [Self::Mp4, Self::Gif, Self::Wav, Self::Png, Self::Strip, Self::Safetensors];

    /// The format's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::Gif => "gif",
            Self::Wav => "wav",
            Self::Png => "png",
            Self::Strip => "strip",
            Self::Safetensors => "safetensors",
        }
    }

    /// The ending of file names.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Strip => STRIP_EXTENSION,
            other => other.name(),
        }
    }

    /// The path of the clip `name` in `folder`.
    pub fn path(self, folder: &Path, name: &str) -> PathBuf {
        folder.join(format!("{name}.{}", self.extension()))
    }
}

impl FromStr for ClipFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            Error::Argument(format!(
                "no clips are written as {name:?}, only as mp4, gif, wav, png, strip and safetensors"
            ))
        })
    }
}

impl fmt::Display for ClipFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Clip {
    /// The clips of a batch.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn of_batch(batch: &Pair, rates: Rates) -> Result<Vec<Self>> {
        let clip = |index| {
            Ok(Self { video: batch.video.get(index)?, audio: batch.audio.get(index)?, rates })
        };
        (0..batch.video.dim(0)?).map(clip).collect()
    }

    /// The picture in bytes: -1 to 1 become 0 to 255, rounded down as in the original.
    ///
    /// # Errors
    /// [`Error::Shape`] when the video is no picture in three colours.
    pub fn frames(&self) -> Result<Frames> {
        let (_, channels, height, width) = self.video.dims4().map_err(|_| self.no_picture())?;
        if channels != 3 {
            return Err(self.no_picture());
        }
        let bytes = self.video.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?.flatten_all()?;
        // The conversion saturates and drops fractions.
        let byte = |value: f32| ((value + 1.0) * 127.5) as u8;
        let bytes = bytes.to_vec1::<f32>()?.into_iter().map(byte).collect();
        Frames::new(width, height, bytes)
    }

    fn no_picture(&self) -> Error {
        Error::shape("the video of a clip", "[F, 3, H, W]", self.video.dims())
    }

    /// The sound.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn sound(&self) -> Result<Waveform> {
        let (channels, _) = self.audio.dims2()?;
        let interleaved = self.audio.to_dtype(DType::F32)?.t()?.flatten_all()?.to_vec1::<f32>()?;
        let full_scale = interleaved.into_iter().map(|sample| sample.clamp(-1.0, 1.0));
        Ok(Waveform { samples: full_scale.collect(), rate_hz: self.rates.rate_hz, channels })
    }

    /// Writes the clip as `name` with its format's ending into `folder`, in each of `formats`. `origin`
    /// says in JSON how it came about and stands in each file that has room for it.
    ///
    /// # Errors
    /// [`Error::Exists`] when a file is there and `force` is not given, [`Error::Io`], and what a
    /// format cannot hold, see [`check_formats`].
    pub fn write(
        &self,
        folder: &Path,
        name: &str,
        formats: &[ClipFormat],
        origin: &str,
        force: bool,
    ) -> Result<()> {
        let mut paths = formats.iter().map(|format| format.path(folder, name));
        paths.try_for_each(|path| check_output(&path, force))?;
        let mut written = vec![];
        for format in formats {
            let path = format.path(folder, name);
            if let Err(error) = self.write_as(*format, &path, origin, force) {
                // The clip is there whole or not at all.
                written.iter().for_each(|path| drop(fs::remove_file(path)));
                return Err(error);
            }
            written.push(path);
        }
        Ok(())
    }

    fn write_as(&self, format: ClipFormat, path: &Path, origin: &str, force: bool) -> Result<()> {
        let texts = [("Software", "mmdiffusion"), ("Comment", origin)];
        let fps = self.rates.fps;
        match format {
            ClipFormat::Mp4 => {
                write_mp4(path, &self.frames()?, fps, Some(&self.sound()?), origin, force)?;
            }
            ClipFormat::Gif => write_gif(path, &self.frames()?, fps, origin, force)?,
            ClipFormat::Wav => drop(write_wav(path, &self.sound()?, force)?),
            ClipFormat::Png => write_png(path, &grid(&self.frames()?), &texts, force)?,
            ClipFormat::Strip => write_png(path, &self.strip()?, &texts, force)?,
            ClipFormat::Safetensors => self.write_tensors(path, origin, force)?,
        }
        Ok(())
    }

    /// All frames in a row, small ones enlarged, above the spectrogram of the sound over the same time.
    ///
    /// # Errors
    /// As [`Clip::frames`].
    pub fn strip(&self) -> Result<Picture> {
        let frames = self.frames()?;
        let row = frames.grid(frames.count());
        let factor = (STRIP_FRAME_PIXELS / frames.height().max(1)).max(1);
        let row = row.stretched(row.width() * factor, row.height() * factor)?;
        let spectrogram = spectrogram(&self.sound()?)?
            .map(|picture| picture.stretched(row.width(), STRIP_SPECTROGRAM_PIXELS))
            .transpose()?;
        let pixels = [Some(&row), spectrogram.as_ref()].into_iter().flatten();
        let height = row.height() + spectrogram.as_ref().map_or(0, Picture::height);
        let pixels = pixels.flat_map(|part| part.pixels()).copied().collect();
        Picture::new(row.width(), height, pixels)
    }

    fn write_tensors(&self, path: &Path, origin: &str, force: bool) -> Result<()> {
        let tensor = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.contiguous();
        let tensors = BTreeMap::from([
            ("video".to_owned(), tensor(&self.video)?),
            ("audio".to_owned(), tensor(&self.audio)?),
        ]);
        let rates = serde_json::to_string(&self.rates)
            .map_err(|error| Error::Argument(format!("rates of a clip: {error}")))?;
        let metadata =
            BTreeMap::from([(RATES.to_owned(), rates), (ORIGIN.to_owned(), origin.to_owned())]);
        safetensors::write(path, &tensors, &metadata, force)
    }

    /// The clip in a tensor file that this program wrote.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the file holds no clip; [`Error::NonFinite`]; [`Error::Io`].
    pub fn read_tensors(path: &Path, limits: &Limits) -> Result<Self> {
        let wrong = |reason: &str| Error::checkpoint(path, reason);
        let file = safetensors::read(path, limits)?;
        let rates = file.metadata.get(RATES).ok_or_else(|| wrong("holds no clip"))?;
        let rates: Rates =
            serde_json::from_str(rates).map_err(|error| wrong(&format!("its rates: {error}")))?;
        shared::checkpoint::check_finite(&file.tensors, path)?;
        let tensor = |name: &str, rank: usize| match file.tensors.get(name) {
            Some(tensor) if tensor.rank() == rank && tensor.elem_count() > 0 => {
                Ok(tensor.to_dtype(DType::F32)?)
            }
            _ => Err(wrong(&format!("has no tensor {name:?} of {rank} dimensions"))),
        };
        if rates.fps == 0 || rates.rate_hz == 0 {
            return Err(wrong("its rates are 0"));
        }
        Ok(Self { video: tensor("video", 4)?, audio: tensor("audio", 2)?, rates })
    }
}

/// The frames as one picture, as near to a square as can be.
pub fn grid(frames: &Frames) -> Picture {
    frames.grid((frames.count() as f64).sqrt().ceil() as usize)
}

/// Pictures from bytes to numbers from -1 to 1, `[F, 3, H, W]`.
///
/// # Errors
/// Those of the tensor library.
pub fn video_tensor(frames: &Frames, device: &Device) -> Result<Tensor> {
    let numbers: Vec<f32> =
        frames.pixels().iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    let shape = (frames.count(), frames.height(), frames.width(), 3);
    let video = Tensor::from_vec(numbers, shape, device)?;
    Ok(video.permute((0, 3, 1, 2))?.contiguous()?)
}

/// A sound as `[C, L]`.
///
/// # Errors
/// Those of the tensor library.
pub fn audio_tensor(sound: &Waveform, device: &Device) -> Result<Tensor> {
    let shape = (sound.frames(), sound.channels);
    let audio = Tensor::from_vec(sound.samples.clone(), shape, device)?;
    Ok(audio.t()?.contiguous()?)
}

/// Fails when clips of `[F, 3, H, W]` and `[C, L]` of such `rates` cannot be written in one of
/// `formats`.
///
/// # Errors
/// [`Error::Argument`] with the reason.
pub fn check_formats(
    formats: &[ClipFormat],
    video: [usize; 4],
    samples: usize,
    rates: Rates,
) -> Result<()> {
    let [frames, _, height, width] = video;
    let picture_s = frames as f64 / f64::from(rates.fps.max(1));
    let sound_s = samples as f64 / f64::from(rates.rate_hz.max(1));
    if !formats.contains(&ClipFormat::Mp4) {
        return Ok(());
    }
    if (picture_s - sound_s).abs() * f64::from(rates.fps) >= 1.0 {
        return Err(Error::Argument(format!(
            "{frames} frames last {picture_s:.3} s and {samples} samples {sound_s:.3} s, which no \
             MP4 file can hold together; choose other --formats, e.g. safetensors"
        )));
    }
    if width % 2 + height % 2 > 0 {
        return Err(Error::Argument(format!(
            "{height} x {width} pixels cannot be stored in an MP4 file, whose sides are even; \
             choose other --formats, e.g. gif,wav"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use shared::media::image::read_picture;

    use super::*;

    const RATES: Rates = Rates { fps: 10, rate_hz: 16_000 };

    fn clip() -> Clip {
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin() * 1.1).collect::<Vec<_>>();
        let video = Tensor::from_vec(numbers(2 * 3 * 4 * 6), (2, 3, 4, 6), &Device::Cpu).unwrap();
        let audio = Tensor::from_vec(numbers(3200), (1, 3200), &Device::Cpu).unwrap();
        Clip { video, audio, rates: RATES }
    }

    #[test]
    fn bytes_are_rounded_down_and_come_back() {
        let values = [-2.0, -1.0, -0.999, 0.0, 0.5, 0.9999, 1.0, 3.0];
        let video =
            Tensor::from_slice(&values.map(|v: f32| [v; 3]).concat(), (8, 3, 1, 1), &Device::Cpu);
        let clip = Clip { video: video.unwrap(), ..clip() };
        let frames = clip.frames().unwrap();
        let reds: Vec<u8> = frames.pixels().iter().step_by(3).copied().collect();
        assert_eq!(reds, [0, 0, 0, 127, 191, 254, 255, 255]);
        // Bytes become numbers from which they come back.
        let all: Vec<u8> = (0..=255).flat_map(|byte| [byte; 3]).collect();
        let frames = Frames::new(1, 1, all).unwrap();
        let video = video_tensor(&frames, &Device::Cpu).unwrap();
        let again = Clip { video, ..clip };
        let least = again.frames().unwrap();
        assert!(least.pixels().iter().zip(frames.pixels()).all(|(a, b)| b - a <= 1));
    }

    #[test]
    fn every_format_is_written_and_tensors_come_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let clip = clip();
        clip.write(folder.path(), "x", &ClipFormat::ALL, "{\"seed\":1}", false).unwrap();
        for format in ClipFormat::ALL {
            let bytes = std::fs::read(format.path(folder.path(), "x")).unwrap();
            let has_origin = bytes.windows(10).any(|part| part == b"{\"seed\":1}");
            let is_escaped = bytes.windows(8).any(|part| part == b"seed\\\":1");
            assert!(has_origin || is_escaped || format == ClipFormat::Wav, "{format}");
        }
        let path = ClipFormat::Safetensors.path(folder.path(), "x");
        let read = Clip::read_tensors(&path, &Limits::default()).unwrap();
        assert_eq!(read.rates, RATES);
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(&read.video), numbers(&clip.video));
        assert_eq!(numbers(&read.audio), numbers(&clip.audio));
        let strip = read_picture(&ClipFormat::Strip.path(folder.path(), "x"), &Limits::default());
        let strip = strip.unwrap();
        // Two frames of 6 x 4 pixels with borders of 2, 16 times as large.
        assert_eq!((strip.width(), strip.height()), (16 * 20, 16 * 8 + STRIP_SPECTROGRAM_PIXELS));
        let again = clip.write(folder.path(), "x", &[ClipFormat::Wav], "", false);
        assert!(matches!(again, Err(Error::Exists { .. })));
    }

    #[test]
    fn a_clip_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        // A folder cannot be overwritten with a file.
        std::fs::create_dir(folder.path().join("x.safetensors")).unwrap();
        let formats = [ClipFormat::Wav, ClipFormat::Png, ClipFormat::Safetensors];
        clip().write(folder.path(), "x", &formats, "", true).unwrap_err();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn what_a_format_cannot_hold_is_said_beforehand() {
        let check =
            |formats: &[ClipFormat], video, samples| check_formats(formats, video, samples, RATES);
        check(&[ClipFormat::Mp4], [16, 3, 64, 64], 25_600).unwrap();
        check(&[ClipFormat::Gif], [16, 3, 63, 65], 7).unwrap();
        assert!(check(&[ClipFormat::Mp4], [16, 3, 64, 65], 25_600).is_err());
        assert!(check(&[ClipFormat::Mp4], [16, 3, 64, 64], 24_000).is_err());
        assert!("avi".parse::<ClipFormat>().is_err());
    }
}
