//! What the commands on trial lists share: reading the list, embedding its recordings, scoring.

use std::path::{Path, PathBuf};

use clap::Args;
use shared::Error;
use shared::cli::Common;
use shared::data::{TrialList, Utterance};
use shared::limits::Limits;
use shared::train::Interrupt;
use tdnn::Verifier;
use tdnn::batch::{BatchOptions, embed_all};
use tdnn::embeddings::Embeddings;

use super::model::ModelOptions;

/// Where recordings and embeddings come from, and how they are scored.
#[derive(Args, Debug)]
pub struct ScoringOptions {
    /// Where the relative paths of the list start [default: the list's folder]
    #[arg(long, value_name = "FOLDER")]
    pub root: Option<PathBuf>,
    /// File in which the embeddings of the recordings are kept; those found there are not made
    /// again
    #[arg(long, value_name = "FILE")]
    pub embeddings: Option<PathBuf>,
    /// Normalise the scores (AS-norm) by the embeddings in this file, made with `tdnn embed`
    #[arg(long, value_name = "FILE")]
    pub cohort: Option<PathBuf>,
    /// Nearest members of the cohort that count
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub top: usize,
    #[command(flatten)]
    pub model: ModelOptions,
}

impl ScoringOptions {
    /// The model, scoring as the options say.
    pub fn verifier(&self, common: &Common) -> anyhow::Result<Verifier> {
        let mut verifier = self.model.verifier(common)?;
        if let Some(path) = &self.cohort {
            let cohort = Embeddings::read(path, &self.model.limits())?;
            cohort.check_origin(verifier.origin(), path)?;
            verifier.normalise_by(cohort, self.top);
        }
        Ok(verifier)
    }

    /// Where the relative paths of the list read from `list` start.
    pub fn root<'a>(&'a self, list: &'a Path) -> &'a Path {
        self.root.as_deref().or(list.parent()).unwrap_or(Path::new(""))
    }

    /// The scores of `trials`, a list that was read from `list`. Embeddings are kept in
    /// `--embeddings`, or in `store`, if any, while the work goes on.
    pub fn score(
        &self,
        verifier: &Verifier,
        list: &Path,
        trials: &TrialList,
        store: Option<&Path>,
        common: &Common,
    ) -> anyhow::Result<Vec<f64>> {
        let utterances = recordings(trials, self.root(list));
        let store = self.embeddings.as_deref().or(store);
        let options = BatchOptions { skip_errors: false, store, quiet: common.quiet };
        let interrupt = Interrupt::on_signals()?;
        let limits = self.model.limits();
        let (embeddings, _) = embed_all(verifier, &utterances, &options, &interrupt, &limits)?;
        Ok(verifier.scorer()?.score_all(trials, &embeddings)?)
    }
}

/// The recordings of a list, whose relative paths start at `root`.
pub fn recordings(trials: &TrialList, root: &Path) -> Vec<Utterance> {
    let utterance = |name: &String| Utterance {
        id: name.clone(),
        path: root.join(name),
        ..Utterance::default()
    };
    trials.recordings.iter().map(utterance).collect()
}

/// The list at `path`, all of whose trials have labels.
pub fn labelled(path: &Path, limits: &Limits) -> anyhow::Result<(TrialList, Vec<bool>)> {
    let list = TrialList::read(path, limits)?;
    let labels: Option<Vec<bool>> = list.trials.iter().map(|trial| trial.target).collect();
    let labels = labels.ok_or_else(|| {
        Error::Argument(format!(
            "{}: the trials have no labels, which are needed here",
            path.display()
        ))
    })?;
    Ok((list, labels))
}
