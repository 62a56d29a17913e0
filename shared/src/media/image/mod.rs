//! Pictures in memory and in PNG, JPEG and GIF files.

mod gif;
mod jpeg;
mod letterbox;
mod png;
mod read;

use crate::{Error, Result};

pub use self::gif::write_gif;
pub use self::letterbox::Letterbox;
pub use self::png::{png_bytes, write_png};
pub use self::read::read_picture;

/// Bytes of a pixel: red, green, blue.
const CHANNELS: usize = 3;

/// Width of the black border around each picture of a grid, in pixels.
const GRID_BORDER: usize = 2;

/// A picture of 8-bit RGB pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// A picture from `pixels [H, W, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not `3 * width * height` of them, or none.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        check(width, height, &pixels, "a picture")?;
        match pixels.len() == CHANNELS * width * height {
            true => Ok(Self { width, height, pixels }),
            false => Err(misfit("a picture", width, height, &pixels)),
        }
    }

    /// A black picture; empty when a side is 0.
    fn black(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; CHANNELS * width * height] }
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// `[H, W, 3]`, row after row from the top.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The picture at another size, each pixel that of the nearest place.
    ///
    /// # Errors
    /// [`Error::Shape`] when a side is 0.
    pub fn stretched(&self, width: usize, height: usize) -> Result<Self> {
        let nearest = |place: usize, from: usize, to: usize| place * from / to.max(1);
        let mut pixels = Vec::with_capacity(CHANNELS * width * height);
        for y in 0..height {
            for x in 0..width {
                let row = nearest(y, self.height, height) * self.width;
                let start = CHANNELS * (row + nearest(x, self.width, width));
                pixels.extend_from_slice(self.pixels.get(start..start + CHANNELS).unwrap_or(&[]));
            }
        }
        Self::new(width, height, pixels)
    }

    /// Copies `other` to a place in this picture, as far as it lies inside.
    fn place(&mut self, other: &Self, left: usize, top: usize) {
        let row_bytes = CHANNELS * self.width;
        let rows = self.pixels.chunks_exact_mut(row_bytes.max(1)).skip(top);
        for (row, source) in rows.zip(other.pixels.chunks_exact((CHANNELS * other.width).max(1))) {
            row.iter_mut().skip(CHANNELS * left).zip(source).for_each(|(to, from)| *to = *from);
        }
    }

    /// The picture with each pixel `(x, y)` moved to `x * matrix[0] + y * matrix[1]` and
    /// `x * matrix[2] + y * matrix[3]`, shifted so that all are inside: a rotation by quarter turns
    /// or a reflection, of which all entries are -1, 0 or 1.
    pub(crate) fn turned(self, matrix: [i64; 4]) -> Self {
        let swaps = matrix[0] == 0;
        let (width, height) =
            if swaps { (self.height, self.width) } else { (self.width, self.height) };
        let mut turned = Self::black(width, height);
        // A negative entry mirrors the axis.
        let place = |along_x: i64, x: usize, along_y: i64, y: usize, size: usize| {
            let place = along_x * x as i64 + along_y * y as i64;
            let mirrored = along_x + along_y < 0;
            (if mirrored { place + size as i64 - 1 } else { place }) as usize
        };
        for (index, pixel) in self.pixels.chunks_exact(CHANNELS).enumerate() {
            let (x, y) = (index % self.width, index / self.width);
            let to_x = place(matrix[0], x, matrix[1], y, width);
            let to_y = place(matrix[2], x, matrix[3], y, height);
            let start = CHANNELS * (to_y * width + to_x);
            if let Some(to) = turned.pixels.get_mut(start..start + CHANNELS) {
                to.copy_from_slice(pixel);
            }
        }
        turned
    }
}

/// Pictures of one size, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Frames {
    /// Frames from `pixels [F, H, W, 3]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not a whole number of frames, at least one.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        check(width, height, &pixels, "frames")?;
        match pixels.len().is_multiple_of(CHANNELS * width * height) {
            true => Ok(Self { width, height, pixels }),
            false => Err(misfit("frames", width, height, &pixels)),
        }
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows of each frame.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Number of frames, at least one.
    pub fn count(&self) -> usize {
        self.pixels.len() / self.frame_bytes()
    }

    /// `[F, H, W, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The pixels of each frame in turn, `[H, W, 3]`.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.pixels.chunks_exact(self.frame_bytes())
    }

    /// The first `count` frames, at least one; the last of them is repeated when there are fewer.
    #[must_use]
    pub fn with_count(mut self, count: usize) -> Self {
        let frame_bytes = self.frame_bytes();
        let last = self.pixels.split_off(self.pixels.len() - frame_bytes);
        while self.pixels.len() < (count.max(1) * frame_bytes).saturating_sub(frame_bytes) {
            self.pixels.extend_from_slice(&last);
        }
        self.pixels.extend_from_slice(&last);
        self.pixels.truncate(count.max(1) * frame_bytes);
        self
    }

    /// All frames as one picture, row by row in `columns`, each with a black border of 2 pixels.
    pub fn grid(&self, columns: usize) -> Picture {
        let columns = columns.clamp(1, self.count());
        let rows = self.count().div_ceil(columns);
        let cell = |size: usize| size + 2 * GRID_BORDER;
        let mut grid = Picture::black(columns * cell(self.width), rows * cell(self.height));
        for (index, pixels) in self.iter().enumerate() {
            let frame = Picture { width: self.width, height: self.height, pixels: pixels.to_vec() };
            let left = index % columns * cell(self.width) + GRID_BORDER;
            let top = index / columns * cell(self.height) + GRID_BORDER;
            grid.place(&frame, left, top);
        }
        grid
    }

    fn frame_bytes(&self) -> usize {
        CHANNELS * self.width * self.height
    }
}

fn check(width: usize, height: usize, pixels: &[u8], what: &str) -> Result<()> {
    let bytes = width.checked_mul(height).and_then(|area| area.checked_mul(CHANNELS));
    match bytes {
        Some(bytes) if bytes > 0 && !pixels.is_empty() => Ok(()),
        _ => Err(misfit(what, width, height, pixels)),
    }
}

fn misfit(what: &str, width: usize, height: usize, pixels: &[u8]) -> Error {
    let expected = format!("a multiple of {height} x {width} x {CHANNELS} bytes, not zero");
    Error::shape(format!("the pixels of {what}"), expected, &[pixels.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose pixels are `first`, `first + 1` and so on in all channels.
    fn counted(width: usize, height: usize, first: u8) -> Picture {
        let pixels = (0..width * height).flat_map(|i| [first + i as u8; CHANNELS]).collect();
        Picture::new(width, height, pixels).unwrap()
    }

    fn reds(picture: &Picture) -> Vec<u8> {
        picture.pixels.iter().step_by(CHANNELS).copied().collect()
    }

    #[test]
    fn sizes_must_fit() {
        assert!(Picture::new(2, 2, vec![0; 12]).is_ok());
        assert!(Frames::new(2, 2, vec![0; 24]).is_ok());
        let huge = usize::MAX / 2;
        for (width, height, bytes) in
            [(2, 2, 11), (0, 2, 0), (2, 0, 12), (huge, huge, 3), (1, 1, 0)]
        {
            assert!(Picture::new(width, height, vec![0; bytes]).is_err(), "{width} {height}");
            assert!(Frames::new(width, height, vec![0; bytes]).is_err(), "{width} {height}");
        }
    }

    #[test]
    fn pictures_turn() {
        let cases: [([i64; 4], [usize; 2], [u8; 6]); 5] = [
            ([1, 0, 0, 1], [3, 2], [0, 1, 2, 3, 4, 5]),
            ([0, -1, 1, 0], [2, 3], [3, 0, 4, 1, 5, 2]), // a quarter turn clockwise
            ([-1, 0, 0, -1], [3, 2], [5, 4, 3, 2, 1, 0]),
            ([0, 1, -1, 0], [2, 3], [2, 5, 1, 4, 0, 3]),
            ([-1, 0, 0, 1], [3, 2], [2, 1, 0, 5, 4, 3]), // mirrored
        ];
        for (matrix, [width, height], expected) in cases {
            let turned = counted(3, 2, 0).turned(matrix);
            assert_eq!((turned.width(), turned.height()), (width, height), "{matrix:?}");
            assert_eq!(reds(&turned), expected, "{matrix:?}");
        }
    }

    #[test]
    fn pictures_are_stretched_to_the_nearest_pixels() {
        let picture = counted(3, 2, 0);
        let larger = picture.stretched(6, 2).unwrap();
        assert_eq!(reds(&larger), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
        assert_eq!(reds(&picture.stretched(1, 4).unwrap()), [0, 0, 3, 3]);
        assert_eq!(picture.stretched(3, 2).unwrap(), picture);
        assert!(picture.stretched(0, 2).is_err());
    }

    #[test]
    fn frames_are_cut_and_repeated() {
        let frames = Frames::new(1, 1, vec![1, 1, 1, 2, 2, 2]).unwrap();
        let first = |count| {
            let frames = frames.clone().with_count(count);
            frames.iter().map(|frame| frame[0]).collect::<Vec<_>>()
        };
        assert_eq!(first(1), [1]);
        assert_eq!(first(2), [1, 2]);
        assert_eq!(first(4), [1, 2, 2, 2]);
        assert_eq!(first(0), [1]);
    }

    #[test]
    fn a_grid_has_borders() {
        let frames = Frames::new(1, 1, vec![9; 3 * CHANNELS]).unwrap();
        let grid = frames.grid(2);
        assert_eq!((grid.width(), grid.height()), (10, 10));
        let lit: Vec<usize> =
            reds(&grid).iter().enumerate().filter(|(_, red)| **red == 9).map(|(i, _)| i).collect();
        assert_eq!(lit, [2 * 10 + 2, 2 * 10 + 7, 7 * 10 + 2]);
        assert_eq!(frames.grid(100).width(), 15);
    }
}
