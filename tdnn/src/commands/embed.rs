//! `tdnn embed`: the embeddings of recordings.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shared::Error;
use shared::cli::{Common, Shard};
use shared::data::{Filter, Manifest, Utterance};
use shared::files::check_output;
use shared::train::Interrupt;
use tdnn::batch::{BatchOptions, embed_all, partial_path, remove_partial};
use tdnn::embeddings::{Embeddings, Format};
use tdnn::score::speaker_means;

use super::model::ModelOptions;

#[derive(Args)]
pub struct Options {
    /// A recording, or a list of recordings: Kaldi's wav.scp, a table with a column `path`, JSON
    /// lines, or a folder
    input: PathBuf,
    /// Where the embeddings go; the ending names the format: .safetensors, .npy (with the names in
    /// a file beside it) or .ark (Kaldi's text archive)
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Format, whatever the ending: safetensors, npy or ark
    #[arg(long, value_name = "NAME")]
    format: Option<Format>,
    /// Where the relative paths of a list start [default: the list's folder]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Only part I of N of a list, I from 0; `tdnn merge` joins the parts [default: as the
    /// launcher's environment says, or all]
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Take only rows in which a column has a value, e.g. split=train; may be given several times
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<Filter>,
    /// Leave out recordings that cannot be used, and list them
    #[arg(long)]
    skip_errors: bool,
    /// One embedding for each speaker of the list instead of each recording: their mean, scaled to
    /// length 1. Such a file makes a balanced cohort for AS-norm
    #[arg(long, conflicts_with = "shard")]
    per_speaker: bool,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    model: ModelOptions,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    embeddings: usize,
    dimension: usize,
    skipped: Vec<String>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    check_output(&options.out, options.force)?;
    let limits = options.model.limits();
    let utterances = utterances(options)?;
    let verifier = options.model.verifier(common)?;
    let store = partial_path(&options.out);
    let batch = BatchOptions {
        skip_errors: options.skip_errors,
        store: store.as_deref(),
        quiet: common.quiet,
    };
    let interrupt = Interrupt::on_signals()?;
    let (embeddings, skipped) = embed_all(&verifier, &utterances, &batch, &interrupt, &limits)?;
    let embeddings = match options.per_speaker {
        true => means(&embeddings, &utterances)?,
        false => embeddings,
    };
    let format = options.format.unwrap_or_else(|| Format::of(&options.out));
    embeddings.write(&options.out, format, options.force)?;
    remove_partial(store.as_deref());
    let skipped: Vec<String> =
        skipped.iter().map(|skipped| format!("{}: {}", skipped.id, skipped.error)).collect();
    for line in &skipped {
        common.note(format!("skipped {line}"));
    }
    let outcome = Outcome {
        out: options.out.display().to_string(),
        embeddings: embeddings.len(),
        dimension: embeddings.dimension(),
        skipped,
    };
    let text = format!(
        "{} embeddings of {} numbers in {}, {} skipped",
        outcome.embeddings,
        outcome.dimension,
        outcome.out,
        outcome.skipped.len()
    );
    common.print(&outcome, text)
}

/// The mean of each speaker's embeddings.
fn means(embeddings: &Embeddings, utterances: &[Utterance]) -> anyhow::Result<Embeddings> {
    let speakers: HashMap<&str, &str> = utterances
        .iter()
        .filter_map(|utterance| Some((utterance.id.as_str(), utterance.speaker.as_deref()?)))
        .collect();
    let speakers: Vec<&str> = embeddings
        .names()
        .iter()
        .map(|name| {
            speakers.get(name.as_str()).copied().ok_or_else(|| {
                Error::Argument(format!("--per-speaker: recording {name} has no speaker"))
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(speaker_means(embeddings, &speakers)?)
}

/// The recordings of this shard: the input itself where it is one, else those that it lists.
fn utterances(options: &Options) -> anyhow::Result<Vec<Utterance>> {
    let limits = options.model.limits();
    let is_list = options.input.is_dir()
        || options
            .input
            .extension()
            .and_then(|ending| ending.to_str())
            .is_some_and(|ending| ["scp", "tsv", "jsonl", "json", "txt"].contains(&ending));
    if !is_list {
        if !options.filters.is_empty() || options.per_speaker {
            let message = "--where and --per-speaker go with a list of recordings".to_owned();
            return Err(Error::Argument(message).into());
        }
        let id = options.input.display().to_string();
        return Ok(vec![Utterance { id, path: options.input.clone(), ..Utterance::default() }]);
    }
    let manifest = Manifest::read(&options.input, options.root.as_deref(), &limits)?;
    let mut manifest = manifest.filtered(&options.filters)?;
    let shard = options.shard.map_or_else(Shard::from_environment, Ok)?;
    Ok(manifest.utterances.drain(shard.range(manifest.utterances.len())).collect())
}
