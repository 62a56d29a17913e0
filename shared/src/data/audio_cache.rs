//! Utterances as samples, from memory where they fit.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::Utterance;
use crate::limits::Limits;
use crate::media::audio;
use crate::{Error, Result};

/// 16-bit samples of full scale 1, rounded and, outside the range, clipped.
pub fn to_i16(samples: &[f32]) -> Vec<i16> {
    // The conversion saturates.
    samples.iter().map(|sample| (sample * 32_768.0).round() as i16).collect()
}

/// Samples of full scale 1 from 16-bit ones.
pub fn to_f32(samples: &[i16]) -> Vec<f32> {
    samples.iter().map(|&sample| f32::from(sample) / 32_768.0).collect()
}

/// The samples of an utterance: one channel (the mean of all), at `rate_hz`, full scale 1.
///
/// # Errors
/// Those of [`audio::read`], and [`Error::Media`] for a part that begins after the recording's end.
pub fn read_utterance(utterance: &Utterance, rate_hz: u32, limits: &Limits) -> Result<Vec<f32>> {
    let recording = read_recording(&utterance.path, rate_hz, limits)?;
    Ok(part(utterance, &recording, rate_hz)?.to_vec())
}

fn read_recording(path: &Path, rate_hz: u32, limits: &Limits) -> Result<Vec<f32>> {
    Ok(audio::read(path, limits)?.mono().resampled(rate_hz)?.samples)
}

/// The part of `recording` that is the utterance. An end after the recording's is moved there.
fn part<'a>(utterance: &Utterance, recording: &'a [f32], rate_hz: u32) -> Result<&'a [f32]> {
    let Some(start_s) = utterance.start_s else { return Ok(recording) };
    let place = |seconds: f64| (seconds * f64::from(rate_hz)).round() as usize;
    let start = place(start_s);
    if start >= recording.len() {
        let length_s = recording.len() as f64 / f64::from(rate_hz);
        return Err(Error::media(
            &utterance.path,
            format!(
                "utterance `{}` begins at {start_s} s, after the recording's end at {length_s} s",
                utterance.id
            ),
        ));
    }
    let end =
        utterance.duration_s.map_or(recording.len(), |duration_s| place(start_s + duration_s));
    Ok(recording.get(start..end.clamp(start, recording.len())).unwrap_or_default())
}

/// Utterances decoded once and kept in memory, two bytes a sample, up to a limit; those beyond are
/// decoded from their files each time. Both ways give the same samples.
#[derive(Debug)]
pub struct AudioCache {
    utterances: Vec<Utterance>,
    rate_hz: u32,
    limits: Limits,
    entries: Vec<Entry>,
}

/// Utterances of a recording that could not be read.
#[derive(Debug)]
pub struct ReadFailure {
    /// Their numbers.
    pub utterances: Vec<usize>,
    /// Why.
    pub error: Error,
}

#[derive(Clone, Debug)]
enum Entry {
    InMemory(Vec<i16>),
    /// Number of samples of an utterance that did not fit.
    OnDisk(usize),
    Unreadable,
}

impl AudioCache {
    /// Decodes all utterances, on all threads, as single channels at `rate_hz`, and keeps at most
    /// `memory_bytes` of them. Returns it with what could not be read.
    pub fn new(
        utterances: Vec<Utterance>,
        rate_hz: u32,
        memory_bytes: u64,
        limits: &Limits,
    ) -> (Self, Vec<ReadFailure>) {
        // Parts of one recording are cut from one decoding of it.
        let mut parts: BTreeMap<&Path, Vec<(usize, &Utterance)>> = BTreeMap::new();
        for (index, utterance) in utterances.iter().enumerate() {
            parts.entry(&utterance.path).or_default().push((index, utterance));
        }
        let used_bytes = AtomicU64::new(0);
        let keep = |samples: &[f32]| {
            let bytes = 2 * samples.len() as u64;
            if used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= memory_bytes {
                return Entry::InMemory(to_i16(samples));
            }
            used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            Entry::OnDisk(samples.len())
        };
        let parts: Vec<(&Path, Vec<(usize, &Utterance)>)> = parts.into_iter().collect();
        let read: Vec<Result<(usize, Entry), ReadFailure>> = parts
            .into_par_iter()
            .flat_map_iter(|(path, parts)| match read_recording(path, rate_hz, limits) {
                Ok(recording) => parts
                    .into_iter()
                    .map(|(index, utterance)| match part(utterance, &recording, rate_hz) {
                        Ok(samples) => Ok((index, keep(samples))),
                        Err(error) => Err(ReadFailure { utterances: vec![index], error }),
                    })
                    .collect(),
                Err(error) => {
                    let utterances = parts.into_iter().map(|(index, _)| index).collect();
                    vec![Err(ReadFailure { utterances, error })]
                }
            })
            .collect();
        let mut entries = vec![Entry::Unreadable; utterances.len()];
        let mut failures = Vec::new();
        for result in read {
            match result {
                Ok((index, entry)) => {
                    if let Some(place) = entries.get_mut(index) {
                        *place = entry;
                    }
                }
                Err(failure) => failures.push(failure),
            }
        }
        failures.sort_by(|a, b| a.utterances.cmp(&b.utterances));
        (Self { utterances, rate_hz, limits: limits.clone(), entries }, failures)
    }

    /// Number of utterances, those included that could not be read.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no utterances.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The utterances, in the order given.
    pub fn utterances(&self) -> &[Utterance] {
        &self.utterances
    }

    /// Sampling rate of all samples in Hz.
    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// Number of samples of an utterance; `None` if it could not be read or does not exist.
    pub fn samples_of(&self, index: usize) -> Option<usize> {
        match self.entries.get(index)? {
            Entry::InMemory(samples) => Some(samples.len()),
            Entry::OnDisk(samples) => Some(*samples),
            Entry::Unreadable => None,
        }
    }

    /// The samples of an utterance.
    ///
    /// # Errors
    /// Those of [`read_utterance`] for an utterance that is not in memory; [`Error::Argument`] when
    /// there is no utterance `index`.
    pub fn read(&self, index: usize) -> Result<Cow<'_, [i16]>> {
        match (self.entries.get(index), self.utterances.get(index)) {
            (Some(Entry::InMemory(samples)), _) => Ok(Cow::Borrowed(samples)),
            (Some(_), Some(utterance)) => {
                let samples = read_utterance(utterance, self.rate_hz, &self.limits)?;
                Ok(Cow::Owned(to_i16(&samples)))
            }
            _ => Err(Error::Argument(format!("no utterance {index} of {}", self.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::audio::{Waveform, write_wav};

    fn utterance(path: &Path, id: &str, part: Option<(f64, Option<f64>)>) -> Utterance {
        Utterance {
            id: id.into(),
            path: path.into(),
            start_s: part.map(|(start_s, _)| start_s),
            duration_s: part.and_then(|(_, duration_s)| duration_s),
            ..Utterance::default()
        }
    }

    #[test]
    fn sixteen_bits_round_and_clip() {
        let samples = [0.0, 1.0, -1.0, 2.0, -2.0, 1.4 / 32_768.0, 1.6 / 32_768.0, f32::NAN];
        assert_eq!(to_i16(&samples), [0, 32_767, -32_768, 32_767, -32_768, 1, 2, 0]);
        let all: Vec<i16> = (i16::MIN..=i16::MAX).collect();
        assert_eq!(to_i16(&to_f32(&all)), all);
    }

    #[test]
    fn memory_and_disk_give_the_same_samples() {
        let folder = tempfile::tempdir().unwrap();
        let (long, short, bad) =
            (folder.path().join("a.wav"), folder.path().join("b.wav"), folder.path().join("c.wav"));
        // Two channels whose mean is a ramp of exact 16-bit values.
        let ramp: Vec<i16> = (0..1000).map(|i| i * 8).collect();
        let stereo = ramp.iter().flat_map(|&v| to_f32(&[v + 4, v - 4])).collect();
        write_wav(&long, &Waveform { samples: stereo, rate_hz: 8000, channels: 2 }, false).unwrap();
        write_wav(&short, &Waveform::from_mono(to_f32(&ramp[..10]), 8000), false).unwrap();
        std::fs::write(&bad, "RIFF").unwrap();
        let utterances = vec![
            utterance(&long, "whole", None),
            utterance(&short, "short", None),
            utterance(&long, "part", Some((0.05, Some(0.025)))),
            utterance(&bad, "bad1", None),
            utterance(&bad, "bad2", Some((0.0, None))),
            utterance(&long, "end", Some((0.1, Some(7.0)))),
            utterance(&long, "rest", Some((0.1, None))),
            utterance(&long, "beyond", Some((0.125, None))),
        ];
        let want = [&ramp[..], &ramp[..10], &ramp[400..600], &[], &[], &ramp[800..], &ramp[800..]];
        for memory_bytes in [0, 2100, u64::MAX] {
            let (cache, failures) =
                AudioCache::new(utterances.clone(), 8000, memory_bytes, &Limits::default());
            let failed: Vec<_> = failures.iter().map(|f| f.utterances.clone()).collect();
            assert_eq!(failed, [vec![3, 4], vec![7]]);
            assert!(failures[1].error.to_string().contains("`beyond` begins at 0.125 s"));
            for index in [0, 1, 2, 5, 6] {
                assert_eq!(*cache.read(index).unwrap(), *want[index], "{index} {memory_bytes}");
                assert_eq!(cache.samples_of(index), Some(want[index].len()));
            }
            for index in [3, 4, 7, 8] {
                assert!(cache.read(index).is_err());
                assert_eq!(cache.samples_of(index), None);
            }
        }
    }

    #[test]
    fn other_rates_are_converted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        write_wav(&path, &Waveform::from_mono(vec![0.25; 800], 8000), false).unwrap();
        let samples =
            read_utterance(&utterance(&path, "a", None), 16_000, &Limits::default()).unwrap();
        assert_eq!(samples.len(), 1600);
        assert!((samples[800] - 0.25).abs() < 1e-3);
    }
}
