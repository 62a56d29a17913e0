//! `mmdiffusion train-sr`: a super-resolution network from pictures.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use mmdiffusion::NetworkConfig;
use mmdiffusion::training::{PictureSet, SuperResolutionTraining, train_super_resolution};
use shared::cli::Common;
use shared::limits::Limits;

use super::training::{self, Job, TrainingOptions};

/// File-name endings of pictures and videos in folders.
const EXTENSIONS: [&str; 11] =
    ["png", "jpg", "jpeg", "mp4", "mov", "m4v", "mkv", "webm", "avi", "gif", "mpg"];

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    training: TrainingOptions,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let options = &options.training;
    let config: SuperResolutionTraining = options.config()?;
    config.validate()?;
    if options.print_config {
        return common.print(&config, serde_json::to_string_pretty(&config)?);
    }
    let network = NetworkConfig::SuperResolution(config.network.clone());
    let job = Job::open(options, &network, config.optimisation.seed, common)?;
    let limits = Limits::default();
    let sizes = [config.network.large_size, config.network.small_size];
    let read = |lists: &[PathBuf], index: &str| {
        let files = training::files(options, lists, &EXTENSIONS, &limits)?;
        let library = job.library(index, common);
        let (pictures, failures) = PictureSet::read(&files, sizes, &library, &limits)?;
        training::list(&failures, common);
        anyhow::Ok((pictures, failures.len()))
    };
    let (pictures, skipped) = read(&options.data, "pictures.json")?;
    let validation = job.validation(options, read)?;
    let pictures = Arc::new(pictures);
    let model = train_super_resolution(
        &config,
        &job.start,
        &pictures,
        validation.as_ref(),
        &job.folder,
        &job.options,
        &job.device,
    )?;
    job.finish(model, &config, [pictures.len(), skipped], common)
}
