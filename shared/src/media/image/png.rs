//! Writing PNG files.

use std::io::Write;
use std::path::Path;

use png::{BitDepth, ColorType, Encoder, EncodingError};

use super::Picture;
use crate::files::write_atomic;
use crate::{Error, Result};

/// Writes `picture` as a PNG file with texts, each under its keyword (`Comment`, `Software`, ...).
///
/// The file appears whole or not at all, see [`crate::files::OutputFile`].
///
/// # Errors
/// [`Error::Exists`] when the file is there and `force` is not given, [`Error::Io`],
/// [`Error::Media`] for a keyword that PNG does not allow.
pub fn write_png(
    path: &Path,
    picture: &Picture,
    texts: &[(&str, &str)],
    force: bool,
) -> Result<()> {
    let bytes = png_bytes(picture, texts).map_err(|error| Error::media(path, error.to_string()))?;
    write_atomic(path, force, |file| file.write_all(&bytes))
}

/// The PNG file of `picture` with texts under their keywords.
///
/// # Errors
/// [`Error::Argument`] for a picture or a keyword that PNG does not allow.
pub fn png_bytes(picture: &Picture, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    encode(picture, texts).map_err(|error| Error::Argument(error.to_string()))
}

fn encode(picture: &Picture, texts: &[(&str, &str)]) -> Result<Vec<u8>, EncodingError> {
    let side = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    let mut bytes = vec![];
    let mut encoder = Encoder::new(&mut bytes, side(picture.width), side(picture.height));
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    for (keyword, text) in texts {
        encoder.add_itxt_chunk((*keyword).to_owned(), (*text).to_owned())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_and_texts_come_back() {
        let pixels: Vec<u8> = (0..3 * 5 * 4).map(|i| 4 * i as u8).collect();
        let picture = Picture::new(5, 4, pixels.clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        write_png(&path, &picture, &[("Comment", "für {\"seed\": 1}")], false).unwrap();
        assert!(matches!(write_png(&path, &picture, &[], false), Err(Error::Exists { .. })));
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut read = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut read).unwrap();
        assert_eq!((info.width, info.height), (5, 4));
        assert_eq!(read, pixels);
        let text = &reader.info().utf8_text[0];
        assert_eq!(text.keyword, "Comment");
        assert_eq!(text.get_text().unwrap(), "für {\"seed\": 1}");
    }
}
