//! Recordings to train on, decoded once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shared::files::write_atomic;
use shared::report::Progress;
use shared::{Error, Result};

/// A decoded recording.
pub(super) trait Decoded: Send + Sync + Sized {
    /// Bytes that it takes in memory.
    fn bytes(&self) -> u64;

    /// Number of frames.
    fn frames(&self) -> usize;
}

/// How a library is read and kept.
#[derive(Clone, Debug)]
pub struct LibraryOptions {
    /// Decoded recordings beyond this are decoded again each time.
    pub memory_bytes: u64,
    /// Remembers which files can be used, so that only new and changed ones are looked at again.
    pub index: Option<PathBuf>,
    /// Show no progress.
    pub quiet: bool,
}

/// Recordings kept in memory up to a limit; those beyond are decoded again each time. Both ways give
/// the same.
#[derive(Debug)]
pub(super) struct Library<T> {
    recordings: Vec<Recording<T>>,
    memory_bytes: u64,
    used_bytes: AtomicU64,
}

#[derive(Debug)]
struct Recording<T> {
    path: PathBuf,
    frames: usize,
    decoded: OnceLock<T>,
}

/// What is known of files from an earlier look at them.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    /// What they were looked at for.
    purpose: String,
    files: BTreeMap<PathBuf, Known>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    bytes: u64,
    /// Nanoseconds since 1970, in decimal.
    modified: String,
    /// Frames, or why the file cannot be used.
    frames: std::result::Result<usize, String>,
}

impl<T: Decoded> Library<T> {
    /// The recordings in `files`, and why others are left out. `purpose` says what makes `decode` give
    /// other frames; an index made for another is made anew.
    ///
    /// # Errors
    /// [`Error::Argument`] when no recording is left; [`Error::Io`] when the index cannot be written.
    pub fn read(
        files: &[PathBuf],
        purpose: &str,
        options: &LibraryOptions,
        decode: impl Fn(&Path) -> Result<T> + Sync,
    ) -> Result<(Self, Vec<Error>)> {
        let index = options.index.as_deref().map(|path| Index::read(path, purpose));
        let index = index.unwrap_or_default();
        let mut library = Self {
            recordings: vec![],
            memory_bytes: options.memory_bytes,
            used_bytes: AtomicU64::new(0),
        };
        let progress =
            Progress::new("read clips", "files", Some(files.len() as u64), options.quiet);
        let look = |path: &PathBuf| -> (Option<Known>, Result<Recording<T>>) {
            let identity = identity(path);
            let known = index.files.get(path).filter(|known| {
                identity.as_ref().is_some_and(|now| *now == (known.bytes, known.modified.clone()))
            });
            let decoded = OnceLock::new();
            let frames = match known.map(|known| known.frames.clone()) {
                Some(Ok(frames)) => Ok(frames),
                Some(Err(reason)) => Err(Error::media(path, reason)),
                None => decode(path).map(|recording| {
                    let frames = recording.frames();
                    library.keep(&decoded, recording);
                    frames
                }),
            };
            progress.inc(1);
            let known = identity.map(|(bytes, modified)| {
                let reason = |error: &Error| match error {
                    Error::Media { reason, .. } => reason.clone(),
                    other => other.to_string(),
                };
                Known { bytes, modified, frames: frames.as_ref().copied().map_err(reason) }
            });
            (known, frames.map(|frames| Recording { path: path.clone(), frames, decoded }))
        };
        let seen: Vec<_> = files.par_iter().map(look).collect();
        progress.finish();

        let mut index = Index { purpose: purpose.to_owned(), files: BTreeMap::new() };
        let mut failures = vec![];
        for (path, (known, result)) in files.iter().zip(seen) {
            index.files.extend(known.map(|known| (path.clone(), known)));
            match result {
                Ok(recording) => library.recordings.push(recording),
                Err(error) => failures.push(error),
            }
        }
        if let Some(path) = &options.index {
            index.write(path)?;
        }
        if library.recordings.is_empty() {
            let first =
                failures.first().map_or_else(String::new, |error| format!("; first: {error}"));
            return Err(Error::Argument(format!(
                "none of {} files is a clip to train on{first}",
                files.len()
            )));
        }
        Ok((library, failures))
    }

    /// Number of frames of each recording.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = usize> {
        self.recordings.iter().map(|recording| recording.frames)
    }

    /// What `cut` takes from recording `number`, which is decoded now if it is not in memory.
    ///
    /// # Errors
    /// When there is none; those of `decode` and `cut`.
    pub fn with<R>(
        &self,
        number: usize,
        decode: impl Fn(&Path) -> Result<T>,
        cut: impl FnOnce(&T) -> Result<R>,
    ) -> Result<R> {
        let Some(recording) = self.recordings.get(number) else {
            return Err(Error::Argument(format!("there is no recording {number}")));
        };
        if let Some(decoded) = recording.decoded.get() {
            return cut(decoded);
        }
        let decoded = decode(&recording.path)?;
        if decoded.frames() != recording.frames {
            let (now, then) = (decoded.frames(), recording.frames);
            let reason = format!("has {now} frames, {then} before; it changed during the training");
            return Err(Error::media(&recording.path, reason));
        }
        match self.keep(&recording.decoded, decoded) {
            None => recording.decoded.get().map_or_else(
                || Err(Error::Argument(format!("recording {number} is not in memory"))),
                cut,
            ),
            Some(decoded) => cut(&decoded),
        }
    }

    /// Puts a recording into its place if memory allows; gives it back otherwise.
    fn keep(&self, place: &OnceLock<T>, decoded: T) -> Option<T> {
        let bytes = decoded.bytes();
        if self.used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.memory_bytes {
            // Another thread may have been faster, with the same recording.
            return place.set(decoded).err();
        }
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(decoded)
    }
}

/// Size and time of change of a file.
fn identity(path: &Path) -> Option<(u64, String)> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), modified.as_nanos().to_string()))
}

impl Index {
    /// The index in a file; an empty one if there is none that can be used.
    fn read(path: &Path, purpose: &str) -> Self {
        let index = std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        index.filter(|index: &Self| index.purpose == purpose).unwrap_or_default()
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::Argument(e.to_string()))?;
        write_atomic(path, true, |file| std::io::Write::write_all(file, &text))
    }
}
