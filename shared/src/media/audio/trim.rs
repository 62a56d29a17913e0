//! Which of the decoded samples belong to the sound: encoders put some before it and after it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use symphonia::core::formats::well_known::{FORMAT_ID_CAF, FORMAT_ID_ISOMP4};
use symphonia::core::formats::{FormatId, Track};

/// Boxes looked at in one folder of an MP4 file.
const MOST_BOXES: usize = 4096;

/// A time in a track or movie: ticks, and ticks a second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    count: u64,
    per_second: u64,
}

impl Ticks {
    /// The number of whole frames, rounded to the nearest.
    fn frames(self, rate_hz: u32) -> u64 {
        let scaled = u128::from(self.count) * u128::from(rate_hz);
        let per_second = u128::from(self.per_second.max(1));
        ((scaled + per_second / 2) / per_second) as u64
    }
}

/// The part of a decoded track that is the sound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Trim {
    start: Option<Ticks>,
    length: Option<Ticks>,
}

impl Trim {
    /// Length of the sound in frames, if it is stated.
    pub(super) fn frames(&self, rate_hz: u32) -> Option<u64> {
        self.length.map(|length| length.frames(rate_hz))
    }

    /// Removes what is not of the sound from a block that starts at frame `first` of the track.
    pub(super) fn apply(&self, first: u64, block: &mut Vec<f32>, rate_hz: u32, channels: usize) {
        let frames = (block.len() / channels.max(1)) as u64;
        let start = self.start.map_or(0, |start| start.frames(rate_hz));
        let end = self.frames(rate_hz).map_or(u64::MAX, |frames| start.saturating_add(frames));
        let kept = |bound: u64| bound.saturating_sub(first).min(frames) as usize * channels;
        block.truncate(kept(end));
        block.drain(..kept(start).min(block.len()));
    }
}

/// What the container states and symphonia does not apply by itself.
pub(super) fn stated(file: &File, container: FormatId, track: &Track) -> Trim {
    match container {
        FORMAT_ID_ISOMP4 => edited(file, track).unwrap_or_default(),
        FORMAT_ID_CAF => {
            let per_second = track.time_base.map_or(1, |base| base.denom.get().into());
            let ticks = |count| Ticks { count, per_second };
            Trim {
                start: track.delay.map(|delay| ticks(delay.into())),
                length: track.num_frames.map(ticks),
            }
        }
        _ => Trim::default(),
    }
}

/// The edit of an MP4 track, if it has one that only cuts its ends (ISO/IEC 14496-12, 8.6.6).
fn edited(file: &File, track: &Track) -> Option<Trim> {
    let mut file = file.try_clone().ok()?;
    let place = file.stream_position().ok()?;
    let edit = edit_list(&mut file, track.id);
    // The clone shares its position with the original.
    file.seek(SeekFrom::Start(place)).ok()?;
    let (start, edit_length) = edit.ok()??;
    // The edit's own length is often in coarse ticks; the samples' is exact.
    let ticks_per_second = track.time_base.map(|base| u64::from(base.denom.get()))?;
    let media_length = track
        .duration
        .map(|ticks| ticks.get().saturating_sub(start.count))
        .filter(|&count| count > 0)
        .map(|count| Ticks { count, per_second: ticks_per_second });
    let length = match (media_length, edit_length) {
        (Some(media), Some(edit)) => {
            let slack = edit.count + 1;
            let shorter = u128::from(slack) * u128::from(media.per_second)
                < u128::from(media.count) * u128::from(edit.per_second);
            Some(if shorter { edit } else { media })
        }
        (media, edit) => media.or(edit),
    };
    Some(Trim { start: Some(start), length })
}

/// Start and length of the one edit of track `id`; `None` if there is none, or several.
fn edit_list(file: &mut (impl Read + Seek), id: u32) -> io::Result<Option<(Ticks, Option<Ticks>)>> {
    let end = file.seek(SeekFrom::End(0))?;
    let Some(movie) = find(file, Span { start: 0, end }, b"moov")? else { return Ok(None) };
    let Some(header) = find(file, movie, b"mvhd")? else { return Ok(None) };
    let movie_ticks = full_box_field(file, header, 12, 20, 4)?;
    for (kind, track) in boxes(file, movie)? {
        if kind != *b"trak" {
            continue;
        }
        let Some(header) = find(file, track, b"tkhd")? else { continue };
        if full_box_field(file, header, 12, 20, 4)? != u64::from(id) {
            continue;
        }
        let Some(media) = find(file, track, b"mdia")? else { continue };
        let Some(header) = find(file, media, b"mdhd")? else { continue };
        let media_ticks = full_box_field(file, header, 12, 20, 4)?;
        let Some(edits) = find(file, track, b"edts")? else { continue };
        let Some(list) = find(file, edits, b"elst")? else { continue };
        if full_box_field(file, list, 4, 4, 4)? != 1 {
            return Ok(None);
        }
        let long = full_box_field(file, list, 0, 0, 1)? == 1;
        let width = if long { 8 } else { 4 };
        let length = full_box_field(file, list, 8, 8, width)?;
        let start = full_box_field(file, list, 12, 16, width)?;
        let is_empty_edit = start == if long { u64::MAX } else { u32::MAX.into() };
        if is_empty_edit || media_ticks == 0 {
            return Ok(None);
        }
        let length = Some(Ticks { count: length, per_second: movie_ticks })
            .filter(|length| length.count > 0 && movie_ticks > 0);
        return Ok(Some((Ticks { count: start, per_second: media_ticks }, length)));
    }
    Ok(None)
}

/// The bytes of a box after its header.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

/// The boxes directly inside `folder`.
fn boxes(file: &mut (impl Read + Seek), folder: Span) -> io::Result<Vec<([u8; 4], Span)>> {
    let mut found = vec![];
    let mut start = folder.start;
    while start + 8 <= folder.end && found.len() < MOST_BOXES {
        let length = number(file, start, 4)?;
        let kind = (number(file, start + 4, 4)? as u32).to_be_bytes();
        let (header, length) = match length {
            0 => (8, folder.end - start),
            1 => (16, number(file, start + 8, 8)?),
            length => (8, length),
        };
        let Some(end) = start.checked_add(length).filter(|&end| end <= folder.end) else { break };
        if length < header {
            break;
        }
        found.push((kind, Span { start: start + header, end }));
        start = end;
    }
    Ok(found)
}

fn find(file: &mut (impl Read + Seek), folder: Span, kind: &[u8; 4]) -> io::Result<Option<Span>> {
    Ok(boxes(file, folder)?.into_iter().find(|found| found.0 == *kind).map(|found| found.1))
}

/// A number of `width` bytes in a box that starts with a version, at one of two places after it
/// depending on whether the version is 0 or 1.
fn full_box_field(
    file: &mut (impl Read + Seek),
    span: Span,
    short: u64,
    long: u64,
    width: usize,
) -> io::Result<u64> {
    let version = number(file, span.start, 1)?;
    number(file, span.start + if version == 0 { short } else { long }, width)
}

/// A big-endian number of `width` bytes.
fn number(file: &mut (impl Read + Seek), at: u64, width: usize) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(bytes.get_mut(8_usize.saturating_sub(width)..).unwrap_or_default())?;
    Ok(u64::from_be_bytes(bytes))
}
