//! The words that a recogniser may write.

use std::collections::HashMap;
use std::path::Path;

use shared::data::lines::Lines;
use shared::limits::Limits;
use shared::{Error, Result};

/// Words as a tree of their characters.
#[derive(Clone, Debug)]
pub struct Lexicon {
    words: Vec<String>,
    children: HashMap<(u32, char), u32>,
    /// Of each node the word that ends there.
    ending: Vec<Option<u32>>,
}

impl Lexicon {
    /// The node before the first character of a word.
    pub(super) const ROOT: u32 = 0;

    /// The lexicon of `words`; repeated ones count once.
    ///
    /// # Errors
    /// [`Error::Argument`] for a word that is empty or holds white space, or when there is none.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut lexicon = Self { words: vec![], children: HashMap::new(), ending: vec![None] };
        for word in words {
            lexicon.add(word)?;
        }
        match lexicon.words.is_empty() {
            true => Err(Error::Argument("a lexicon needs at least one word".into())),
            false => Ok(lexicon),
        }
    }

    /// The lexicon in a file, plain or compressed with gzip: the first word of each line, whatever
    /// follows (a spelling, a count).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Limit`]; [`Error::Parse`], also when there is no word.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        let mut lines = Lines::open(path, limits)?;
        let mut words = Vec::new();
        while let Some(line) = lines.next()? {
            words.push(line.key_and_rest().0.to_owned());
        }
        let lexicon = Self::new(words.iter().map(String::as_str));
        lexicon.map_err(|error| lines.error(error.to_string()))
    }

    /// The words, each once, in the order in which they came first.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    fn add(&mut self, word: &str) -> Result<()> {
        if word.is_empty() || word.contains(char::is_whitespace) {
            let reason = format!("`{word}` is no word of a lexicon: it is empty or holds a space");
            return Err(Error::Argument(reason));
        }
        let mut node = Self::ROOT;
        for character in word.chars() {
            let next = self.ending.len() as u32;
            node = *self.children.entry((node, character)).or_insert(next);
            if node == next {
                self.ending.push(None);
            }
        }
        if let Some(ending) = self.ending.get_mut(node as usize)
            && ending.is_none()
        {
            *ending = Some(self.words.len() as u32);
            self.words.push(word.to_owned());
        }
        Ok(())
    }

    /// The node of the words that go on with `character` after `node`.
    pub(super) fn child(&self, node: u32, character: char) -> Option<u32> {
        self.children.get(&(node, character)).copied()
    }

    /// The place in [`Lexicon::words`] of the word that ends at `node`.
    pub(super) fn ending(&self, node: u32) -> Option<u32> {
        self.ending.get(node as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(lexicon: &Lexicon, word: &str) -> Option<u32> {
        let node = word.chars().try_fold(Lexicon::ROOT, |node, c| lexicon.child(node, c))?;
        lexicon.ending(node)
    }

    #[test]
    fn words_are_found_and_others_not() {
        let lexicon = Lexicon::new(["be", "bee", "a", "be"]).unwrap();
        assert_eq!(lexicon.words(), ["be", "bee", "a"]);
        for (word, place) in [
            ("be", Some(0)),
            ("bee", Some(1)),
            ("a", Some(2)),
            ("b", None),
            ("", None),
            ("c", None),
        ] {
            assert_eq!(find(&lexicon, word), place, "{word}");
        }
        assert!(Lexicon::new([]).is_err() && Lexicon::new([""]).is_err());
        assert!(Lexicon::new(["a b"]).is_err());
    }

    #[test]
    fn files_may_have_more_than_the_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lexicon.txt");
        std::fs::write(&path, "BE\tB E |\nBEE B E E |\n\nA\n").unwrap();
        let lexicon = Lexicon::read(&path, &Limits::default()).unwrap();
        assert_eq!(lexicon.words(), ["BE", "BEE", "A"]);
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(Lexicon::read(&path, &Limits::default()), Err(Error::Parse { .. })));
    }
}
