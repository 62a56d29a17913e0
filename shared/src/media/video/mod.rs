//! Videos with their sound, through FFmpeg's libraries.
//!
//! The format is found from the content: MP4, MOV, WebM, MKV, AVI, GIF and others, in whatever codecs
//! the installed FFmpeg decodes. Whatever a file holds, reading it ends in a clip or in a typed error
//! within the caller's [`crate::limits::Limits`]; the decoders run in a thread of their own, so
//! that a panic or an endless loop in one becomes an error too.
//!
//! * Times count from the first frame of the picture (or the first sample where there is no
//!   picture). The frame of a time is the last that begins no later, as time stamps say, so that
//!   any frame rate, also a varying one, becomes the rate that is asked for.
//! * Rotations by quarter turns that the file states are carried out. Pixels count as square, and
//!   transparency is ignored.
//! * Damage inside the part that is read is an error that names its time, and so is a file that ends
//!   before the time that its header states.

mod choice;
mod mp4;
mod picture;
mod read;
mod sound;
mod track;

use crate::media::audio::Waveform;
use crate::media::image::{Frames, Letterbox};

pub use mp4::{h264_encoder, write_mp4};
pub use read::{read_clip, read_comment};

/// What is taken from a file, and in which form.
#[derive(Clone, Debug)]
pub struct ClipOptions {
    /// Frames a second of the result.
    pub fps: u32,
    /// Where the clip begins, in seconds.
    pub start_s: f64,
    /// Length in seconds; to the end of the picture (or sound) if `None`.
    pub duration_s: Option<f64>,
    /// Size of the frames; that of the file if `None`.
    pub letterbox: Option<Letterbox>,
    /// Sampling rate of the sound.
    pub rate_hz: u32,
    /// What becomes of several channels.
    pub channel: Channel,
}

/// What one channel of sound is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// The first channel.
    First,
    /// The mean of all channels.
    #[default]
    Mix,
}

/// A clip in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoClip {
    /// The picture, if there is one: with a given duration at most `round(duration_s * fps)`
    /// frames, fewer where the picture ends before.
    pub frames: Option<Frames>,
    /// Frames a second.
    pub fps: u32,
    /// The sound, if there is any: one channel, exactly as long as asked for or else as the
    /// picture, with zeros where the file has none.
    pub sound: Option<Waveform>,
}
