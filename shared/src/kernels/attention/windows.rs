//! Which keys each query attends to.

use std::ops::Range;

use crate::{Error, Result};

/// Queries that attend to the same keys: `keys` of them, cyclically from `first_key` on. After the
/// last key of the sequence comes the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The queries.
    pub queries: Range<usize>,
    /// The first key that they attend to.
    pub first_key: usize,
    /// Number of keys that they attend to.
    pub keys: usize,
}

impl Window {
    /// A window for each of `frames` frames of two sequences that run alongside each other, as in
    /// random-shift multi-modal attention (Ruan et al. 2023, section 3.3).
    ///
    /// A frame has `queries / frames` queries and `keys / frames` keys, rounded down; queries that
    /// are left over belong to the last frame. The queries of frame `i` attend to as many keys as
    /// `width` frames have, from the first key of frame `i + shift` on.
    ///
    /// # Errors
    /// When a frame has no query or no key, or the window is not within 1 to `frames` frames.
    pub fn of_frames(
        frames: usize,
        queries: usize,
        keys: usize,
        width: usize,
        shift: usize,
    ) -> Result<Vec<Self>> {
        let what = "attention over windows of frames";
        if frames == 0 || queries < frames || keys < frames {
            return Err(Error::Argument(format!(
                "{what}: {queries} queries and {keys} keys are too few for {frames} frames"
            )));
        }
        if !(1..=frames).contains(&width) {
            return Err(Error::Argument(format!(
                "{what}: a window of {width} frames, expected 1 to {frames}"
            )));
        }
        let (queries_each, keys_each) = (queries / frames, keys / frames);
        let window = |frame: usize| {
            let end = if frame + 1 == frames { queries } else { (frame + 1) * queries_each };
            Self {
                queries: frame * queries_each..end,
                first_key: (frame + shift % frames) * keys_each % keys,
                keys: width * keys_each,
            }
        };
        Ok((0..frames).map(window).collect())
    }

    /// Checks that `windows` hold every one of `queries` queries once, in order, and no key twice.
    pub(super) fn check(windows: &[Self], queries: usize, keys: usize) -> Result<()> {
        let mut next = 0;
        for window in windows {
            if window.queries.start != next || window.queries.is_empty() {
                return Err(Error::Argument(format!(
                    "windows of attention: expected queries from {next} on, found {:?}",
                    window.queries
                )));
            }
            if window.first_key >= keys.max(1) || window.keys > keys {
                return Err(Error::Argument(format!(
                    "windows of attention: {} keys from {} on, of {keys}",
                    window.keys, window.first_key
                )));
            }
            next = window.queries.end;
        }
        if next == queries {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "windows of attention: they hold {next} queries, expected {queries}"
        )))
    }
}

/// Queries, and the runs of neighbouring keys that they attend to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) queries: Range<usize>,
    pub(super) keys: Vec<Range<usize>>,
}

impl Job {
    /// The jobs of a batch item with `keys` keys, of which `padding` tells those that nobody attends to.
    pub(super) fn of_windows(
        windows: &[Window],
        keys: usize,
        padding: Option<&[bool]>,
    ) -> Vec<Self> {
        let mut jobs: Vec<Self> = vec![];
        for window in windows {
            let end = window.first_key + window.keys;
            let cyclic = if window.keys == keys {
                [0..keys, 0..0]
            } else {
                [window.first_key..end.min(keys), 0..end.saturating_sub(keys)]
            };
            let runs = cyclic.into_iter().flat_map(|run| unpadded(run, padding)).collect();
            match jobs.last_mut() {
                // Windows that hold all keys are one.
                Some(last) if last.keys == runs => last.queries.end = window.queries.end,
                _ => jobs.push(Self { queries: window.queries.clone(), keys: runs }),
            }
        }
        jobs
    }

    /// Number of keys.
    pub(super) fn key_count(&self) -> usize {
        self.keys.iter().map(ExactSizeIterator::len).sum()
    }
}

/// The parts of `run` that are not padding.
fn unpadded(run: Range<usize>, padding: Option<&[bool]>) -> Vec<Range<usize>> {
    let Some(padding) = padding else {
        return if run.is_empty() { vec![] } else { vec![run] };
    };
    let mut runs: Vec<Range<usize>> = vec![];
    for key in run.filter(|&key| !padding[key]) {
        match runs.last_mut() {
            Some(last) if last.end == key => last.end += 1,
            _ => runs.push(key..key + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_get_the_windows_of_the_paper() {
        // 4 frames of 8 audio tokens, a window of 2 frames, shifted by 2: frame 1 attends to audio
        // tokens 24..32 and 0..8.
        let windows = Window::of_frames(4, 4 * 9, 32, 2, 2).unwrap();
        assert_eq!(windows[1], Window { queries: 9..18, first_key: 24, keys: 16 });
        let jobs = Job::of_windows(&windows, 32, None);
        assert_eq!(jobs[1].keys, [24..32, 0..8]);
        // 35 audio tokens: keys wrap at 35, not at 32; the last frame has the queries left over.
        let windows = Window::of_frames(4, 35, 36, 1, 3).unwrap();
        assert_eq!(windows[3], Window { queries: 24..35, first_key: 54 % 36, keys: 9 });
        let windows = Window::of_frames(4, 36, 35, 2, 2).unwrap();
        assert_eq!(Job::of_windows(&windows, 35, None)[1].keys, [24..35, 0..5]);
    }

    #[test]
    fn windows_over_all_keys_are_one_job() {
        let windows = Window::of_frames(4, 13, 8, 4, 1).unwrap();
        let jobs = Job::of_windows(&windows, 8, None);
        let [Job { queries, keys }] = &jobs[..] else { panic!("{jobs:?}") };
        assert_eq!(
            (queries, keys.iter().cloned().flatten().collect::<Vec<_>>()),
            (&(0..13), (0..8).collect())
        );
        let padding = [false, true, false, false, true, true, true, false];
        let jobs = Job::of_windows(&windows, 8, Some(&padding));
        assert_eq!(jobs, [Job { queries: 0..13, keys: vec![0..1, 2..4, 7..8] }]);
    }

    #[test]
    fn unusable_windows_are_refused() {
        let window = |queries, first_key, keys| Window { queries, first_key, keys };
        let check = |windows: &[Window]| Window::check(windows, 5, 4);
        assert!(check(&[window(0..3, 3, 4), window(3..5, 0, 0)]).is_ok());
        assert!(check(&[window(0..3, 3, 4)]).is_err());
        assert!(check(&[window(0..3, 3, 4), window(4..5, 0, 1)]).is_err());
        assert!(check(&[window(0..5, 4, 1)]).is_err());
        assert!(check(&[window(0..5, 0, 5)]).is_err());
        for [frames, queries, keys, width] in
            [[0, 4, 4, 1], [3, 2, 4, 1], [3, 4, 2, 1], [3, 4, 4, 4]]
        {
            assert!(Window::of_frames(frames, queries, keys, width, 0).is_err());
        }
    }
}
