//! The clips that are evaluated, all in one form.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use shared::data::Manifest;
use shared::limits::Limits;
use shared::media::image::{Frames, Letterbox, Picture};
use shared::media::video::{Channel, ClipOptions, VideoClip, read_clip};
use shared::{Error, Result};

use crate::Clip;

/// Endings of files that hold clips.
const EXTENSIONS: [&str; 7] = ["safetensors", "mp4", "mov", "webm", "mkv", "avi", "gif"];

/// The form into which clips are brought before they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EvaluationForm {
    /// Frames, from the beginning of each clip.
    pub frames: usize,
    /// Frames a second.
    pub fps: u32,
    /// Width and height of the frames in pixels, with black bars where proportions differ.
    pub side_pixels: usize,
    /// Sampling rate of the sound.
    pub rate_hz: u32,
}

impl Default for EvaluationForm {
    /// That of the published evaluation, but for the sound, whose rate is that of the published model.
    fn default() -> Self {
        Self { frames: 16, fps: 10, side_pixels: 64, rate_hz: 16_000 }
    }
}

impl EvaluationForm {
    /// Length of a clip.
    pub fn duration_s(&self) -> f64 {
        self.frames as f64 / f64::from(self.fps.max(1))
    }

    /// Samples of sound in a clip.
    pub fn samples(&self) -> usize {
        (self.duration_s() * f64::from(self.rate_hz)).round() as usize
    }

    /// The form in words.
    pub fn text(&self) -> String {
        let Self { frames, fps, side_pixels, rate_hz } = self;
        format!(
            "first {:.2} s of each clip, {frames} frames at {fps} fps of {side_pixels} x {side_pixels} \
             pixels, first channel at {rate_hz} Hz",
            self.duration_s()
        )
    }

    /// # Errors
    /// [`Error::Argument`] when a size is zero or beyond what makes sense.
    pub fn check(&self) -> Result<()> {
        let sensible = (4..=100_000).contains(&self.frames)
            && (1..=240).contains(&self.fps)
            && (16..=1024).contains(&self.side_pixels)
            && (8_000..=192_000).contains(&self.rate_hz);
        if sensible {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "clips of {} frames at {} a second, {} pixels and {} Hz: expected at least 4 frames at 1 \
             to 240 a second, 16 to 1024 pixels and 8000 to 192000 Hz",
            self.frames, self.fps, self.side_pixels, self.rate_hz
        )))
    }
}

/// A clip in the form of an evaluation.
#[derive(Clone, Debug)]
pub struct EvaluationClip {
    /// The first frames.
    pub frames: Frames,
    /// The first channel of the sound, as long as the frames, zeros after its end.
    pub samples: Vec<f32>,
}

/// The clips of `source`: of a folder, those directly in it, in the order of their names; else those
/// that a list names (a table with a column `path`, or JSON lines). Of a clip that is there in several
/// kinds of files, the one with the exact numbers is taken.
///
/// # Errors
/// Those of [`Manifest::read`]; [`Error::Io`]; [`Error::Argument`] when there is none.
pub fn clip_files(source: &Path, limits: &Limits) -> Result<Vec<PathBuf>> {
    if !source.is_dir() {
        let utterances = Manifest::read(source, None, limits)?.utterances;
        return Ok(utterances.into_iter().map(|utterance| utterance.path).collect());
    }
    let mut files = vec![];
    for entry in fs::read_dir(source).map_err(Error::io(source))? {
        let path = entry.map_err(Error::io(source))?.path();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_hidden =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if let Some(rank) = EXTENSIONS.iter().position(|known| *known == extension)
            && !is_hidden
        {
            files.push((path.with_extension(""), rank, path));
        }
    }
    files.sort();
    files.dedup_by(|later, kept| later.0 == kept.0);
    if files.is_empty() {
        let reason = format!("{}: there are no clips here", source.display());
        return Err(Error::Argument(reason));
    }
    Ok(files.into_iter().map(|(_, _, path)| path).collect())
}

impl EvaluationClip {
    /// The clip in a file, brought into `form`.
    ///
    /// # Errors
    /// Those of [`read_clip`] and [`Clip::read_tensors`]; [`Error::Media`] when picture or sound are
    /// missing or the clip is too short.
    pub fn read(path: &Path, form: &EvaluationForm, limits: &Limits) -> Result<Self> {
        let is_tensors = path.extension().is_some_and(|extension| extension == "safetensors");
        let (frames, mut samples) = match is_tensors {
            true => of_tensors(&Clip::read_tensors(path, limits)?, form)?,
            false => of_video(path, form, limits)?,
        };
        if frames.count() < form.frames {
            return Err(Error::media(
                path,
                format!(
                    "has {} frames at {} a second, fewer than {}",
                    frames.count(),
                    form.fps,
                    form.frames
                ),
            ));
        }
        samples.resize(form.samples(), 0.0);
        Ok(Self { frames: frames.with_count(form.frames), samples })
    }
}

fn of_video(path: &Path, form: &EvaluationForm, limits: &Limits) -> Result<(Frames, Vec<f32>)> {
    let options = ClipOptions {
        fps: form.fps,
        start_s: 0.0,
        duration_s: Some(form.duration_s()),
        letterbox: Some(Letterbox::new(form.side_pixels, form.side_pixels)),
        rate_hz: form.rate_hz,
        channel: Channel::First,
    };
    let lacks = |what: &str| Error::media(path, format!("has no {what} to evaluate"));
    let VideoClip { frames, sound, .. } = read_clip(path, &options, limits)?;
    let frames = frames.ok_or_else(|| lacks("picture"))?;
    let sound = sound.ok_or_else(|| lacks("sound"))?;
    Ok((frames, sound.samples))
}

/// The picture, each frame the latest of the clip at its time, and the sound of a clip in numbers.
fn of_tensors(clip: &Clip, form: &EvaluationForm) -> Result<(Frames, Vec<f32>)> {
    let frames = clip.frames()?;
    let letterbox = Letterbox::new(form.side_pixels, form.side_pixels);
    let mut pixels = vec![];
    for index in 0..form.frames {
        let latest = index as u64 * u64::from(clip.rates.fps) / u64::from(form.fps.max(1));
        let Some(frame) = frames.iter().nth(latest as usize) else { break };
        let picture = Picture::new(frames.width(), frames.height(), frame.to_vec())?;
        pixels.extend_from_slice(letterbox.fit(&picture).pixels());
    }
    let sound = clip.sound()?.channel(0)?.resampled(form.rate_hz)?;
    Ok((Frames::new(form.side_pixels, form.side_pixels, pixels)?, sound.samples))
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::{Device, Tensor};
    use shared::media::Waveform;
    use shared::media::video::write_mp4;

    use super::*;
    use crate::demo_data::{self, DemoConfig, Impact};
    use crate::{ClipFormat, Rates};

    /// A made clip and the impacts in it.
    pub fn made(number: u64) -> (EvaluationClip, Vec<Impact>) {
        let config = DemoConfig { side_pixels: 64, ..DemoConfig::default() };
        let clip = demo_data::clip(&config, 1, number).unwrap();
        let frames = Frames::new(64, 64, clip.frames.concat()).unwrap();
        (EvaluationClip { frames, samples: clip.samples }, clip.impacts)
    }

    #[test]
    fn a_clip_is_the_same_from_numbers_and_from_video() {
        let folder = tempfile::tempdir().unwrap();
        let numbers: Vec<f32> =
            (0..8 * 3 * 32 * 32).map(|i| (i / 512) as f32 % 2.0 - 0.5).collect();
        let clip = Clip {
            video: Tensor::from_vec(numbers, (8, 3, 32, 32), &Device::Cpu).unwrap(),
            audio: Tensor::from_vec(vec![0.25f32; 12_800], (1, 12_800), &Device::Cpu).unwrap(),
            rates: Rates { fps: 10, rate_hz: 16_000 },
        };
        clip.write(folder.path(), "a", &[ClipFormat::Safetensors, ClipFormat::Mp4], "{}", false)
            .unwrap();
        let files = clip_files(folder.path(), &Limits::default()).unwrap();
        assert_eq!(files, [folder.path().join("a.safetensors")]);
        let form = EvaluationForm { frames: 4, fps: 5, side_pixels: 32, rate_hz: 8_000 };
        let read = |name: &str| {
            EvaluationClip::read(&folder.path().join(name), &form, &Limits::default()).unwrap()
        };
        let (exact, coded) = (read("a.safetensors"), read("a.mp4"));
        for clip in [&exact, &coded] {
            assert_eq!((clip.frames.count(), clip.samples.len()), (4, 6_400));
        }
        let pairs = exact.frames.pixels().iter().zip(coded.frames.pixels());
        let difference = pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>()
            / exact.frames.pixels().len() as f64;
        assert!(difference < 6.0, "{difference}");
        // Every second frame.
        let all = clip.frames().unwrap();
        assert!(exact.frames.iter().zip(all.iter().step_by(2)).all(|(a, b)| a == b));
        let long = EvaluationForm { frames: 6, ..form };
        for name in ["a.safetensors", "a.mp4"] {
            let path = folder.path().join(name);
            let error = EvaluationClip::read(&path, &long, &Limits::default()).unwrap_err();
            assert!(error.to_string().contains("fewer than 6"), "{error}");
        }
    }

    #[test]
    fn what_is_no_clip_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::default();
        assert!(clip_files(folder.path(), &limits).is_err());
        let frames = Frames::new(16, 16, vec![9; 16 * 16 * 16 * 3]).unwrap();
        let silent = folder.path().join("silent.mp4");
        write_mp4(&silent, &frames, 10, None, "", false).unwrap();
        let error = EvaluationClip::read(&silent, &EvaluationForm::default(), &limits).unwrap_err();
        assert!(error.to_string().contains("no sound"), "{error}");
        let odd = folder.path().join("odd.mp4");
        let sound = Waveform::from_mono(vec![0.1; 25_600], 16_000);
        write_mp4(&odd, &frames, 10, Some(&sound), "", false).unwrap();
        let clip = EvaluationClip::read(&odd, &EvaluationForm::default(), &limits).unwrap();
        assert_eq!((clip.frames.width(), clip.samples.len()), (64, 25_600));
        assert!(EvaluationForm { frames: 3, ..EvaluationForm::default() }.check().is_err());
        assert!(EvaluationForm { fps: 0, ..EvaluationForm::default() }.check().is_err());
    }
}
