//! Reading clips.

use std::fs::File;
use std::path::Path;

use ffmpeg_next::ffi;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::format::stream::Disposition;
use ffmpeg_next::{Error as FfmpegError, Packet, Stream, frame, media};

use super::choice::Choice;
use super::picture::Pictures;
use super::sound::Sound;
use super::track::{Track, seconds};
use super::{ClipOptions, VideoClip};
use crate::files::open_regular;
use crate::limits::Limits;
use crate::media::ffmpeg;
use crate::media::guard::{Outlet, PATIENCE_TICKS, Worker};
use crate::media::image::Frames;
use crate::{Error, Result};

/// Clips that begin later than this are looked for from a key frame on, not from the start.
const NEAR_START_S: f64 = 2.0;
/// Sound is decoded this much longer than the clip at both ends: decoders need some before they are
/// right, and the filter that resamples needs some after.
const SOUND_MARGIN_S: f64 = 0.25;
/// A file is cut off if it lacks more than this of the length that it states.
const LONGEST_MISSING_S: f64 = 0.25;
/// Packets in a row without a frame or sample after which a file is given up.
const MOST_VAIN_PACKETS: usize = 1 << 20;

/// Reads a clip, or a part of one, from the video file at `path`.
///
/// # Errors
/// [`Error::Io`] for what is no readable regular file; [`Error::Media`] for an empty, damaged or cut
/// off file, one in no known format, one with neither picture nor sound, and for a clip that begins
/// after the end; [`Error::Limit`] for one above `limits`; [`Error::Argument`] for options that make
/// no sense.
pub fn read_clip(path: &Path, options: &ClipOptions, limits: &Limits) -> Result<VideoClip> {
    options.check()?;
    let (file, bytes) = open_regular(path)?;
    if bytes == 0 {
        return Err(Error::media(path, "the file is empty"));
    }
    let (work_path, options, limits) = (path.to_path_buf(), options.clone(), limits.clone());
    let mut worker = Worker::start(path, PATIENCE_TICKS, move |outlet| {
        read(&work_path, &file, &options, &limits, outlet)
    })?;
    loop {
        match worker.next()? {
            Some(Progress::Packet) => {}
            Some(Progress::Done(clip)) => return Ok(clip),
            None => return Err(worker.failed("it ended without a result")),
        }
    }
}

/// The comment that a media file holds, if any.
///
/// # Errors
/// As [`read_clip`].
pub fn read_comment(path: &Path) -> Result<Option<String>> {
    let (file, _) = open_regular(path)?;
    let input = ffmpeg::open(path, file, "video")?;
    Ok(input.metadata().get("comment").map(str::to_owned))
}

impl ClipOptions {
    fn check(&self) -> Result<()> {
        let finite = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        let duration_s = self.duration_s.unwrap_or(1.0);
        if !(finite(self.start_s) && finite(duration_s) && duration_s > 0.0 && self.fps > 0) {
            return Err(Error::Argument(format!(
                "cannot take {duration_s} s from {} s on at {} frames a second",
                self.start_s, self.fps
            )));
        }
        Ok(())
    }
}

/// What the decoder's thread reports.
enum Progress {
    /// A sign of life.
    Packet,
    Done(VideoClip),
}

fn read(
    path: &Path,
    file: &File,
    options: &ClipOptions,
    limits: &Limits,
    outlet: &Outlet<Progress>,
) -> Result<()> {
    let open = |may_jump| {
        let file = file.try_clone().map_err(Error::io(path))?;
        Reader::open(path, file, options, limits, may_jump)
    };
    let clip = match open(true)?.read(outlet)? {
        Outcome::Clip(clip) => clip,
        // Some files lead to the wrong place; from the start on all frames come by.
        Outcome::Missed => match open(false)?.read(outlet)? {
            Outcome::Clip(clip) => clip,
            Outcome::Missed => return Err(Error::media(path, "its time stamps make no sense")),
        },
    };
    // Nobody listens any more when this fails.
    let _ = outlet.send(Progress::Done(clip));
    Ok(())
}

enum Outcome {
    Clip(VideoClip),
    /// The place that was gone to lies after the start of the clip.
    Missed,
}

/// A file being read.
struct Reader<'a> {
    path: &'a Path,
    options: &'a ClipOptions,
    limits: &'a Limits,
    input: Input,
    video: Option<(Track, Pictures)>,
    audio: Option<(Track, Sound)>,
    /// Time in the file that counts as 0.
    origin_s: f64,
    /// Whether reading begins elsewhere than at the start.
    is_amid: bool,
    vain_packets: usize,
}

impl<'a> Reader<'a> {
    fn open(
        path: &'a Path,
        file: File,
        options: &'a ClipOptions,
        limits: &'a Limits,
        may_jump: bool,
    ) -> Result<Self> {
        let mut input = ffmpeg::open(path, file, "video")?;
        let is_cover = |stream: &Stream| stream.disposition().contains(Disposition::ATTACHED_PIC);
        let picture = input.streams().best(media::Type::Video).filter(|stream| !is_cover(stream));
        let sound = input.streams().best(media::Type::Audio);
        let Some(leading) = picture.as_ref().or(sound.as_ref()) else {
            return Err(Error::media(path, "has neither picture nor sound"));
        };
        let stated = leading.start_time();
        let is_stated = stated != ffi::AV_NOPTS_VALUE;
        let origin_s = if is_stated { seconds(stated, leading.time_base()) } else { 0.0 };
        let choice = Choice::new(options.start_s, options.fps, options.duration_s);
        let video = match &picture {
            Some(stream) => Some((
                Track::open(path, stream, origin_s, limits)?,
                Pictures::new(stream, choice, options.letterbox),
            )),
            None => None,
        };
        let audio = match &sound {
            Some(stream) => {
                Some((Track::open(path, stream, origin_s, limits)?, Sound::new(options.channel)))
            }
            None => None,
        };
        let place =
            ((options.start_s - SOUND_MARGIN_S + origin_s) * f64::from(ffi::AV_TIME_BASE)) as i64;
        let is_far = is_stated && options.start_s > NEAR_START_S;
        let is_amid = may_jump && is_far && input.seek(place, ..place).is_ok();
        let vain_packets = 0;
        Ok(Self { path, options, limits, input, video, audio, origin_s, is_amid, vain_packets })
    }

    fn read(mut self, outlet: &Outlet<Progress>) -> Result<Outcome> {
        while !self.is_complete() {
            outlet.send(Progress::Packet);
            let mut packet = Packet::empty();
            let is_there = match packet.read(&mut self.input) {
                Ok(()) => self.decode(&packet)?,
                Err(FfmpegError::Eof) => {
                    return match self.drain()? {
                        true => Ok(Outcome::Clip(self.finish(true)?)),
                        false => Ok(Outcome::Missed),
                    };
                }
                Err(error) => {
                    let reason = format!("damaged or cut off at {:.3} s: {error}", self.end_s());
                    return Err(Error::media(self.path, reason));
                }
            };
            if !is_there {
                return Ok(Outcome::Missed);
            }
        }
        Ok(Outcome::Clip(self.finish(false)?))
    }

    /// Whether all that the clip needs has been decoded.
    fn is_complete(&self) -> bool {
        let picture = self.video.as_ref().is_none_or(|(_, pictures)| pictures.is_complete());
        picture && self.is_sound_complete()
    }

    fn is_sound_complete(&self) -> bool {
        let Some(duration_s) = self.options.duration_s else { return self.audio.is_none() };
        let needed_s = self.options.start_s + duration_s + SOUND_MARGIN_S;
        self.audio.as_ref().is_none_or(|(_, sound)| sound.end_s() >= needed_s)
    }

    /// Time up to which anything was decoded.
    fn end_s(&self) -> f64 {
        let picture_s = self.video.as_ref().map_or(0.0, |(track, _)| track.end_s);
        self.audio.as_ref().map_or(0.0, |(_, sound)| sound.end_s()).max(picture_s)
    }

    /// Decodes a packet; false if frames before it are missing.
    fn decode(&mut self, packet: &Packet) -> Result<bool> {
        let end_s = self.end_s();
        if end_s > self.limits.duration_s {
            return Err(Error::Limit {
                path: self.path.to_path_buf(),
                quantity: "duration in seconds",
                actual: end_s.ceil() as u64,
                limit: self.limits.duration_s as u64,
            });
        }
        self.vain_packets += 1;
        if self.vain_packets > MOST_VAIN_PACKETS {
            let reason = format!("damaged at {end_s:.3} s: nothing more to decode, without end");
            return Err(Error::media(self.path, reason));
        }
        let is_sound_complete = self.is_sound_complete();
        if let Some((track, pictures)) = &mut self.video
            && track.index == packet.stream()
            && !pictures.is_complete()
        {
            // After a jump, packets before the first whole frame may refer to what was left out.
            track.send(self.path, Some(packet), self.is_amid && !pictures.has_begun())?;
            return self.take_pictures();
        }
        if let Some((track, _)) = &mut self.audio
            && track.index == packet.stream()
            && !is_sound_complete
        {
            track.send(self.path, Some(packet), self.is_amid)?;
            self.take_sound()?;
        }
        Ok(true)
    }

    /// Decodes what the decoders hold back at the end of the file; false as in `decode`.
    fn drain(&mut self) -> Result<bool> {
        let mut is_there = true;
        if let Some((track, _)) = &mut self.video {
            track.send(self.path, None, false)?;
            is_there = self.take_pictures()?;
        }
        if let Some((track, _)) = &mut self.audio {
            track.send(self.path, None, false)?;
            self.take_sound()?;
        }
        Ok(is_there)
    }

    fn take_pictures(&mut self) -> Result<bool> {
        let Some((track, pictures)) = &mut self.video else { return Ok(true) };
        let mut decoded = frame::Video::empty();
        while track.receive(self.path, &mut decoded)? {
            self.vain_packets = 0;
            let time_s = track.time_s(&decoded).unwrap_or(track.end_s);
            track.end_s = time_s + track.duration_s(&decoded);
            let decoded = std::mem::replace(&mut decoded, frame::Video::empty());
            let is_there = pictures.take(self.path, decoded, time_s, self.limits)?;
            if !is_there && self.is_amid {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn take_sound(&mut self) -> Result<()> {
        let Some((track, sound)) = &mut self.audio else { return Ok(()) };
        let mut decoded = frame::Audio::empty();
        while track.receive(self.path, &mut decoded)? {
            self.vain_packets = 0;
            sound.take(self.path, &decoded, track.time_s(&decoded), self.limits)?;
        }
        Ok(())
    }

    /// The clip from what was decoded, up to the end of the file or as far as needed.
    fn finish(self, at_end: bool) -> Result<VideoClip> {
        let (path, options, end_s) = (self.path, self.options, self.end_s());
        if at_end {
            self.check_whole(end_s)?;
        }
        let has_picture = self.video.is_some();
        let frames = match self.video {
            Some((track, mut pictures)) => {
                if at_end {
                    pictures.end(path, track.end_s, self.limits)?;
                }
                pictures.finish()?
            }
            None => None,
        };
        let (fps, rate_hz) = (options.fps, options.rate_hz);
        let count = frames.as_ref().map(Frames::count);
        let own_s = match count {
            Some(count) => count as f64 / f64::from(fps),
            None => end_s - options.start_s,
        };
        if (has_picture && count.is_none()) || own_s <= 0.0 {
            let reason = match end_s > 0.0 {
                true => format!("ends at {end_s:.2} s, before the clip from {} s", options.start_s),
                false => "has nothing that can be decoded".to_owned(),
            };
            return Err(Error::media(path, reason));
        }
        let samples = (options.duration_s.unwrap_or(own_s) * f64::from(rate_hz)).round() as usize;
        let sound = match self.audio {
            Some((_, sound)) if sound.has_begun() || self.is_amid => {
                Some(sound.cut(path, options.start_s, samples, rate_hz)?)
            }
            _ => None,
        };
        Ok(VideoClip { frames, fps, sound })
    }

    /// Checks that the file goes on to the end that its header states, if it is in a format that
    /// states it exactly: for each stream, or for the file as a whole.
    fn check_whole(&self, end_s: f64) -> Result<()> {
        let format = self.input.format();
        let is = |wanted: &str| format.name().split(',').any(|name| name == wanted);
        let check = |end_s: f64, stated_s: f64| match stated_s > end_s + LONGEST_MISSING_S {
            true => {
                let reason = format!("cut off: it ends at {end_s:.2} s of {stated_s:.2} s");
                Err(Error::media(self.path, reason))
            }
            false => Ok(()),
        };
        if is("mp4") || is("avi") {
            let picture = self.video.as_ref().map(|(track, _)| (track.index, track.end_s));
            let sound = self.audio.as_ref().map(|(track, sound)| (track.index, sound.end_s()));
            for (index, end_s) in picture.into_iter().chain(sound) {
                if let Some(stream) = self.input.stream(index) {
                    check(end_s, seconds(stream.duration(), stream.time_base()))?;
                }
            }
        }
        if is("avi")
            && let Some((track, _)) = &self.video
        {
            // FFmpeg lowers the length to what can be there, but not the number of frames.
            let frames = self.input.stream(track.index).map_or(0, |stream| stream.frames());
            check(track.end_s, frames as f64 * track.usual_frame_s)?;
        }
        if is("matroska") {
            let stated_s = self.input.duration() as f64 / f64::from(ffi::AV_TIME_BASE);
            check(end_s, stated_s - self.origin_s)?;
        }
        Ok(())
    }
}
