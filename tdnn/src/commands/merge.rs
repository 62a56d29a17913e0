//! `tdnn merge`: parts made with `--shard` into one file.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shared::Error;
use shared::cli::Common;
use shared::limits::Limits;
use tdnn::embeddings::{Embeddings, Format};
use tdnn::score_file::ScoreFile;

#[derive(Args)]
pub struct Options {
    /// All parts: score files of `tdnn score`, or safetensors files of `tdnn embed`
    #[arg(required = true)]
    parts: Vec<PathBuf>,
    /// The whole
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    parts: usize,
    items: usize,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let limits = Limits::default();
    let (mut scores, mut embeddings): (Vec<ScoreFile>, Option<Embeddings>) = (vec![], None);
    for path in &options.parts {
        if ScoreFile::is_at(path, &limits) {
            scores.push(ScoreFile::read(path, &limits)?);
            continue;
        }
        let part = Embeddings::read(path, &limits)?;
        match &mut embeddings {
            None => embeddings = Some(part),
            Some(whole) => whole.extend(&part)?,
        }
    }
    let items = match (embeddings, scores.is_empty()) {
        (Some(embeddings), true) => {
            embeddings.write(&options.out, Format::of(&options.out), options.force)?;
            embeddings.len()
        }
        (None, false) => {
            let whole = ScoreFile::merge(scores)?;
            whole.write(&options.out, options.force)?;
            whole.scores().len()
        }
        _ => return Err(Error::Argument("scores and embeddings cannot be merged".into()).into()),
    };
    let outcome =
        Outcome { out: options.out.display().to_string(), parts: options.parts.len(), items };
    let text = format!("{} parts, {items} items in {}", outcome.parts, outcome.out);
    common.print(&outcome, text)
}
