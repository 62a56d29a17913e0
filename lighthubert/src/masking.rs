//! Which frames or channels are masked in training.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shared::rng::Stream;
use shared::{Error, Result};

/// How long masked spans are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpanLength {
    /// All of the mean length.
    Static,
    /// Uniform from this length to twice the mean.
    Uniform(usize),
    /// Normal about the mean with this deviation, rounded, at least 1.
    Normal(f64),
    /// Poisson with the mean.
    Poisson,
}

/// How spans are masked, as in wav2vec 2.0 (Baevski et al. 2020, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskConfig {
    /// Share of places that would be masked if no spans overlapped.
    pub probability: f64,
    /// Mean length of a span.
    pub length: usize,
    /// Lengths of the spans.
    pub selection: SpanLength,
    /// Fewest spans.
    pub min_spans: usize,
    /// Whether spans are kept apart by [`MaskConfig::min_space`].
    pub no_overlap: bool,
    /// Places between spans that must not overlap.
    pub min_space: usize,
    /// Whether items are unmasked at random until all have as many masked places as the least.
    pub same_count: bool,
    /// Share of the masked places that is unmasked at random.
    pub dropout: f64,
}

impl Default for MaskConfig {
    /// That of LightHuBERT's frames.
    fn default() -> Self {
        Self {
            probability: 0.65,
            length: 10,
            selection: SpanLength::Static,
            min_spans: 2,
            no_overlap: false,
            min_space: 1,
            same_count: true,
            dropout: 0.0,
        }
    }
}

/// The random choices behind a mask.
pub trait Draws {
    /// A number uniform in `[0, 1)`.
    fn uniform(&mut self) -> f64;
    /// An integer uniform from `low` to `high - 1`.
    fn integer(&mut self, low: usize, high: usize) -> usize;
    /// A normal number of mean 0 and variance 1.
    fn normal(&mut self) -> f64;
    /// `count` different ones of `items`, in any order.
    fn distinct(&mut self, items: &[usize], count: usize) -> Vec<usize>;
    /// A place in `weights`, with a probability in proportion to the weight there.
    fn weighted(&mut self, weights: &[usize]) -> usize;
}

impl Draws for Stream {
    fn uniform(&mut self) -> f64 {
        Stream::uniform(self)
    }

    fn integer(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high.saturating_sub(low))
    }

    fn normal(&mut self) -> f64 {
        Stream::normal(self)
    }

    fn distinct(&mut self, items: &[usize], count: usize) -> Vec<usize> {
        let mut items = items.to_vec();
        self.shuffle(&mut items);
        items.truncate(count);
        items
    }

    fn weighted(&mut self, weights: &[usize]) -> usize {
        let mut place = self.below(weights.iter().sum());
        for (i, weight) in weights.iter().enumerate() {
            match place.checked_sub(*weight) {
                Some(rest) => place = rest,
                None => return i,
            }
        }
        0
    }
}

/// The masked places of each item of a batch, in ascending order. Item `i` has `lengths[i]` places
/// that may be masked.
///
/// With `shared_count`, which is what a batch without padding has, all items have the same number of
/// spans; without, each draws its own.
///
/// # Errors
/// [`Error::Argument`] when the settings make no sense.
pub fn masked_places(
    lengths: &[usize],
    shared_count: bool,
    config: &MaskConfig,
    draws: &mut impl Draws,
) -> Result<Vec<Vec<usize>>> {
    config.check()?;
    let spans = |places: usize, draws: &mut dyn FnMut() -> f64| {
        let expected = config.probability * places as f64 / config.length as f64;
        config.min_spans.max((expected + draws()) as usize)
    };
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let count_of_all = spans(longest, &mut || draws.uniform());
    let mut items = vec![];
    for &places in lengths {
        let count = match shared_count {
            true => count_of_all,
            false => spans(places, &mut || draws.uniform()),
        };
        items.push(config.masked(places, count, draws));
    }
    let least = items.iter().map(BTreeSet::len).min().unwrap_or(0);
    let thin = |item: BTreeSet<usize>| {
        let mut item: Vec<usize> = item.into_iter().collect();
        if config.same_count && item.len() > least {
            item = draws.distinct(&item, least);
        }
        if config.dropout > 0.0 {
            let removed = (config.dropout * item.len() as f64).round_ties_even() as usize;
            item = draws.distinct(&item, item.len() - removed.min(item.len()));
        }
        item.sort_unstable();
        item
    };
    Ok(items.into_iter().map(thin).collect())
}

impl MaskConfig {
    /// Checks that the settings make sense.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn check(&self) -> Result<()> {
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let deviation = match self.selection {
            SpanLength::Normal(deviation) => deviation,
            _ => 0.0,
        };
        let is_sound = is_share(self.probability)
            && is_share(self.dropout)
            && self.length > 0
            && deviation.is_finite()
            && deviation >= 0.0;
        match is_sound {
            true => Ok(()),
            false => Err(Error::Argument(format!(
                "masking: probability {} and dropout {} must be from 0 to 1, length {} at least 1, and \
                 the deviation of lengths not negative",
                self.probability, self.dropout, self.length
            ))),
        }
    }

    /// The places that `count` spans among `places` mask.
    fn masked(&self, places: usize, count: usize, draws: &mut impl Draws) -> BTreeSet<usize> {
        let mut lengths: Vec<usize> = (0..count).map(|_| self.span_length(draws)).collect();
        if lengths.iter().sum::<usize>() == 0
            && let Some(first) = lengths.first_mut()
        {
            *first = self.length.min(places.saturating_sub(1));
        }
        let spans = match self.no_overlap {
            true => apart(places, lengths, self.min_space, draws),
            false => anywhere(places, &lengths, draws),
        };
        let all = spans.into_iter().flat_map(|(start, length)| start..start + length);
        all.filter(|place| *place < places).collect()
    }

    fn span_length(&self, draws: &mut impl Draws) -> usize {
        match self.selection {
            SpanLength::Static => self.length,
            SpanLength::Uniform(shortest) => draws.integer(shortest, 2 * self.length + 1),
            SpanLength::Normal(deviation) => {
                let length = self.length as f64 + deviation * draws.normal();
                length.round_ties_even().max(1.0) as usize
            }
            // Knuth's method: multiply uniform numbers until the product is below exp(-mean).
            SpanLength::Poisson => {
                let limit = (-(self.length as f64)).exp();
                let mut product = draws.uniform();
                let mut count = 0;
                while product > limit {
                    product *= draws.uniform();
                    count += 1;
                }
                count
            }
        }
    }
}

/// Start and length of spans that may overlap, at different starts.
fn anywhere(places: usize, lengths: &[usize], draws: &mut impl Draws) -> Vec<(usize, usize)> {
    let count = lengths.len();
    let mut shortest = lengths.iter().copied().min().unwrap_or(0);
    if places.saturating_sub(shortest) <= count {
        shortest = places.saturating_sub(count + 1);
    }
    let starts: Vec<usize> = (0..places.saturating_sub(shortest)).collect();
    let starts = draws.distinct(&starts, count.min(starts.len()));
    starts.into_iter().zip(lengths.iter().copied()).collect()
}

/// Start and length of spans with at least `min_space` places between them, the longest first, as many
/// as there is room for.
fn apart(
    places: usize,
    mut lengths: Vec<usize>,
    min_space: usize,
    draws: &mut impl Draws,
) -> Vec<(usize, usize)> {
    let shortest = lengths.iter().copied().min().unwrap_or(0);
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let mut free = vec![(0, places)];
    let mut spans = vec![];
    for length in lengths {
        let room = |&(start, end): &(usize, usize)| match end - start >= length + min_space {
            true => end - start,
            false => 0,
        };
        let rooms: Vec<usize> = free.iter().map(room).collect();
        if rooms.iter().all(|room| *room == 0) {
            break;
        }
        let (first, end) = free.remove(draws.weighted(&rooms));
        // With no space between spans, the last start may be the only one.
        let start = draws.integer(first, (end - length).max(first + 1));
        spans.push((start, length));
        if start - first >= min_space + shortest {
            free.push((first, start + 1 - min_space.min(start + 1)));
        }
        if end - start > length + shortest + min_space {
            free.push((start + length + min_space, end));
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let config = MaskConfig::default();
        for config in [
            MaskConfig { probability: 1.5, ..config },
            MaskConfig { length: 0, ..config },
            MaskConfig { dropout: f64::NAN, ..config },
            MaskConfig { selection: SpanLength::Normal(-1.0), ..config },
        ] {
            assert!(masked_places(&[9], true, &config, &mut Stream::new(0, "mask", 0)).is_err());
        }
    }

    #[test]
    fn span_lengths_have_their_mean() {
        for selection in [
            SpanLength::Static,
            SpanLength::Uniform(0),
            SpanLength::Normal(2.0),
            SpanLength::Poisson,
        ] {
            let config = MaskConfig { selection, ..MaskConfig::default() };
            let mut stream = Stream::new(1, "length", 0);
            let mean =
                (0..4000).map(|_| config.span_length(&mut stream)).sum::<usize>() as f64 / 4e3;
            assert!((mean - 10.0).abs() < 0.4, "{selection:?}: {mean}");
        }
    }

    proptest! {
        #[test]
        fn masks_lie_within_their_items(
            lengths in proptest::collection::vec(0usize..80, 1..4),
            probability in 0.0f64..1.0,
            length in 1usize..20,
            selection in 0usize..4,
            no_overlap in any::<bool>(),
            min_space in 0usize..4,
            same_count in any::<bool>(),
            dropout in 0.0f64..1.0,
            seed in any::<u64>(),
        ) {
            let selection = [
                SpanLength::Static,
                SpanLength::Uniform(length / 2),
                SpanLength::Normal(3.0),
                SpanLength::Poisson,
            ][selection];
            let config = MaskConfig {
                probability, length, selection, min_spans: 2, no_overlap, min_space, same_count, dropout,
            };
            let mut stream = Stream::new(seed, "mask", 0);
            let items = masked_places(&lengths, false, &config, &mut stream).unwrap();
            prop_assert_eq!(items.len(), lengths.len());
            for (item, places) in items.iter().zip(&lengths) {
                prop_assert!(item.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(item.iter().all(|place| place < places));
                prop_assert!(!same_count || item.len() == items[0].len());
            }
        }
    }
}
