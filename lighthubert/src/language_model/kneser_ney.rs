//! Estimation of n-gram models from texts.

use std::collections::{BTreeMap, HashMap};

use shared::{Error, Result};

use super::ngram::{Builder, Ngram, NgramModel, SENTENCE_END, SENTENCE_START, UNKNOWN};

/// Logarithm, to base 10, of the probability that stands for 0: that of the start of a sentence.
const NEVER: f32 = -99.0;
/// Discounts of counts of 1, 2, and 3 or more, where a text is too small to estimate them.
const DISCOUNTS_OF_SMALL_TEXTS: [f64; 3] = [0.5, 1.0, 1.5];

/// Words by their numbers; the first three are fixed.
const UNKNOWN_ID: u32 = 0;
const START_ID: u32 = 1;
const END_ID: u32 = 2;

type Counts = BTreeMap<Vec<u32>, u64>;

/// An n-gram model of `sentences` with interpolated modified Kneser-Ney smoothing (Chen and Goodman
/// 1998, section 3; on disk in the back-off form of an ARPA file).
///
/// Each sentence has one `<s>` before and one `</s>` after. The probability of `<unk>`, all words that do
/// not occur, is what the smoothing of single words gives to a word without counts. Discounts are
/// estimated for each order from the numbers of n-grams with counts 1 to 4; where these do not allow it
/// (small texts), they are 0.5, 1 and 1.5.
///
/// # Errors
/// [`Error::Argument`] when the order is 0, there is no sentence, or a word is `<s>` or `</s>`.
pub fn estimate<'a>(
    sentences: impl IntoIterator<Item = &'a str>,
    order: usize,
) -> Result<NgramModel> {
    if order == 0 {
        return Err(Error::Argument("the order of a language model is at least 1".into()));
    }
    let mut words: Vec<String> = [UNKNOWN, SENTENCE_START, SENTENCE_END].map(String::from).to_vec();
    let mut ids: HashMap<String, u32> = words.iter().cloned().zip(0..).collect();
    let mut counts: Vec<Counts> = vec![Counts::new(); order];
    for sentence in sentences {
        let mut numbers = vec![START_ID];
        for word in sentence.split_whitespace() {
            let next = words.len() as u32;
            let id = *ids.entry(word.to_owned()).or_insert(next);
            if id == START_ID || id == END_ID {
                return Err(Error::Argument(format!("`{word}` is a word of `{sentence}`")));
            }
            if id == next {
                words.push(word.to_owned());
            }
            numbers.push(id);
        }
        numbers.push(END_ID);
        count(&numbers, &mut counts);
    }
    if counts.iter().all(Counts::is_empty) {
        return Err(Error::Argument("a language model needs at least one sentence".into()));
    }
    let mut builder = Builder::new(words.clone()).map_err(Error::Argument)?;
    let mut shorter: HashMap<Vec<u32>, f64> = HashMap::new();
    let adjusted: Vec<Counts> = (1..=order).map(|length| adjusted(&counts, length)).collect();
    for (length, counts) in (1..).zip(&adjusted) {
        let smoothed = Smoothed::new(counts);
        let probabilities = match length {
            1 => smoothed.single_words(words.len()),
            _ => smoothed.interpolated(&shorter),
        };
        // Weights of these n-grams as contexts of the next longer ones.
        let next = adjusted.get(length).map(Smoothed::new);
        let backoff = |ngram: &[u32]| {
            let weight = next.as_ref().and_then(|next| next.weight(ngram));
            weight.map_or(0.0, |weight| (weight.log10() as f32).max(NEVER))
        };
        let ngrams = probabilities.iter().map(|(ngram, probability)| Ngram {
            words: ngram.clone(),
            log10: if *probability > 0.0 { probability.log10() as f32 } else { NEVER },
            backoff: backoff(ngram),
        });
        builder.add(ngrams.collect()).map_err(Error::Argument)?;
        shorter = probabilities.into_iter().collect();
    }
    builder.finish()
}

/// Counts all n-grams of a sentence.
fn count(words: &[u32], counts: &mut [Counts]) {
    for (length, counts) in (1..).zip(counts) {
        for ngram in words.windows(length) {
            *counts.entry(ngram.to_vec()).or_default() += 1;
        }
    }
}

/// The counts that n-grams of a length are estimated from: how often they occur, for the longest and
/// those that begin a sentence; for others, before how many different words (Kneser and Ney 1995).
fn adjusted(counts: &[Counts], length: usize) -> Counts {
    let Some(own) = counts.get(length - 1) else { return Counts::new() };
    let mut adjusted = match counts.get(length) {
        None => own.clone(),
        Some(longer) => {
            let begins = |ngram: &&Vec<u32>| ngram.first() == Some(&START_ID);
            let occurring = own.iter().filter(|(ngram, _)| begins(ngram));
            let mut adjusted: Counts = occurring.map(|(ngram, n)| (ngram.clone(), *n)).collect();
            for end in longer.keys().filter_map(|ngram| ngram.get(1..)) {
                *adjusted.entry(end.to_vec()).or_default() += 1;
            }
            adjusted
        }
    };
    // A sentence's start is given, and has no probability of its own.
    adjusted.remove([START_ID].as_slice());
    adjusted
}

/// Discounted counts of n-grams of one length.
struct Smoothed<'a> {
    counts: &'a Counts,
    discounts: [f64; 3],
    contexts: HashMap<&'a [u32], Context>,
}

/// What follows a context.
#[derive(Clone, Copy, Default)]
struct Context {
    /// Sum of the counts.
    total: u64,
    /// How many words have counts of 1, 2, and 3 or more.
    words: [u64; 3],
}

impl<'a> Smoothed<'a> {
    fn new(counts: &'a Counts) -> Self {
        let mut of_counts = [0u64; 4];
        let mut contexts: HashMap<&[u32], Context> = HashMap::new();
        for (ngram, &count) in counts {
            let Some((_, before)) = ngram.split_last() else { continue };
            let context = contexts.entry(before).or_default();
            context.total += count;
            if let Some(words) = context.words.get_mut(class(count)) {
                *words += 1;
            }
            if let Some(number) = of_counts.get_mut(count.saturating_sub(1) as usize) {
                *number += 1;
            }
        }
        Self { counts, discounts: discounts(of_counts), contexts }
    }

    /// The count of an n-gram less its discount.
    fn discounted(&self, count: u64) -> f64 {
        count as f64 - self.discounts.get(class(count)).copied().unwrap_or(0.0)
    }

    /// The probability that is left for words that were not seen after a context.
    fn weight(&self, context: &[u32]) -> Option<f64> {
        let Context { total, words } = self.contexts.get(context)?;
        let discounts = self.discounts.iter().zip(words);
        let taken: f64 = discounts.map(|(discount, words)| discount * *words as f64).sum();
        Some(taken / *total as f64)
    }

    /// Probabilities of single words, mixed with the same probability for all `words` but the start of a
    /// sentence, which has none.
    fn single_words(&self, words: usize) -> BTreeMap<Vec<u32>, f64> {
        let total = self.contexts.get([].as_slice()).map_or(0, |context| context.total);
        let uniform = self.weight(&[]).unwrap_or(1.0) / (words as f64 - 1.0);
        let probability = |word: u32| match self.counts.get([word].as_slice()) {
            _ if word == START_ID => 0.0,
            Some(count) => self.discounted(*count) / total as f64 + uniform,
            None => uniform,
        };
        (UNKNOWN_ID..words as u32).map(|word| (vec![word], probability(word))).collect()
    }

    /// Probabilities of n-grams, mixed with those of the n-grams without the first word, `shorter`.
    fn interpolated(&self, shorter: &HashMap<Vec<u32>, f64>) -> BTreeMap<Vec<u32>, f64> {
        let probability = |(ngram, count): (&Vec<u32>, &u64)| {
            let (_, context) = ngram.split_last()?;
            let total = self.contexts.get(context)?.total;
            let lower = shorter.get(ngram.get(1..)?)?;
            let own = self.discounted(*count) / total as f64;
            Some((ngram.clone(), own + self.weight(context)? * lower))
        };
        self.counts.iter().filter_map(probability).collect()
    }
}

/// Which of the three discounts a count has.
fn class(count: u64) -> usize {
    count.clamp(1, 3) as usize - 1
}

/// Discounts of counts of 1, 2, and 3 or more (Chen and Goodman 1998, equation 26), from the numbers of
/// n-grams with counts of 1 to 4.
fn discounts(of_counts: [u64; 4]) -> [f64; 3] {
    let [one, two, three, four] = of_counts.map(|number| number as f64);
    let y = one / (one + 2.0 * two);
    let found =
        [1.0 - 2.0 * y * two / one, 2.0 - 3.0 * y * three / two, 3.0 - 4.0 * y * four / three];
    let fits = |(discount, most): (&f64, f64)| (0.0..=most).contains(discount);
    // A discount of 0 for all would leave nothing to unseen words.
    if found.iter().zip([1.0, 2.0, 3.0]).all(fits) && found[0] > 0.0 {
        found
    } else {
        DISCOUNTS_OF_SMALL_TEXTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probability(model: &NgramModel, context: &[&str], word: &str) -> f64 {
        let mut state = model.start();
        for word in context {
            state = model.step(state, model.id(word)).state;
        }
        10f64.powf(model.step(state, model.id(word)).log10.into())
    }

    #[test]
    fn probabilities_are_those_computed_by_hand() {
        // Two sentences, `a b` and `a c`; their discounts are those of small texts, 0.5, 1, 1.5.
        let model = estimate(["a b", "a c"], 2).unwrap();
        // How many different words come before each: a 1 (<s>), b 1, c 1, </s> 2: in all 5. What is left
        // for all words is (3 * 0.5 + 1) / 5 = 0.5, for each of <unk>, </s>, a, b, c 0.1.
        let single = |discounted: f64| discounted / 5.0 + 0.1;
        let (a, b, end, unknown) = (single(0.5), single(0.5), single(1.0), single(0.0));
        // After <s>: a twice, of which a discount of 1 is left for others.
        let after_start = |own: f64, single: f64| own / 2.0 + 0.5 * single;
        // After a: b and c once each; after b: </s> once.
        for (context, word, expected) in [
            (&[][..], "a", after_start(1.0, a)),
            (&[], "b", after_start(0.0, b)),
            (&[], "zebra", after_start(0.0, unknown)),
            (&["a"], "b", 0.5 / 2.0 + 0.5 * b),
            (&["a"], "a", 0.5 * a),
            (&["a"], "</s>", 0.5 * end),
            (&["a", "b"], "</s>", 0.5 + 0.5 * end),
            (&["a", "b"], "c", 0.5 * b),
            (&["zebra"], "c", b),
        ] {
            let found = probability(&model, context, word);
            assert!((found - expected).abs() < 1e-6, "{context:?} {word}: {found} not {expected}");
        }
    }

    #[test]
    fn discounts_are_those_of_the_numbers_of_counts() {
        // Y = 10 / (10 + 2 * 4) = 5/9.
        let expected = [1.0 - 4.0 / 9.0, 2.0 - 5.0 / 6.0, 3.0 - 10.0 / 9.0];
        for (found, expected) in discounts([10, 4, 2, 1]).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12);
        }
        for small in [[0, 4, 2, 1], [10, 0, 2, 1], [10, 4, 0, 1], [1, 1, 50, 1], [0; 4]] {
            assert_eq!(discounts(small), DISCOUNTS_OF_SMALL_TEXTS);
        }
    }

    #[test]
    fn probabilities_sum_to_one_in_every_context() {
        let mut stream = shared::rng::Stream::new(0, "sentences", 0);
        let sentences: Vec<String> = (0..300)
            .map(|_| {
                let words = (0..stream.below(7)).map(|_| {
                    // Few frequent and many rare words.
                    format!("w{}", (stream.uniform().powi(3) * 40.0) as usize)
                });
                words.collect::<Vec<_>>().join(" ")
            })
            .collect();
        for order in 1..=4 {
            let model = estimate(sentences.iter().map(String::as_str), order).unwrap();
            assert_eq!(model.order(), order);
            for context in
                [&[][..], &["w0"], &["w0", "w1"], &["w1", "w0", "w0"], &["w39", "w3"], &["?"]]
            {
                let sum: f64 = model
                    .words()
                    .iter()
                    .filter(|word| *word != SENTENCE_START)
                    .map(|word| probability(&model, context, word))
                    .sum();
                assert!((sum - 1.0).abs() < 1e-5, "{order} {context:?}: {sum}");
            }
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        assert!(estimate([], 2).is_err() && estimate(["a"], 0).is_err());
        assert!(estimate(["a </s> b"], 2).is_err());
        assert!(estimate([""], 3).is_ok());
    }
}
