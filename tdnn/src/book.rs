//! Speakers and their embeddings, in one file.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::path::Path;

use shared::limits::Limits;
use shared::{Error, Result};

use crate::embeddings::{Embeddings, Format};
use crate::score::{Scorer, unit};

/// Separates a speaker's name from the number of the recording; names cannot hold it.
const SEPARATOR: char = '\u{1f}';

/// Speakers, each with the embeddings of one or more recordings.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeakerBook {
    speakers: BTreeMap<String, Vec<Vec<f32>>>,
    /// Empty; says what kind of embeddings the book holds.
    kind: Embeddings,
}

/// How like a speaker of a book a voice is.
#[derive(Clone, Debug, PartialEq)]
pub struct Match<'a> {
    /// The speaker's name.
    pub name: &'a str,
    /// Score of the voice against the mean of the speaker's recordings.
    pub score: f64,
}

impl SpeakerBook {
    /// A book without speakers, for embeddings like those of `kind`.
    pub fn new(kind: Embeddings) -> Self {
        Self { speakers: BTreeMap::new(), kind: Embeddings::new(kind.origin(), kind.dimension()) }
    }

    /// Reads what [`SpeakerBook::write`] wrote; `origin` says what made the embeddings that it
    /// will be compared with.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the file is no book or its embeddings were made by something else.
    pub fn read(path: &Path, origin: &str, limits: &Limits) -> Result<Self> {
        let embeddings = Embeddings::read(path, limits)?;
        embeddings.check_origin(origin, path)?;
        let mut book = Self::new(embeddings.clone());
        for (name, row) in embeddings.names().iter().zip(embeddings.rows()) {
            let (speaker, _) = name.rsplit_once(SEPARATOR).ok_or_else(|| {
                Error::checkpoint(path, format!("no speaker book: {name:?} is no entry of one"))
            })?;
            book.add(speaker, row)?;
        }
        Ok(book)
    }

    /// Writes the book to `path` in place of what is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut embeddings = self.kind.clone();
        for (name, rows) in &self.speakers {
            for (number, row) in rows.iter().enumerate() {
                embeddings.insert(&format!("{name}{SEPARATOR}{number}"), row)?;
            }
        }
        embeddings.write(path, Format::Safetensors, true)
    }

    /// Adds a recording of the speaker `name`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty name or one with control characters; [`Error::Shape`] for
    /// an embedding of another dimension.
    pub fn add(&mut self, name: &str, embedding: &[f32]) -> Result<()> {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(Error::Argument(format!(
                "{name:?} cannot name a speaker: it is empty or holds control characters"
            )));
        }
        if embedding.len() != self.kind.dimension() {
            let expected = format!("[{}]", self.kind.dimension());
            return Err(Error::shape(format!("embedding of {name}"), expected, &[embedding.len()]));
        }
        self.speakers.entry(name.to_owned()).or_default().push(embedding.to_vec());
        Ok(())
    }

    /// Forgets the speaker `name`.
    pub fn remove(&mut self, name: &str) {
        self.speakers.remove(name);
    }

    /// The speakers' names, sorted.
    pub fn speakers(&self) -> impl Iterator<Item = &str> {
        self.speakers.keys().map(String::as_str)
    }

    /// Number of recordings of the speaker `name`.
    pub fn recordings(&self, name: &str) -> usize {
        self.speakers.get(name).map_or(0, Vec::len)
    }

    /// All speakers by how like them the voice `embedding` is, the most like first.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    pub fn rank(&self, embedding: &[f32], scorer: &Scorer) -> Result<Vec<Match<'_>>> {
        let mut matches: Vec<Match> = self
            .speakers
            .iter()
            .map(|(name, rows)| {
                let mut sum = vec![0.0; self.kind.dimension()];
                for row in rows {
                    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                Ok(Match { name, score: scorer.score(embedding, &unit(&sum))? })
            })
            .collect::<Result<_>>()?;
        matches.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::Scoring;

    fn book() -> SpeakerBook {
        let mut book = SpeakerBook::new(Embeddings::new("model", 2));
        book.add("Ada", &[1.0, 0.0]).unwrap();
        book.add("Ada", &[0.6, 0.8]).unwrap();
        book.add("Grace", &[0.0, 1.0]).unwrap();
        book
    }

    #[test]
    fn a_book_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("book.safetensors");
        book().write(&path).unwrap();
        assert_eq!(SpeakerBook::read(&path, "model", &Limits::default()).unwrap(), book());
        assert!(SpeakerBook::read(&path, "another", &Limits::default()).is_err());
        let mut plain = Embeddings::new("model", 2);
        plain.insert("a.wav", &[1.0, 0.0]).unwrap();
        plain.write(&path, Format::Safetensors, true).unwrap();
        assert!(SpeakerBook::read(&path, "model", &Limits::default()).is_err());
    }

    #[test]
    fn the_most_like_speaker_comes_first() {
        let scorer = Scorer::new(Scoring::Cosine, None).unwrap();
        let book = book();
        let matches = book.rank(&[1.0, 0.0], &scorer).unwrap();
        assert_eq!(matches[0].name, "Ada");
        // The mean of (1, 0) and (0.6, 0.8) has this cosine with (1, 0).
        assert!((matches[0].score - 1.6 / (1.6f64.powi(2) + 0.8f64.powi(2)).sqrt()).abs() < 1e-6);
        assert!(matches[1].score.abs() < 1e-6);
    }

    #[test]
    fn speakers_can_be_removed_and_names_are_checked() {
        let mut book = book();
        assert_eq!((book.recordings("Ada"), book.speakers().count()), (2, 2));
        book.remove("Ada");
        assert_eq!((book.recordings("Ada"), book.speakers().count()), (0, 1));
        assert!(book.add("", &[1.0, 0.0]).is_err() && book.add("a\u{1f}b", &[1.0, 0.0]).is_err());
        assert!(book.add("Ada", &[1.0]).is_err());
    }
}
