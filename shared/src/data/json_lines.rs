//! Manifests with a JSON object a line, as NeMo's.

use std::path::Path;

use serde_json::{Map, Value};

use super::lines::{Line, Lines};
use super::manifest::{Builder, Manifest, Utterance};
use crate::Result;

/// Reads JSON lines.
pub(super) fn read(mut lines: Lines, source: &Path, root: &Path) -> Result<Manifest> {
    let mut builder = Builder::new(source);
    while let Some(line) = lines.next()? {
        let object: Map<String, Value> = serde_json::from_str(line.text)
            .map_err(|error| line.error(format!("expected a JSON object: {error}")))?;
        let mut utterance = Utterance::default();
        let mut written_path = String::new();
        for (key, value) in object {
            match key.as_str() {
                "audio_filepath" | "path" => written_path = text(&line, &key, value)?,
                "id" => utterance.id = text(&line, &key, value)?,
                "speaker" => utterance.speaker = filled(text(&line, &key, value)?),
                "text" => utterance.text = filled(text(&line, &key, value)?),
                "offset" => utterance.start_s = seconds(&line, &key, &value)?,
                "duration" => utterance.duration_s = seconds(&line, &key, &value)?,
                _ => {
                    let value = match value {
                        Value::String(text) => text,
                        other => other.to_string(),
                    };
                    utterance.extra.insert(key, value);
                }
            }
        }
        if written_path.is_empty() {
            return Err(line.error("no `audio_filepath`"));
        }
        utterance.path = root.join(&written_path);
        utterance.name_after(&written_path);
        builder.push(utterance, line)?;
    }
    Ok(builder.finish())
}

/// A string, or a number that serves as a name, as it is written.
fn text(line: &Line<'_>, key: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null => Ok(String::new()),
        other => Err(line.error(format!("`{key}` is {other}: expected a string"))),
    }
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn seconds(line: &Line<'_>, key: &str, value: &Value) -> Result<Option<f64>> {
    if value.is_null() {
        return Ok(None);
    }
    line.seconds(&value.to_string(), key).map(Some)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::limits::Limits;

    fn parse(text: &str) -> Result<Manifest> {
        let source = Path::new("list.json");
        let lines = Lines::new(Cursor::new(text.to_owned()), source, &Limits::default());
        read(lines, source, Path::new("data"))
    }

    #[test]
    fn keys_are_understood_and_others_kept() {
        let manifest = parse(concat!(
            r#"{"audio_filepath": "a\u00e9.wav", "text": "hi", "duration": 1.25, "speaker": 7, "lang": "fr", "ok": true}"#,
            "\r\n\n",
            r#"{"id": "u2", "path": "/b.wav", "offset": 3, "duration": null, "text": ""}"#,
        ))
        .unwrap();
        let [first, second] = manifest.utterances.as_slice() else { panic!() };
        assert_eq!((first.id.as_str(), first.path.to_str()), ("aé.wav", Some("data/aé.wav")));
        assert_eq!((first.speaker.as_deref(), first.text.as_deref()), (Some("7"), Some("hi")));
        assert_eq!((first.start_s, first.duration_s), (None, Some(1.25)));
        assert_eq!((first.column("lang"), first.column("ok")), (Some("fr"), Some("true")));
        assert_eq!((second.id.as_str(), second.path.to_str()), ("u2", Some("/b.wav")));
        assert_eq!((second.start_s, second.duration_s, &second.text), (Some(3.0), None, &None));
    }

    #[test]
    fn faults_are_named_with_the_line() {
        let good = r#"{"audio_filepath": "a.wav"}"#;
        for (bad, reason) in [
            (r#"{"audio_filepath": "#, "expected a JSON object"),
            ("[1]", "expected a JSON object"),
            (r#"{"text": "x"}"#, "no `audio_filepath`"),
            (r#"{"audio_filepath": ["b.wav"]}"#, "expected a string"),
            (r#"{"audio_filepath": "b.wav", "duration": "long"}"#, "expected a number of seconds"),
            (r#"{"audio_filepath": "b.wav", "offset": -1}"#, "expected a number of seconds"),
            (good, "twice"),
        ] {
            let error = parse(&format!("{good}\n{bad}\n")).unwrap_err().to_string();
            assert!(error.starts_with("list.json:2: ") && error.contains(reason), "{error}");
        }
    }
}
