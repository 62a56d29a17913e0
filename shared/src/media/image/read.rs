//! Reading PNG and JPEG files.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

use png::{ColorType, Decoder, Transformations};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Picture;
use crate::limits::Limits;
use crate::{Error, Result};

/// How a PNG file begins; every other one is taken for JPEG.
const PNG: &[u8] = b"\x89PNG";

/// The picture in a PNG or JPEG file: grey becomes red, green and blue, transparency is dropped, 16 bits
/// become 8.
///
/// # Errors
/// [`Error::Io`]; [`Error::Media`] for a file that is neither or damaged; [`Error::Limit`] for more
/// than `limits.pixels`.
pub fn read_picture(path: &Path, limits: &Limits) -> Result<Picture> {
    let mut file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    match file.fill_buf().map_err(Error::io(path))?.starts_with(PNG) {
        true => read_png(file, path, limits),
        false => read_jpeg(file, path, limits),
    }
}

fn read_png(file: impl BufRead + Seek, path: &Path, limits: &Limits) -> Result<Picture> {
    let damaged = |error: png::DecodingError| Error::media(path, format!("PNG: {error}"));
    let mut decoder = Decoder::new(file);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(damaged)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    check_pixels(path, width, height, limits)?;
    let size = reader.output_buffer_size();
    let size = size.ok_or_else(|| Error::media(path, "PNG: larger than memory"))?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(damaged)?;
    bytes.truncate(frame.buffer_size());
    let pixels = match frame.color_type {
        ColorType::Rgb => bytes,
        ColorType::Rgba => {
            bytes.chunks_exact(4).flat_map(|rgba| rgba.iter().take(3).copied()).collect()
        }
        ColorType::Grayscale => bytes.iter().flat_map(|grey| [*grey; 3]).collect(),
        ColorType::GrayscaleAlpha => bytes.iter().step_by(2).flat_map(|grey| [*grey; 3]).collect(),
        ColorType::Indexed => {
            return Err(Error::media(path, "PNG: its palette is missing"));
        }
    };
    Picture::new(width, height, pixels)
}

fn read_jpeg(file: impl Read, path: &Path, limits: &Limits) -> Result<Picture> {
    let damaged = |reason: String| Error::media(path, format!("neither PNG nor JPEG: {reason}"));
    // No picture within the limits is larger than its pixels.
    let most = 4 * limits.pixels as u64 + limits.header_bytes as u64;
    let mut bytes = vec![];
    let read = file.take(most).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if read as u64 == most {
        return Err(Error::media(path, format!("has {most} bytes or more")));
    }
    let options = DecoderOptions::new_safe().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| damaged(error.to_string()))?;
    let size = decoder.dimensions();
    let (width, height) = size.ok_or_else(|| damaged("it has no size".into()))?;
    check_pixels(path, width, height, limits)?;
    let pixels = decoder.decode().map_err(|error| damaged(error.to_string()))?;
    Picture::new(width, height, pixels)
}

fn check_pixels(path: &Path, width: usize, height: usize, limits: &Limits) -> Result<()> {
    let (actual, limit) = (width.saturating_mul(height) as u64, limits.pixels as u64);
    if actual <= limit {
        return Ok(());
    }
    Err(Error::Limit { path: path.to_path_buf(), quantity: "pixels in a picture", actual, limit })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use png::{BitDepth, Encoder};

    use super::*;

    #[test]
    fn every_kind_of_pixel_becomes_colour() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture");
        for (color, depth, bytes, expected) in [
            (ColorType::Rgb, BitDepth::Eight, vec![1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
            (ColorType::Rgba, BitDepth::Eight, vec![1, 2, 3, 9, 4, 5, 6, 9], [1, 2, 3, 4, 5, 6]),
            (ColorType::Grayscale, BitDepth::Eight, vec![7, 8], [7, 7, 7, 8, 8, 8]),
            (ColorType::GrayscaleAlpha, BitDepth::Eight, vec![7, 1, 8, 1], [7, 7, 7, 8, 8, 8]),
            (ColorType::Grayscale, BitDepth::Sixteen, vec![7, 0, 8, 0], [7, 7, 7, 8, 8, 8]),
            (ColorType::Grayscale, BitDepth::One, vec![0b0100_0000], [0, 0, 0, 255, 255, 255]),
        ] {
            let mut encoder = Encoder::new(File::create(&path).unwrap(), 2, 1);
            encoder.set_color(color);
            encoder.set_depth(depth);
            encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
            let picture = read_picture(&path, &Limits::default()).unwrap();
            assert_eq!((picture.width(), picture.height()), (2, 1));
            assert_eq!(picture.pixels(), expected, "{color:?} {depth:?}");
        }
        let limits = Limits { pixels: 1, ..Limits::default() };
        assert!(matches!(read_picture(&path, &limits), Err(Error::Limit { .. })));
    }

    #[test]
    fn jpeg_files_are_read_and_damaged_ones_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.jpg");
        let mut bytes = vec![];
        let encoder = jpeg_encoder::Encoder::new(&mut bytes, 95);
        encoder.encode(&[90; 20 * 30], 20, 30, jpeg_encoder::ColorType::Luma).unwrap();
        fs::write(&path, &bytes).unwrap();
        let picture = read_picture(&path, &Limits::default()).unwrap();
        assert_eq!((picture.width(), picture.height()), (20, 30));
        assert!(picture.pixels().iter().all(|byte| byte.abs_diff(90) < 3));
        let limits = Limits { pixels: 599, ..Limits::default() };
        assert!(matches!(read_picture(&path, &limits), Err(Error::Limit { .. })));
        // Any prefix, and any byte changed, is a picture or an error.
        for end in 0..bytes.len() {
            fs::write(&path, &bytes[..end]).unwrap();
            let _ = read_picture(&path, &Limits::default());
            let mut changed = bytes.clone();
            changed[end] ^= 0x5a;
            fs::write(&path, &changed).unwrap();
            let _ = read_picture(&path, &Limits::default());
        }
        fs::write(&path, &bytes[..40]).unwrap();
        assert!(matches!(read_picture(&path, &Limits::default()), Err(Error::Media { .. })));
    }
}
