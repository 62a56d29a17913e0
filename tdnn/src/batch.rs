//! Embedding many recordings, so that it can be interrupted and gone on with.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use shared::data::Utterance;
use shared::limits::Limits;
use shared::report::Progress;
use shared::train::Interrupt;
use shared::{Error, Result};

use crate::embeddings::{Embeddings, Format};
use crate::verifier::Verifier;

/// Recordings between two looks at the clock and at the user's wish to stop.
const GROUP: usize = 64;
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
    /// Where embeddings are kept while the work goes on; those found there are not made again.
    pub store: &'a Path,
    /// No progress on stderr.
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
    if options.store.exists() {
        embeddings = Embeddings::read(options.store, limits)?;
        embeddings.check_origin(verifier.origin(), options.store)?;
    }
    let waiting: Vec<&Utterance> =
        utterances.iter().filter(|utterance| embeddings.get(&utterance.id).is_none()).collect();
    let progress =
        Progress::new("embed", "recordings", Some(utterances.len() as u64), options.quiet);
    progress.resume_from((utterances.len() - waiting.len()) as u64);
    let mut skipped = vec![];
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
                Ok(voice) => embeddings.insert(&utterance.id, &voice.embedding)?,
                Err(error) if options.skip_errors => {
                    skipped.push(Skipped { id: utterance.id.clone(), error });
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let stop = failure.or_else(|| interrupt.requested().then_some(Error::Interrupted));
        if !embeddings.is_empty() && (stop.is_some() || saved.elapsed() > SAVE_INTERVAL) {
            embeddings.write(options.store, Format::Safetensors, true)?;
            saved = Instant::now();
        }
        if let Some(error) = stop {
            return Err(error);
        }
    }
    if !waiting.is_empty() {
        embeddings.write(options.store, Format::Safetensors, true)?;
    }
    progress.finish();
    Ok((embeddings, skipped))
}

/// Where unfinished work on `out` is kept.
pub fn partial_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}
