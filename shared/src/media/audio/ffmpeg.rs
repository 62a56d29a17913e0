//! Opus, and whatever else symphonia lacks, through FFmpeg's libraries.

use std::fs::File;
use std::io::Seek;
use std::path::Path;

use ffmpeg_next::ffi::{self, EAGAIN};
use ffmpeg_next::format::Sample;
use ffmpeg_next::format::context::{Input, StreamIo};
use ffmpeg_next::{
    Dictionary, Error as FfmpegError, Packet, codec, decoder, format, frame, log, media,
};

use crate::limits::Limits;
use crate::media::audio::reader::{AudioInfo, Decoder, check_limits};
use crate::media::audio::track::Track;
use crate::{Error, Result};

/// The containers that FFmpeg may open: none that point to other files or to the network.
const CONTAINERS: &str = "ogg,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,asf,flv,mpegts,mpeg,aac,\
                          ac3,eac3,dts,amr,mp3,flac,wav,w64,aiff,au,caf,ape,wv,tta,tak,mpc,mpc8,rm";
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
    pub(super) fn open(path: &Path, mut file: File, limits: &Limits) -> Result<Self> {
        file.rewind().map_err(Error::io(path))?;
        let unknown = |error| {
            Error::media(path, format!("is in no known audio format, by FFmpeg neither: {error}"))
        };
        ffmpeg_next::init().map_err(unknown)?;
        // What FFmpeg would print is in the errors.
        log::set_level(log::Level::Quiet);
        let mut options = Dictionary::new();
        options.set("format_whitelist", CONTAINERS);
        options.set("protocol_whitelist", "file");
        let source = StreamIo::from_read_seek(file).map_err(unknown)?;
        let input = format::input_from_stream(source, None, Some(options)).map_err(unknown)?;
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
            other => return Err(self.track.damaged(format!("samples of the kind {other:?}"))),
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
    block.resize(frames * channels, 0.0);
    for channel in 0..samples.planes() {
        let places = block.iter_mut().skip(channel).step_by(channels);
        places.zip(values(channel, frames)).for_each(|(place, value)| *place = value);
    }
}
