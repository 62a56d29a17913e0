//! `mmdiffusion train`: a coupled network from clips.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use mmdiffusion::NetworkConfig;
use mmdiffusion::training::{ClipSet, CoupledTraining, train_coupled};
use shared::cli::Common;
use shared::limits::Limits;

use super::training::{self, Job, TrainingOptions};

/// File-name endings of clips in folders.
const EXTENSIONS: [&str; 8] = ["mp4", "mov", "m4v", "mkv", "webm", "avi", "gif", "mpg"];

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    training: TrainingOptions,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let options = &options.training;
    let config: CoupledTraining = options.config()?;
    config.validate()?;
    if options.print_config {
        return common.print(&config, serde_json::to_string_pretty(&config)?);
    }
    let network = NetworkConfig::Coupled(config.network.clone());
    let job = Job::open(options, &network, config.optimisation.seed, common)?;
    let limits = Limits::default();
    let read = |lists: &[PathBuf], index: &str| {
        let files = training::files(options, lists, &EXTENSIONS, &limits)?;
        let library = job.library(index, common);
        let (clips, failures) = ClipSet::read(&files, config.form(), &library, &limits)?;
        training::list(&failures, common);
        anyhow::Ok((clips, failures.len()))
    };
    let (clips, skipped) = read(&options.data, "clips.json")?;
    let validation = job.validation(options, read)?;
    let clips = Arc::new(clips);
    let model = train_coupled(
        &config,
        &job.start,
        &clips,
        validation.as_ref(),
        &job.folder,
        &job.options,
        &job.device,
    )?;
    job.finish(model, &config, [clips.len(), skipped], common)
}
