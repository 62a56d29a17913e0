//! Folders of recordings.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::lines::Lines;
use super::manifest::{Builder, Manifest, Utterance};
use crate::limits::Limits;
use crate::{Error, Result};

/// File-name endings of recordings.
const AUDIO_EXTENSIONS: [&str; 17] = [
    "wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "mp4", "caf", "aif", "aiff", "aifc",
    "mka", "mkv", "webm", "rf64",
];
const TRANSCRIPT_ENDING: &str = ".trans.txt";

/// Reads a folder: in LibriSpeech's form if it holds transcripts, else one of speakers' recordings.
pub(super) fn read(folder: &Path, limits: &Limits) -> Result<Manifest> {
    let mut found = Found::default();
    walk(folder, &AUDIO_EXTENSIONS, &mut Vec::new(), &mut found)?;
    if found.recordings.is_empty() {
        return Err(Error::Argument(format!(
            "{}: no recording in this folder (files ending in {})",
            folder.display(),
            AUDIO_EXTENSIONS.join(", ")
        )));
    }
    if found.transcripts.is_empty() {
        speaker_folders(folder, found.recordings)
    } else {
        librispeech(folder, &found, limits)
    }
}

/// The files under `folder` whose names end in one of `extensions` (`mp4`), in the order of their
/// names. Hidden ones are left alone.
///
/// # Errors
/// [`Error::Argument`] when there is none, or a link leads back; [`Error::Io`].
pub fn files_in(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Found::default();
    walk(folder, extensions, &mut Vec::new(), &mut found)?;
    match found.recordings.is_empty() {
        false => Ok(found.recordings),
        true => Err(Error::Argument(format!(
            "{}: no file in this folder that ends in {}",
            folder.display(),
            extensions.join(", ")
        ))),
    }
}

#[derive(Default)]
struct Found {
    recordings: Vec<PathBuf>,
    transcripts: Vec<PathBuf>,
}

/// Collects transcripts and files of such extensions under `folder` in the order of their names. `parents` are the real paths of
/// the folders above, to notice links that lead back.
fn walk(
    folder: &Path,
    extensions: &[&str],
    parents: &mut Vec<PathBuf>,
    found: &mut Found,
) -> Result<()> {
    let real = fs::canonicalize(folder).map_err(Error::io(folder))?;
    if parents.contains(&real) {
        return Err(Error::Argument(format!(
            "{}: a link that leads back to {}",
            folder.display(),
            real.display()
        )));
    }
    let mut entries = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
        .map_err(Error::io(folder))?;
    entries.sort();
    parents.push(real);
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_wanted = || {
            let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
            extensions.contains(&extension)
        };
        if name.starts_with('.') {
            continue;
        } else if path.is_dir() {
            walk(&path, extensions, parents, found)?;
        } else if name.ends_with(TRANSCRIPT_ENDING) {
            found.transcripts.push(path);
        } else if is_wanted() {
            found.recordings.push(path);
        }
    }
    parents.pop();
    Ok(())
}

/// A recording's name is its path below the folder. Its speaker is the sub-folder called like a
/// speaker of VoxCeleb (`id` and digits) or else the first one; a recording in no sub-folder has
/// none.
fn speaker_folders(folder: &Path, recordings: Vec<PathBuf>) -> Result<Manifest> {
    let is_voxceleb = |name: &str| {
        name.strip_prefix("id")
            .is_some_and(|digits| digits.len() >= 4 && digits.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut utterances = Vec::with_capacity(recordings.len());
    let mut ids = HashSet::new();
    for path in recordings {
        let below = path.strip_prefix(folder).unwrap_or(&path);
        let mut names: Vec<String> =
            below.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let id = names.join("/");
        if !ids.insert(id.clone()) {
            return Err(Error::Argument(format!(
                "{}: several files look like `{id}`, as their names are not UTF-8; rename them",
                folder.display()
            )));
        }
        names.pop();
        let speaker = names.iter().find(|name| is_voxceleb(name)).or(names.first()).cloned();
        utterances.push(Utterance { id, speaker, path, ..Utterance::default() });
    }
    Ok(Manifest { source: folder.to_path_buf(), utterances })
}

/// Transcripts have lines `speaker-chapter-number TEXT`; the recording of that name lies beside.
fn librispeech(folder: &Path, found: &Found, limits: &Limits) -> Result<Manifest> {
    let recordings: BTreeMap<PathBuf, &PathBuf> =
        found.recordings.iter().map(|path| (path.with_extension(""), path)).collect();
    let mut builder = Builder::new(folder);
    for transcript in &found.transcripts {
        let mut lines = Lines::open(transcript, limits)?;
        while let Some(line) = lines.next()? {
            let (id, text) = line.key_and_rest();
            let Some(&path) = recordings.get(&transcript.with_file_name(id)) else {
                return Err(line.error(format!("no recording `{id}` beside this transcript")));
            };
            let utterance = Utterance {
                id: id.to_owned(),
                path: path.clone(),
                speaker: id.split_once('-').map(|(speaker, _)| speaker.to_owned()),
                text: (!text.is_empty()).then(|| text.to_owned()),
                ..Utterance::default()
            };
            builder.push(utterance, line)?;
        }
    }
    Ok(builder.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn rows(manifest: &Manifest) -> Vec<(&str, Option<&str>)> {
        manifest.utterances.iter().map(|u| (u.id.as_str(), u.speaker.as_deref())).collect()
    }

    #[test]
    fn speakers_are_sub_folders() {
        let folder =
            make(&["zoe/b.WAV", "zoe/a.flac", "adam/day1/c.mp3", "adam/notes.txt", ".x/d.wav"]);
        let manifest = read(folder.path(), &Limits::default()).unwrap();
        assert_eq!(
            rows(&manifest),
            [
                ("adam/day1/c.mp3", Some("adam")),
                ("zoe/a.flac", Some("zoe")),
                ("zoe/b.WAV", Some("zoe"))
            ]
        );
        assert_eq!(manifest.utterances[0].path, folder.path().join("adam/day1/c.mp3"));
        let flat = read(&folder.path().join("zoe"), &Limits::default()).unwrap();
        assert_eq!(rows(&flat), [("a.flac", None), ("b.WAV", None)]);
    }

    #[test]
    fn voxceleb_speakers_are_known_by_their_names() {
        let folder = make(&["wav/id10001/1zcIwhmdeo4/00001.wav", "wav/id10002/xT/00002.wav"]);
        let want = |prefix: &str| {
            vec![
                (format!("{prefix}id10001/1zcIwhmdeo4/00001.wav"), Some("id10001".to_owned())),
                (format!("{prefix}id10002/xT/00002.wav"), Some("id10002".to_owned())),
            ]
        };
        for (root, prefix) in [(folder.path().to_owned(), "wav/"), (folder.path().join("wav"), "")]
        {
            let manifest = read(&root, &Limits::default()).unwrap();
            let got: Vec<_> = manifest.utterances.into_iter().map(|u| (u.id, u.speaker)).collect();
            assert_eq!(got, want(prefix));
        }
    }

    #[test]
    fn librispeech_transcripts_name_the_recordings() {
        let folder = make(&["84/121123/84-121123-0000.flac", "84/121123/84-121123-0001.flac"]);
        let transcript = folder.path().join("84/121123/84-121123.trans.txt");
        fs::write(&transcript, "84-121123-0000 GO DO YOU HEAR\n84-121123-0001\n").unwrap();
        let manifest = read(folder.path(), &Limits::default()).unwrap();
        assert_eq!(
            rows(&manifest),
            [("84-121123-0000", Some("84")), ("84-121123-0001", Some("84"))]
        );
        let texts: Vec<_> = manifest.utterances.iter().map(|u| u.text.as_deref()).collect();
        assert_eq!(texts, [Some("GO DO YOU HEAR"), None]);
        for (text, reason) in [
            ("84-121123-0000 A\n84-121123-0002 B\n", "no recording `84-121123-0002`"),
            ("84-121123-0000 A\n84-121123-0000 B\n", "twice"),
        ] {
            fs::write(&transcript, text).unwrap();
            let error = read(folder.path(), &Limits::default()).unwrap_err();
            assert!(matches!(error, Error::Parse { line: 2, .. }), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn folders_without_recordings_and_missing_folders() {
        let folder = make(&["a/readme.txt"]);
        let error = read(folder.path(), &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("no recording"), "{error}");
        let missing = read(&folder.path().join("b"), &Limits::default()).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }), "{missing}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_not_in_circles() {
        use std::os::unix::fs::symlink;
        let folder = make(&["real/zoe/a.wav"]);
        let list = folder.path().join("list");
        fs::create_dir(&list).unwrap();
        symlink(folder.path().join("real/zoe"), list.join("zoe")).unwrap();
        let manifest = read(&list, &Limits::default()).unwrap();
        assert_eq!(rows(&manifest), [("zoe/a.wav", Some("zoe"))]);
        symlink(folder.path(), folder.path().join("real/up")).unwrap();
        let error = read(folder.path(), &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("leads back"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_utf8_are_kept_or_refused() {
        use std::os::unix::ffi::OsStrExt;
        let folder = make(&[]);
        let name = |bytes: &[u8]| folder.path().join(std::ffi::OsStr::from_bytes(bytes));
        fs::write(name(b"a\xff.wav"), "").unwrap();
        let manifest = read(folder.path(), &Limits::default()).unwrap();
        assert_eq!(manifest.utterances[0].path, name(b"a\xff.wav"));
        fs::write(name(b"a\xfe.wav"), "").unwrap();
        assert!(read(folder.path(), &Limits::default()).is_err());
    }
}
