//! Files of scores, whole or in parts.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shared::cli::Shard;
use shared::data::TrialList;
use shared::files::{read_text, write_atomic};
use shared::limits::Limits;
use shared::{Error, Result};

/// Starts the first line, which says what the file holds.
const MARK: &str = "# tdnn scores ";

/// The scores of a trial list, or of one part of it: a first line that says which, then a line
/// `score a b` for each trial.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreFile {
    header: Header,
    /// Score and the two recordings.
    rows: Vec<(f64, String, String)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// SHA-256 of the names in the whole list, trial by trial.
    list: String,
    /// Trials in the whole list.
    trials: usize,
    /// Number of this part, from 0.
    part: usize,
    /// Number of parts.
    parts: usize,
}

impl ScoreFile {
    /// The scores of the trials of `list` that belong to `shard`, in their order.
    ///
    /// # Errors
    /// When there are more or fewer scores than trials.
    pub fn of(list: &TrialList, shard: Shard, scores: &[f64]) -> Result<Self> {
        let range = shard.range(list.trials.len());
        if scores.len() != range.len() {
            return Err(Error::Argument(format!(
                "{} scores for {} trials",
                scores.len(),
                range.len()
            )));
        }
        let header = Header {
            list: list.hash(),
            trials: list.trials.len(),
            part: shard.index,
            parts: shard.count,
        };
        let pairs = list.pairs().skip(range.start);
        let rows =
            pairs.zip(scores).map(|((a, b), score)| (*score, a.to_owned(), b.to_owned())).collect();
        Ok(Self { header, rows })
    }

    /// Whether the file at `path` begins like a file of scores.
    pub fn is_at(path: &Path, limits: &Limits) -> bool {
        read_text(path, limits).is_ok_and(|text| text.starts_with(MARK))
    }

    /// Reads what [`ScoreFile::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Parse`] with the line that is no score.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        let text = read_text(path, limits)?;
        let wrong = |line: usize, reason: &str| Error::Parse {
            path: path.to_path_buf(),
            line,
            reason: reason.to_owned(),
        };
        let mut lines = text.lines().enumerate();
        let header: Header = lines
            .next()
            .and_then(|(_, line)| serde_json::from_str(line.strip_prefix(MARK)?).ok())
            .ok_or_else(|| {
                wrong(1, "no file of scores: it starts otherwise than `tdnn score` writes")
            })?;
        let rows: Vec<(f64, String, String)> = lines
            .map(|(number, line)| {
                let mut fields = line.splitn(3, ' ');
                let mut row = || {
                    let score: f64 = fields.next()?.parse().ok()?;
                    Some((score, fields.next()?.to_owned(), fields.next()?.to_owned()))
                };
                row()
                    .filter(|(score, ..)| score.is_finite())
                    .ok_or_else(|| wrong(number + 1, "expected `score a b`"))
            })
            .collect::<Result<_>>()?;
        let shard = Shard { index: header.part, count: header.parts };
        if header.part >= header.parts || rows.len() != shard.range(header.trials).len() {
            return Err(wrong(1, "the file has more or fewer scores than its first line says"));
        }
        Ok(Self { header, rows })
    }

    /// Writes the scores to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Io`].
    pub fn write(&self, path: &Path, force: bool) -> Result<()> {
        let header = serde_json::to_string(&self.header)
            .map_err(|error| Error::Argument(format!("header of scores: {error}")))?;
        write_atomic(path, force, |file| {
            writeln!(file, "{MARK}{header}")?;
            self.rows.iter().try_for_each(|(score, a, b)| writeln!(file, "{score:.6} {a} {b}"))
        })
    }

    /// The scores in the order of the list.
    pub fn scores(&self) -> Vec<f64> {
        self.rows.iter().map(|(score, ..)| *score).collect()
    }

    /// Fails unless these are the scores of all trials of `list`.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn check(&self, list: &TrialList) -> Result<()> {
        let whole = self.header.parts == 1 && self.rows.len() == list.trials.len();
        let same = || list.pairs().zip(&self.rows).all(|(pair, (_, a, b))| pair == (a, b));
        match whole && same() {
            true => Ok(()),
            false => Err(Error::Argument("these are not the scores of the whole list".into())),
        }
    }

    /// The whole from its parts, given in any order.
    ///
    /// # Errors
    /// [`Error::Argument`] when a part is missing, comes twice, or is of another list.
    pub fn merge(mut parts: Vec<Self>) -> Result<Self> {
        parts.sort_by_key(|part| part.header.part);
        let first = parts
            .first()
            .map(|part| part.header.clone())
            .ok_or_else(|| Error::Argument("there is nothing to merge".into()))?;
        for (number, part) in parts.iter().enumerate() {
            let expected = Header { part: number, ..first.clone() };
            if part.header != expected {
                return Err(Error::Argument(format!(
                    "expected part {number} of {}, found part {} of {} of {} list",
                    first.parts,
                    part.header.part,
                    part.header.parts,
                    if part.header.list == first.list { "the same" } else { "another" }
                )));
            }
        }
        if parts.len() != first.parts {
            let (found, parts) = (parts.len(), first.parts);
            return Err(Error::Argument(format!("{found} parts where the list has {parts}")));
        }
        let rows = parts.into_iter().flat_map(|part| part.rows).collect();
        Ok(Self { header: Header { part: 0, parts: 1, ..first }, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> TrialList {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trials");
        std::fs::write(&path, "1 a b\n0 a c\n1 b c\n").unwrap();
        TrialList::read(&path, &Limits::default()).unwrap()
    }

    fn part(index: usize, scores: &[f64]) -> ScoreFile {
        ScoreFile::of(&list(), Shard { index, count: 2 }, scores).unwrap()
    }

    #[test]
    fn parts_make_the_whole() {
        let whole = ScoreFile::of(&list(), Shard::ALL, &[0.5, -0.25, 1.0]).unwrap();
        let parts = vec![part(1, &[-0.25, 1.0]), part(0, &[0.5])];
        let merged = ScoreFile::merge(parts).unwrap();
        assert_eq!(merged, whole);
        merged.check(&list()).unwrap();
        assert!(part(0, &[0.5]).check(&list()).is_err());
        for wrong in [
            vec![],
            vec![part(0, &[0.5])],
            vec![part(0, &[0.5]), part(0, &[0.5])],
            vec![whole, part(1, &[0.5, 0.5])],
        ] {
            assert!(ScoreFile::merge(wrong).is_err());
        }
        assert!(ScoreFile::of(&list(), Shard::ALL, &[1.0]).is_err());
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores");
        let whole = ScoreFile::of(&list(), Shard::ALL, &[0.5, -0.25, 1.0]).unwrap();
        whole.write(&path, false).unwrap();
        assert_eq!(ScoreFile::read(&path, &Limits::default()).unwrap(), whole);
        assert!(ScoreFile::is_at(&path, &Limits::default()));
        let text = std::fs::read_to_string(&path).unwrap();
        for spoilt in [
            text.replace("0.5", "x"),
            text.replace("0.5", "inf"),
            text.replace("0.500000 a b\n", ""),
            text.replace("\"parts\":1", "\"parts\":0"),
            text.replace(MARK, "#"),
            String::new(),
        ] {
            std::fs::write(&path, spoilt).unwrap();
            assert!(ScoreFile::read(&path, &Limits::default()).is_err());
        }
    }
}
