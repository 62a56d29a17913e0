//! Compressed audio and containers, through symphonia.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;

use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::well_known::{FORMAT_ID_FLAC, FORMAT_ID_OGG};
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream, ReadOnlySource};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;
use symphonia::default::{get_codecs, get_probe};

use crate::limits::Limits;
use crate::media::audio::reader::{AudioInfo, Decoder, check_limits};
use crate::media::audio::track::Track;
use crate::media::audio::trim::{self, Trim};
use crate::{Error, Result};

/// Packets read in one go before saying that the file is still being read.
const PACKETS_PER_BLOCK: usize = 256;
/// What came of opening a file.
pub(super) enum Opening {
    Ready(Box<ContainerDecoder>),
    /// Neither damaged nor known; why, as the end of a sentence on the file.
    Unsupported(String),
}

/// A decoder of one audio track.
pub(super) struct ContainerDecoder {
    reader: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track_id: u32,
    track: Track,
    trim: Trim,
    /// Where the next packet should start, in formats that count frames exactly.
    next_start: Option<i64>,
}

impl ContainerDecoder {
    /// A decoder for the default audio track, or else the first.
    pub(super) fn open(path: &Path, file: &File, limits: &Limits) -> Result<Opening> {
        let (reader, notes) = match probe(path, file)? {
            Probed::Known(reader, notes) => (reader, notes),
            Probed::Unknown(reason) => return Ok(Opening::Unsupported(reason)),
        };
        let chosen = reader.default_track(TrackType::Audio);
        let chosen = chosen.or_else(|| reader.first_track(TrackType::Audio));
        let parameters = chosen
            .and_then(|track| track.codec_params.as_ref())
            .and_then(|parameters| parameters.audio());
        let (Some(chosen), Some(parameters)) = (chosen, parameters) else {
            return Ok(Opening::Unsupported("has no audio track of a known kind".into()));
        };
        let channels = parameters.channels.as_ref().map(|channels| channels.count());
        check_limits(path, parameters.sample_rate.unwrap_or(1), channels.unwrap_or(1), limits)?;
        let Some(codec) = get_codecs().get_audio_decoder(parameters.codec) else {
            let name = if parameters.codec == CODEC_ID_OPUS { "Opus" } else { "of unknown codec" };
            return Ok(Opening::Unsupported(format!("has audio that cannot be decoded: {name}")));
        };
        let decoder = match (codec.factory)(parameters, &AudioDecoderOptions::default()) {
            Ok(decoder) => decoder,
            Err(SymphoniaError::Unsupported(what)) => {
                let reason = format!("has audio of a kind that cannot be decoded: {what}");
                return Ok(Opening::Unsupported(reason));
            }
            Err(error) => return Err(failed(path, error)),
        };
        let container = reader.format_info();
        let mut track = Track::new(
            path,
            AudioInfo {
                rate_hz: parameters.sample_rate.unwrap_or(0),
                channels: channels.unwrap_or(0),
                // Fragmented files state 0.
                frames: chosen.num_frames.filter(|&frames| frames > 0),
                format: format!("{}, {}", container.long_name, codec.codec.info.long_name),
            },
        );
        track.notes = notes;
        let counts_frames = [FORMAT_ID_FLAC, FORMAT_ID_OGG].contains(&container.format);
        Ok(Opening::Ready(Box::new(Self {
            track_id: chosen.id,
            track,
            trim: trim::stated(file, container.format, chosen),
            // Nothing is expected of the first packet.
            next_start: counts_frames.then_some(i64::MAX),
            reader,
            decoder,
        })))
    }

    /// Checks that no frames are missing before a packet.
    fn check_start(&mut self, packet: &Packet) -> Result<()> {
        let Some(expected) = &mut self.next_start else { return Ok(()) };
        let start = packet.pts.get();
        let missing = start.saturating_sub(*expected);
        if missing > 0 {
            let what = format!("{missing} samples of each channel are missing");
            return Err(self.track.damaged(what));
        }
        let length = i64::try_from(packet.block_dur().get()).unwrap_or(i64::MAX);
        *expected = start.saturating_add(length);
        Ok(())
    }

    fn decode(&mut self, packet: &Packet, block: &mut Vec<f32>) -> Result<()> {
        let decoded = self.decoder.decode(packet).map(|samples| {
            samples.copy_to_vec_interleaved(block);
            (samples.spec().rate(), samples.spec().channels().count())
        });
        match decoded {
            Ok(_) if block.is_empty() => {}
            Ok((rate_hz, channels)) => {
                let first = self.track.frames;
                self.track.accept_samples(rate_hz, channels, block.len())?;
                if first == 0 {
                    self.track.info.frames = self.trim.frames(rate_hz).or(self.track.info.frames);
                }
                self.trim.apply(first, block, rate_hz, channels);
            }
            Err(SymphoniaError::DecodeError(what)) => self.track.hold_damage(what),
            Err(SymphoniaError::IoError(error)) => self.track.hold_damage(error),
            Err(error) => return Err(self.track.damaged(error)),
        }
        Ok(())
    }

    /// What is left to say at the end.
    fn end(&mut self) -> Result<()> {
        let has_no_end = self.reader.format_info().format == FORMAT_ID_OGG
            && self.track.info.frames.is_none()
            && self.track.notes.is_empty();
        if has_no_end {
            self.track.notes.push("the end of the file is missing or damaged".into());
        }
        self.track.end()
    }
}

impl Decoder for ContainerDecoder {
    fn info(&self) -> &AudioInfo {
        &self.track.info
    }

    fn next_block(&mut self, block: &mut Vec<f32>) -> Result<bool> {
        for _ in 0..PACKETS_PER_BLOCK {
            let packet = match self.reader.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return self.end().map(|()| false),
                Err(SymphoniaError::IoError(error)) if is_end_of_file(&error) => {
                    let note = format!("the file is cut off after {:.3} s", self.track.time_s());
                    self.track.notes.push(note);
                    return self.end().map(|()| false);
                }
                Err(SymphoniaError::IoError(error)) => {
                    return Err(Error::io(&self.track.path)(error));
                }
                Err(error) => return Err(self.track.damaged(error)),
            };
            let is_ours = packet.track_id == self.track_id;
            self.track.accept_packet(is_ours)?;
            if is_ours {
                self.check_start(&packet)?;
                self.decode(&packet, block)?;
            }
            if !block.is_empty() {
                break;
            }
        }
        Ok(true)
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.track.notes)
    }
}

enum Probed {
    Known(Box<dyn FormatReader>, Vec<String>),
    Unknown(String),
}

/// Finds the container by the content of the file.
fn probe(path: &Path, file: &File) -> Result<Probed> {
    let error = match probe_source(path, file, |file| Box::new(file))? {
        Ok(reader) => return Ok(Probed::Known(reader, vec![])),
        Err(error) => error,
    };
    // As a stream of unknown length, files can be read that are shorter than their header says.
    if let Ok(reader) = probe_source(path, file, |file| Box::new(ReadOnlySource::new(file)))? {
        let note = "the header does not fit the length of the file; read as far as it goes";
        return Ok(Probed::Known(reader, vec![note.into()]));
    }
    match error {
        SymphoniaError::Unsupported(what) => {
            // Where no container was recognised at all there is nothing to add.
            let detail = if what.starts_with("core") { "".into() } else { format!(" ({what})") };
            Ok(Probed::Unknown(format!("is in no known audio format{detail}")))
        }
        error => Err(failed(path, error)),
    }
}

fn probe_source(
    path: &Path,
    file: &File,
    source: impl FnOnce(File) -> Box<dyn MediaSource>,
) -> Result<Result<Box<dyn FormatReader>, SymphoniaError>> {
    let mut file = file.try_clone().map_err(Error::io(path))?;
    file.rewind().map_err(Error::io(path))?;
    let stream = MediaSourceStream::new(source(file), Default::default());
    let (format, metadata) = (FormatOptions::default(), MetadataOptions::default());
    Ok(get_probe().probe(&Hint::new(), stream, format, metadata))
}

fn is_end_of_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// The error for a file that could not be opened.
fn failed(path: &Path, error: SymphoniaError) -> Error {
    match error {
        SymphoniaError::IoError(error) if is_end_of_file(&error) => {
            Error::media(path, "is cut off before its first sample")
        }
        SymphoniaError::IoError(error) => Error::io(path)(error),
        SymphoniaError::DecodeError(what) => Error::media(path, format!("is damaged: {what}")),
        error => Error::media(path, format!("cannot be decoded: {error}")),
    }
}
