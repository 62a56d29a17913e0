//! How well what is heard goes with what is seen.

/// Times nearer to one another than this are one event.
const ONE_EVENT_S: f64 = 0.05;
/// How far apart an impact may be seen and heard.
pub const TOLERANCE_S: f64 = 0.1;

/// AV-Align of one clip (Yariv et al., "Diverse and aligned audio-to-video generation via text-to-video
/// model adaptation", 2024): of `heard` and `seen` peaks together, the share that are of both: each
/// heard peak takes the first seen one that is less than `window_s` away and not taken yet. 0 when
/// there is no peak at all.
pub fn av_align(heard_s: &[f64], seen_s: &[f64], window_s: f64) -> f64 {
    let mut free = seen_s.to_vec();
    let mut both = 0;
    for heard in heard_s {
        if let Some(place) = free.iter().position(|seen| (heard - seen).abs() < window_s) {
            free.remove(place);
            both += 1;
        }
    }
    let together = heard_s.len() + free.len();
    if together == 0 { 0.0 } else { f64::from(both) / together as f64 }
}

/// Ascending `times_s` in which those less than 50 ms after the last are left out, since they are seen
/// and heard as one.
pub fn events(times_s: &[f64]) -> Vec<f64> {
    let mut events: Vec<f64> = vec![];
    for time in times_s {
        if events.last().is_none_or(|last| time - last > ONE_EVENT_S) {
            events.push(*time);
        }
    }
    events
}

/// Most pairs of one of `a` and one of `b` (both ascending) that are at most `tolerance_s` apart, none
/// of them in two pairs.
pub fn matches(a: &[f64], b: &[f64], tolerance_s: f64) -> usize {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut pairs = 0;
    // With equal reach on both sides, pairing the earliest that fit never costs a pair.
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        // Times are whole numbers of samples, of which some differ by the tolerance exactly.
        let difference = **x - **y;
        if difference.abs() <= tolerance_s + 1e-9 {
            pairs += 1;
            a.next();
            b.next();
        } else if difference < 0.0 {
            a.next();
        } else {
            b.next();
        }
    }
    pairs
}

/// Counts behind an F1 of what is heard and seen, summed over clips.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Impacts both heard and seen.
    pub matched: f64,
    /// Onsets heard.
    pub heard: f64,
    /// Impacts seen.
    pub seen: f64,
}

impl Counts {
    /// Those of a clip: one-to-one within [`TOLERANCE_S`].
    pub fn of(heard_s: &[f64], seen_s: &[f64]) -> Self {
        let (heard, seen) = (events(heard_s), events(seen_s));
        Self {
            matched: matches(&heard, &seen, TOLERANCE_S) as f64,
            heard: heard.len() as f64,
            seen: seen.len() as f64,
        }
    }

    /// `2 matched / (heard + seen)`, the harmonic mean of precision and recall; NaN without any event.
    pub fn f1(&self) -> f64 {
        2.0 * self.matched / (self.heard + self.seen)
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, counts| Self {
            matched: sum.matched + counts.matched,
            heard: sum.heard + counts.heard,
            seen: sum.seen + counts.seen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn av_align_is_intersection_over_union() {
        for (heard, seen, expected) in [
            (&[][..], &[][..], 0.0),
            (&[0.5], &[], 0.0),
            (&[0.5], &[0.55], 1.0),
            (&[0.5], &[0.62], 0.0),
            (&[0.5, 0.52], &[0.55], 0.5),
            (&[0.1, 0.5, 0.9], &[0.12, 0.7, 0.85, 1.2], 2.0 / 5.0),
        ] {
            let value = av_align(heard, seen, 0.1);
            assert!((value - expected).abs() < 1e-12, "{heard:?} {seen:?} {value}");
        }
    }

    #[test]
    fn pairs_are_one_to_one_and_as_many_as_can_be() {
        assert_eq!(matches(&[0.1, 0.2], &[0.15], 0.1), 1);
        assert_eq!(matches(&[0.1, 0.2], &[0.0, 0.1], 0.1), 2);
        assert_eq!(matches(&[0.0, 1.0], &[0.5, 0.95], 0.1), 1);
        assert_eq!(matches(&[], &[0.5], 0.1), 0);
        // All ways of pairing few times, tried out.
        let times = [0.0, 0.07, 0.15, 0.31, 0.38];
        for (left, right) in (0..32).flat_map(|left| (0..32).map(move |right| (left, right))) {
            let chosen = |bits: usize, shift: f64| -> Vec<f64> {
                let bits = (0..5).filter(|bit| bits >> bit & 1 == 1);
                bits.map(|bit| times[bit] + shift).collect()
            };
            let (a, b) = (chosen(left, 0.0), chosen(right, 0.033));
            assert_eq!(matches(&a, &b, 0.1), most_pairs(&a, &b), "{a:?} {b:?}");
        }
    }

    fn most_pairs(a: &[f64], b: &[f64]) -> usize {
        let Some((first, rest)) = a.split_first() else { return 0 };
        let with = (0..b.len()).filter(|i| (first - b[*i]).abs() <= 0.1).map(|i| {
            let mut others = b.to_vec();
            others.remove(i);
            1 + most_pairs(rest, &others)
        });
        with.chain([most_pairs(rest, b)]).max().unwrap()
    }

    #[test]
    fn simultaneous_impacts_are_one() {
        assert_eq!(events(&[0.1, 0.1, 0.14, 0.3]), [0.1, 0.3]);
        let counts = Counts::of(&[0.1, 0.5], &[0.05, 0.06, 0.9]);
        assert_eq!(counts, Counts { matched: 1.0, heard: 2.0, seen: 2.0 });
        assert_eq!(counts.f1(), 0.5);
        let sum: Counts = [counts, Counts::of(&[0.2], &[0.2])].into_iter().sum();
        assert_eq!(sum.f1(), 4.0 / 6.0);
        assert!(Counts::default().f1().is_nan());
    }
}
