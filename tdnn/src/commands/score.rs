//! `tdnn score`: a list of trials.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shared::cli::{Common, Shard};
use shared::data::TrialList;
use shared::files::check_output;
use tdnn::batch::{partial_path, remove_partial};
use tdnn::score_file::ScoreFile;

use super::trials::ScoringOptions;

#[derive(Args)]
pub struct Options {
    /// Trials, a line each: `1 a b` or `0 a b` (VoxCeleb), `a b target` or `a b nontarget` (Kaldi),
    /// or `a b`; may be compressed with gzip
    #[arg(long, value_name = "LIST")]
    trials: PathBuf,
    /// Where the scores go, a line each: `score a b`
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Only part I of N of the list, I from 0; `tdnn merge` joins the parts [default: as the
    /// launcher's environment says, or all]
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    scoring: ScoringOptions,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    trials: usize,
    recordings: usize,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    check_output(&options.out, options.force)?;
    let list = TrialList::read(&options.trials, &options.scoring.model.limits())?;
    let shard = options.shard.map_or_else(Shard::from_environment, Ok)?;
    let part = list.part(shard.range(list.trials.len()));
    let verifier = options.scoring.verifier(common)?;
    let store = partial_path(&options.out);
    let (trials, store) = (&options.trials, store.as_deref());
    let scores = options.scoring.score(&verifier, trials, &part, store, common)?;
    ScoreFile::of(&list, shard, &scores)?.write(&options.out, options.force)?;
    remove_partial(store);
    let outcome = Outcome {
        out: options.out.display().to_string(),
        trials: scores.len(),
        recordings: part.recordings.len(),
    };
    let text = format!(
        "{} trials between {} recordings in {}",
        outcome.trials, outcome.recordings, outcome.out
    );
    common.print(&outcome, text)
}
