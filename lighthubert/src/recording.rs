//! Recordings as encoders hear them: one channel at [`RATE_HZ`], in bounded memory.

use std::path::Path;

use shared::data::Utterance;
use shared::limits::Limits;
use shared::media::audio::AudioReader;
use shared::{Error, Result};

use crate::config::RATE_HZ;
use crate::signal::SignalStatistics;

/// What is known of a recording once it was heard to its end.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Of all samples.
    pub statistics: SignalStatistics,
    /// What is odd about the recording, a sentence each.
    pub notes: Vec<String>,
}

impl Survey {
    /// Number of samples.
    pub fn samples(&self) -> usize {
        usize::try_from(self.statistics.samples()).unwrap_or(usize::MAX)
    }

    /// Length in seconds.
    pub fn duration_s(&self) -> f64 {
        self.statistics.samples() as f64 / f64::from(RATE_HZ)
    }
}

/// Listens to an utterance, which may be a part of a recording, without keeping it.
///
/// # Errors
/// Those of [`AudioReader`]; [`Error::Media`] for a part that begins after the recording's end.
pub fn survey(utterance: &Utterance, limits: &Limits) -> Result<Survey> {
    let mut statistics = SignalStatistics::default();
    let mut notes = for_blocks(utterance, limits, |block| {
        statistics.add(block);
        Ok(())
    })?;
    if statistics.samples() > 0 && statistics.is_constant() {
        notes.push(note(&utterance.path, "all samples are the same: there is nothing to hear"));
    }
    Ok(Survey { statistics, notes })
}

/// Gives `take` the samples of an utterance block by block, and returns what is odd about the
/// recording.
///
/// # Errors
/// As [`survey`], and those of `take`.
pub fn for_blocks(
    utterance: &Utterance,
    limits: &Limits,
    mut take: impl FnMut(&[f32]) -> Result<()>,
) -> Result<Vec<String>> {
    let path = &utterance.path;
    let place = |seconds: f64| (seconds * f64::from(RATE_HZ)).round() as usize;
    let start_s = utterance.start_s.unwrap_or(0.0);
    let end = match (utterance.start_s, utterance.duration_s) {
        (Some(start_s), Some(duration_s)) => place(start_s + duration_s),
        _ => usize::MAX,
    };
    let (start, mut position) = (place(start_s), 0);
    let mut reader = AudioReader::open(path, limits)?.into_mono(RATE_HZ)?;
    for block in reader.by_ref() {
        let block = block?;
        let from = start.saturating_sub(position).min(block.len());
        let to = end.saturating_sub(position).min(block.len());
        take(block.get(from..to).unwrap_or_default())?;
        position += block.len();
    }
    if start > 0 && start >= position {
        let length_s = position as f64 / f64::from(RATE_HZ);
        return Err(Error::media(
            path,
            format!("the part begins at {start_s} s, after the recording's end at {length_s} s"),
        ));
    }
    let rate_hz = reader.source().rate_hz();
    let mut notes: Vec<String> = reader.source().notes().iter().map(|it| note(path, it)).collect();
    if rate_hz != RATE_HZ {
        let mut text = format!("resampled from {rate_hz} to {RATE_HZ} Hz");
        if rate_hz < RATE_HZ {
            text += &format!("; there is nothing above {} Hz in it", rate_hz / 2);
        }
        notes.push(note(path, &text));
    }
    Ok(notes)
}

fn note(path: &Path, text: &str) -> String {
    format!("{}: {text}", path.display())
}
