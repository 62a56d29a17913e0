//! What the classes of a recogniser stand for.

mod word_pieces;

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use shared::{Error, Result};
use tokenizers::Tokenizer;

/// The symbols of SUPERB's recogniser in the order of its classes; the first is CTC's blank.
const SUPERB: [&str; 32] = [
    "<s>", "<pad>", "</s>", "<unk>", "|", "E", "T", "A", "O", "N", "I", "H", "S", "R", "D", "L",
    "U", "M", "C", "W", "F", "G", "Y", "P", "B", "V", "K", "'", "X", "J", "Q", "Z",
];
/// The symbol between words.
const DELIMITER: &str = "|";
/// The symbol for characters that have none.
const UNKNOWN: &str = "<unk>";

/// The classes of a CTC recogniser, and how texts are written in them.
///
/// Either characters: then `|` stands between words, and every other symbol is one character. Or pieces
/// of words, where one that begins a word begins with `▁`. Symbols in angle brackets (`<s>`, `<unk>`)
/// are no part of a text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Vocabulary {
    symbols: Vec<String>,
    blank: u32,
    /// What each symbol adds to a text; a space where it begins or ends a word.
    pieces: Vec<String>,
    encoder: Encoder,
}

impl PartialEq for Vocabulary {
    fn eq(&self, other: &Self) -> bool {
        let same_encoder = match (&self.encoder, &other.encoder) {
            (Encoder::Characters(_), Encoder::Characters(_)) => true,
            (Encoder::WordPieces(_, json), Encoder::WordPieces(_, other)) => json == other,
            _ => false,
        };
        same_encoder && self.blank == other.blank && self.symbols == other.symbols
    }
}

#[derive(Clone, Debug)]
enum Encoder {
    Characters(HashMap<char, u32>),
    /// With its JSON form.
    WordPieces(Box<Tokenizer>, String),
}

/// A vocabulary as it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Stored {
    Characters { symbols: Vec<String>, blank: u32 },
    WordPieces { tokenizer: String, blank: u32 },
}

impl TryFrom<Stored> for Vocabulary {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self> {
        match stored {
            Stored::Characters { symbols, blank } => Self::new(symbols, blank),
            Stored::WordPieces { tokenizer, blank } => Self::word_pieces(&tokenizer, blank),
        }
    }
}

impl From<Vocabulary> for Stored {
    fn from(Vocabulary { symbols, blank, encoder, .. }: Vocabulary) -> Self {
        match encoder {
            Encoder::Characters(_) => Self::Characters { symbols, blank },
            Encoder::WordPieces(_, tokenizer) => Self::WordPieces { tokenizer, blank },
        }
    }
}

/// Whether a symbol is no part of a text.
fn is_special(symbol: &str) -> bool {
    symbol.len() > 2 && symbol.starts_with('<') && symbol.ends_with('>')
}

fn check_blank(blank: u32, symbols: &[String]) -> Result<()> {
    if blank as usize >= symbols.len() || symbols.len() > word_pieces::MAX_SYMBOLS {
        let count = symbols.len();
        return Err(Error::Argument(format!("blank {blank} is none of {count} symbols")));
    }
    Ok(())
}

impl Vocabulary {
    /// The vocabulary of characters whose classes are `symbols` in this order, with the class `blank`
    /// for none of them.
    ///
    /// # Errors
    /// When a symbol is there twice, or is neither one character nor in angle brackets; when the blank
    /// is none of them.
    pub fn new(symbols: Vec<String>, blank: u32) -> Result<Self> {
        check_blank(blank, &symbols)?;
        let mut earlier = HashSet::new();
        for (class, symbol) in (0..).zip(&symbols) {
            let is_character = symbol.chars().count() == 1 && !symbol.contains(char::is_whitespace);
            if class != blank && !is_character && !is_special(symbol) {
                return Err(Error::Argument(format!(
                    "symbol `{symbol}` of the vocabulary is neither one character nor in angle \
                     brackets"
                )));
            }
            if !earlier.insert(symbol) {
                let reason = format!("symbol `{symbol}` is in the vocabulary twice");
                return Err(Error::Argument(reason));
            }
        }
        Ok(Self::of_characters(symbols, blank))
    }

    fn of_characters(symbols: Vec<String>, blank: u32) -> Self {
        let pieces = pieces(&symbols, blank, |symbol| match symbol {
            DELIMITER => " ".to_owned(),
            character => character.to_owned(),
        });
        let first = |(class, piece): (u32, &String)| Some((piece.chars().next()?, class));
        let classes = (0..).zip(&pieces).filter_map(first).collect();
        Self { symbols, blank, pieces, encoder: Encoder::Characters(classes) }
    }

    /// The 32 symbols of SUPERB's speech recognition task (`char.dict`): capital letters by frequency,
    /// apostrophe, and four that are no text, of which the first is the blank.
    pub fn superb() -> Self {
        Self::of_characters(SUPERB.map(str::to_owned).to_vec(), 0)
    }

    /// The vocabulary of all characters of `texts`: the blank, `|`, then the characters in order.
    ///
    /// # Errors
    /// When `|` is one of them.
    pub fn of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let characters: BTreeSet<char> = texts
            .into_iter()
            .flat_map(str::chars)
            .filter(|character| !character.is_whitespace())
            .collect();
        if characters.contains(&'|') {
            let reason = "a text holds `|`, which stands between words in vocabularies; remove it";
            return Err(Error::Argument(reason.into()));
        }
        let symbols = ["<blank>".to_owned(), DELIMITER.to_owned()].into_iter();
        Self::new(symbols.chain(characters.iter().map(char::to_string)).collect(), 0)
    }

    /// A vocabulary of at most `symbols` symbols: all characters of `texts` and the pieces of words that
    /// byte-pair encoding finds in them.
    ///
    /// # Errors
    /// When a text holds `▁`, or there is no text.
    pub fn train<'a>(texts: impl IntoIterator<Item = &'a str>, symbols: usize) -> Result<Self> {
        let tokenizer = word_pieces::train(texts, symbols)?;
        Self::word_pieces(&word_pieces::to_json(&tokenizer)?, 0)
    }

    /// The vocabulary of pieces of words of a tokenizer in the JSON form of the `tokenizers` library
    /// (`tokenizer.json`), with the class `blank` for none of them.
    ///
    /// # Errors
    /// When it is malformed; when words do not begin with `▁`; when the blank is none of its classes.
    pub fn word_pieces(json: &str, blank: u32) -> Result<Self> {
        let tokenizer = word_pieces::parse(json)?;
        let symbols = word_pieces::symbols(&tokenizer)?;
        check_blank(blank, &symbols)?;
        let pieces = pieces(&symbols, blank, word_pieces::piece);
        let encoder = Encoder::WordPieces(Box::new(tokenizer), json.to_owned());
        Ok(Self { symbols, blank, pieces, encoder })
    }

    /// The symbols by class.
    pub fn symbols(&self) -> &[String] {
        &self.symbols
    }

    /// Number of classes, the blank included.
    pub fn classes(&self) -> usize {
        self.symbols.len()
    }

    /// The class that stands for no symbol.
    pub fn blank(&self) -> u32 {
        self.blank
    }

    /// The class that stands between words, where words do not begin with a symbol of their own.
    pub fn delimiter(&self) -> Option<u32> {
        match &self.encoder {
            Encoder::Characters(known) => known.get(&' ').copied(),
            Encoder::WordPieces(..) => None,
        }
    }

    /// What a class adds to a text: characters, with a space before where they begin a word; a space
    /// alone; or nothing.
    pub fn piece(&self, class: u32) -> &str {
        self.pieces.get(class as usize).map_or("", String::as_str)
    }

    /// The classes of `text`, whose words may be apart by any white space. A character that the
    /// vocabulary lacks becomes `<unk>`.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the character, where there is no `<unk>` either.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let text = words.join(" ");
        let known = match &self.encoder {
            Encoder::Characters(known) => known,
            Encoder::WordPieces(..) if text.is_empty() => return Ok(vec![]),
            Encoder::WordPieces(tokenizer, _) => return word_pieces::encode(tokenizer, &text),
        };
        let unknown = self.symbols.iter().position(|symbol| symbol == UNKNOWN);
        let class = |character: char| match (known.get(&character), unknown) {
            (Some(class), _) => Ok(*class),
            (None, Some(unknown)) => Ok(unknown as u32),
            (None, None) => Err(Error::Argument(format!(
                "character `{character}` of `{text}` is not in the vocabulary"
            ))),
        };
        text.chars().map(class).collect()
    }

    /// The text of some classes, blanks taken away already: words with one space between.
    pub fn decode(&self, classes: &[u32]) -> String {
        let text: String = classes.iter().map(|class| self.piece(*class)).collect();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// What each symbol adds to a text, `piece` for those that do.
fn pieces(symbols: &[String], blank: u32, piece: impl Fn(&str) -> String) -> Vec<String> {
    (0..)
        .zip(symbols)
        .map(|(class, symbol)| match class == blank || is_special(symbol) {
            true => String::new(),
            false => piece(symbol),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_written_in_classes_and_back() {
        let superb = Vocabulary::superb();
        assert_eq!(superb.classes(), 32);
        let classes = superb.encode(" IT'S  HOT\n").unwrap();
        assert_eq!(classes, [10, 6, 27, 12, 4, 11, 8, 6]);
        assert_eq!(superb.decode(&classes), "IT'S HOT");
        assert_eq!(superb.encode("a").unwrap(), [3]);
        assert_eq!(superb.decode(&[4, 4, 3, 10, 4, 1, 4, 8, 4]), "I O");
        assert!(Vocabulary::new(superb.symbols().to_vec(), 0).is_ok());

        let own = Vocabulary::of_texts(["be a", "\u{e9}\tb"]).unwrap();
        assert_eq!(own.symbols(), ["<blank>", "|", "a", "b", "e", "\u{e9}"]);
        assert_eq!(own.decode(&own.encode("abe \u{e9}").unwrap()), "abe \u{e9}");
        let error = own.encode("abc").unwrap_err().to_string();
        assert!(error.contains("`c` of `abc`"), "{error}");
    }

    #[test]
    fn frequent_parts_of_words_become_pieces() {
        let texts = ["the cat", "the bat", "the hat", "a cat"];
        let vocabulary = Vocabulary::train(texts, 17).unwrap();
        assert_eq!(vocabulary.symbols()[..2], ["<blank>", "<unk>"]);
        assert_eq!((vocabulary.classes(), vocabulary.blank()), (17, 0));
        assert!(vocabulary.symbols().contains(&"\u{2581}the".to_owned()), "{vocabulary:?}");
        for text in texts.into_iter().chain(["", "tbatche a"]) {
            let classes = vocabulary.encode(text).unwrap();
            assert_eq!(vocabulary.decode(&classes), text);
            assert!(classes.len() <= text.len() + 1);
        }
        assert_eq!(vocabulary.encode("the  the").unwrap().len(), 2);
        let unknown = vocabulary.encode("cax").unwrap();
        assert!(unknown.contains(&1) && vocabulary.decode(&unknown) == "ca");
        assert!(Vocabulary::train(["\u{2581}"], 10).is_err());
        assert!(Vocabulary::word_pieces("{}", 0).is_err());
    }

    #[test]
    fn vocabularies_that_make_no_sense_are_refused() {
        let new = |symbols: &[&str], blank| {
            Vocabulary::new(symbols.iter().map(|symbol| symbol.to_string()).collect(), blank)
        };
        assert!(new(&["<b>", "a", "|"], 0).is_ok());
        assert!(new(&["a", "|", "blank"], 2).is_ok());
        for (symbols, blank) in [
            (vec!["a", "b"], 2),
            (vec![], 0),
            (vec!["<b>", "a", "a"], 0),
            (vec!["<b>", "ab"], 0),
            (vec!["<b>", " "], 0),
            (vec!["<b>", ""], 0),
        ] {
            assert!(new(&symbols, blank).is_err(), "{symbols:?}");
        }
        assert!(Vocabulary::of_texts(["a|b"]).is_err());
    }

    #[test]
    fn vocabularies_travel_as_json() {
        let texts = ["some text", "some more"];
        for vocabulary in
            [Vocabulary::of_texts(texts).unwrap(), Vocabulary::train(texts, 20).unwrap()]
        {
            let json = serde_json::to_string(&vocabulary).unwrap();
            let again: Vocabulary = serde_json::from_str(&json).unwrap();
            assert_eq!(again.symbols(), vocabulary.symbols());
            assert_eq!(again.encode("more text").unwrap(), vocabulary.encode("more text").unwrap());
            assert!(
                serde_json::from_str::<Vocabulary>(&json.replace("blank\":0", "blank\":99"))
                    .is_err()
            );
        }
    }
}
