//! Which examples are computed together.

use shared::data::augment::Speed;
use shared::rng::Stream;

use super::config::FinetuneConfig;

/// An example to be made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// Decides on everything random about it.
    pub number: u64,
    /// The recording.
    pub recording: usize,
    /// Another that follows.
    pub follower: Option<usize>,
    /// Which of the speeds.
    pub speed: usize,
    /// About its length.
    pub length_s: f64,
}

/// Epochs of batches of examples of similar length, each batch about [`FinetuneConfig::batch_s`] long.
pub(super) struct Batches {
    config: FinetuneConfig,
    speeds: Vec<Speed>,
    /// Recordings and their lengths.
    recordings: Vec<(usize, f64)>,
}

impl Batches {
    pub fn new(config: FinetuneConfig, speeds: Vec<Speed>, recordings: Vec<(usize, f64)>) -> Self {
        Self { config, speeds, recordings }
    }

    /// Number of recordings.
    pub fn count(&self) -> usize {
        self.recordings.len()
    }

    /// Batches in an epoch, the same for all epochs.
    pub fn per_epoch(&self) -> usize {
        let total_s: f64 = self.recordings.iter().map(|(_, length_s)| length_s).sum();
        ((1.0 + self.config.join) * total_s / self.config.batch_s).ceil().max(1.0) as usize
    }

    /// The batches of an epoch; each recording begins one example.
    pub fn of_epoch(&self, epoch: u64) -> Vec<Vec<Plan>> {
        let mut stream = Stream::new(self.config.seed, "fine-tuning epoch", epoch);
        let mut plans: Vec<(f64, Plan)> = vec![];
        for (place, (recording, length_s)) in self.recordings.iter().enumerate() {
            let speed = stream.below(self.speeds.len());
            let mut length_s = *length_s;
            let mut follower = None;
            if self.config.join > 0.0 && stream.uniform() < self.config.join {
                let other = self.recordings.get(stream.below(self.recordings.len()));
                follower = other.filter(|(_, more_s)| length_s + more_s <= self.config.longest_s);
            }
            length_s += follower.map_or(0.0, |(_, more_s)| *more_s);
            length_s /= self.config.speeds.get(speed).copied().unwrap_or(1.0);
            let number = epoch * self.recordings.len() as u64 + place as u64;
            let follower = follower.map(|(recording, _)| *recording);
            let plan = Plan { number, recording: *recording, follower, speed, length_s };
            // Similar, so that little is padding, but not the same neighbours each time.
            plans.push((length_s * (0.95 + 0.1 * stream.uniform()), plan));
        }
        plans.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let total_s: f64 = plans.iter().map(|(_, plan)| plan.length_s).sum();
        let count = self.per_epoch();
        let mut batches = vec![vec![]; count];
        let mut before_s = 0.0;
        for (_, plan) in plans {
            let middle = (before_s + 0.5 * plan.length_s) / total_s;
            before_s += plan.length_s;
            let number = ((middle * count as f64) as usize).min(count - 1);
            if let Some(batch) = batches.get_mut(number) {
                batch.push(plan);
            }
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_examples_of_similar_length_and_every_recording_once() {
        let recordings: Vec<(usize, f64)> =
            (0..300).map(|i| (i + 7, 0.4 + (i * 37 % 100) as f64 / 20.0)).collect();
        let config = FinetuneConfig {
            batch_s: 40.0,
            longest_s: 8.0,
            join: 0.4,
            speeds: vec![0.9, 1.0, 1.1],
            ..FinetuneConfig::default()
        };
        let speeds = config.speeds.iter().map(|speed| Speed::new(*speed).unwrap()).collect();
        let batches = Batches::new(config, speeds, recordings);
        let [first, again, second] = [0, 0, 1].map(|epoch| batches.of_epoch(epoch));
        assert_eq!(first, again);
        assert_ne!(first, second);
        for epoch in [first, second] {
            assert_eq!(epoch.len(), batches.per_epoch());
            let mut seen: Vec<usize> = vec![];
            let (mut used_s, mut padded_s, mut followers) = (0.0, 0.0, 0);
            for batch in &epoch {
                let lengths = || batch.iter().map(|plan| plan.length_s);
                let total_s: f64 = lengths().sum();
                assert!((20.0..60.0).contains(&total_s), "{total_s}");
                used_s += total_s;
                padded_s += lengths().fold(0.0, f64::max) * batch.len() as f64;
                seen.extend(batch.iter().map(|plan| plan.recording));
                followers += batch.iter().filter(|plan| plan.follower.is_some()).count();
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(7..307));
            assert!(padded_s < 1.15 * used_s, "{padded_s} {used_s}");
            assert!((60..140).contains(&followers), "{followers}");
        }
    }
}
