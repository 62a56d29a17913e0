//! Kaldi's data folders: `wav.scp`, and beside it `utt2spk`, `text` and `segments`.

use std::collections::HashMap;
use std::path::Path;

use super::lines::{Line, Lines};
use super::manifest::{Builder, Manifest, Utterance};
use crate::limits::Limits;
use crate::{Error, Result};

/// Reads the list of recordings `scp`, and what lies beside it if it is called `wav.scp`.
pub(super) fn read(scp: &Path, root: &Path, limits: &Limits) -> Result<Manifest> {
    let mut manifest = recordings(Lines::open(scp, limits)?, scp, root)?;
    if scp.file_name() != Some("wav.scp".as_ref()) {
        return Ok(manifest);
    }
    let beside = |name: &str| {
        let path = scp.with_file_name(name);
        path.is_file().then(|| Lines::open(&path, limits).map(|lines| (lines, path))).transpose()
    };
    if let Some((lines, path)) = beside("segments")? {
        manifest = segments(lines, &path, &manifest)?;
    }
    let places: HashMap<String, usize> =
        manifest.utterances.iter().enumerate().map(|(i, u)| (u.id.clone(), i)).collect();
    for name in ["utt2spk", "text"] {
        let Some((mut lines, _)) = beside(name)? else { continue };
        while let Some(line) = lines.next()? {
            let (id, rest) = line.key_and_rest();
            let utterance = places.get(id).and_then(|&place| manifest.utterances.get_mut(place));
            let Some(utterance) = utterance else {
                return Err(
                    line.error(format!("utterance `{id}` is not in the list of recordings"))
                );
            };
            let value = (!rest.is_empty()).then(|| rest.to_owned());
            let field = if name == "text" { &mut utterance.text } else { &mut utterance.speaker };
            if field.is_some() {
                return Err(line.error(format!("utterance `{id}` is there twice")));
            }
            *field = value;
        }
    }
    Ok(manifest)
}

/// Reads lines `id path`.
fn recordings(mut lines: Lines, source: &Path, root: &Path) -> Result<Manifest> {
    let mut builder = Builder::new(source);
    while let Some(line) = lines.next()? {
        let (id, path) = line.key_and_rest();
        if path.is_empty() {
            return Err(line.error("expected `id path`"));
        }
        if path.ends_with('|') || path.starts_with('|') {
            return Err(line.error(
                "a command in place of a path is never run; decode to a file first and list that",
            ));
        }
        let utterance =
            Utterance { id: id.to_owned(), path: root.join(path), ..Utterance::default() };
        builder.push(utterance, line)?;
    }
    Ok(builder.finish())
}

/// Reads lines `utterance recording start end` with times in seconds; an end of -1 is the end of
/// the recording.
fn segments(mut lines: Lines, source: &Path, recordings: &Manifest) -> Result<Manifest> {
    let paths: HashMap<&str, &Path> =
        recordings.utterances.iter().map(|u| (u.id.as_str(), u.path.as_path())).collect();
    let mut builder = Builder::new(source);
    while let Some(line) = lines.next()? {
        let fields = line.fields();
        let &[id, recording, start, end] = fields.as_slice() else {
            return Err(line.error("expected `utterance recording start end`"));
        };
        let Some(&path) = paths.get(recording) else {
            return Err(line.error(format!("recording `{recording}` is not in wav.scp")));
        };
        let start_s = line.seconds(start, "start")?;
        let utterance = Utterance {
            id: id.to_owned(),
            path: path.to_path_buf(),
            start_s: Some(start_s),
            duration_s: duration_s(&line, start_s, end)?,
            ..Utterance::default()
        };
        builder.push(utterance, line)?;
    }
    Ok(builder.finish())
}

fn duration_s(line: &Line<'_>, start_s: f64, end: &str) -> Result<Option<f64>, Error> {
    if end.parse() == Ok(-1.0) {
        return Ok(None);
    }
    let end_s = line.seconds(end, "end")?;
    if end_s <= start_s {
        return Err(line.error(format!("the end {end} is not after the start {start_s}")));
    }
    Ok(Some(end_s - start_s))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn read_folder(files: &[(&str, &str)]) -> Result<Manifest> {
        let folder = folder(files);
        Manifest::read(folder.path(), Some(Path::new("/root")), &Limits::default())
    }

    #[test]
    fn recordings_with_speakers_and_text() {
        let manifest = read_folder(&[
            ("wav.scp", "u1 a b.wav\r\nu2\t/abs/c.wav\n"),
            ("utt2spk", "u2 bob\nu1 ann\n"),
            ("text", "u1 HELLO  THERE\n"),
        ])
        .unwrap();
        let [first, second] = manifest.utterances.as_slice() else { panic!() };
        assert_eq!(first.path, Path::new("/root/a b.wav"));
        assert_eq!(second.path, Path::new("/abs/c.wav"));
        assert_eq!(
            (first.speaker.as_deref(), second.speaker.as_deref()),
            (Some("ann"), Some("bob"))
        );
        assert_eq!((first.text.as_deref(), second.text.as_deref()), (Some("HELLO  THERE"), None));
        assert_eq!((first.start_s, first.duration_s), (None, None));
    }

    #[test]
    fn segments_replace_recordings() {
        let manifest = read_folder(&[
            ("wav.scp", "r1 a.wav\nr2 b.wav\n"),
            ("segments", "u1 r2 0.5 2.0\nu2 r2 2 -1\n"),
            ("utt2spk", "u1 ann\nu2 bob\n"),
        ])
        .unwrap();
        let parts: Vec<_> = manifest
            .utterances
            .iter()
            .map(|u| (u.id.as_str(), u.path.to_str().unwrap(), u.start_s, u.duration_s))
            .collect();
        assert_eq!(
            parts,
            [("u1", "/root/b.wav", Some(0.5), Some(1.5)), ("u2", "/root/b.wav", Some(2.0), None)]
        );
    }

    #[test]
    fn faults_are_named_with_file_and_line() {
        let scp = ("wav.scp", "u1 a.wav\nu2 b.wav\n");
        let cases: [(&[(&str, &str)], &str); 11] = [
            (&[("wav.scp", "u1 a.wav\nu2 sox b.wav -t wav - |\n")], "wav.scp:2: a command"),
            (&[("wav.scp", "u1 a.wav\nu2\n")], "wav.scp:2: expected `id path`"),
            (&[("wav.scp", "u1 a.wav\nu1 b.wav\n")], "wav.scp:2: utterance `u1` is there twice"),
            (&[("wav.scp", " \n")], ":1: the manifest has no utterance"),
            (&[scp, ("utt2spk", "u1 x\nu3 y\n")], "utt2spk:2: utterance `u3` is not in"),
            (&[scp, ("utt2spk", "u1 x\nu1 y\n")], "utt2spk:2: utterance `u1` is there twice"),
            (&[scp, ("segments", "s1 u1 0 1\ns2 u9 0 1\n")], "segments:2: recording `u9`"),
            (&[scp, ("segments", "s1 u1 0\n")], "segments:1: expected `utterance"),
            (&[scp, ("segments", "s1 u1 x 1\n")], "segments:1: start `x`"),
            (&[scp, ("segments", "s1 u1 0 nan\n")], "segments:1: end `nan`"),
            (&[scp, ("segments", "s1 u1 3 2\n")], "segments:1: the end 2 is not after"),
        ];
        for (files, reason) in cases {
            let error = read_folder(files).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} / {reason}");
        }
    }

    #[test]
    fn a_list_by_another_name_stands_alone() {
        let folder = folder(&[("eval.scp", "u1 a.wav\n"), ("utt2spk", "nobody x\n")]);
        let path = folder.path().join("eval.scp");
        let manifest = Manifest::read(&path, None, &Limits::default()).unwrap();
        assert_eq!(manifest.utterances[0].path, folder.path().join("a.wav"));
        assert_eq!(manifest.utterances[0].speaker, None);
    }
}
