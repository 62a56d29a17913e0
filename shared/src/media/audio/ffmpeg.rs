//! Opus, and whatever else symphonia lacks, through FFmpeg's libraries.

use std::fs::File;
use std::path::Path;

use ffmpeg_next::ffi::{self, EAGAIN};
use ffmpeg_next::format::context::Input;
use ffmpeg_next::{Error as FfmpegError, Packet, codec, decoder, frame, media};

use crate::limits::Limits;
use crate::media::audio::reader::{AudioInfo, Decoder, check_limits};
use crate::media::audio::track::Track;
use crate::media::ffmpeg;
use crate::{Error, Result};

/// Packets read in one go before saying that the file is still being read.
const PACKETS_PER_BLOCK: usize = 256;

/// A decoder of the audio track that FFmpeg thinks best.
pub(super) struct FfmpegDecoder {
    input: Input,
    decoder: decoder::Audio,
    stream: usize,
    track: Track,
}

impl FfmpegDecoder {
    pub(super) fn open(path: &Path, file: File, limits: &Limits) -> Result<Self> {
        let input = ffmpeg::open(path, file, "audio")?;
        let unknown = |error| Error::media(path, format!("cannot be decoded by FFmpeg: {error}"));
        let Some(stream) = input.streams().best(media::Type::Audio) else {
            return Err(Error::media(path, "has no audio track"));
        };
        let decoder = codec::Context::from_parameters(stream.parameters())
            .and_then(|context| context.decoder().audio())
            .map_err(unknown)?;
        let (rate_hz, channels) = (decoder.rate(), usize::from(decoder.channels()));
        check_limits(path, rate_hz.max(1), channels.max(1), limits)?;
        let codec =
            decoder.codec().map_or("unknown codec".into(), |codec| codec.description().to_string());
        let format = format!("{}, {codec}", input.format().description());
        let stated_s = input.duration() as f64 / f64::from(ffi::AV_TIME_BASE);
        let frames = (stated_s > 0.0).then_some((stated_s * f64::from(rate_hz)) as u64);
        let info = AudioInfo { rate_hz, channels, frames, format };
        Ok(Self { stream: stream.index(), track: Track::new(path, info), input, decoder })
    }

    fn send_packet(&mut self) -> Result<()> {
        let mut packet = Packet::empty();
        match packet.read(&mut self.input) {
            Ok(()) => {}
            Err(FfmpegError::Eof) => {
                return self.decoder.send_eof().map_err(|error| self.track.damaged(error));
            }
            Err(error) => return Err(self.track.damaged(error)),
        }
        let is_ours = packet.stream() == self.stream;
        self.track.accept_packet(is_ours)?;
        if is_ours && let Err(error) = self.decoder.send_packet(&packet) {
            self.track.hold_damage(error);
        }
        Ok(())
    }

    fn take(&mut self, samples: &frame::Audio, block: &mut Vec<f32>) -> Result<()> {
        if !ffmpeg::append_samples(samples, block) {
            return Err(self.track.damaged(format!("samples of the kind {:?}", samples.format())));
        }
        self.track.accept_samples(samples.rate(), samples.channels().into(), block.len())
    }
}

impl Decoder for FfmpegDecoder {
    fn info(&self) -> &AudioInfo {
        &self.track.info
    }

    fn next_block(&mut self, block: &mut Vec<f32>) -> Result<bool> {
        for _ in 0..PACKETS_PER_BLOCK {
            let mut samples = frame::Audio::empty();
            match self.decoder.receive_frame(&mut samples) {
                Ok(()) => {
                    self.take(&samples, block)?;
                    break;
                }
                Err(FfmpegError::Eof) => return self.track.end().map(|()| false),
                Err(FfmpegError::Other { errno: EAGAIN }) => self.send_packet()?,
                Err(error) => self.track.hold_damage(error),
            }
        }
        Ok(true)
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.track.notes)
    }
}
