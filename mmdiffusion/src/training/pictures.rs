//! Pictures to train super-resolution on.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use shared::limits::Limits;
use shared::media::image::{Letterbox, Picture, read_picture};
use shared::media::video::{Channel, ClipOptions, read_clip};
use shared::rng::Stream;
use shared::{Error, Result};

use super::degradation::{degraded, planes};
use super::library::{Decoded, Library, LibraryOptions};

/// Frames a second that are taken from videos.
const FPS: u32 = 10;
/// File-name endings of images; all other files are taken for videos.
const IMAGES: [&str; 3] = ["png", "jpg", "jpeg"];

/// A picture and a small copy of it, `[3, H, W]` each, the large one in -1..1.
#[derive(Clone, Debug)]
pub struct SizedPicture {
    /// As it shall become.
    pub large: Vec<f32>,
    /// As it is given.
    pub small: Vec<f32>,
}

/// Square pictures: the pictures and the frames of the videos in some files.
#[derive(Debug)]
pub struct PictureSet {
    large: usize,
    small: usize,
    limits: Limits,
    library: Library<Recording>,
    /// Number of the first frame of each file, and of all frames.
    first: Vec<usize>,
}

#[derive(Debug)]
struct Recording {
    /// `[F, H, W, 3]`.
    pixels: Vec<u8>,
    frames: usize,
}

impl Decoded for Recording {
    fn bytes(&self) -> u64 {
        self.pixels.len() as u64
    }

    fn frames(&self) -> usize {
        self.frames
    }
}

impl PictureSet {
    /// The pictures in `files` with sides of `large` pixels, to be made from ones of `small`, and why
    /// files are left out.
    ///
    /// # Errors
    /// [`Error::Argument`] when no picture is left; [`Error::Io`] when the index cannot be written.
    pub fn read(
        files: &[PathBuf],
        [large, small]: [usize; 2],
        options: &LibraryOptions,
        limits: &Limits,
    ) -> Result<(Self, Vec<Error>)> {
        let decode = |path: &Path| decode(path, large, limits);
        let purpose = format!("pictures at {FPS} fps");
        let (library, failures) = Library::read(files, &purpose, options, decode)?;
        let mut first = vec![0];
        for frames in library.frames() {
            first.push(first.last().copied().unwrap_or(0) + frames);
        }
        Ok((Self { large, small, limits: limits.clone(), library, first }, failures))
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.first.last().copied().unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Picture `number`, mirrored with probability `mirror`, and a small copy that `stream` spoils.
    ///
    /// # Errors
    /// When there is none; those of [`read_clip`].
    pub fn picture(&self, number: usize, mirror: f64, stream: &mut Stream) -> Result<SizedPicture> {
        let recording = self.first.partition_point(|first| *first <= number).saturating_sub(1);
        let frame = number - self.first.get(recording).copied().unwrap_or(number);
        let decode = |path: &Path| decode(path, self.large, &self.limits);
        let picture = self.library.with(recording, decode, |recording| {
            let pixels = recording.pixels.chunks_exact(3 * self.large * self.large).nth(frame);
            let missing = || Error::Argument(format!("there is no picture {number}"));
            Picture::new(self.large, self.large, pixels.ok_or_else(missing)?.to_vec())
        })?;
        let mirrored = stream.uniform() < mirror;
        let pixels: Vec<f32> = picture.pixels().iter().map(|byte| f32::from(*byte)).collect();
        Ok(SizedPicture {
            large: planes(&pixels, mirrored, self.large),
            small: degraded(&picture, self.small, mirrored, stream)?,
        })
    }

    /// Large `[B, 3, H, W]` and small pictures `[B, 3, h, w]`.
    ///
    /// # Errors
    /// When one has another size.
    pub fn tensors(&self, pictures: Vec<SizedPicture>, device: &Device) -> Result<[Tensor; 2]> {
        let count = pictures.len();
        let (large, small): (Vec<_>, Vec<_>) =
            pictures.into_iter().map(|picture| (picture.large, picture.small)).unzip();
        let tensor = |values: Vec<Vec<f32>>, side: usize| {
            Tensor::from_vec(values.concat(), (count, 3, side, side), device)
        };
        Ok([tensor(large, self.large)?, tensor(small, self.small)?])
    }
}

/// The frames of a video, or a picture, in a square.
fn decode(path: &Path, side: usize, limits: &Limits) -> Result<Recording> {
    let letterbox = Letterbox::new(side, side);
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if IMAGES.contains(&extension.as_str()) {
        let picture = letterbox.fit(&read_picture(path, limits)?);
        return Ok(Recording { pixels: picture.pixels().to_vec(), frames: 1 });
    }
    let options = ClipOptions {
        fps: FPS,
        start_s: 0.0,
        duration_s: None,
        letterbox: Some(letterbox),
        rate_hz: 16_000,
        channel: Channel::First,
    };
    let frames = read_clip(path, &options, limits)?.frames;
    let frames = frames.ok_or_else(|| Error::media(path, "has no picture"))?;
    Ok(Recording { frames: frames.count(), pixels: frames.pixels().to_vec() })
}

#[cfg(test)]
mod tests {
    use shared::media::image::{Frames, write_png};
    use shared::media::video::write_mp4;

    use super::*;

    #[test]
    fn pictures_come_from_images_and_videos_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let shade = |level: u8| vec![level; 3 * 40 * 40];
        let frames: Vec<u8> = [40, 90, 140].into_iter().flat_map(shade).collect();
        let video = folder.path().join("a.mp4");
        write_mp4(&video, &Frames::new(40, 40, frames).unwrap(), 10, None, "", false).unwrap();
        let image = folder.path().join("b.png");
        write_png(&image, &Picture::new(40, 40, shade(220)).unwrap(), &[], false).unwrap();
        let text = folder.path().join("c.png");
        std::fs::write(&text, "no picture").unwrap();
        let files = [video, text, image];
        let options = LibraryOptions { memory_bytes: 1 << 20, index: None, quiet: true };
        let (set, failures) =
            PictureSet::read(&files, [32, 8], &options, &Limits::default()).unwrap();
        assert_eq!((set.len(), failures.len()), (4, 1), "{failures:?}");
        for (number, level) in [(3, 220.0), (0, 40.0), (2, 140.0), (1, 90.0)] {
            let mut stream = Stream::new(1, "test", number as u64);
            let picture = set.picture(number, 0.5, &mut stream).unwrap();
            let mean =
                |values: &[f32]| 127.5 * (1.0 + values.iter().sum::<f32>() / values.len() as f32);
            assert!((mean(&picture.large) - level).abs() < 4.0, "{number}");
            assert!((mean(&picture.small) - level).abs() < 12.0, "{number}");
            let [large, small] = set.tensors(vec![picture], &Device::Cpu).unwrap();
            assert_eq!((large.dims(), small.dims()), (&[1, 3, 32, 32][..], &[1, 3, 8, 8][..]));
        }
        assert!(set.picture(4, 0.0, &mut Stream::new(1, "test", 0)).is_err());
    }
}
