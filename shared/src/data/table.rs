//! Manifests as tables with tabs between the columns.

use std::path::Path;

use super::lines::Lines;
use super::manifest::{Builder, Manifest, Utterance};
use crate::Result;

/// Reads a table whose first line names the columns.
pub(super) fn read(mut lines: Lines, source: &Path, root: &Path) -> Result<Manifest> {
    let mut builder = Builder::new(source);
    let Some(header) = lines.next()? else { return Ok(builder.finish()) };
    let columns: Vec<String> = header.fields().into_iter().map(str::to_owned).collect();
    for (place, column) in columns.iter().enumerate() {
        if columns.iter().take(place).any(|earlier| earlier == column) {
            return Err(header.error(format!("column `{column}` is there twice")));
        }
    }
    if !columns.iter().any(|column| column == "path") {
        return Err(header.error("no column `path`; the first line must name the columns"));
    }
    while let Some(line) = lines.next()? {
        let fields: Vec<&str> = line.text.split('\t').map(str::trim).collect();
        if fields.len() != columns.len() {
            return Err(line.error(format!(
                "{} fields between tabs where the first line names {} columns",
                fields.len(),
                columns.len()
            )));
        }
        let mut utterance = Utterance::default();
        let mut written_path = "";
        for (column, &field) in columns.iter().zip(&fields) {
            let filled = (!field.is_empty()).then(|| field.to_owned());
            match column.as_str() {
                "path" => written_path = field,
                "id" => utterance.id = field.to_owned(),
                "speaker" => utterance.speaker = filled,
                "text" => utterance.text = filled,
                "start_s" if !field.is_empty() => {
                    utterance.start_s = Some(line.seconds(field, column)?);
                }
                "duration_s" | "seconds" if !field.is_empty() => {
                    utterance.duration_s = Some(line.seconds(field, column)?);
                }
                "start_s" | "duration_s" | "seconds" => {}
                other => drop(utterance.extra.insert(other.to_owned(), field.to_owned())),
            }
        }
        if written_path.is_empty() {
            return Err(line.error("the column `path` is empty"));
        }
        utterance.path = root.join(written_path);
        utterance.name_after(written_path);
        builder.push(utterance, line)?;
    }
    Ok(builder.finish())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::limits::Limits;

    fn parse(text: &str) -> Result<Manifest> {
        let source = Path::new("list.tsv");
        let lines = Lines::new(Cursor::new(text.to_owned()), source, &Limits::default());
        read(lines, source, Path::new("data"))
    }

    #[test]
    fn columns_are_understood_in_any_order_and_others_kept() {
        let manifest = parse(
            "\u{feff}speaker\tpath\tsplit\tseconds\ttext\r\n\
             ann\ta.wav\ttrain\t1.5\tHELLO\r\n\
             \r\n\
             \t/b.wav\t\t\t\r\n",
        )
        .unwrap();
        let [first, second] = manifest.utterances.as_slice() else { panic!() };
        assert_eq!((first.id.as_str(), second.id.as_str()), ("a.wav", "/b.wav"));
        assert_eq!(first.path, Path::new("data/a.wav"));
        assert_eq!(second.path, Path::new("/b.wav"));
        assert_eq!((first.speaker.as_deref(), second.speaker.as_deref()), (Some("ann"), None));
        assert_eq!((first.duration_s, second.duration_s), (Some(1.5), None));
        assert_eq!((first.text.as_deref(), second.text.as_deref()), (Some("HELLO"), None));
        assert_eq!((first.column("split"), second.column("split")), (Some("train"), Some("")));
    }

    #[test]
    fn parts_of_a_recording_are_named_apart() {
        let manifest = parse("path\tstart_s\tduration_s\na.wav\t0\t2\na.wav\t2.5\t\n").unwrap();
        let rows: Vec<_> =
            manifest.utterances.iter().map(|u| (u.id.as_str(), u.start_s, u.duration_s)).collect();
        assert_eq!(rows, [("a.wav@0", Some(0.0), Some(2.0)), ("a.wav@2.5", Some(2.5), None)]);
        assert_eq!(parse("path\na.wav\nb.wav\n").unwrap().utterances.len(), 2);
    }

    #[test]
    fn faults_are_named_with_the_line() {
        for (text, reason) in [
            ("file\tspeaker\na.wav\tx\n", "list.tsv:1: no column `path`"),
            ("path\tpath\n", "list.tsv:1: column `path` is there twice"),
            ("path\tspeaker\na.wav\n", "list.tsv:2: 1 fields"),
            ("path\tspeaker\na.wav\tx\ty\n", "list.tsv:2: 3 fields"),
            ("path\tspeaker\n\tx\n", "list.tsv:2: the column `path` is empty"),
            ("path\tseconds\na.wav\t-1\n", "list.tsv:2: seconds `-1`"),
            ("id\tpath\nu\ta.wav\n\nu\tb.wav\n", "list.tsv:4: utterance `u` is there twice"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} / {reason}");
        }
    }
}
