//! Audio files to samples, and WAV files from them.
//!
//! | Format | Decoded by |
//! |---|---|
//! | WAV: 8 to 32-bit integers, 32 and 64-bit floats, A-law, mu-law, extensible, RF64, BW64 | this module |
//! | other WAV, AIFF, CAF, FLAC, MP1 to MP3, Ogg (Vorbis, FLAC), AAC, M4A and MP4 (AAC, ALAC), MKV and WebM (Vorbis, FLAC, AAC, MP3, PCM) | symphonia |
//! | Opus in any container, and what symphonia lacks | FFmpeg, in builds with the feature `video` |
//!
//! The format is found from the content; the name of the file plays no part. Samples are `f32`
//! with full scale at 1; floating-point files may exceed it.
//!
//! # What is refused and what is tolerated
//! Whatever a file holds, reading it ends in samples or in a typed error, within the caller's
//! [`Limits`]. The decoders of other projects run in a thread of their own, so that a panic or an
//! endless loop in one becomes an error too.
//!
//! * Damage in the middle of a file is an error that names the time at which it occurs, as far as
//!   the format can show it: FLAC and Ogg files can, plain samples cannot, and in MP3 and AAC streams
//!   damaged stretches are left out.
//! * A file cut off at its end, or whose header states another length than it has, is read as far
//!   as it goes, and [`AudioReader::notes`] says so. Some CAF and MP4 files cannot be read without
//!   their end.
//! * NaN and infinite samples are an error.
//! * The delay and the padding that encoders add are removed where the container states them, except
//!   for padding at the end of Matroska and of fragmented MP4 files.

mod container;
#[cfg(feature = "video")]
mod ffmpeg;
mod guard;
mod reader;
mod resample;
mod track;
mod trim;
mod wav;
mod waveform;
mod write;

use std::path::Path;

use crate::Result;
use crate::limits::Limits;

#[cfg(feature = "video")]
pub(super) use reader::check_limits;
pub use reader::{AudioReader, MonoReader};
pub use resample::Resampler;
pub use waveform::Waveform;
pub use write::{write_wav, write_wav_f32};

/// The whole of an audio file, at its own rate and with all its channels.
///
/// # Errors
/// See [`AudioReader::open`]; [`crate::Error::Limit`] also when the samples together are above
/// [`Limits::waveform_bytes`].
pub fn read(path: &Path, limits: &Limits) -> Result<Waveform> {
    Ok(AudioReader::open(path, limits)?.into_waveform()?.0)
}
