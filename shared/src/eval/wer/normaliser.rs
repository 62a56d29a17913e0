//! What is done to texts before they are compared.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// What is done to texts, references and hypotheses alike, before they are compared. An error rate
/// means nothing without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normaliser {
    /// Nothing but taking white space away at both ends.
    #[default]
    None,
    /// Lower case; everything but letters, digits and apostrophes inside of words becomes a space;
    /// one space between words.
    Basic,
    /// The form of LibriSpeech's transcripts: capital letters; accents and letters of other alphabets
    /// are kept, everything else but digits and apostrophes inside of words becomes a space; one space
    /// between words.
    Librispeech,
}

impl Normaliser {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Basic, Self::Librispeech];

    /// The text as it is compared.
    pub fn apply(self, text: &str) -> String {
        match self {
            Self::None => text.trim().to_owned(),
            Self::Basic => words_alone(&text.to_lowercase()),
            Self::Librispeech => words_alone(&text.to_uppercase()),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Basic => "basic",
            Self::Librispeech => "librispeech",
        }
    }

    /// What it does, in a sentence without final dot.
    pub fn description(self) -> &'static str {
        match self {
            Self::None => "texts as they are",
            Self::Basic => "lower case, no punctuation but apostrophes inside of words",
            Self::Librispeech => "capital letters, no punctuation but apostrophes inside of words",
        }
    }
}

impl fmt::Display for Normaliser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Normaliser {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|known| known.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::Argument(format!("normaliser `{text}`: expected one of {names}"))
        })
    }
}

/// The words of `text` with one space between: runs of letters, digits, combining marks, and
/// apostrophes that do not end or begin a word.
fn words_alone(text: &str) -> String {
    let kept = text.chars().map(|letter| match letter {
        '\u{2019}' | '\u{2018}' | '\u{02bc}' | '\u{ff07}' => '\'',
        other => other,
    });
    let is_kept = |letter: char| letter.is_alphanumeric() || letter == '\'' || is_mark(letter);
    let spaced: String = kept.map(|letter| if is_kept(letter) { letter } else { ' ' }).collect();
    let words = spaced.split_whitespace().map(|word| word.trim_matches('\''));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether a character is one of the combining marks that stand after the letter they change.
fn is_mark(letter: char) -> bool {
    matches!(letter, '\u{0300}'..='\u{036f}' | '\u{1ab0}'..='\u{1aff}' | '\u{20d0}'..='\u{20ff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_normalised() {
        let text = "  \u{2018}It\u{2019}s\u{2019}  caf\u{e9}-bar, \u{2014} No. 5!\t'' e\u{301} ";
        for (normaliser, expected) in [
            (Normaliser::None, text.trim()),
            (Normaliser::Basic, "it's caf\u{e9} bar no 5 e\u{301}"),
            (Normaliser::Librispeech, "IT'S CAF\u{c9} BAR NO 5 E\u{301}"),
        ] {
            assert_eq!(normaliser.apply(text), expected);
            assert_eq!(normaliser.apply("\u{2003} \n"), "");
            assert_eq!(normaliser.name().parse::<Normaliser>().unwrap(), normaliser);
        }
        let error = "wer".parse::<Normaliser>().unwrap_err().to_string();
        assert!(error.contains("none, basic, librispeech"), "{error}");
    }
}
