//! `mmdiffusion convert`: published weights to a model.

use std::path::PathBuf;

use clap::Args;
use mmdiffusion::config::parse_flags;
use mmdiffusion::published;
use serde::Serialize;
use shared::cli::{Common, Storage};
use shared::files::check_output;
use shared::limits::Limits;

#[derive(Args)]
pub struct Options {
    /// Published weights (.pt), of the coupled or of the super-resolution network
    input: PathBuf,
    /// The model
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Settings of the network as in the published scripts, for instance "--num_channels 128
    /// --cross_attention_windows 1,4,8"; those not given are the published models'
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    flags: String,
    /// Type in which matrices and kernels are stored
    #[arg(long, value_enum, default_value = "f32")]
    storage: Storage,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    network: &'static str,
    tensors: usize,
    notes: Vec<String>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    check_output(&options.out, options.force)?;
    let storage = options.storage.dtype();
    let flags = parse_flags(&options.flags)?;
    let published = published::read(&options.input, flags, storage, &Limits::default())?;
    published.model.write(&options.out, options.force)?;
    let mut notes = published.notes;
    notes.push(format!("{}: {}", options.input.display(), published.report));
    notes.iter().for_each(|note| common.note(note));
    let outcome = Outcome {
        out: options.out.display().to_string(),
        network: published.model.card.network.kind(),
        tensors: published.model.tensors.len(),
        notes,
    };
    let text = format!("{}, {} tensors, in {}", outcome.network, outcome.tensors, outcome.out);
    common.print(&outcome, text)
}
