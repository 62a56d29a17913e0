//! Embedding many recordings, so that it can be interrupted and gone on with.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use shared::data::Utterance;
use shared::files::is_written_directly;
use shared::limits::Limits;
use shared::report::Progress;
use shared::train::Interrupt;
use shared::{Error, Result};

use crate::embeddings::{Embeddings, Format};
use crate::verifier::Verifier;

/// Recordings between two looks at the clock and at the user's wish to stop.
const GROUP: usize = 64;
/// Most notes on recordings that are shown.
const SHOWN_NOTES: usize = 20;
/// Time between two saves.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);

/// A recording that could not be embedded.
#[derive(Debug)]
pub struct Skipped {
    /// The utterance's name.
    pub id: String,
    /// Why.
    pub error: Error,
}

/// How [`embed_all`] works.
pub struct BatchOptions<'a> {
    /// Leave out recordings that cannot be embedded instead of failing at the first.
    pub skip_errors: bool,
    /// Where embeddings are kept while the work goes on, if anywhere; those found there are not made
    /// again.
    pub store: Option<&'a Path>,
    /// No progress and no notes on stderr.
    pub quiet: bool,
}

/// The embeddings of all `utterances` by their names, and what was skipped. The file
/// [`BatchOptions::store`] is left as it stands, also after an error, so that the next call goes
/// on from there.
///
/// # Errors
/// Those of [`Verifier::listen_to`] unless skipped; [`Error::Interrupted`] when the user asked to
/// stop; [`Error::Checkpoint`] when the store is from another model.
pub fn embed_all(
    verifier: &Verifier,
    utterances: &[Utterance],
    options: &BatchOptions,
    interrupt: &Interrupt,
    limits: &Limits,
) -> Result<(Embeddings, Vec<Skipped>)> {
    let mut embeddings = verifier.embeddings();
    if let Some(store) = options.store.filter(|store| store.exists()) {
        embeddings = Embeddings::read(store, limits)?;
        embeddings.check_origin(verifier.origin(), store)?;
    }
    let save = |embeddings: &Embeddings| match options.store {
        Some(store) => embeddings.write(store, Format::Safetensors, true),
        None => Ok(()),
    };
    let waiting: Vec<&Utterance> =
        utterances.iter().filter(|utterance| embeddings.get(&utterance.id).is_none()).collect();
    let progress =
        Progress::new("embed", "recordings", Some(utterances.len() as u64), options.quiet);
    progress.resume_from((utterances.len() - waiting.len()) as u64);
    let mut skipped = vec![];
    let mut notes = 0;
    let mut saved = Instant::now();
    for group in waiting.chunks(GROUP) {
        let voices: Vec<Result<_>> = group
            .par_iter()
            .map(|utterance| {
                let voice = verifier.listen_to(utterance);
                progress.inc(1);
                voice
            })
            .collect();
        let mut failure = None;
        for (utterance, voice) in group.iter().zip(voices) {
            match voice {
                Ok(voice) => {
                    let room = SHOWN_NOTES.saturating_sub(notes);
                    voice.notes.iter().take(room).for_each(|note| progress.note(note));
                    notes += voice.notes.len();
                    embeddings.insert(&utterance.id, &voice.embedding)?;
                }
                Err(error) if options.skip_errors => {
                    skipped.push(Skipped { id: utterance.id.clone(), error });
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let stop = failure.or_else(|| interrupt.requested().then_some(Error::Interrupted));
        if !embeddings.is_empty() && (stop.is_some() || saved.elapsed() > SAVE_INTERVAL) {
            save(&embeddings)?;
            saved = Instant::now();
        }
        if let Some(error) = stop {
            return Err(error);
        }
    }
    if !waiting.is_empty() {
        save(&embeddings)?;
    }
    if notes > SHOWN_NOTES {
        progress.note(format!("and {} more such notes", notes - SHOWN_NOTES));
    }
    progress.finish();
    Ok((embeddings, skipped))
}

/// Where unfinished work on `out` is kept; `None` for a device or pipe, beside which there is no
/// place.
pub fn partial_path(out: &Path) -> Option<PathBuf> {
    if is_written_directly(out) {
        return None;
    }
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    Some(name.into())
}

/// Removes what was kept at `store`, once the work is done. It may not be there: nothing could be
/// embedded, or the embeddings are kept elsewhere.
pub fn remove_partial(store: Option<&Path>) {
    if let Some(store) = store {
        let _ = std::fs::remove_file(store);
    }
}
