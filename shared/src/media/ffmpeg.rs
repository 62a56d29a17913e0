//! What reading sound and reading video through FFmpeg's libraries have in common.

use std::fs::File;
use std::io::Seek;
use std::path::Path;

use ffmpeg_next::format::Sample;
use ffmpeg_next::format::context::{Input, StreamIo};
use ffmpeg_next::{Dictionary, format, frame, log};

use crate::{Error, Result};

/// The containers that FFmpeg may open: none that point to other files or to the network.
const CONTAINERS: &str = "ogg,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,asf,flv,mpegts,mpeg,aac,\
                          ac3,eac3,dts,amr,mp3,flac,wav,w64,aiff,au,caf,ape,wv,tta,tak,mpc,mpc8,rm,\
                          gif,apng,ivf,h264,mpegvideo";

/// Prepares FFmpeg's libraries, which are to print nothing: what they would say is in the errors.
pub(super) fn prepare(path: &Path) -> Result<()> {
    ffmpeg_next::init().map_err(|error| Error::media(path, error.to_string()))?;
    log::set_level(log::Level::Quiet);
    Ok(())
}

/// Opens a media file, read from its start, whose format is found from its content. `kind` is what
/// is looked for in it, e.g. `audio`.
pub(super) fn open(path: &Path, mut file: File, kind: &str) -> Result<Input> {
    prepare(path)?;
    file.rewind().map_err(Error::io(path))?;
    let unknown = |error| {
        Error::media(path, format!("is in no known {kind} format, by FFmpeg neither: {error}"))
    };
    let mut options = Dictionary::new();
    options.set("format_whitelist", CONTAINERS);
    options.set("protocol_whitelist", "file");
    let source = StreamIo::from_read_seek(file).map_err(unknown)?;
    format::input_from_stream(source, None, Some(options)).map_err(unknown)
}

/// Appends the samples of a frame, interleaved and with full scale at 1; false for a kind of sample
/// that is not known.
pub(super) fn append_samples(samples: &frame::Audio, block: &mut Vec<f32>) -> bool {
    match samples.format() {
        Sample::U8(_) => {
            interleave(samples, block, |[byte]: [u8; 1]| (f32::from(byte) - 128.0) / 128.0);
        }
        Sample::I16(_) => {
            interleave(samples, block, |b| f32::from(i16::from_ne_bytes(b)) / 32768.0);
        }
        Sample::I32(_) => {
            interleave(samples, block, |b| i32::from_ne_bytes(b) as f32 / 2_147_483_648.0);
        }
        Sample::F32(_) => interleave(samples, block, f32::from_ne_bytes),
        Sample::F64(_) => interleave(samples, block, |b| f64::from_ne_bytes(b) as f32),
        _ => return false,
    }
    true
}

/// Appends the samples of a frame, whether its channels are apart or not.
fn interleave<const N: usize>(
    samples: &frame::Audio,
    block: &mut Vec<f32>,
    convert: impl Fn([u8; N]) -> f32,
) {
    let (frames, channels) = (samples.samples(), usize::from(samples.channels()));
    let values = |plane: usize, count: usize| {
        samples.data(plane).as_chunks::<N>().0.iter().take(count).map(|&bytes| convert(bytes))
    };
    if samples.is_packed() {
        block.extend(values(0, frames * channels));
        return;
    }
    let start = block.len();
    block.resize(start + frames * channels, 0.0);
    for channel in 0..samples.planes() {
        let places = block.iter_mut().skip(start + channel).step_by(channels);
        places.zip(values(channel, frames)).for_each(|(place, value)| *place = value);
    }
}
