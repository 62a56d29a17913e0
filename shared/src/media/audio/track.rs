//! What the decoders of packets keep account of.

use std::path::{Path, PathBuf};

use crate::media::audio::reader::AudioInfo;
use crate::{Error, Result};

/// Packets read in a row without a sample before the file is given up. Hours of video without
/// sound stay below.
const MOST_SILENT_PACKETS: usize = 1 << 22;

/// A stated length that is too great by no more than this goes without a note: some containers
/// count the padding of the last packet.
const LARGEST_PADDING_FRAMES: u64 = 8192;

/// An audio track being decoded.
pub(super) struct Track {
    pub(super) path: PathBuf,
    /// Complete from the first samples on: headers may lack the rate and the channels, or have
    /// them wrong.
    pub(super) info: AudioInfo,
    /// Frames decoded so far.
    pub(super) frames: u64,
    pub(super) notes: Vec<String>,
    silent_packets: usize,
    /// The error of a packet that may turn out to be the last.
    damage: Option<Error>,
}

impl Track {
    pub(super) fn new(path: &Path, info: AudioInfo) -> Self {
        Self {
            path: path.to_path_buf(),
            info,
            frames: 0,
            notes: vec![],
            silent_packets: 0,
            damage: None,
        }
    }

    /// The time up to which samples were decoded.
    pub(super) fn time_s(&self) -> f64 {
        self.frames as f64 / f64::from(self.info.rate_hz.max(1))
    }

    /// The error for what went wrong at this time.
    pub(super) fn damaged(&self, what: impl std::fmt::Display) -> Error {
        Error::media(&self.path, format!("damaged at {:.3} s: {what}", self.time_s()))
    }

    /// Keeps an error back in case that it concerns the end of a file that was cut off.
    pub(super) fn hold_damage(&mut self, what: impl std::fmt::Display) {
        self.damage = Some(self.damaged(what));
    }

    /// Accounts for a packet of this or another track.
    ///
    /// # Errors
    /// The damage of the packet before, and [`Error::Media`] after too many packets in vain.
    pub(super) fn accept_packet(&mut self, is_ours: bool) -> Result<()> {
        self.silent_packets += 1;
        if self.silent_packets > MOST_SILENT_PACKETS {
            return Err(self.damaged("no more sound, without end"));
        }
        match self.damage.take() {
            Some(damage) if is_ours => Err(damage),
            damage => {
                self.damage = damage;
                Ok(())
            }
        }
    }

    /// Accounts for decoded samples and takes their form from the first.
    ///
    /// # Errors
    /// [`Error::Media`] when they are of another form than those before.
    pub(super) fn accept_samples(
        &mut self,
        rate_hz: u32,
        channels: usize,
        samples: usize,
    ) -> Result<()> {
        let (rate_before_hz, channels_before) = (self.info.rate_hz, self.info.channels);
        if self.frames == 0 {
            (self.info.rate_hz, self.info.channels) = (rate_hz, channels);
        } else if (rate_hz, channels) != (rate_before_hz, channels_before) {
            let reason = format!(
                "changes from {channels_before} channels at {rate_before_hz} Hz to {channels} at \
                 {rate_hz} Hz after {:.3} s; convert it to one form first",
                self.time_s()
            );
            return Err(Error::media(&self.path, reason));
        }
        self.frames += samples.checked_div(channels).unwrap_or(0) as u64;
        self.silent_packets = 0;
        Ok(())
    }

    /// Notes what is left to say at the end.
    ///
    /// # Errors
    /// The damage of the last packet when nothing could be decoded.
    pub(super) fn end(&mut self) -> Result<()> {
        let time_s = self.time_s();
        match self.damage.take() {
            Some(damage) if self.frames == 0 => return Err(damage),
            Some(_) => self
                .notes
                .push(format!("the last packet, at {time_s:.3} s, is damaged and was dropped")),
            None => {}
        }
        let stated = self.info.frames.unwrap_or(0);
        if stated > self.frames + LARGEST_PADDING_FRAMES {
            let stated_s = stated as f64 / f64::from(self.info.rate_hz.max(1));
            self.notes.push(format!("the header states {stated_s:.3} s; there are {time_s:.3} s"));
        }
        Ok(())
    }
}
