//! How well sound and picture of a set of clips go together, beside sounds that cannot.

use shared::Result;
use shared::rng::Stream;

use super::alignment::{Counts, av_align};
use super::clips::EvaluationForm;
use super::extraction::ClipFeatures;
use super::onsets::OnsetDetector;

/// Most other clips whose sound each clip is given in turn.
const MOST_SHUFFLES: usize = 10;
/// Standard deviation of the noise, full scale being 1.
const NOISE: f32 = 0.1;

/// What a clip's sound is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sound {
    /// The clip itself.
    Own,
    /// Other clips of the set.
    Shuffled,
    /// White noise from beginning to end.
    Noise,
}

impl Sound {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Own, Self::Shuffled, Self::Noise];

    /// The name of `set` with this sound.
    pub fn name(self, set: &str) -> String {
        match self {
            Self::Own => set.to_owned(),
            Self::Shuffled => format!("{set}, shuffled sound"),
            Self::Noise => format!("{set}, noise as sound"),
        }
    }
}

/// How well one clip's picture goes with a sound; with several, the mean (and the sum of counts).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Synchrony {
    /// AV-Align with the peaks of the motion energy.
    pub motion: f64,
    /// AV-Align with the bends of the path of what moves.
    pub bends: f64,
    /// Impacts.
    pub impacts: Counts,
}

impl Synchrony {
    fn of(onsets_s: &[f64], clip: &ClipFeatures, seen_s: &[f64], window_s: f64) -> Self {
        Self {
            motion: av_align(onsets_s, &clip.events.motion_peaks_s, window_s),
            bends: av_align(onsets_s, &clip.events.bends_s, window_s),
            impacts: Counts::of(onsets_s, seen_s),
        }
    }

    fn mean(all: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len().max(1) as f64;
        Self {
            motion: mean(|it| it.motion),
            bends: mean(|it| it.bends),
            impacts: all.iter().map(|it| it.impacts).sum(),
        }
    }
}

/// A set of clips and when impacts are seen in each.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The clips.
    pub clips: &'a [ClipFeatures],
    /// The impacts that are known; where not, the bends are taken for them.
    pub known_s: &'a [Option<Vec<f64>>],
}

impl Seen<'_> {
    /// When impacts are seen in clip `number`.
    pub fn impacts_s(&self, number: usize) -> &[f64] {
        let known = self.known_s.get(number).and_then(Option::as_deref);
        let bends = || self.clips.get(number).map_or(&[][..], |clip| &clip.events.bends_s);
        known.unwrap_or_else(bends)
    }

    /// Number of clips whose impacts are known.
    pub fn known(&self) -> usize {
        self.known_s.iter().flatten().count()
    }

    /// How well each clip goes with the sound `from`. Which clips' sounds are exchanged, and the noise,
    /// depend on `seed` alone.
    ///
    /// # Errors
    /// When the sampling rate is too low for its bands, or a sound is not finite.
    pub fn synchrony(
        &self,
        from: Sound,
        form: &EvaluationForm,
        seed: u64,
    ) -> Result<Vec<Synchrony>> {
        let window_s = 1.0 / f64::from(form.fps.max(1));
        let score = |number: usize, onsets_s: &[f64]| {
            let clip = self.clips.get(number);
            clip.map_or_else(Synchrony::default, |clip| {
                Synchrony::of(onsets_s, clip, self.impacts_s(number), window_s)
            })
        };
        let onsets_of =
            |number: usize| self.clips.get(number).map_or(&[][..], |clip| &clip.events.onsets_s);
        let count = self.clips.len();
        match from {
            Sound::Own => Ok((0..count).map(|number| score(number, onsets_of(number))).collect()),
            Sound::Shuffled => {
                let partners = partners(count, seed);
                let of = |number: usize| {
                    let others = partners.get(number).map_or(&[][..], Vec::as_slice);
                    let scores: Vec<Synchrony> =
                        others.iter().map(|other| score(number, onsets_of(*other))).collect();
                    Synchrony::mean(&scores)
                };
                Ok((0..count).map(of).collect())
            }
            Sound::Noise => {
                let detector = OnsetDetector::new(form.rate_hz)?;
                let of = |number: usize| {
                    let mut noise = vec![0.0; form.samples()];
                    Stream::new(seed, "noise as sound", number as u64).fill_normal(&mut noise);
                    noise.iter_mut().for_each(|sample| *sample *= NOISE);
                    Ok(score(number, &detector.onsets_s(&noise)?))
                };
                (0..count).map(of).collect()
            }
        }
    }
}

/// For each of `count` clips up to ten others, no one of them more often than another: those after it in
/// a random order that ends where it begins.
fn partners(count: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..count).collect();
    Stream::new(seed, "shuffled sounds", 0).shuffle(&mut order);
    let mut partners = vec![vec![]; count];
    for (place, clip) in order.iter().enumerate() {
        let after = order.iter().cycle().skip(place + 1);
        if let Some(list) = partners.get_mut(*clip) {
            *list = after.take(MOST_SHUFFLES.min(count.saturating_sub(1))).copied().collect();
        }
    }
    partners
}

#[cfg(test)]
mod tests {
    use super::super::clips::tests::made;
    use super::super::extraction::Events;
    use super::super::motion::{bends_s, motion_peaks_s};
    use super::*;

    #[test]
    fn no_clip_is_its_own_partner() {
        for count in [0, 1, 2, 5, 30] {
            let partners = partners(count, 7);
            let mut times = vec![0; count];
            for (clip, others) in partners.iter().enumerate() {
                assert_eq!(others.len(), count.saturating_sub(1).min(10));
                assert!(!others.contains(&clip));
                others.iter().for_each(|other| times[*other] += 1);
            }
            assert!(times.iter().all(|times| *times == count.saturating_sub(1).min(10)));
        }
        assert_ne!(super::partners(30, 1), super::partners(30, 2));
    }

    #[test]
    fn own_sounds_go_with_made_clips_and_others_do_not() {
        let form = EvaluationForm::default();
        let detector = OnsetDetector::new(form.rate_hz).unwrap();
        let (mut clips, mut known_s) = (vec![], vec![]);
        for number in 0..60 {
            let (clip, impacts) = made(number);
            let events = Events {
                onsets_s: detector.onsets_s(&clip.samples).unwrap(),
                motion_peaks_s: motion_peaks_s(&clip.frames, form.fps),
                bends_s: bends_s(&clip.frames, form.fps),
            };
            clips.push(ClipFeatures {
                path: number.to_string().into(),
                events,
                ..ClipFeatures::default()
            });
            known_s.push(Some(impacts.iter().map(|impact| impact.time_s).collect()));
        }
        let scores = |known_s: &[Option<Vec<f64>>]| {
            let seen = Seen { clips: &clips, known_s };
            Sound::ALL.map(|sound| Synchrony::mean(&seen.synchrony(sound, &form, 1).unwrap()))
        };
        let [own, shuffled, noise] = scores(&known_s);
        assert!(own.impacts.f1() > 0.92, "{own:?}");
        assert!(own.bends > 0.5 && own.motion > 0.3, "{own:?}");
        for other in [shuffled, noise] {
            assert!(other.impacts.f1() < 0.6, "{other:?}");
            assert!(other.bends < 0.6 * own.bends && other.motion < own.motion, "{other:?}");
        }
        // Without knowledge the bends stand for the impacts.
        let [own, shuffled, _] = scores(&vec![None; clips.len()]);
        assert!(own.impacts.f1() > 0.6 && shuffled.impacts.f1() < 0.45, "{own:?} {shuffled:?}");
    }
}
