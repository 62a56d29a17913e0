//! What a text is worth beside its acoustics: language models, a lexicon, hotwords.

use serde::{Deserialize, Serialize};

use super::hotwords::Hotwords;
use super::lexicon::Lexicon;
use crate::language_model::{NgramModel, State};

/// What is added to the acoustic score of a text (natural logarithms): a weight times that of its words'
/// probability, a weight times that of its characters', a bonus for each word, what unknown words cost,
/// and gains of hotwords; minus infinity where a closed lexicon lacks a word.
#[derive(Clone, Debug, Default)]
pub struct Fusion {
    word_model: Option<NgramModel>,
    character_model: Option<NgramModel>,
    /// The words of the lexicon, or of the word model.
    lexicon: Option<Lexicon>,
    /// Of each of these words its number in the word model.
    numbers: Vec<Option<u32>>,
    is_closed: bool,
    hotwords: Option<Hotwords>,
    word_weight: f64,
    character_weight: f64,
    word_bonus: f64,
    unknown: UnknownWord,
}

/// What a word that a model does not know costs, beside the probability that the model gives to unknown
/// words together. Without a cost for each character, a long unknown word would be cheaper than several
/// known ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnknownWord {
    /// What the word is worth (natural logarithm), usually negative.
    pub word: f64,
    /// What each of its characters is worth.
    pub character: f64,
}

impl Default for UnknownWord {
    /// No further cost for the word, and as much for a character as choosing one of 27.
    fn default() -> Self {
        Self { word: 0.0, character: -(27f64.ln()) }
    }
}

impl UnknownWord {
    /// What a word of some characters is worth.
    fn gain(&self, characters: u32) -> f64 {
        self.word + self.character * f64::from(characters)
    }
}

/// What [`Fusion`] remembers of a text that is being written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FusionState {
    words: Option<State>,
    characters: Option<State>,
    /// The node of the word begun; `None` when no word of the lexicon begins like it.
    lexicon: Option<u32>,
    hotwords: u32,
    /// Characters of the word begun.
    characters_in_word: u32,
}

impl Fusion {
    /// Scores words by `model`, times `weight`; each word that it does not know is worth `unknown`
    /// besides.
    ///
    /// # Errors
    /// When the model has no words.
    pub fn with_words(
        mut self,
        model: NgramModel,
        weight: f64,
        unknown: UnknownWord,
    ) -> shared::Result<Self> {
        if self.lexicon.is_none() {
            let is_name = |word: &&str| word.starts_with('<') && word.ends_with('>');
            let words = model.words().iter().map(String::as_str).filter(|word| !is_name(word));
            self.lexicon = Some(Lexicon::new(words)?);
        }
        self.word_model = Some(model);
        self.word_weight = weight;
        self.unknown = unknown;
        self.number_words();
        Ok(self)
    }

    /// Scores characters by `model`, times `weight`: an n-gram model whose words are single characters,
    /// `|` between words.
    pub fn with_characters(mut self, model: NgramModel, weight: f64) -> Self {
        self.character_model = Some(model);
        self.character_weight = weight;
        self
    }

    /// Allows the words of `lexicon` only.
    pub fn with_lexicon(mut self, lexicon: Lexicon) -> Self {
        self.lexicon = Some(lexicon);
        self.is_closed = true;
        self.number_words();
        self
    }

    /// Adds the gains of `hotwords`.
    pub fn with_hotwords(mut self, hotwords: Hotwords) -> Self {
        self.hotwords = Some(hotwords);
        self
    }

    /// Adds `bonus` for each word, against the preference of language models for few.
    pub fn with_word_bonus(mut self, bonus: f64) -> Self {
        self.word_bonus = bonus;
        self
    }

    fn number_words(&mut self) {
        if let (Some(lexicon), Some(model)) = (&self.lexicon, &self.word_model) {
            self.numbers = lexicon.words().iter().map(|word| model.id(word)).collect();
        }
    }

    /// The state before a text.
    pub fn start(&self) -> FusionState {
        FusionState {
            words: self.word_model.as_ref().map(NgramModel::start),
            characters: self.character_model.as_ref().map(NgramModel::start),
            lexicon: Some(Lexicon::ROOT),
            hotwords: self.hotwords.as_ref().map_or(0, Hotwords::start),
            characters_in_word: 0,
        }
    }

    /// The state after more text, and what is added; `None` where the lexicon does not allow it.
    pub fn extend(&self, mut state: FusionState, text: &str) -> Option<(FusionState, f64)> {
        let mut gain = 0.0;
        for character in text.chars() {
            if character == ' ' {
                // A space before the first word, or after another space, means nothing.
                if state.characters_in_word > 0 {
                    gain += self.end_word(&mut state)? + self.characters(&mut state, "|");
                    gain += self.hotwords(&mut state, ' ');
                }
                continue;
            }
            state.characters_in_word = state.characters_in_word.saturating_add(1);
            if let Some(lexicon) = &self.lexicon {
                let known = state.lexicon;
                state.lexicon = known.and_then(|node| lexicon.child(node, character));
                gain += match (state.lexicon, known) {
                    (Some(_), _) => 0.0,
                    _ if self.is_closed => return None,
                    // From here on it is clear that the word is unknown.
                    (None, Some(_)) => self.unknown.gain(state.characters_in_word),
                    (None, None) => self.unknown.character,
                };
            }
            gain += self.characters(&mut state, character.encode_utf8(&mut [0; 4]));
            gain += self.hotwords(&mut state, character);
        }
        Some((state, gain))
    }

    /// What is added when nothing more follows; `None` where the lexicon does not allow it.
    pub fn finish(&self, mut state: FusionState) -> Option<f64> {
        let mut gain = 0.0;
        if let Some(hotwords) = &self.hotwords {
            gain += hotwords.finish(state.hotwords, state.characters_in_word > 0);
        }
        if state.characters_in_word > 0 {
            gain += self.end_word(&mut state)?;
        }
        if let (Some(model), Some(words)) = (&self.word_model, state.words) {
            gain += self.word_weight * natural(model.end(words));
        }
        if let (Some(model), Some(characters)) = (&self.character_model, state.characters) {
            gain += self.character_weight * natural(model.end(characters));
        }
        Some(gain)
    }

    fn end_word(&self, state: &mut FusionState) -> Option<f64> {
        let node = state.lexicon.replace(Lexicon::ROOT);
        let characters = std::mem::take(&mut state.characters_in_word);
        let mut gain = self.word_bonus;
        let word = match (&self.lexicon, node) {
            (Some(lexicon), Some(node)) => lexicon.ending(node),
            _ => None,
        };
        if self.is_closed {
            word?;
        }
        if let (Some(model), Some(words)) = (&self.word_model, state.words) {
            let number = word.and_then(|word| self.numbers.get(word as usize).copied().flatten());
            let step = model.step(words, number);
            state.words = Some(step.state);
            gain += self.word_weight * natural(step.log10);
            // Those that no known word begins like have been charged already.
            if number.is_none() && node.is_some() {
                gain += self.unknown.gain(characters);
            }
        }
        Some(gain)
    }

    fn characters(&self, state: &mut FusionState, character: &str) -> f64 {
        match (&self.character_model, state.characters) {
            (Some(model), Some(characters)) => {
                let step = model.step(characters, model.id(character));
                state.characters = Some(step.state);
                self.character_weight * natural(step.log10)
            }
            _ => 0.0,
        }
    }

    fn hotwords(&self, state: &mut FusionState, character: char) -> f64 {
        let Some(hotwords) = &self.hotwords else { return 0.0 };
        let (next, gain) = hotwords.step(state.hotwords, character);
        state.hotwords = next;
        gain
    }
}

/// The natural logarithm of what is given by its logarithm to base 10.
fn natural(log10: f32) -> f64 {
    f64::from(log10) * std::f64::consts::LN_10
}
