//! `tdnn combine`: an ensemble of models in one file.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use shared::files::check_output;
use shared::limits::Limits;
use tdnn::ModelFile;

#[derive(Args)]
pub struct Options {
    /// Model files with the same front-end
    #[arg(required = true, num_args = 2..)]
    models: Vec<PathBuf>,
    /// The ensemble
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    networks: usize,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    check_output(&options.out, options.force)?;
    let limits = Limits::default();
    let models = options
        .models
        .iter()
        .map(|path| ModelFile::read(path, &limits))
        .collect::<Result<Vec<_>, _>>()?;
    let ensemble = ModelFile::combined(&models)?;
    ensemble.write(&options.out, options.force)?;
    let networks = ensemble.card.networks().count();
    let outcome = Outcome { out: options.out.display().to_string(), networks };
    let text = format!(
        "{networks} networks in {}; not calibrated: run `tdnn calibrate` next",
        outcome.out
    );
    common.print(&outcome, text)
}
