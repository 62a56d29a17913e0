//! Clips to train on, decoded once.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use shared::data::{to_f32, to_i16};
use shared::limits::Limits;
use shared::media::image::Letterbox;
use shared::media::video::{Channel, ClipOptions, VideoClip, read_clip};
use shared::{Error, Result};

use super::library::{Decoded, Library, LibraryOptions};
use crate::Pair;

/// The form of the clips that a network is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipForm {
    /// Frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: u32,
    /// Rows of a frame.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Samples of sound.
    pub samples: usize,
    /// Sampling rate of the sound.
    pub rate_hz: u32,
}

impl ClipForm {
    /// # Errors
    /// [`Error::Argument`] when picture and sound differ in length by a frame or more.
    pub fn check(&self) -> Result<()> {
        let picture_s = self.frames as f64 / f64::from(self.fps.max(1));
        let sound_s = self.samples as f64 / f64::from(self.rate_hz.max(1));
        if self.fps == 0
            || self.rate_hz == 0
            || (picture_s - sound_s).abs() * f64::from(self.fps) >= 1.0
        {
            return Err(Error::Argument(format!(
                "{} frames at {} a second take {picture_s} s, {} samples at {} Hz {sound_s} s; picture \
                 and sound of a clip must be equally long",
                self.frames, self.fps, self.samples, self.rate_hz
            )));
        }
        Ok(())
    }

    /// What is read from a file for it.
    fn options(&self) -> ClipOptions {
        ClipOptions {
            fps: self.fps,
            start_s: 0.0,
            duration_s: None,
            letterbox: Some(Letterbox::new(self.width, self.height)),
            rate_hz: self.rate_hz,
            channel: Channel::First,
        }
    }
}

/// A part of a recording as the network takes it.
#[derive(Clone, Debug)]
pub struct Window {
    /// `[F, 3, H, W]` in -1..1.
    pub video: Vec<f32>,
    /// `[L]` in -1..1.
    pub audio: Vec<f32>,
}

/// Recordings from which windows are cut.
#[derive(Debug)]
pub struct ClipSet {
    form: ClipForm,
    limits: Limits,
    library: Library<Recording>,
    /// Frames of each recording.
    frames: Vec<usize>,
}

#[derive(Debug)]
struct Recording {
    /// `[F, H, W, 3]`.
    pixels: Vec<u8>,
    samples: Vec<i16>,
    frames: usize,
}

impl Decoded for Recording {
    fn bytes(&self) -> u64 {
        (self.pixels.len() + 2 * self.samples.len()) as u64
    }

    fn frames(&self) -> usize {
        self.frames
    }
}

impl ClipSet {
    /// The recordings in `files`, and why others are left out: those that cannot be read, have no
    /// picture or no sound, or are too short.
    ///
    /// # Errors
    /// As [`ClipForm::check`]; [`Error::Argument`] when no recording is left; [`Error::Io`] when the
    /// index cannot be written.
    pub fn read(
        files: &[PathBuf],
        form: ClipForm,
        options: &LibraryOptions,
        limits: &Limits,
    ) -> Result<(Self, Vec<Error>)> {
        form.check()?;
        let purpose = format!("clips of at least {} frames at {} fps", form.frames, form.fps);
        let decode = |path: &Path| decode(path, &form, limits);
        let (library, failures) = Library::read(files, &purpose, options, decode)?;
        let frames = library.frames().collect();
        Ok((Self { form, limits: limits.clone(), library, frames }, failures))
    }

    /// Number of recordings.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The form of the windows.
    pub fn form(&self) -> &ClipForm {
        &self.form
    }

    /// Number of frames at which a window of recording `number` can begin, at least one.
    pub fn places(&self, number: usize) -> usize {
        let frames = self.frames.get(number).copied().unwrap_or(0);
        frames.saturating_sub(self.form.frames) + 1
    }

    /// The window of recording `number` that begins with frame `first`, its picture `mirrored` left to
    /// right if asked.
    ///
    /// # Errors
    /// When there is no such window; those of [`read_clip`].
    pub fn window(&self, number: usize, first: usize, mirrored: bool) -> Result<Window> {
        if first >= self.places(number) {
            return Err(Error::Argument(format!("there is no window {first} of clip {number}")));
        }
        let decode = |path: &Path| decode(path, &self.form, &self.limits);
        self.library.with(number, decode, |recording| Ok(self.cut(recording, first, mirrored)))
    }

    fn cut(&self, recording: &Recording, first: usize, mirrored: bool) -> Window {
        let Recording { pixels, samples, .. } = recording;
        let ClipForm { frames, fps, height, width, samples: length, rate_hz } = self.form;
        let area = height * width;
        let from_byte = |byte: u8| f32::from(byte) / 127.5 - 1.0;
        let mut video = vec![0.0; frames * 3 * area];
        let source = pixels.chunks_exact(3 * area).skip(first).take(frames);
        for (picture, planes) in source.zip(video.chunks_exact_mut(3 * area)) {
            for (index, pixel) in picture.chunks_exact(3).enumerate() {
                let column = index % width;
                let place = if mirrored { index + width - 1 - 2 * column } else { index };
                for (colour, byte) in pixel.iter().enumerate() {
                    planes[colour * area + place] = from_byte(*byte);
                }
            }
        }
        let start = (first as f64 / f64::from(fps) * f64::from(rate_hz)).round() as usize;
        let mut audio = to_f32(samples.get(start..).unwrap_or_default());
        audio.resize(length, 0.0);
        Window { video, audio }
    }

    /// The pair of `windows`.
    ///
    /// # Errors
    /// When one has another form.
    pub fn pair(&self, windows: Vec<Window>, device: &Device) -> Result<Pair> {
        let ClipForm { frames, height, width, samples, .. } = self.form;
        let count = windows.len();
        let (video, audio): (Vec<_>, Vec<_>) =
            windows.into_iter().map(|window| (window.video, window.audio)).unzip();
        Ok(Pair {
            video: Tensor::from_vec(video.concat(), (count, frames, 3, height, width), device)?,
            audio: Tensor::from_vec(audio.concat(), (count, 1, samples), device)?,
        })
    }
}

/// A whole recording in the form of the windows.
fn decode(path: &Path, form: &ClipForm, limits: &Limits) -> Result<Recording> {
    let lacks =
        |what: &str| Error::media(path, format!("has no {what}, so it is no clip to train on"));
    let VideoClip { frames, sound, .. } = read_clip(path, &form.options(), limits)?;
    let frames = frames.ok_or_else(|| lacks("picture"))?;
    let sound = sound.ok_or_else(|| lacks("sound"))?;
    if frames.count() < form.frames {
        return Err(Error::media(
            path,
            format!(
                "has {} frames at {} fps, fewer than {}",
                frames.count(),
                form.fps,
                form.frames
            ),
        ));
    }
    Ok(Recording {
        frames: frames.count(),
        pixels: frames.pixels().to_vec(),
        samples: to_i16(&sound.samples),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use shared::media::audio::Waveform;
    use shared::media::image::Frames;
    use shared::media::video::write_mp4;

    use super::*;
    use crate::demo_data::{self, DemoConfig};

    pub const FORM: ClipForm =
        ClipForm { frames: 4, fps: 10, height: 8, width: 8, samples: 1_600, rate_hz: 4_000 };

    pub fn options() -> LibraryOptions {
        LibraryOptions { memory_bytes: 1 << 30, index: None, quiet: true }
    }

    /// Writes made clips of 6 frames and 32 x 32 pixels.
    pub fn write_clips(folder: &Path, count: u64) -> Vec<PathBuf> {
        let config = DemoConfig { frames: 6, side_pixels: 32, ..DemoConfig::default() };
        let write = |number| {
            let clip = demo_data::clip(&config, 1, number).unwrap();
            let path = folder.join(format!("{number}.mp4"));
            let frames = Frames::new(32, 32, clip.frames.concat()).unwrap();
            let sound = Waveform { samples: clip.samples, rate_hz: 16_000, channels: 1 };
            write_mp4(&path, &frames, 10, Some(&sound), "", false).unwrap();
            path
        };
        (0..count).map(write).collect()
    }

    #[test]
    fn windows_are_the_same_from_memory_and_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let files = write_clips(folder.path(), 2);
        let limits = Limits::default();
        let index = folder.path().join("clips.json");
        let read = |memory_bytes, index: Option<&Path>| {
            let index = index.map(Path::to_path_buf);
            let options = LibraryOptions { memory_bytes, index, quiet: true };
            ClipSet::read(&files, FORM, &options, &limits).unwrap().0
        };
        let (kept, decoded_again) = (read(1 << 30, Some(&index)), read(0, None));
        // From the index, decoded only when they are wanted.
        let indexed = read(1 << 30, Some(&index));
        assert_eq!((kept.len(), kept.places(0)), (2, 3));
        for number in 0..2 {
            for first in 0..3 {
                let a = kept.window(number, first, false).unwrap();
                let b = decoded_again.window(number, first, false).unwrap();
                assert_eq!((&a.video, &a.audio), (&b.video, &b.audio));
                let c = indexed.window(number, first, false).unwrap();
                assert_eq!((&a.video, &a.audio), (&c.video, &c.audio));
                assert_eq!((a.video.len(), a.audio.len()), (4 * 3 * 64, 1_600));
                let mirrored = kept.window(number, first, true).unwrap();
                for (row, other) in a.video.chunks(8).zip(mirrored.video.chunks(8)) {
                    assert!(row.iter().rev().eq(other));
                }
            }
            let [now, next] = [0, 1].map(|first| kept.window(number, first, false).unwrap());
            assert_eq!(now.video[3 * 64..], next.video[..9 * 64]);
            assert_eq!(now.audio[400..], next.audio[..1_200]);
            assert!(kept.window(number, 3, false).is_err());
        }
        let windows = (0..2).map(|number| kept.window(number, 0, false).unwrap()).collect();
        let pair = kept.pair(windows, &Device::Cpu).unwrap();
        assert_eq!(
            (pair.video.dims(), pair.audio.dims()),
            (&[2, 4, 3, 8, 8][..], &[2, 1, 1_600][..])
        );
    }

    #[test]
    fn what_is_no_clip_is_left_out_and_listed() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = write_clips(folder.path(), 1);
        let silent = folder.path().join("silent.mp4");
        let frames = Frames::new(16, 16, vec![9; 5 * 16 * 16 * 3]).unwrap();
        write_mp4(&silent, &frames, 10, None, "", false).unwrap();
        let short = folder.path().join("short.mp4");
        let sound = Waveform { samples: vec![0.0; 4_800], rate_hz: 16_000, channels: 1 };
        write_mp4(&short, &frames.with_count(3), 10, Some(&sound), "", false).unwrap();
        let broken = folder.path().join("broken.mp4");
        std::fs::write(&broken, b"no video").unwrap();
        files.extend([silent, short, broken]);
        let index = folder.path().join("clips.json");
        let read = |files: &[PathBuf]| {
            let options = LibraryOptions { index: Some(index.clone()), ..options() };
            ClipSet::read(files, FORM, &options, &Limits::default())
        };
        let (clips, failures) = read(&files).unwrap();
        assert_eq!(clips.len(), 1);
        let messages: Vec<String> = failures.iter().map(ToString::to_string).collect();
        for words in [["silent.mp4", "no sound"], ["short.mp4", "3 frames"], ["broken.mp4", ""]] {
            assert!(
                messages.iter().any(|m| words.iter().all(|word| m.contains(word))),
                "{messages:?}"
            );
        }
        assert!(read(&files[1..]).is_err());

        // The index says the same, and files that changed are looked at again.
        let again: Vec<String> = read(&files).unwrap().1.iter().map(ToString::to_string).collect();
        assert_eq!(again, messages);
        std::fs::copy(&files[0], &files[3]).unwrap();
        std::fs::write(&files[0], b"broken now").unwrap();
        let (clips, failures) = read(&files).unwrap();
        assert_eq!((clips.len(), failures.len()), (1, 3));
        clips.window(0, 0, false).unwrap();
    }
}
