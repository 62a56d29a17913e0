//! The picture of a clip.

use std::path::Path;

use ffmpeg_next::codec::packet::side_data::Type as SideData;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::software::scaling;
use ffmpeg_next::{Stream, frame};

use super::choice::Choice;
use crate::limits::Limits;
use crate::media::image::{Frames, Letterbox, Picture};
use crate::{Error, Result};

/// Pictures being decoded and chosen from.
pub(super) struct Pictures {
    choice: Choice,
    letterbox: Option<Letterbox>,
    /// How the file says that pictures are to be turned, see [`Picture::turned`].
    turn: Option<[i64; 4]>,
    /// The latest frame, which stands for all times until the next begins.
    current: Option<frame::Video>,
    scaler: Option<scaling::Context>,
    /// Width and height of the chosen frames.
    size: (usize, usize),
    pixels: Vec<u8>,
}

impl Pictures {
    pub(super) fn new(stream: &Stream, choice: Choice, letterbox: Option<Letterbox>) -> Self {
        let matrix = stream.side_data().find(|data| data.kind() == SideData::DisplayMatrix);
        Self {
            choice,
            letterbox,
            turn: matrix.and_then(|matrix| turn(matrix.data())),
            current: None,
            scaler: None,
            size: (0, 0),
            pixels: vec![],
        }
    }

    /// Whether all frames that are wanted have been chosen.
    pub(super) fn is_complete(&self) -> bool {
        self.choice.is_complete()
    }

    /// Whether a frame has come.
    pub(super) fn has_begun(&self) -> bool {
        self.current.is_some()
    }

    /// Takes a decoded frame that begins at `time_s`. Returns false if frames before it are wanted
    /// and there was none.
    pub(super) fn take(
        &mut self,
        path: &Path,
        decoded: frame::Video,
        time_s: f64,
        limits: &Limits,
    ) -> Result<bool> {
        let due = self.choice.due_before(time_s);
        let had_frame = self.current.is_some();
        if had_frame {
            self.append(path, due, limits)?;
        }
        self.current = Some(decoded);
        if !had_frame {
            self.append(path, due, limits)?;
        }
        Ok(had_frame || due == 0)
    }

    /// Takes note that the last frame lasts until `end_s`.
    pub(super) fn end(&mut self, path: &Path, end_s: f64, limits: &Limits) -> Result<()> {
        let due = self.choice.due_before(end_s);
        self.append(path, due, limits)
    }

    /// The chosen frames; `None` if there are none.
    pub(super) fn finish(self) -> Result<Option<Frames>> {
        match self.pixels.is_empty() {
            true => Ok(None),
            false => Frames::new(self.size.0, self.size.1, self.pixels).map(Some),
        }
    }

    /// Appends the current frame `count` times.
    fn append(&mut self, path: &Path, count: usize, limits: &Limits) -> Result<()> {
        let Some(current) = self.current.as_ref().filter(|_| count > 0) else { return Ok(()) };
        let above = |quantity, actual, limit| {
            Err(Error::Limit { path: path.to_path_buf(), quantity, actual, limit })
        };
        let area = u64::from(current.width()) * u64::from(current.height());
        if area > limits.pixels as u64 {
            return above("pixels in a frame", area, limits.pixels as u64);
        }
        let picture = rgb(current, &mut self.scaler)
            .map_err(|reason| Error::media(path, format!("has a picture that {reason}")))?;
        let picture = match self.turn {
            Some(matrix) => picture.turned(matrix),
            None => picture,
        };
        let picture = match &self.letterbox {
            Some(letterbox) => letterbox.fit(&picture),
            None => picture,
        };
        let size = (picture.width(), picture.height());
        if self.pixels.is_empty() {
            self.size = size;
        } else if size != self.size {
            return Err(Error::media(path, "its frames change their size; give a size for all"));
        }
        let bytes = picture.pixels().len() as u64 * count as u64 + self.pixels.len() as u64;
        let frames = bytes / picture.pixels().len() as u64;
        if frames > limits.frames as u64 {
            return above("number of frames", frames, limits.frames as u64);
        }
        if bytes > limits.frame_bytes {
            return above("size of the frames in bytes", bytes, limits.frame_bytes);
        }
        for _ in 0..count {
            self.pixels.extend_from_slice(picture.pixels());
        }
        Ok(())
    }
}

/// The pixels of a frame of any kind; `Err` with the end of a sentence on the picture.
fn rgb(
    decoded: &frame::Video,
    scaler: &mut Option<scaling::Context>,
) -> std::result::Result<Picture, String> {
    let (kind, width, height) = (decoded.format(), decoded.width(), decoded.height());
    let fits = |scaler: &scaling::Context| {
        let input = scaler.input();
        (input.format, input.width, input.height) == (kind, width, height)
    };
    if !scaler.as_ref().is_some_and(fits) {
        let flags = scaling::Flags::BICUBIC
            | scaling::Flags::ACCURATE_RND
            | scaling::Flags::FULL_CHR_H_INT
            | scaling::Flags::FULL_CHR_H_INP;
        let made = scaling::Context::get(kind, width, height, Pixel::RGB24, width, height, flags);
        *scaler = Some(made.map_err(|error| format!("cannot be converted to RGB: {error}"))?);
    }
    let mut converted = frame::Video::empty();
    if let Some(scaler) = scaler {
        scaler
            .run(decoded, &mut converted)
            .map_err(|error| format!("cannot be converted to RGB: {error}"))?;
    }
    let (width, height) = (width as usize, height as usize);
    let rows = converted.data(0).chunks(converted.stride(0).max(1)).take(height);
    let pixels = rows.flat_map(|row| row.iter().take(3 * width)).copied().collect();
    Picture::new(width, height, pixels).map_err(|error| format!("is unusable: {error}"))
}

/// The turn in a display matrix (nine numbers of 32 bits, ISO/IEC 14496-12, 8.2.2.3): `None` for
/// none, and for angles other than quarter turns.
fn turn(matrix: &[u8]) -> Option<[i64; 4]> {
    let numbers: Vec<i64> = matrix
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&bytes| i64::from(i32::from_ne_bytes(bytes)).signum())
        .collect();
    // x' = a x + c y, y' = b x + d y.
    let [a, b, _, c, d, ..] = numbers.as_slice() else { return None };
    let turn = [*a, *c, *b, *d];
    let is_quarter = (a * d).abs() + (b * c).abs() == 1 && a * c == 0 && b * d == 0;
    (is_quarter && turn != [1, 0, 0, 1]).then_some(turn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_matrices_are_understood() {
        let one = 1 << 16;
        let matrix = |a: i32, b: i32, c: i32, d: i32| {
            [a, b, 0, c, d, 0, 0, 0, 1 << 30].map(i32::to_ne_bytes).concat()
        };
        assert_eq!(turn(&matrix(one, 0, 0, one)), None);
        // What phones write for pictures held upright: a quarter turn clockwise.
        assert_eq!(turn(&matrix(0, one, -one, 0)), Some([0, -1, 1, 0]));
        assert_eq!(turn(&matrix(-one, 0, 0, -one)), Some([-1, 0, 0, -1]));
        assert_eq!(turn(&matrix(46341, 46341, -46341, 46341)), None);
        assert_eq!(turn(&[0; 36]), None);
        assert_eq!(turn(&[1, 2]), None);
    }
}
