//! Prefix beam search (Graves and Jaitly 2014; Hannun, Maas, Jurafsky and Ng 2014).

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use super::emissions::Emissions;
use super::fusion::{Fusion, FusionState};
use crate::vocabulary::Vocabulary;

/// Prefixes that are kept before those that no beam needs are thrown away.
const LEAST_KEPT: usize = 1 << 16;

/// Settings of a [`BeamSearch`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeamOptions {
    /// Prefixes that are followed at a time.
    pub beams: usize,
    /// Prefixes whose score is this much below the best one's are given up (natural logarithm).
    pub beam_threshold: f64,
    /// Classes whose probability in a frame is below this are not tried, the best excepted (natural
    /// logarithm).
    pub class_threshold: f64,
}

impl Default for BeamOptions {
    fn default() -> Self {
        Self { beams: 100, beam_threshold: 25.0, class_threshold: -9.0 }
    }
}

impl BeamOptions {
    /// Fails unless the settings make sense.
    ///
    /// # Errors
    /// [`Error::Argument`] for no beams, or thresholds that are not numbers.
    pub fn check(&self) -> Result<()> {
        let is_positive = self.beam_threshold > 0.0;
        if self.beams == 0 || !is_positive || self.class_threshold.is_nan() {
            return Err(Error::Argument(format!(
                "beam search with {} beams, a threshold of {} and classes from {}: expected at least \
                 one beam and a positive threshold",
                self.beams, self.beam_threshold, self.class_threshold
            )));
        }
        Ok(())
    }
}

/// One way to write an utterance.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// The classes, without blanks.
    pub classes: Vec<u32>,
    /// The text.
    pub text: String,
    /// Logarithm of the probability that the recogniser gives to the classes, of the paths followed.
    pub acoustic: f64,
    /// What [`Fusion`] adds.
    pub fusion: f64,
}

impl Hypothesis {
    /// Acoustics and fusion together.
    pub fn score(&self) -> f64 {
        self.acoustic + self.fusion
    }
}

/// A search for the classes with the highest sum of probabilities over all paths, times what a [`Fusion`]
/// says of the text, frame by frame as they come.
pub struct BeamSearch<'a> {
    vocabulary: &'a Vocabulary,
    fusion: &'a Fusion,
    options: BeamOptions,
    prefixes: Vec<Prefix>,
    /// The prefix with one more class.
    children: HashMap<(u32, u32), u32>,
    /// The prefixes followed, the best first.
    beams: Vec<u32>,
    /// When to throw away what no beam needs.
    most_kept: usize,
    frames: u64,
}

/// Classes in order: those of the parent and one more.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    parent: u32,
    class: u32,
    state: FusionState,
    /// What fusion adds up to here.
    gain: f64,
    paths: Paths,
    /// Those at the next frame, while it is being looked at.
    next: Paths,
    /// The frame that `next` is of, plus 1.
    touched: u64,
}

/// Logarithms of the sum of the probabilities of all paths.
#[derive(Clone, Copy, Debug)]
struct Paths {
    /// Of those that end with a blank.
    blank: f64,
    /// Of those that end with the last class.
    class: f64,
}

impl Paths {
    const NONE: Self = Self { blank: f64::NEG_INFINITY, class: f64::NEG_INFINITY };

    fn total(&self) -> f64 {
        log_add(self.blank, self.class)
    }
}

/// The prefix of no classes.
const ROOT: u32 = 0;
/// The class of the prefix of no classes.
const NO_CLASS: u32 = u32::MAX;

impl<'a> BeamSearch<'a> {
    /// A search before the first frame.
    pub fn new(vocabulary: &'a Vocabulary, fusion: &'a Fusion, options: BeamOptions) -> Self {
        let root = Prefix {
            parent: ROOT,
            class: NO_CLASS,
            state: fusion.start(),
            gain: 0.0,
            paths: Paths { blank: 0.0, ..Paths::NONE },
            next: Paths::NONE,
            touched: 0,
        };
        let (prefixes, beams) = (vec![root], vec![ROOT]);
        let (children, most_kept) = (HashMap::new(), LEAST_KEPT);
        Self { vocabulary, fusion, options, prefixes, children, beams, most_kept, frames: 0 }
    }

    /// The best hypotheses for a whole utterance, as [`BeamSearch::hypotheses`].
    ///
    /// # Errors
    /// [`Error::Shape`] when the emissions have other classes than the vocabulary; those of
    /// [`BeamOptions::check`].
    pub fn decode(
        vocabulary: &Vocabulary,
        fusion: &Fusion,
        options: BeamOptions,
        emissions: &Emissions,
        most: usize,
    ) -> Result<Vec<Hypothesis>> {
        options.check()?;
        let (frames, classes) = (emissions.frames(), emissions.classes());
        if classes != vocabulary.classes() {
            let expected = format!("[T, {}]", vocabulary.classes());
            return Err(Error::shape("emissions", expected, &[frames, classes]));
        }
        let mut search = BeamSearch::new(vocabulary, fusion, options);
        emissions.iter().for_each(|frame| search.push(frame));
        Ok(search.hypotheses(most))
    }

    /// Takes the next frame: the logarithms of the probabilities of all classes.
    pub fn push(&mut self, log_probabilities: &[f32]) {
        self.frames += 1;
        let probability = |class: u32| {
            log_probabilities.get(class as usize).map_or(f64::NEG_INFINITY, |it| f64::from(*it))
        };
        let blank = self.vocabulary.blank();
        let classes = self.classes_to_try(log_probabilities);
        let mut reached: Vec<u32> = Vec::with_capacity(2 * self.beams.len());
        let mut new: Vec<Prefix> = Vec::new();
        for beam in std::mem::take(&mut self.beams) {
            let Some(&prefix) = self.prefixes.get(beam as usize) else { continue };
            let Paths { blank: after_blank, class: after_class } = prefix.paths;
            let total = prefix.paths.total();
            self.reach(beam, total + probability(blank), f64::NEG_INFINITY, &mut reached);
            if prefix.class != NO_CLASS {
                // The class goes on for another frame.
                let on = after_class + probability(prefix.class);
                self.reach(beam, f64::NEG_INFINITY, on, &mut reached);
            }
            for &class in &classes {
                let from = if class == prefix.class { after_blank } else { total };
                let paths = from + probability(class);
                if paths == f64::NEG_INFINITY {
                    continue;
                }
                if let Some(&child) = self.children.get(&(beam, class)) {
                    self.reach(child, f64::NEG_INFINITY, paths, &mut reached);
                } else if let Some((state, gain)) =
                    self.fusion.extend(prefix.state, self.vocabulary.piece(class))
                {
                    let next = Paths { class: paths, ..Paths::NONE };
                    let gain = prefix.gain + gain;
                    let (paths, touched) = (next, 0);
                    new.push(Prefix { parent: beam, class, state, gain, paths, next, touched });
                }
            }
        }
        self.select(reached, new);
        if self.prefixes.len() > self.most_kept {
            self.throw_away();
        }
    }

    /// The classes that are worth trying: all that add to a text, but those of low probability.
    fn classes_to_try(&self, log_probabilities: &[f32]) -> Vec<u32> {
        let best = log_probabilities.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let least = (self.options.class_threshold as f32).min(best);
        (0..self.vocabulary.classes() as u32)
            .zip(log_probabilities)
            .filter(|(class, probability)| {
                **probability >= least && !self.vocabulary.piece(*class).is_empty()
            })
            .map(|(class, _)| class)
            .collect()
    }

    /// Adds paths to a prefix that there is, and to the list of those that the frame reaches.
    fn reach(&mut self, prefix: u32, blank: f64, class: f64, reached: &mut Vec<u32>) {
        let Some(found) = self.prefixes.get_mut(prefix as usize) else { return };
        if found.touched != self.frames {
            (found.touched, found.next) = (self.frames, Paths::NONE);
            reached.push(prefix);
        }
        found.next.blank = log_add(found.next.blank, blank);
        found.next.class = log_add(found.next.class, class);
    }

    /// Keeps the best of the prefixes that the frame reaches.
    fn select(&mut self, reached: Vec<u32>, new: Vec<Prefix>) {
        let score = |prefix: &Prefix| prefix.next.total() + prefix.gain;
        // Negative places are those of new prefixes.
        let old = reached.iter().filter_map(|place| {
            let prefix = self.prefixes.get(*place as usize)?;
            Some((score(prefix), i64::from(*place)))
        });
        let mut scored: Vec<(f64, i64)> =
            old.chain((1..).zip(&new).map(|(place, prefix)| (score(prefix), -place))).collect();
        let order = |a: &(f64, i64), b: &(f64, i64)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if scored.len() > self.options.beams {
            scored.select_nth_unstable_by(self.options.beams - 1, order);
            scored.truncate(self.options.beams);
        }
        scored.sort_unstable_by(order);
        let least = scored.first().map_or(0.0, |best| best.0 - self.options.beam_threshold);
        for (score, place) in scored {
            if score < least || score == f64::NEG_INFINITY {
                break;
            }
            let place = match new.get((-place - 1) as usize) {
                Some(prefix) => {
                    let own = self.prefixes.len() as u32;
                    self.children.insert((prefix.parent, prefix.class), own);
                    self.prefixes.push(*prefix);
                    own
                }
                None => place as u32,
            };
            if let Some(prefix) = self.prefixes.get_mut(place as usize) {
                prefix.paths = prefix.next;
                self.beams.push(place);
            }
        }
    }

    /// Throws away all prefixes but those of the beams and what these begin with.
    fn throw_away(&mut self) {
        let mut is_needed = vec![false; self.prefixes.len()];
        for beam in &self.beams {
            let mut place = *beam;
            while let (Some(needed), Some(prefix)) =
                (is_needed.get_mut(place as usize), self.prefixes.get(place as usize))
                && !std::mem::replace(needed, true)
            {
                place = prefix.parent;
            }
        }
        // Parents come before their children, so that their new places are known.
        let mut places = vec![ROOT; self.prefixes.len()];
        let mut kept: Vec<Prefix> = Vec::new();
        self.children.clear();
        for (place, (prefix, _)) in
            self.prefixes.iter().zip(&is_needed).enumerate().filter(|(_, (_, needed))| **needed)
        {
            let parent = places.get(prefix.parent as usize).copied().unwrap_or(ROOT);
            let own = kept.len() as u32;
            if let Some(new) = places.get_mut(place) {
                *new = own;
            }
            if own != ROOT {
                self.children.insert((parent, prefix.class), own);
            }
            kept.push(Prefix { parent, ..*prefix });
        }
        for beam in &mut self.beams {
            *beam = places.get(*beam as usize).copied().unwrap_or(ROOT);
        }
        self.prefixes = kept;
        self.most_kept = LEAST_KEPT.max(2 * self.prefixes.len());
    }

    /// The classes of a prefix.
    fn classes(&self, mut place: u32) -> Vec<u32> {
        let mut classes = Vec::new();
        while let Some(prefix) = self.prefixes.get(place as usize).filter(|_| place != ROOT) {
            classes.push(prefix.class);
            place = prefix.parent;
        }
        classes.reverse();
        classes
    }

    /// The classes that all beams begin with: no further frame changes them.
    pub fn settled(&self) -> Vec<u32> {
        let mut beams = self.beams.iter().map(|beam| self.classes(*beam));
        let first = beams.next().unwrap_or_default();
        beams.fold(first, |mut common, classes| {
            let same = common.iter().zip(&classes).take_while(|(a, b)| a == b).count();
            common.truncate(same);
            common
        })
    }

    /// At most `most` hypotheses with different texts, the best first, for the frames so far as a whole
    /// utterance.
    ///
    /// Where a closed lexicon allows none of the beams' last words, these are left out.
    pub fn hypotheses(&self, most: usize) -> Vec<Hypothesis> {
        let whole = self.beams.iter().filter_map(|beam| self.hypothesis(*beam, *beam));
        let mut found: Vec<Hypothesis> = whole.collect();
        if found.is_empty() {
            let cut = |beam: &u32| self.hypothesis(*beam, self.before_last_word(*beam));
            found = self.beams.iter().filter_map(cut).collect();
        }
        found.sort_by(|a, b| b.score().total_cmp(&a.score()));
        let mut texts = HashSet::new();
        found.retain(|hypothesis| texts.insert(hypothesis.text.clone()));
        found.truncate(most);
        found
    }

    /// The text of the prefix `end` with the acoustics of `beam`.
    fn hypothesis(&self, beam: u32, end: u32) -> Option<Hypothesis> {
        let (beam, end_prefix) =
            (self.prefixes.get(beam as usize)?, self.prefixes.get(end as usize)?);
        let classes = self.classes(end);
        let text = self.vocabulary.decode(&classes);
        let fusion = end_prefix.gain + self.fusion.finish(end_prefix.state)?;
        Some(Hypothesis { classes, text, acoustic: beam.paths.total(), fusion })
    }

    /// The longest beginning of a prefix that ends with a space, or that of no classes.
    fn before_last_word(&self, mut place: u32) -> u32 {
        while let Some(prefix) = self.prefixes.get(place as usize).filter(|_| place != ROOT)
            && !self.vocabulary.piece(prefix.class).ends_with(' ')
        {
            place = prefix.parent;
        }
        place
    }
}

/// The logarithm of the sum of two numbers that are given by their logarithms.
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::decode::timestamps::tests::random;
    use crate::decode::{Hotwords, Lexicon, UnknownWord};
    use crate::language_model::estimate;

    const EXACT: BeamOptions = BeamOptions {
        beams: usize::MAX,
        beam_threshold: f64::INFINITY,
        class_threshold: f64::NEG_INFINITY,
    };

    fn vocabulary() -> Vocabulary {
        Vocabulary::new(["<b>", "|", "a", "b"].map(String::from).to_vec(), 0).unwrap()
    }

    /// The blank, `<unk>`, and `a`, `b`, the beginning of a word, `a` at the beginning of a word.
    fn word_pieces() -> Vocabulary {
        let vocabulary = Vocabulary::train(["ab ab", "a"], 6).unwrap();
        assert_eq!(vocabulary.symbols()[2..], ["a", "b", "\u{2581}", "\u{2581}a"]);
        vocabulary
    }

    /// The probability of every sequence of classes, by trying all paths.
    fn exhaustive(emissions: &Emissions) -> BTreeMap<Vec<u32>, f64> {
        let (frames, count) = (emissions.frames(), emissions.classes());
        let mut sums = BTreeMap::new();
        for number in 0..count.pow(frames as u32) {
            let path: Vec<u32> =
                (0..frames).map(|t| (number / count.pow(t as u32) % count) as u32).collect();
            let score: f64 =
                path.iter().enumerate().map(|(t, class)| emissions.at(t, *class)).sum();
            let mut collapsed = path;
            collapsed.dedup();
            collapsed.retain(|class| *class != 0);
            *sums.entry(collapsed).or_insert(0.0) += score.exp();
        }
        sums
    }

    /// Checks that the search finds the sequences with the highest scores, `gain` being the worth of a
    /// text, and that these are what it says.
    fn check(fusion: &Fusion, gain: impl Fn(&str) -> Option<f64>) {
        for (seed, frames) in [(0, 0), (1, 1), (2, 3), (3, 5), (4, 6)] {
            check_on(&vocabulary(), &random(seed, frames, 4), fusion, &gain);
        }
        check_on(&word_pieces(), &random(5, 5, 6), fusion, &gain);
    }

    fn check_on(
        vocabulary: &Vocabulary,
        emissions: &Emissions,
        fusion: &Fusion,
        gain: impl Fn(&str) -> Option<f64>,
    ) {
        let mut expected: Vec<(f64, Vec<u32>)> = exhaustive(emissions)
            .into_iter()
            // The search never writes a symbol that is no text.
            .filter(|(classes, _)| classes.iter().all(|it| !vocabulary.piece(*it).is_empty()))
            .filter_map(|(classes, sum)| {
                let text: String = classes.iter().map(|it| vocabulary.piece(*it)).collect();
                Some((sum.ln() + gain(&text)?, classes))
            })
            .collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found = BeamSearch::decode(vocabulary, fusion, EXACT, emissions, usize::MAX).unwrap();
        assert!(!found.is_empty());
        for (place, hypothesis) in found.iter().enumerate() {
            let own = expected.iter().find(|(_, classes)| *classes == hypothesis.classes);
            let score = own.unwrap().0;
            assert!((hypothesis.score() - score).abs() < 1e-9, "{hypothesis:?} {score}");
            assert!(place == 0 || hypothesis.score() <= found[place - 1].score());
        }
        // Other sequences of the same text come later.
        assert_eq!(found[0].classes, expected[0].1);
        let texts: HashSet<String> =
            expected.iter().map(|(_, classes)| vocabulary.decode(classes)).collect();
        assert_eq!(found.len(), texts.len());
    }

    #[test]
    fn the_search_is_exact_without_limits() {
        check(&Fusion::default(), |_| Some(0.0));
    }

    #[test]
    fn word_models_count_as_by_brute_force() {
        let model = || estimate(["a ab", "ab b a", "b b", "abbb"], 3).unwrap();
        let (weight, bonus, unknown) = (0.7, 0.3, UnknownWord { word: -1.0, character: -0.4 });
        let fusion =
            Fusion::default().with_words(model(), weight, unknown).unwrap().with_word_bonus(bonus);
        let model = model();
        check(&fusion, |text| {
            let words: Vec<&str> = text.split_whitespace().collect();
            let unknown = words.iter().filter(|word| model.id(word).is_none());
            let unknown: f64 = unknown.map(|word| -1.0 - 0.4 * word.len() as f64).sum();
            let language = model.sentence(words.iter().copied()) * std::f64::consts::LN_10;
            Some(weight * language + bonus * words.len() as f64 + unknown)
        });
    }

    #[test]
    fn character_models_count_as_by_brute_force() {
        let spelled = ["a | a b", "b | a"];
        let fusion = Fusion::default().with_characters(estimate(spelled, 3).unwrap(), 0.5);
        let model = estimate(spelled, 3).unwrap();
        check(&fusion, |text| {
            let mut spelled: String = text.split_whitespace().collect::<Vec<_>>().join("|");
            if text.ends_with(' ') && !spelled.is_empty() {
                spelled.push('|');
            }
            let characters: Vec<String> = spelled.chars().map(String::from).collect();
            let language = model.sentence(characters.iter().map(String::as_str));
            Some(0.5 * language * std::f64::consts::LN_10)
        });
    }

    #[test]
    fn lexicons_and_hotwords_count_as_by_brute_force() {
        let lexicon = || Lexicon::new(["a", "ab", "bab"]).unwrap();
        let allowed = |text: &str| {
            text.split_whitespace().all(|word| ["a", "ab", "bab"].contains(&word)).then_some(0.0)
        };
        check(&Fusion::default().with_lexicon(lexicon()), allowed);
        let hotwords = Hotwords::new([("b a", 1.5), ("ab", 0.5)]).unwrap();
        let fusion = Fusion::default().with_hotwords(hotwords);
        check(&fusion, |text| {
            let words: Vec<&str> = text.split_whitespace().collect();
            let pairs = words.windows(2).filter(|pair| *pair == ["b", "a"]).count();
            let single = words.iter().filter(|word| **word == "ab").count();
            Some(1.5 * pairs as f64 + 0.5 * single as f64)
        });
        let model = || estimate(["a ab", "bab"], 2).unwrap();
        let unknown = UnknownWord::default();
        let fusion =
            Fusion::default().with_lexicon(lexicon()).with_words(model(), 1.0, unknown).unwrap();
        let model = model();
        check(&fusion, |text| {
            let words = text.split_whitespace();
            Some(allowed(text)? + model.sentence(words) * std::f64::consts::LN_10)
        });
    }

    #[test]
    fn few_beams_find_what_all_find_where_frames_are_clear() {
        let vocabulary = vocabulary();
        // The class of each frame has a probability of about 0.97.
        let classes = [2, 0, 2, 3, 3, 1, 1, 0, 3, 2, 0, 0, 1, 2];
        let rows: Vec<Vec<f32>> = classes
            .iter()
            .map(|best| {
                (0..4).map(|class| if class == *best { 0.97f32 } else { 0.01 }.ln()).collect()
            })
            .collect();
        let tensor = candle_core::Tensor::new(rows, &candle_core::Device::Cpu).unwrap();
        let emissions = Emissions::new(&tensor).unwrap();
        let fusion = Fusion::default();
        let options = BeamOptions { beams: 3, beam_threshold: 10.0, class_threshold: -6.0 };
        let found = BeamSearch::decode(&vocabulary, &fusion, options, &emissions, 2).unwrap();
        assert_eq!((found.len(), found[0].text.as_str()), (2, "aab ba a"));
        assert_eq!(found[0].classes, [2, 2, 3, 1, 3, 2, 1, 2]);

        // What is settled after nine frames: with one beam all that there is by then.
        for (beams, settled) in [(1, Some(5)), (3, None)] {
            let options = BeamOptions { beams, ..options };
            let mut search = BeamSearch::new(&vocabulary, &fusion, options);
            emissions.iter().take(9).for_each(|frame| search.push(frame));
            assert!(found[0].classes.starts_with(&search.settled()));
            assert!(settled.is_none_or(|count| search.settled().len() == count));
        }
    }

    #[test]
    fn what_no_beam_needs_is_thrown_away_without_a_trace() {
        let vocabulary = Vocabulary::superb();
        let sentences = ["THE CAT", "A DOG", "IT IS"];
        let model = estimate(sentences, 2).unwrap();
        let fusion = Fusion::default().with_words(model, 0.5, UnknownWord::default()).unwrap();
        let emissions = random(9, 60, 32);
        let options = BeamOptions { beams: 20, ..BeamOptions::default() };
        let expected = BeamSearch::decode(&vocabulary, &fusion, options, &emissions, 5).unwrap();
        let mut search = BeamSearch::new(&vocabulary, &fusion, options);
        for frame in emissions.iter() {
            search.push(frame);
            search.throw_away();
            assert!(search.prefixes.len() <= 20 * 61);
        }
        assert_eq!(search.hypotheses(5), expected);
    }

    #[test]
    fn where_a_lexicon_has_no_such_word_the_last_one_is_left_out() {
        let vocabulary = vocabulary();
        let fusion = Fusion::default().with_lexicon(Lexicon::new(["ab"]).unwrap());
        let certain = |classes: &[u32]| {
            let rows = classes.iter().map(|best| {
                (0..4).map(|it| if it == *best { 0.0 } else { f32::NEG_INFINITY }).collect()
            });
            let rows: Vec<Vec<f32>> = rows.collect();
            Emissions::new(&candle_core::Tensor::new(rows, &candle_core::Device::Cpu).unwrap())
        };
        for (classes, text) in [(vec![2, 3, 1, 2, 0], "ab"), (vec![2, 0], ""), (vec![0, 0], "")] {
            let emissions = certain(&classes).unwrap();
            let found =
                BeamSearch::decode(&vocabulary, &fusion, BeamOptions::default(), &emissions, 3);
            assert_eq!(found.unwrap()[0].text, text, "{classes:?}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let (vocabulary, fusion) = (vocabulary(), Fusion::default());
        let decode = |options, classes| {
            BeamSearch::decode(&vocabulary, &fusion, options, &random(0, 2, classes), 1).is_ok()
        };
        let good = BeamOptions::default();
        assert!(decode(good, 4) && !decode(good, 5));
        assert!(!decode(BeamOptions { beams: 0, ..good }, 4));
        assert!(!decode(BeamOptions { beam_threshold: f64::NAN, ..good }, 4));
        assert!(!decode(BeamOptions { class_threshold: f64::NAN, ..good }, 4));
    }
}
