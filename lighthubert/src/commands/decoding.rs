//! Options that say how texts are found.

use std::path::{Path, PathBuf};

use clap::Args;
use lighthubert::decode::{Fusion, Hotwords, Lexicon};
use lighthubert::language_model::{NgramModel, read_arpa};
use lighthubert::{Decoder, DecodingConfig, ModelFile};
use shared::files::read_text;
use shared::limits::Limits;
use shared::{Error, Result};

use super::model;

/// What a hotword gains that has no number (natural logarithm).
const HOTWORD_GAIN: f64 = 5.0;

/// How texts are found in the probabilities of the frames.
#[derive(Args, Debug)]
pub struct DecodingOptions {
    /// Take the most probable character of each frame: no search, no language model
    #[arg(long, conflicts_with_all = ["language_model", "lexicon", "hotwords", "beams"])]
    pub greedy: bool,
    /// Language model of words in the ARPA format, as `lighthubert language-model` makes them [default: with
    /// the shipped recogniser its own, else none]
    #[arg(long, value_name = "FILE")]
    pub language_model: Option<PathBuf>,
    /// Weight of the language model [default: as stored in the model, else 0.5]
    #[arg(long, value_name = "ALPHA")]
    pub weight: Option<f64>,
    /// Bonus for each word [default: as stored in the model, else 1]
    #[arg(long, value_name = "BETA", allow_hyphen_values = true)]
    pub word_bonus: Option<f64>,
    /// Texts that are followed at a time [default: as stored in the model, else 100]
    #[arg(long, value_name = "N")]
    pub beams: Option<usize>,
    /// Allow only the words of this list, one a line
    #[arg(long, value_name = "FILE")]
    pub lexicon: Option<PathBuf>,
    /// Words and phrases that are expected: one a line, with a gain after a tab if you like (natural
    /// logarithm, 5 if there is none)
    #[arg(long, value_name = "FILE")]
    pub hotwords: Option<PathBuf>,
}

impl DecodingOptions {
    /// The settings, of which `model` may have stored some.
    pub fn config(&self, model: &ModelFile) -> DecodingConfig {
        let mut config = model.card.decoding.unwrap_or_default();
        config.weight = self.weight.unwrap_or(config.weight);
        config.word_bonus = self.word_bonus.unwrap_or(config.word_bonus);
        config.beam.beams = self.beams.unwrap_or(config.beam.beams);
        config
    }

    /// The language model; of the shipped recogniser its own.
    pub fn words(&self, recogniser: Option<&Path>) -> Result<Option<NgramModel>> {
        match (&self.language_model, recogniser) {
            (Some(path), _) => read_arpa(path, &Limits::default()).map(Some),
            (None, None) => model::shipped_language_model().map(Some),
            (None, Some(_)) => Ok(None),
        }
    }

    /// The decoder with these settings. Without anything to search with it is greedy.
    pub fn decoder(&self, config: &DecodingConfig, words: Option<NgramModel>) -> Result<Decoder> {
        let nothing = words.is_none() && self.lexicon.is_none() && self.hotwords.is_none();
        if self.greedy || nothing && self.beams.is_none() {
            return Ok(Decoder::Greedy);
        }
        let limits = Limits::default();
        let mut fusion = Fusion::default();
        if let Some(words) = words {
            fusion = fusion
                .with_words(words, config.weight, config.unknown)?
                .with_word_bonus(config.word_bonus);
        }
        if let Some(path) = &self.lexicon {
            fusion = fusion.with_lexicon(Lexicon::read(path, &limits)?);
        }
        if let Some(path) = &self.hotwords {
            let text = read_text(path, &limits)?;
            let phrases = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
                let Some((phrase, gain)) = line.split_once('\t') else {
                    return Ok((line, HOTWORD_GAIN));
                };
                gain.trim().parse().map(|gain| (phrase, gain)).map_err(|_| {
                    let path = path.display();
                    Error::Argument(format!("{path}: `{gain}` after `{phrase}` is no number"))
                })
            });
            let phrases: Vec<(&str, f64)> = phrases.collect::<Result<_>>()?;
            fusion = fusion.with_hotwords(Hotwords::new(phrases)?);
        }
        config.beam.check()?;
        Ok(Decoder::Beam(config.beam, Box::new(fusion)))
    }
}
