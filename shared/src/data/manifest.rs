//! Lists of utterances.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::lines::{Line, Lines};
use super::{json_lines, kaldi, table, tree};
use crate::limits::Limits;
use crate::{Error, Result};

/// A recording, or part of one, and what is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Utterance {
    /// Name, unique in its manifest.
    pub id: String,
    /// The recording.
    pub path: PathBuf,
    /// Who speaks.
    pub speaker: Option<String>,
    /// What is said.
    pub text: Option<String>,
    /// Where the utterance begins in the recording; `None` when it is the whole recording.
    pub start_s: Option<f64>,
    /// How long it is. For a whole recording this is what the manifest says, and only informs; for
    /// a part, `None` means up to the end.
    pub duration_s: Option<f64>,
    /// What else the manifest says, by column.
    pub extra: BTreeMap<String, String>,
}

impl Utterance {
    /// The value of a column: `id`, `path`, `speaker`, `text` or one of [`Utterance::extra`].
    pub fn column(&self, name: &str) -> Option<&str> {
        match name {
            "id" => Some(&self.id),
            "path" => self.path.to_str(),
            "speaker" => self.speaker.as_deref(),
            "text" => self.text.as_deref(),
            other => self.extra.get(other).map(String::as_str),
        }
    }

    /// Names an utterance whose manifest does not: by its path as written, and the start of a part.
    pub(super) fn name_after(&mut self, written_path: &str) {
        if self.id.is_empty() {
            self.id = match self.start_s {
                Some(start_s) => format!("{written_path}@{start_s}"),
                None => written_path.to_owned(),
            };
        }
    }
}

/// A list of utterances with unique names.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The file or folder it was read from, for messages.
    pub source: PathBuf,
    /// The utterances, in the order of the source.
    pub utterances: Vec<Utterance>,
}

impl Manifest {
    /// Reads a manifest of any supported form, told by its content:
    ///
    /// - a table with tabs between columns and their names in the first line, among them `path`;
    ///   `id`, `speaker`, `text`, `start_s` and `duration_s` (or `seconds`) are understood, other
    ///   columns are kept as they are;
    /// - JSON lines with `audio_filepath` (or `path`), and `id`, `speaker`, `text`, `offset`,
    ///   `duration`;
    /// - Kaldi's `wav.scp` (lines `id path`), or the folder that holds it; `utt2spk`, `text` and
    ///   `segments` beside a file of that very name are read too;
    /// - a folder of recordings in LibriSpeech's form (`*.trans.txt` beside the recordings), in
    ///   VoxCeleb's (`id00012/video/00001.wav`), or with one sub-folder a speaker, or flat.
    ///
    /// Relative paths start at `root`, or else at the folder of the manifest. Without an `id`
    /// column the path as written names the utterance.
    ///
    /// # Errors
    /// [`Error::Parse`] with the line at fault, also for a name that comes twice; [`Error::Io`];
    /// [`Error::Limit`]; [`Error::Argument`] when a folder holds no recording.
    pub fn read(path: &Path, root: Option<&Path>, limits: &Limits) -> Result<Self> {
        let manifest = if path.is_dir() {
            let scp = path.join("wav.scp");
            if scp.is_file() {
                kaldi::read(&scp, root.unwrap_or(path), limits)
            } else {
                tree::read(path, limits)
            }
        } else {
            Self::read_file(path, root.or(path.parent()).unwrap_or(Path::new("")), limits)
        }?;
        if manifest.utterances.is_empty() {
            let reason = "the manifest has no utterance".to_owned();
            return Err(Error::Parse { path: path.to_path_buf(), line: 1, reason });
        }
        Ok(manifest)
    }

    fn read_file(path: &Path, root: &Path, limits: &Limits) -> Result<Self> {
        let open = || Lines::open(path, limits);
        match open()?.next()? {
            Some(first) if first.text.starts_with('{') => json_lines::read(open()?, path, root),
            Some(first) if first.fields().contains(&"path") => table::read(open()?, path, root),
            _ => kaldi::read(path, root, limits),
        }
    }

    /// The manifest reduced to the utterances that pass all `filters`.
    ///
    /// # Errors
    /// [`Error::Argument`] when a filter names a column that no utterance has.
    pub fn filtered(mut self, filters: &[Filter]) -> Result<Self> {
        for filter in filters {
            let column = &filter.column;
            if !self.utterances.iter().any(|utterance| utterance.column(column).is_some()) {
                let extra: BTreeSet<&str> = self
                    .utterances
                    .iter()
                    .flat_map(|utterance| utterance.extra.keys().map(String::as_str))
                    .collect();
                let known: Vec<&str> =
                    ["id", "path", "speaker", "text"].into_iter().chain(extra).collect();
                return Err(Error::Argument(format!(
                    "{}: no utterance has a column `{column}` to filter on; there are: {}",
                    self.source.display(),
                    known.join(", ")
                )));
            }
        }
        self.utterances.retain(|utterance| filters.iter().all(|filter| filter.accepts(utterance)));
        Ok(self)
    }

    /// The speakers, sorted by name and numbered from 0.
    ///
    /// # Errors
    /// [`Error::Argument`] when an utterance has no speaker.
    pub fn speakers(&self) -> Result<SpeakerIndex> {
        let mut names = BTreeSet::new();
        for utterance in &self.utterances {
            let speaker = utterance.speaker.as_deref().ok_or_else(|| {
                Error::Argument(format!(
                    "{}: utterance `{}` has no speaker",
                    self.source.display(),
                    utterance.id
                ))
            })?;
            names.insert(speaker);
        }
        Ok(SpeakerIndex { names: names.into_iter().map(str::to_owned).collect() })
    }

    /// Names of utterances whose audio, the same part of the same file, an earlier utterance has.
    pub fn repeated(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        let bits = |seconds: Option<f64>| seconds.map(f64::to_bits);
        self.utterances
            .iter()
            .filter(|utterance| {
                let part =
                    utterance.start_s.map(|start| (start.to_bits(), bits(utterance.duration_s)));
                !seen.insert((&utterance.path, part))
            })
            .map(|utterance| utterance.id.as_str())
            .collect()
    }

    /// SHA-256, in hexadecimal, of the names, speakers and file sizes, whatever the order. Two
    /// manifests with the same hash train the same model.
    ///
    /// # Errors
    /// [`Error::Io`] for a recording that cannot be found.
    pub fn hash(&self) -> Result<String> {
        let mut rows = Vec::with_capacity(self.utterances.len());
        for utterance in &self.utterances {
            let bytes =
                std::fs::metadata(&utterance.path).map_err(Error::io(&utterance.path))?.len();
            rows.push((utterance.id.as_str(), utterance.speaker.as_deref().unwrap_or(""), bytes));
        }
        rows.sort_unstable();
        let mut hash = Sha256::new();
        for (id, speaker, bytes) in rows {
            hash.update(format!("{id}\0{speaker}\0{bytes}\n"));
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Collects the utterances of a manifest file and refuses names that come twice.
pub(super) struct Builder {
    manifest: Manifest,
    names: HashSet<String>,
}

impl Builder {
    pub(super) fn new(source: &Path) -> Self {
        let manifest = Manifest { source: source.to_path_buf(), utterances: Vec::new() };
        Self { manifest, names: HashSet::new() }
    }

    /// Adds the utterance that `line` describes.
    pub(super) fn push(&mut self, utterance: Utterance, line: Line<'_>) -> Result<()> {
        if !self.names.insert(utterance.id.clone()) {
            return Err(line.error(format!("utterance `{}` is there twice", utterance.id)));
        }
        self.manifest.utterances.push(utterance);
        Ok(())
    }

    pub(super) fn finish(self) -> Manifest {
        self.manifest
    }
}

/// A condition on a column, written `column=value`, `column=one,other` (any of them), or with `!=`
/// (none of them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    column: String,
    values: Vec<String>,
    excluded: bool,
}

impl Filter {
    /// Whether the utterance passes. One that lacks the column equals no value.
    pub fn accepts(&self, utterance: &Utterance) -> bool {
        let found = utterance
            .column(&self.column)
            .is_some_and(|value| self.values.iter().any(|wanted| wanted == value));
        found != self.excluded
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (column, values) = text.split_once('=').unwrap_or((text, ""));
        let (column, excluded) = match column.strip_suffix('!') {
            Some(column) => (column, true),
            None => (column, false),
        };
        if column.is_empty() || !text.contains('=') {
            return Err(Error::Argument(format!(
                "filter `{text}`: expected `column=value` or `column!=value`"
            )));
        }
        let values = values.split(',').map(str::to_owned).collect();
        Ok(Self { column: column.to_owned(), values, excluded })
    }
}

/// Speakers sorted by name; a speaker's place is its class in training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerIndex {
    names: Vec<String>,
}

impl SpeakerIndex {
    /// The names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The place of a speaker.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.names.binary_search_by(|known| known.as_str().cmp(name)).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn utterance(id: &str, speaker: Option<&str>, split: &str) -> Utterance {
        Utterance {
            id: id.into(),
            path: format!("{id}.wav").into(),
            speaker: speaker.map(str::to_owned),
            extra: [("split".to_owned(), split.to_owned())].into(),
            ..Utterance::default()
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            source: "list.tsv".into(),
            utterances: vec![
                utterance("u1", Some("zoe"), "train"),
                utterance("u2", Some("adam"), "dev"),
                utterance("u3", Some("zoe"), "train_digits"),
            ],
        }
    }

    #[test]
    fn filters_keep_what_matches() {
        for (filters, want) in [
            (vec![], vec!["u1", "u2", "u3"]),
            (vec!["split=train"], vec!["u1"]),
            (vec!["split=train,dev"], vec!["u1", "u2"]),
            (vec!["split!=train,dev"], vec!["u3"]),
            (vec!["speaker=zoe", "split!=train"], vec!["u3"]),
            (vec!["speaker=nobody"], vec![]),
        ] {
            let filters: Vec<Filter> = filters.iter().map(|text| text.parse().unwrap()).collect();
            let left = manifest().filtered(&filters).unwrap();
            let ids: Vec<_> = left.utterances.iter().map(|u| u.id.as_str()).collect();
            assert_eq!(ids, want, "{filters:?}");
        }
        for bad in ["split", "=train", "!=train", ""] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
        let error = manifest().filtered(&["spilt=train".parse().unwrap()]).unwrap_err();
        assert!(error.to_string().contains("id, path, speaker, text, split"), "{error}");
    }

    #[test]
    fn speakers_are_sorted_and_required() {
        let speakers = manifest().speakers().unwrap();
        assert_eq!(speakers.names(), ["adam", "zoe"]);
        assert_eq!((speakers.index("zoe"), speakers.index("bob")), (Some(1), None));
        let mut incomplete = manifest();
        incomplete.utterances[1].speaker = None;
        assert!(incomplete.speakers().unwrap_err().to_string().contains("`u2`"));
    }

    #[test]
    fn repeated_audio_is_found() {
        let mut list = manifest();
        assert!(list.repeated().is_empty());
        list.utterances[2].path = list.utterances[0].path.clone();
        assert_eq!(list.repeated(), ["u3"]);
        list.utterances[2].start_s = Some(1.5);
        assert!(list.repeated().is_empty());
    }

    #[test]
    fn hash_depends_on_names_speakers_and_sizes_but_not_on_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut list = manifest();
        for utterance in &mut list.utterances {
            utterance.path = folder.path().join(&utterance.path);
            std::fs::write(&utterance.path, &utterance.id).unwrap();
        }
        let hash = list.hash().unwrap();
        assert_eq!(hash.len(), 64);
        let mut reversed = list.clone();
        reversed.utterances.reverse();
        assert_eq!(reversed.hash().unwrap(), hash);
        let mut renamed = list.clone();
        renamed.utterances[0].speaker = Some("adam".into());
        assert_ne!(renamed.hash().unwrap(), hash);
        std::fs::write(&list.utterances[0].path, "longer").unwrap();
        assert_ne!(list.hash().unwrap(), hash);
        std::fs::remove_file(&list.utterances[0].path).unwrap();
        assert!(matches!(list.hash(), Err(Error::Io { .. })));
    }

    #[test]
    fn the_form_of_a_file_is_told_by_its_content() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["path\tspeaker\na.wav\tann\n", "{\"path\": \"a.wav\"}\n", "a.wav a.wav\n"] {
            let path = folder.path().join("list");
            std::fs::write(&path, text).unwrap();
            let manifest = Manifest::read(&path, None, &Limits::default()).unwrap();
            assert_eq!(manifest.utterances[0].id, "a.wav");
            assert_eq!(manifest.utterances[0].path, folder.path().join("a.wav"));
            let manifest = Manifest::read(&path, Some(Path::new("r")), &Limits::default()).unwrap();
            assert_eq!(manifest.utterances[0].path, Path::new("r/a.wav"));
        }
        let missing = Manifest::read(&folder.path().join("none"), None, &Limits::default());
        assert!(matches!(missing, Err(Error::Io { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            start in proptest::sample::select(vec!["", "path\tseconds\n", "{\"path\":", "u1 "]),
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let folder = tempfile::tempdir().unwrap();
            for name in ["wav.scp", "utt2spk", "segments"] {
                std::fs::write(folder.path().join(name), [start.as_bytes(), &bytes].concat()).unwrap();
            }
            let scp = folder.path().join("wav.scp");
            for path in [folder.path(), scp.as_path()] {
                if let Ok(manifest) = Manifest::read(path, None, &Limits::default()) {
                    let ids: HashSet<_> = manifest.utterances.iter().map(|u| &u.id).collect();
                    prop_assert_eq!(ids.len(), manifest.utterances.len());
                }
            }
        }
    }
}
