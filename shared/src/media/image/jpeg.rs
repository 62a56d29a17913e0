//! What JPEG leaves of a picture.

use jpeg_encoder::{ColorType, Encoder};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;

use super::Picture;
use crate::{Error, Result};

impl Picture {
    /// The picture after JPEG compression of a quality from 1 to 100, with half the resolution of
    /// colour below 90.
    ///
    /// # Errors
    /// [`Error::Argument`] for a picture that JPEG does not allow: with more than 65535 pixels on a
    /// side.
    pub fn compressed(&self, quality: u8) -> Result<Self> {
        let refused = |reason: String| Error::Argument(format!("JPEG compression: {reason}"));
        let side = |size: usize| {
            u16::try_from(size).map_err(|_| refused(format!("a side of {size} pixels")))
        };
        let mut bytes = vec![];
        Encoder::new(&mut bytes, quality.clamp(1, 100))
            .encode(&self.pixels, side(self.width)?, side(self.height)?, ColorType::Rgb)
            .map_err(|error| refused(error.to_string()))?;
        let pixels = JpegDecoder::new(ZCursor::new(bytes))
            .decode()
            .map_err(|error| refused(error.to_string()))?;
        Self::new(self.width, self.height, pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_decides_on_what_is_left() {
        let (width, height) = (41, 30);
        let pixels = (0..width * height).flat_map(|i| {
            let (x, y) = (i % width, i / width);
            [(6 * x) as u8, (8 * y) as u8, if (x / 5 + y / 5) % 2 == 0 { 200 } else { 40 }]
        });
        let picture = Picture::new(width, height, pixels.collect()).unwrap();
        let difference = |quality| -> f64 {
            let left = picture.compressed(quality).unwrap();
            assert_eq!((left.width(), left.height()), (width, height));
            let pairs = left.pixels().iter().zip(picture.pixels());
            pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / left.pixels().len() as f64
        };
        let differences = [98, 60, 20, 1].map(difference);
        assert!(differences.is_sorted() && differences[0] < 4.0, "{differences:?}");
        assert!(differences[3] > 2.0 * differences[1], "{differences:?}");
    }
}
