//! Compressed audio and containers, through symphonia.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;
use symphonia::default::{get_codecs, get_probe};

use crate::limits::Limits;
use crate::media::audio::reader::{AudioInfo, Decoder, check_limits};
use crate::{Error, Result};

/// Packets read in a row without a sample before the file is given up. Hours of video without
/// sound stay below.
const MOST_SILENT_PACKETS: usize = 1 << 22;
/// Packets read in one go before saying that the file is still being read.
const PACKETS_PER_BLOCK: usize = 256;

/// A length that is wrong by no more than this goes without a note.
const LARGEST_PADDING_FRAMES: u64 = 8192;

/// What came of opening a file.
pub(super) enum Opening {
    Ready(Box<ContainerDecoder>),
    /// Neither damaged nor known; why, as the end of a sentence on the file.
    Unsupported(&'static str),
}

/// A decoder of one audio track.
pub(super) struct ContainerDecoder {
    path: PathBuf,
    reader: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    info: AudioInfo,
    /// The first samples, decoded to learn the rate and the channels.
    first: Vec<f32>,
    frames: u64,
    silent_packets: usize,
    /// The error of a packet that may turn out to be the last.
    damage: Option<Error>,
    notes: Vec<String>,
}

impl ContainerDecoder {
    /// A decoder for the default audio track, or else the first.
    pub(super) fn open(path: &Path, file: File, limits: &Limits) -> Result<Opening> {
        let stream = MediaSourceStream::new(Box::new(file), MediaSourceStreamOptions::default());
        let (format_options, metadata_options) =
            (FormatOptions::default(), MetadataOptions::default());
        let probed = get_probe().probe(&Hint::new(), stream, format_options, metadata_options);
        let reader = match probed {
            Ok(reader) => reader,
            Err(SymphoniaError::Unsupported(_)) => {
                return Ok(Opening::Unsupported("is in no audio format that is known here"));
            }
            Err(error) => return Err(failed(path, 0.0, error)),
        };
        let Some(track) =
            reader.default_track(TrackType::Audio).or(reader.first_track(TrackType::Audio))
        else {
            return Ok(Opening::Unsupported("has no audio track that is known here"));
        };
        let Some(parameters) = track.codec_params.as_ref().and_then(|params| params.audio()) else {
            return Ok(Opening::Unsupported("has no audio track that is known here"));
        };
        let channels = parameters.channels.as_ref().map(|channels| channels.count());
        check_limits(path, parameters.sample_rate.unwrap_or(1), channels.unwrap_or(1), limits)?;
        let Some(codec) = get_codecs().get_audio_decoder(parameters.codec) else {
            return Ok(Opening::Unsupported(match parameters.codec {
                CODEC_ID_OPUS => "holds Opus audio",
                _ => "holds audio of a codec that is not known here",
            }));
        };
        let info = AudioInfo {
            rate_hz: parameters.sample_rate.unwrap_or(0),
            channels: channels.unwrap_or(0),
            frames: track.num_frames,
            format: format!("{}, {}", reader.format_info().long_name, codec.codec.info.long_name),
        };
        let decoder = (codec.factory)(parameters, &AudioDecoderOptions::default());
        let decoder = match decoder {
            Ok(decoder) => decoder,
            Err(SymphoniaError::Unsupported(_)) => {
                return Ok(Opening::Unsupported("holds audio in a form that is not known here"));
            }
            Err(error) => return Err(failed(path, 0.0, error)),
        };
        let mut opened = Self {
            path: path.to_path_buf(),
            track: track.id,
            reader,
            decoder,
            info,
            first: vec![],
            frames: 0,
            silent_packets: 0,
            damage: None,
            notes: vec![],
        };
        let mut first = vec![];
        while first.is_empty() && opened.read_packets(&mut first)? {}
        opened.first = first;
        Ok(Opening::Ready(Box::new(opened)))
    }

    /// Appends the samples of the next packets, perhaps none; false at the end.
    fn read_packets(&mut self, block: &mut Vec<f32>) -> Result<bool> {
        for _ in 0..PACKETS_PER_BLOCK {
            let packet = match self.reader.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return self.end(),
                Err(SymphoniaError::IoError(error))
                    if error.kind() == io::ErrorKind::UnexpectedEof =>
                {
                    self.notes.push(format!("the file is cut off after {:.3} s", self.time_s()));
                    return self.end();
                }
                Err(error) => return Err(failed(&self.path, self.time_s(), error)),
            };
            self.silent_packets += 1;
            if self.silent_packets > MOST_SILENT_PACKETS {
                let reason = format!("no more sound from {:.3} s on, without end", self.time_s());
                return Err(Error::media(&self.path, reason));
            }
            if packet.track_id == self.track {
                if let Some(damage) = self.damage.take() {
                    return Err(damage);
                }
                self.decode(&packet, block)?;
            }
            if !block.is_empty() {
                self.silent_packets = 0;
                break;
            }
        }
        Ok(true)
    }

    fn decode(&mut self, packet: &Packet, block: &mut Vec<f32>) -> Result<()> {
        let time_s = self.time_s();
        let buffer = match self.decoder.decode(packet) {
            Ok(buffer) => buffer,
            Err(error @ (SymphoniaError::DecodeError(_) | SymphoniaError::IoError(_))) => {
                self.damage = Some(failed(&self.path, time_s, error));
                return Ok(());
            }
            Err(error) => return Err(failed(&self.path, time_s, error)),
        };
        if buffer.frames() == 0 {
            return Ok(());
        }
        let (rate_hz, channels) = (buffer.spec().rate(), buffer.spec().channels().count());
        if self.frames == 0 {
            // The header may lack the rate and the channels, or have them wrong.
            (self.info.rate_hz, self.info.channels) = (rate_hz, channels);
        } else if (rate_hz, channels) != (self.info.rate_hz, self.info.channels) {
            let (rate_before_hz, channels_before) = (self.info.rate_hz, self.info.channels);
            return Err(Error::media(
                &self.path,
                format!(
                    "changes from {channels_before} channels at {rate_before_hz} Hz to {channels} \
                     at {rate_hz} Hz at {time_s:.3} s; convert it to one form first"
                ),
            ));
        }
        buffer.copy_to_vec_interleaved(block);
        self.frames += (block.len() / channels) as u64;
        Ok(())
    }

    /// What is left to say at the end; always false.
    fn end(&mut self) -> Result<bool> {
        let time_s = self.time_s();
        if let Some(damage) = self.damage.take() {
            if self.frames == 0 {
                return Err(damage);
            }
            self.notes
                .push(format!("the last packet, at {time_s:.3} s, is damaged and was dropped"));
        }
        // Some containers count the padding of the last packet.
        let least = self.frames + LARGEST_PADDING_FRAMES;
        if let Some(stated) = self.info.frames.filter(|&stated| stated > least) {
            let stated_s = stated as f64 / f64::from(self.info.rate_hz.max(1));
            self.notes.push(format!("the header states {stated_s:.3} s; there are {time_s:.3} s"));
        }
        Ok(false)
    }

    /// The time up to which samples were decoded.
    fn time_s(&self) -> f64 {
        self.frames as f64 / f64::from(self.info.rate_hz.max(1))
    }
}

impl Decoder for ContainerDecoder {
    fn info(&self) -> &AudioInfo {
        &self.info
    }

    fn next_block(&mut self, block: &mut Vec<f32>) -> Result<bool> {
        if self.first.is_empty() {
            return self.read_packets(block);
        }
        *block = std::mem::take(&mut self.first);
        Ok(true)
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

fn failed(path: &Path, time_s: f64, error: SymphoniaError) -> Error {
    match error {
        SymphoniaError::IoError(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Error::io(path)(error)
        }
        SymphoniaError::IoError(_) => {
            Error::media(path, format!("the file is cut off after {time_s:.3} s"))
        }
        error => Error::media(path, format!("cannot be decoded at {time_s:.3} s: {error}")),
    }
}
