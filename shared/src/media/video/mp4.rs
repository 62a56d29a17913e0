//! Writing MP4 files: H.264 and AAC.

use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ffmpeg_next::codec::{Context, Flags as CodecFlags, Id};
use ffmpeg_next::ffi::EAGAIN;
use ffmpeg_next::format::context::{Output, StreamIo};
use ffmpeg_next::format::{Pixel, Sample, output_to_stream, sample};
use ffmpeg_next::software::scaling;
use ffmpeg_next::{
    ChannelLayout, Dictionary, Error as FfmpegError, Frame, Packet, color, encoder, frame,
};

use crate::files::write_atomic;
use crate::media::audio::Waveform;
use crate::media::ffmpeg;
use crate::media::image::Frames;
use crate::{Error, Result};

/// Encoders of H.264 by their names in FFmpeg, best first.
const H264_ENCODERS: [&str; 2] = ["libx264", "libopenh264"];
/// Constant rate factor of x264: visually without loss, at the sizes that are generated.
const QUALITY: &str = "14";
/// Bits a second of the sound per channel; AAC allows 6 per sample.
const SOUND_BITS: usize = 96_000;

/// The encoder of H.264 that is used here, if FFmpeg's libraries have one.
pub fn h264_encoder() -> Option<String> {
    ffmpeg_next::init().ok()?;
    let codec = H264_ENCODERS.iter().find_map(|name| encoder::find_by_name(name));
    codec.or_else(|| encoder::find(Id::H264)).map(|codec| codec.name().to_owned())
}

/// Writes `frames`, of which `fps` are shown a second, and their sound as an MP4 file of H.264
/// (4:2:0) and AAC, with a comment. Both streams have the exact length: the samples that AAC needs
/// before the first are marked as such. The same input gives the same bytes on the same machine.
///
/// The file appears whole or not at all, see [`crate::files::OutputFile`].
///
/// # Errors
/// [`Error::Argument`] for frames of odd sides, for sound that differs from the picture by a frame
/// or more, and where FFmpeg's libraries have no encoder of H.264; [`Error::NonFinite`] for NaN and
/// infinite samples; [`Error::Exists`] when the file is there and `force` is not given;
/// [`Error::Io`].
pub fn write_mp4(
    path: &Path,
    frames: &Frames,
    fps: u32,
    sound: Option<&Waveform>,
    comment: &str,
    force: bool,
) -> Result<()> {
    check(path, frames, fps, sound)?;
    ffmpeg::prepare(path)?;
    let failed = |error| Error::media(path, format!("cannot be encoded as MP4: {error}"));
    let bytes = encode(frames, fps, sound, comment).map_err(failed)?;
    write_atomic(path, force, |file| file.write_all(&bytes))
}

fn check(path: &Path, frames: &Frames, fps: u32, sound: Option<&Waveform>) -> Result<()> {
    let refused = |reason: String| Err(Error::Argument(format!("{}: {reason}", path.display())));
    let (width, height) = (frames.width(), frames.height());
    if width % 2 + height % 2 > 0 || width.max(height) > 1 << 14 {
        return refused(format!(
            "{width} x {height} pixels cannot be stored in an MP4 file: both sides must be even \
             and at most {}; write a GIF file instead",
            1 << 14
        ));
    }
    if !(1..=1000).contains(&fps) {
        return refused(format!("{fps} frames a second cannot be stored in an MP4 file"));
    }
    if let Some(sound) = sound {
        sound.check_finite(&path.display().to_string())?;
        let picture_s = frames.count() as f64 / f64::from(fps);
        let sound_s = sound.duration_s();
        if (sound_s - picture_s).abs() >= 1.0 / f64::from(fps) {
            return refused(format!(
                "{picture_s:.3} s of picture and {sound_s:.3} s of sound do not belong together"
            ));
        }
    }
    if h264_encoder().is_none() {
        return refused(
            "FFmpeg's libraries here have no encoder of H.264, which MP4 files need; install one \
             with libx264 (samples/setup.sh), or write a GIF file instead"
                .into(),
        );
    }
    Ok(())
}

fn encode(
    frames: &Frames,
    fps: u32,
    sound: Option<&Waveform>,
    comment: &str,
) -> std::result::Result<Vec<u8>, FfmpegError> {
    let file = Memory::default();
    let mut output = output_to_stream(StreamIo::from_write_seek(file.clone())?, None, Some("mp4"))?;
    let mut picture = Stream::new(&mut output, video_encoder(frames, fps)?.0.0)?;
    let mut track = match sound {
        Some(sound) => {
            let encoder = audio_encoder(sound)?;
            let frame_samples = encoder.frame_size() as usize;
            Some((Stream::new(&mut output, encoder.0.0)?, sound, frame_samples))
        }
        None => None,
    };
    let mut metadata = Dictionary::new();
    metadata.set("comment", comment);
    output.set_metadata(metadata);
    let mut options = Dictionary::new();
    // The unit of time of the file as a whole, in which both streams have whole lengths.
    let ticks_per_second = sound.map_or(1000 * fps, |sound| sound.rate_hz);
    options.set("movie_timescale", &ticks_per_second.to_string());
    options.set("fflags", "+bitexact");
    output.write_header_with(options)?;
    let mut converter = converter(frames)?;
    let mut chunks = track.as_ref().map(|(_, sound, samples)| Chunks::new(sound, *samples));
    for (index, pixels) in frames.iter().enumerate() {
        let frame = video_frame(frames, pixels, index, &mut converter)?;
        picture.send(Some(&frame), &mut output)?;
        let time_s = (index + 1) as f64 / f64::from(fps);
        if let (Some((stream, ..)), Some(chunks)) = (&mut track, &mut chunks) {
            while let Some(chunk) = chunks.next_before(time_s) {
                stream.send(Some(&chunk), &mut output)?;
            }
        }
    }
    picture.send(None, &mut output)?;
    if let (Some((stream, ..)), Some(chunks)) = (&mut track, &mut chunks) {
        while let Some(chunk) = chunks.next_before(f64::INFINITY) {
            stream.send(Some(&chunk), &mut output)?;
        }
        stream.send(None, &mut output)?;
    }
    output.write_trailer()?;
    // What is still in buffers goes to the memory, too.
    drop(output);
    Ok(file.into_bytes())
}

fn video_encoder(
    frames: &Frames,
    fps: u32,
) -> std::result::Result<encoder::video::Encoder, FfmpegError> {
    let codec = H264_ENCODERS.iter().find_map(|name| encoder::find_by_name(name));
    let codec = codec.or_else(|| encoder::find(Id::H264)).ok_or(FfmpegError::EncoderNotFound)?;
    let mut video = Context::new_with_codec(codec).encoder().video()?;
    video.set_width(frames.width() as u32);
    video.set_height(frames.height() as u32);
    video.set_format(Pixel::YUV420P);
    video.set_time_base((1, fps as i32));
    video.set_frame_rate(Some((fps as i32, 1)));
    // Without frames that are stored out of order, the stream begins at its first frame.
    video.set_max_b_frames(0);
    // What the conversion from RGB does.
    video.set_colorspace(color::Space::SMPTE170M);
    video.set_color_primaries(color::Primaries::BT709);
    video.set_color_transfer_characteristic(color::TransferCharacteristic::BT709);
    video.set_color_range(color::Range::MPEG);
    video.set_flags(CodecFlags::GLOBAL_HEADER | CodecFlags::BITEXACT);
    let mut options = Dictionary::new();
    options.set("crf", QUALITY);
    // The result is not to depend on the number of threads.
    options.set("threads", "1");
    video.open_with(options)
}

fn audio_encoder(sound: &Waveform) -> std::result::Result<encoder::audio::Encoder, FfmpegError> {
    let codec = encoder::find(Id::AAC).ok_or(FfmpegError::EncoderNotFound)?;
    let mut audio = Context::new_with_codec(codec).encoder().audio()?;
    audio.set_rate(sound.rate_hz as i32);
    audio.set_format(Sample::F32(sample::Type::Planar));
    audio.set_channel_layout(ChannelLayout::default(sound.channels as i32));
    audio.set_bit_rate(SOUND_BITS * sound.channels);
    audio.set_time_base((1, sound.rate_hz as i32));
    audio.set_flags(CodecFlags::GLOBAL_HEADER | CodecFlags::BITEXACT);
    audio.open()
}

/// A stream of the file being written.
struct Stream {
    encoder: encoder::Encoder,
    index: usize,
}

impl Stream {
    /// Adds a stream of what `encoder` makes.
    fn new(
        output: &mut Output,
        encoder: encoder::Encoder,
    ) -> std::result::Result<Self, FfmpegError> {
        let mut stream = output.add_stream_with(&encoder)?;
        stream.set_time_base(encoder.time_base());
        Ok(Self { index: stream.index(), encoder })
    }

    /// Encodes a frame, or what is left at the end, and writes the packets that are complete.
    fn send(
        &mut self,
        frame: Option<&Frame>,
        output: &mut Output,
    ) -> std::result::Result<(), FfmpegError> {
        match frame {
            Some(frame) => self.encoder.send_frame(frame)?,
            None => self.encoder.send_eof()?,
        }
        let mut packet = Packet::empty();
        loop {
            match self.encoder.receive_packet(&mut packet) {
                Ok(()) => {}
                Err(FfmpegError::Eof | FfmpegError::Other { errno: EAGAIN }) => return Ok(()),
                Err(error) => return Err(error),
            }
            // Encoders of pictures leave the length out, which is one unit of their time.
            packet.set_duration(packet.duration().max(1));
            let time_base = output.stream(self.index).map(|stream| stream.time_base());
            packet.rescale_ts(self.encoder.time_base(), time_base.ok_or(FfmpegError::Bug)?);
            packet.set_stream(self.index);
            packet.write_interleaved(output)?;
        }
    }
}

fn converter(frames: &Frames) -> std::result::Result<scaling::Context, FfmpegError> {
    let (width, height) = (frames.width() as u32, frames.height() as u32);
    let flags =
        scaling::Flags::BICUBIC | scaling::Flags::ACCURATE_RND | scaling::Flags::FULL_CHR_H_INP;
    scaling::Context::get(Pixel::RGB24, width, height, Pixel::YUV420P, width, height, flags)
}

/// Frame `index` as the encoder takes it.
fn video_frame(
    frames: &Frames,
    pixels: &[u8],
    index: usize,
    converter: &mut scaling::Context,
) -> std::result::Result<frame::Video, FfmpegError> {
    let (width, height) = (frames.width() as u32, frames.height() as u32);
    let mut rgb = frame::Video::new(Pixel::RGB24, width, height);
    let stride = rgb.stride(0).max(1);
    let rows = rgb.data_mut(0).chunks_mut(stride);
    for (row, source) in rows.zip(pixels.chunks_exact(3 * frames.width())) {
        row.iter_mut().zip(source).for_each(|(to, from)| *to = *from);
    }
    let mut converted = frame::Video::empty();
    converter.run(&rgb, &mut converted)?;
    converted.set_pts(Some(index as i64));
    Ok(converted)
}

/// The samples of a sound in portions for the encoder.
struct Chunks<'a> {
    sound: &'a Waveform,
    frame_samples: usize,
    next: usize,
}

impl<'a> Chunks<'a> {
    fn new(sound: &'a Waveform, frame_samples: usize) -> Self {
        Self { sound, frame_samples: frame_samples.max(1), next: 0 }
    }

    /// The next portion, if it begins before `time_s`.
    fn next_before(&mut self, time_s: f64) -> Option<frame::Audio> {
        let Waveform { samples, rate_hz, channels } = self.sound;
        let count = self.frame_samples.min(self.sound.frames().checked_sub(self.next)?);
        if count == 0 || self.next as f64 >= time_s * f64::from(*rate_hz) {
            return None;
        }
        let layout = ChannelLayout::default(*channels as i32);
        let mut chunk = frame::Audio::new(Sample::F32(sample::Type::Planar), count, layout);
        chunk.set_rate(*rate_hz);
        chunk.set_pts(Some(self.next as i64));
        for channel in 0..chunk.planes() {
            let source = samples.iter().skip(self.next * channels + channel).step_by(*channels);
            chunk
                .plane_mut::<f32>(channel)
                .iter_mut()
                .zip(source)
                .for_each(|(to, from)| *to = *from);
        }
        self.next += count;
        Some(chunk)
    }
}

/// A file in memory; clones are the same file.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Cursor<Vec<u8>>>>);

impl Memory {
    fn with<T>(&self, job: impl FnOnce(&mut Cursor<Vec<u8>>) -> T) -> T {
        job(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn into_bytes(self) -> Vec<u8> {
        self.with(|file| std::mem::take(file).into_inner())
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Memory {
    fn seek(&mut self, place: SeekFrom) -> io::Result<u64> {
        self.with(|file| file.seek(place))
    }
}
