//! One of the streams of a file being decoded.

use std::path::Path;

use ffmpeg_next::ffi::EAGAIN;
use ffmpeg_next::{
    Dictionary, Error as FfmpegError, Frame, Packet, Rational, Stream, codec, decoder,
};

use crate::limits::Limits;
use crate::{Error, Result};

/// A stream and its decoder.
pub(super) struct Track {
    /// Number of the stream in its file.
    pub(super) index: usize,
    /// Time up to which frames were decoded.
    pub(super) end_s: f64,
    decoder: decoder::Opened,
    time_base: Rational,
    /// Time in the file that counts as 0.
    origin_s: f64,
    /// Mean length of a frame; 0 if it is not known.
    pub(super) usual_frame_s: f64,
    /// The error of a packet that may turn out to be the last.
    damage: Option<String>,
}

impl Track {
    /// A track of a stream, whose times count from `origin_s` on.
    pub(super) fn open(
        path: &Path,
        stream: &Stream,
        origin_s: f64,
        limits: &Limits,
    ) -> Result<Self> {
        let parameters = stream.parameters();
        let (kind, id) = (parameters.medium(), parameters.id());
        let undecodable = |error| {
            let reason = format!("its {kind:?} in {id:?} cannot be decoded: {error}");
            Error::media(path, reason.to_lowercase())
        };
        let mut decoder =
            codec::Context::from_parameters(parameters).map_err(undecodable)?.decoder();
        decoder.set_packet_time_base(stream.time_base());
        let mut options = Dictionary::new();
        // Refused before memory is set aside for them.
        options.set("max_pixels", &limits.pixels.to_string());
        let found = codec::decoder::find(id).ok_or(FfmpegError::DecoderNotFound);
        let decoder =
            found.and_then(|codec| decoder.open_as_with(codec, options)).map_err(undecodable)?;
        let rate = f64::from(stream.avg_frame_rate());
        Ok(Self {
            index: stream.index(),
            end_s: 0.0,
            decoder,
            time_base: stream.time_base(),
            origin_s,
            usual_frame_s: if rate > 0.0 { 1.0 / rate } else { 0.0 },
            damage: None,
        })
    }

    /// Hands the decoder a packet, or the end. What is wrong with a packet is an error once another
    /// follows, unless that `is_expected`.
    pub(super) fn send(
        &mut self,
        path: &Path,
        packet: Option<&Packet>,
        is_expected: bool,
    ) -> Result<()> {
        if let Some(damage) = self.damage.take()
            && !is_expected
        {
            let reason = format!("damaged at {:.3} s: {damage}", self.end_s);
            return Err(Error::media(path, reason));
        }
        let sent = match packet {
            Some(packet) => self.decoder.send_packet(packet),
            None => self.decoder.send_eof(),
        };
        if let Err(error) = sent
            && error != FfmpegError::Eof
        {
            self.damage = Some(error.to_string());
        }
        Ok(())
    }

    /// Fetches the next decoded frame; false if the decoder needs more packets or has ended.
    pub(super) fn receive(&mut self, path: &Path, decoded: &mut Frame) -> Result<bool> {
        loop {
            match self.decoder.receive_frame(decoded) {
                Ok(()) if decoded.is_corrupt() || decoded.has_decode_errors() => {
                    self.damage = Some("a frame is incomplete".into());
                }
                Ok(()) => return Ok(true),
                Err(FfmpegError::Eof | FfmpegError::Other { errno: EAGAIN }) => return Ok(false),
                Err(error) => {
                    let reason = format!("damaged at {:.3} s: {error}", self.end_s);
                    return Err(Error::media(path, reason));
                }
            }
        }
    }

    /// Time at which a frame begins, if it says so.
    pub(super) fn time_s(&self, decoded: &Frame) -> Option<f64> {
        decoded.timestamp().map(|ticks| seconds(ticks, self.time_base) - self.origin_s)
    }

    /// Length of a frame.
    pub(super) fn duration_s(&self, decoded: &Frame) -> f64 {
        match decoded.packet().duration {
            ticks if ticks > 0 => seconds(ticks, self.time_base),
            _ => self.usual_frame_s,
        }
    }
}

/// A time in seconds.
pub(super) fn seconds(ticks: i64, time_base: Rational) -> f64 {
    ticks as f64 * f64::from(time_base)
}
