//! Writing animated GIF files.

use std::io::Write;
use std::path::Path;

use gif::{AnyExtension, Encoder, EncodingError, Extension, Frame, Repeat};

use super::Frames;
use crate::files::write_atomic;
use crate::{Error, Result};

/// How thoroughly the 256 colours of a frame are chosen, from 1 (best) to 30.
const COLOUR_SPEED: i32 = 1;

/// Writes `frames`, of which `fps` are shown a second, as a GIF file that repeats for ever, with a
/// comment. Each frame is reduced to 256 colours.
///
/// The file appears whole or not at all, see [`crate::files::OutputFile`].
///
/// # Errors
/// [`Error::Exists`] when the file is there and `force` is not given, [`Error::Argument`] for sides
/// above 65535 pixels or more than 100 frames a second, [`Error::Io`].
pub fn write_gif(path: &Path, frames: &Frames, fps: u32, comment: &str, force: bool) -> Result<()> {
    let (width, height) = (u16::try_from(frames.width()), u16::try_from(frames.height()));
    let (Ok(width), Ok(height), 1..=100) = (width, height, fps) else {
        return Err(Error::Argument(format!(
            "{}: a GIF file cannot hold {} x {} pixels at {fps} frames a second",
            path.display(),
            frames.width(),
            frames.height()
        )));
    };
    let mut bytes = vec![];
    encode(&mut bytes, frames, [width, height], fps, comment)
        .map_err(|error| Error::media(path, error.to_string()))?;
    write_atomic(path, force, |file| file.write_all(&bytes))
}

fn encode(
    out: &mut Vec<u8>,
    frames: &Frames,
    [width, height]: [u16; 2],
    fps: u32,
    comment: &str,
) -> Result<(), EncodingError> {
    let mut encoder = Encoder::new(out, width, height, &[])?;
    encoder.set_repeat(Repeat::Infinite)?;
    if !comment.is_empty() {
        // A comment is stored in blocks of at most 255 bytes.
        let blocks: Vec<&[u8]> = comment.as_bytes().chunks(255).collect();
        encoder.write_raw_extension(AnyExtension::from(Extension::Comment), &blocks)?;
    }
    // The time of frame i in hundredths of a second, rounded, so that errors do not add up.
    let ticks = |index: usize| (200 * index as u64 + u64::from(fps)) / (2 * u64::from(fps));
    for (index, pixels) in frames.iter().enumerate() {
        let mut frame = Frame::from_rgb_speed(width, height, pixels, COLOUR_SPEED);
        frame.delay = (ticks(index + 1) - ticks(index)) as u16;
        encoder.write_frame(&frame)?;
    }
    encoder.into_inner()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_delays_and_the_comment_come_back() {
        // Two colours a frame survive exactly.
        let frame = |value: u8| [vec![value; 3 * 8], vec![255 - value; 3 * 8]].concat();
        let frames = Frames::new(4, 4, [frame(10), frame(90), frame(200)].concat()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gif");
        let comment = "x".repeat(300);
        write_gif(&path, &frames, 30, &comment, false).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.windows(255).any(|window| window == &comment.as_bytes()[..255]));
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(bytes.as_slice()).unwrap();
        let mut delays = vec![];
        for expected in frames.iter() {
            let frame = decoder.read_next_frame().unwrap().unwrap();
            delays.push(frame.delay);
            let rgb: Vec<u8> =
                frame.buffer.chunks(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
            assert_eq!(rgb, expected);
        }
        assert_eq!(delays, [3, 4, 3]);
        assert!(write_gif(&path, &frames, 0, "", true).is_err());
    }
}
