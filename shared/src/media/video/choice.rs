//! Which frames of a video stand for the frames of another rate.

/// Time stamps are rounded; a frame that begins later than its time by no more than this counts as
/// on time.
const SLACK_S: f64 = 1e-6;

/// Counts through the times `start_s + i / fps` for which frames are wanted.
pub(super) struct Choice {
    start_s: f64,
    fps: u32,
    /// Number of times, if there is an end.
    count: Option<usize>,
    next: usize,
}

impl Choice {
    /// The times of a clip; without a duration they never end.
    pub(super) fn new(start_s: f64, fps: u32, duration_s: Option<f64>) -> Self {
        let count = duration_s.map(|duration_s| (duration_s * f64::from(fps)).round() as usize);
        Self { start_s, fps, count, next: 0 }
    }

    /// How many of the times that are left come before `time_s`, at which a further frame begins or
    /// the last one ends; they are then counted as done.
    pub(super) fn due_before(&mut self, time_s: f64) -> usize {
        let first = self.next;
        while !self.is_complete() && self.next_s() < time_s - SLACK_S {
            self.next += 1;
        }
        self.next - first
    }

    /// Whether there is a frame for every time.
    pub(super) fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| self.next >= count)
    }

    fn next_s(&self) -> f64 {
        self.start_s + self.next as f64 / f64::from(self.fps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frames chosen from frames that begin at `times_s`, of which the last ends at `end_s`.
    fn chosen(mut choice: Choice, times_s: &[f64], end_s: f64) -> Vec<usize> {
        let ends = times_s.iter().skip(1).chain([&end_s]);
        let frames = ends.enumerate().map(|(index, &end_s)| vec![index; choice.due_before(end_s)]);
        frames.flatten().collect()
    }

    #[test]
    fn constant_rates_follow_the_rule_of_indices() {
        // Frame floor(i * fps / 10) for frame i, as upstream chooses.
        for (numerator, denominator) in [(25, 1), (30, 1), (24, 1), (30_000, 1001), (7, 1), (10, 1)]
        {
            let fps = f64::from(numerator) / f64::from(denominator);
            let times_s: Vec<f64> = (0..100).map(|index| f64::from(index) / fps).collect();
            let expected: Vec<usize> = (0..)
                .map(|i: u64| (i * numerator as u64 / (10 * denominator as u64)) as usize)
                .take_while(|index| *index < 100)
                .collect();
            let end_s = 100.0 / fps;
            assert_eq!(chosen(Choice::new(0.0, 10, None), &times_s, end_s), expected, "{fps}");
            let window = chosen(Choice::new(0.5, 10, Some(0.4)), &times_s, end_s);
            assert_eq!(window, expected[5..9], "{fps}");
        }
    }

    #[test]
    fn varying_rates_follow_the_clock() {
        let times_s = [0.0, 0.05, 0.1, 0.45, 0.5];
        assert_eq!(chosen(Choice::new(0.0, 10, None), &times_s, 0.75), [0, 2, 2, 2, 2, 4, 4, 4]);
        assert_eq!(chosen(Choice::new(0.2, 10, Some(0.2)), &times_s, 0.75), [2, 2]);
        assert!(chosen(Choice::new(1.0, 10, None), &times_s, 0.75).is_empty());
    }
}
