//! Lists of what was said, or recognised.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::lines::{Line, Lines};
use crate::data::{Filter, Manifest};
use crate::limits::Limits;
use crate::{Error, Result};

/// What is said in one recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    /// Name of the utterance.
    pub id: String,
    /// The words.
    pub text: String,
    /// Who speaks, where known.
    pub speaker: Option<String>,
    /// Length of the recording, where known.
    pub duration_s: Option<f64>,
}

/// Transcripts with unique names.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcripts {
    /// The file or folder they are from, for messages.
    pub source: PathBuf,
    /// The transcripts, in the order of the source.
    pub entries: Vec<Transcript>,
}

impl Transcripts {
    /// Reads transcripts of any supported form, told by its content; files may be compressed with gzip:
    ///
    /// - NIST's `trn`, as sclite takes it: lines `words (speaker_utterance)`;
    /// - Kaldi's `text`: lines `utterance words`;
    /// - a table with tabs between columns and their names in the first line, among them `text` and
    ///   `id` or `path`; `speaker` and `duration_s` (or `seconds`) are understood;
    /// - JSON lines with `text`, or `pred_text` which is preferred if `recognised`, and `id`,
    ///   `audio_filepath` or `path`; `speaker` and `duration` (or `duration_s`) are understood;
    /// - everything that [`Manifest::read`] takes, folders included.
    ///
    /// Utterances that do not pass all `filters` are left out; only manifests have columns to filter
    /// on.
    ///
    /// # Errors
    /// [`Error::Parse`] with the line at fault, also for a name that comes twice; those of
    /// [`Manifest::read`] and [`Manifest::filtered`].
    pub fn read(
        path: &Path,
        recognised: bool,
        filters: &[Filter],
        limits: &Limits,
    ) -> Result<Self> {
        let form = if path.is_dir() { Form::Manifest } else { form(path, limits)? };
        if let Form::Manifest = form {
            let manifest = Manifest::read(path, None, limits)?.filtered(filters)?;
            return Ok(Self::of(manifest, recognised));
        }
        if !filters.is_empty() {
            let path = path.display();
            let reason = format!("{path}: only a manifest with paths has columns to filter on");
            return Err(Error::Argument(reason));
        }
        let mut lines = Lines::open(path, limits)?;
        let columns = match (&form, lines.next()?) {
            (Form::Table, Some(header)) => Some(Columns::of(header)?),
            _ => {
                lines = Lines::open(path, limits)?;
                None
            }
        };
        let mut entries = Vec::new();
        let mut ids = HashSet::new();
        while let Some(line) = lines.next()? {
            let entry = match (&form, &columns) {
                (Form::Table, Some(columns)) => columns.transcript(line)?,
                (Form::JsonLines, _) => from_json(line, recognised)?,
                (Form::Trn, _) if line.text.starts_with(";;") => continue,
                (Form::Trn, _) => from_trn(line)?,
                _ => {
                    let (id, text) = line.key_and_rest();
                    Transcript { id: id.to_owned(), text: text.to_owned(), ..Transcript::default() }
                }
            };
            if !ids.insert(entry.id.clone()) {
                return Err(line.error(format!("utterance `{}` is there twice", entry.id)));
            }
            entries.push(entry);
        }
        if entries.is_empty() {
            return Err(lines.error("there is no transcript"));
        }
        Ok(Self { source: path.to_path_buf(), entries })
    }

    fn of(manifest: Manifest, recognised: bool) -> Self {
        let entries = manifest.utterances.into_iter().map(|mut utterance| {
            let predicted = utterance.extra.remove("pred_text").filter(|_| recognised);
            Transcript {
                id: utterance.id,
                text: predicted.or(utterance.text).unwrap_or_default(),
                speaker: utterance.speaker,
                duration_s: utterance.duration_s,
            }
        });
        Self { source: manifest.source, entries: entries.collect() }
    }
}

enum Form {
    Manifest,
    Table,
    JsonLines,
    Trn,
    Kaldi,
}

fn form(path: &Path, limits: &Limits) -> Result<Form> {
    let mut lines = Lines::open(path, limits)?;
    while let Some(line) = lines.next()? {
        let text = line.text;
        if text.starts_with(";;") {
            continue;
        }
        let columns: Vec<&str> = text.split('\t').map(str::trim).collect();
        let keys: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
        return Ok(match () {
            _ if keys.contains_key("audio_filepath") || keys.contains_key("path") => Form::Manifest,
            _ if !keys.is_empty() => Form::JsonLines,
            _ if columns.contains(&"path") => Form::Manifest,
            _ if columns.contains(&"text") && columns.contains(&"id") => Form::Table,
            _ if split_trn(text).is_some() => Form::Trn,
            _ if path.file_name() == Some("wav.scp".as_ref()) => Form::Manifest,
            _ => Form::Kaldi,
        });
    }
    Err(lines.error("there is no transcript"))
}

/// The words and the name of a line `words (name)`.
fn split_trn(line: &str) -> Option<(&str, &str)> {
    let (text, id) = line.trim().strip_suffix(')')?.rsplit_once('(')?;
    let id = id.trim();
    let is_name = !id.is_empty() && !id.contains(char::is_whitespace);
    is_name.then(|| (text.trim(), id))
}

fn from_trn(line: Line<'_>) -> Result<Transcript> {
    let (text, id) =
        split_trn(line.text).ok_or_else(|| line.error("expected `words (utterance)`"))?;
    if text.split_whitespace().any(|word| matches!(word, "{" | "}")) {
        let reason = "alternatives in braces are not understood; leave one of them";
        return Err(line.error(reason));
    }
    let speaker = id.split(['-', '_']).next().map(str::to_owned);
    Ok(Transcript { id: id.to_owned(), text: text.to_owned(), speaker, duration_s: None })
}

fn from_json(line: Line<'_>, recognised: bool) -> Result<Transcript> {
    let object: BTreeMap<String, Value> = serde_json::from_str(line.text)
        .map_err(|error| line.error(format!("expected a JSON object: {error}")))?;
    let text_of = |key: &str| match object.get(key) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::Null) | None => Ok(None),
        Some(other) => Err(line.error(format!("`{key}` is {other}: expected a string"))),
    };
    let predicted = if recognised { text_of("pred_text")? } else { None };
    let text = match predicted {
        Some(text) => text,
        None => text_of("text")?.ok_or_else(|| line.error("no `text`"))?,
    };
    let id = text_of("id")?.or(text_of("audio_filepath")?).or(text_of("path")?);
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| line.error("no `id`"))?;
    let duration = object.get("duration").or(object.get("duration_s"));
    let duration = duration.filter(|value| !value.is_null());
    let duration_s = duration.map(|value| line.seconds(&value.to_string(), "duration"));
    Ok(Transcript { id, text, speaker: text_of("speaker")?, duration_s: duration_s.transpose()? })
}

/// The columns of a table.
struct Columns(Vec<String>);

impl Columns {
    fn of(header: Line<'_>) -> Result<Self> {
        let columns: Vec<String> =
            header.text.split('\t').map(|column| column.trim().to_owned()).collect();
        match columns.iter().enumerate().find(|(place, name)| columns[..*place].contains(name)) {
            Some((_, name)) => Err(header.error(format!("column `{name}` is there twice"))),
            None => Ok(Self(columns)),
        }
    }

    fn transcript(&self, line: Line<'_>) -> Result<Transcript> {
        let fields: Vec<&str> = line.text.split('\t').map(str::trim).collect();
        if fields.len() != self.0.len() {
            let (found, named) = (fields.len(), self.0.len());
            let reason = format!("{found} fields between tabs where the first line names {named}");
            return Err(line.error(reason));
        }
        let mut transcript = Transcript::default();
        for (column, field) in self.0.iter().zip(fields) {
            match column.as_str() {
                "id" => transcript.id = field.to_owned(),
                "text" => transcript.text = field.to_owned(),
                "speaker" if !field.is_empty() => transcript.speaker = Some(field.to_owned()),
                "duration_s" | "seconds" if !field.is_empty() => {
                    transcript.duration_s = Some(line.seconds(field, column)?);
                }
                _ => {}
            }
        }
        match transcript.id.is_empty() {
            true => Err(line.error("the column `id` is empty")),
            false => Ok(transcript),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(name: &str, content: &[u8], recognised: bool) -> Result<Transcripts> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        Transcripts::read(&path, recognised, &[], &Limits::default())
    }

    #[test]
    fn every_form_gives_the_same() {
        let trn = ";; a comment\nTHE  CAT (ann_1)\n(bob-2)\n";
        let table = "id\tspeaker\ttext\tlanguage\nann_1\tann\tTHE  CAT\ten\nbob-2\tbob\t\ten\n";
        let json = "{\"id\": \"ann_1\", \"text\": \"THE  CAT\", \"speaker\": \"ann\"}\n\n\
                    {\"id\": \"bob-2\", \"text\": \"\", \"speaker\": \"bob\"}\n";
        let manifest = "path\tspeaker\ttext\nann_1\tann\tTHE  CAT\nbob-2\tbob\t\n";
        for content in [trn, table, json, manifest] {
            let found = read("list", content.as_bytes(), false).unwrap().entries;
            let [first, second] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!((first.id.as_str(), first.text.as_str()), ("ann_1", "THE  CAT"));
            assert_eq!(first.speaker.as_deref(), Some("ann"));
            assert_eq!((second.id.as_str(), second.text.as_str()), ("bob-2", ""));
            assert_eq!(second.speaker.as_deref(), Some("bob"));
        }
        let kaldi = read("text", b"ann_1 THE  CAT\nbob-2\n", false).unwrap().entries;
        assert_eq!((kaldi[0].text.as_str(), kaldi[1].text.as_str()), ("THE  CAT", ""));
    }

    #[test]
    fn predictions_beside_the_reference_are_found() {
        for key in ["id", "audio_filepath"] {
            let line = format!(
                "{{\"{key}\": \"a\", \"text\": \"one\", \"pred_text\": \"two\", \"duration\": 1.5}}\n"
            );
            for (recognised, text) in [(false, "one"), (true, "two")] {
                let found = read("list.json", line.as_bytes(), recognised).unwrap().entries;
                assert_eq!((found[0].text.as_str(), found[0].duration_s), (text, Some(1.5)));
            }
        }
    }

    #[test]
    fn faults_are_named_with_the_line() {
        for (content, reason) in [
            ("a x\nb y\na z\n", ":3: utterance `a` is there twice"),
            ("x (a)\ny\n", ":2: expected `words (utterance)`"),
            ("{ x / y } (a)\n", ":1: alternatives in braces"),
            ("id\ttext\na\tx\ty\n", ":2: 3 fields"),
            ("id\ttext\tid\na\tx\ta\n", ":1: column `id` is there twice"),
            ("id\ttext\n\tx\n", ":2: the column `id` is empty"),
            ("id\ttext\n", ":1: there is no transcript"),
            ("{\"id\": \"a\"}\n", ":1: no `text`"),
            ("{\"id\": \"a\", \"text\": []}\n", ":1: `text` is []"),
            ("{\"id\": \"a\", \"text\": \"x\"}\n[\n", ":2: expected a JSON object"),
            ("\n", ":1: there is no transcript"),
        ] {
            let error = read("list", content.as_bytes(), false).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} / {reason}");
        }
    }

    #[test]
    fn filters_need_a_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        let filters: [Filter; 1] = ["split=eval".parse().unwrap()];
        std::fs::write(&path, "path\tsplit\ttext\na\teval\tx\nb\tdev\ty\n").unwrap();
        let found = Transcripts::read(&path, false, &filters, &Limits::default()).unwrap();
        assert_eq!(found.entries.len(), 1);
        std::fs::write(&path, "a x\n").unwrap();
        assert!(Transcripts::read(&path, false, &filters, &Limits::default()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            start in proptest::sample::select(vec!["", "id\ttext\n", "{\"id\":", "x (a)\n"]),
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = read("list", &[start.as_bytes(), &bytes].concat(), true);
        }
    }
}
