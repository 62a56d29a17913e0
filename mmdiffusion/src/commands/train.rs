//! `mmdiffusion train`: a coupled network from clips.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use mmdiffusion::ModelFile;
use mmdiffusion::training::{self, ClipSet, RunOptions, TrainConfig};
use serde::Serialize;
use shared::Error;
use shared::cli::Common;
use shared::data::{Filter, Manifest};
use shared::files::read_text;
use shared::limits::Limits;
use shared::train::Interrupt;

/// Decoded clips beyond this are read from their files again each time.
const CACHE_BYTES: u64 = 8 << 30;

#[derive(Args)]
pub struct Options {
    /// Clips: a folder, a table with a column `path`, or JSON lines; may be given several times
    #[arg(long, value_name = "LIST", required_unless_present = "print_config")]
    data: Vec<PathBuf>,
    /// Where the relative paths of the lists start [default: each list's folder]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Take only rows in which a column has a value, e.g. split=train; may be given several times
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<Filter>,
    /// Other clips, on which the loss is evaluated now and then
    #[arg(long, value_name = "LIST")]
    validation: Option<PathBuf>,
    /// Begin with the weights of this model
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    /// Folder for checkpoints, logs and the model; a run that is there is gone on with
    #[arg(long, short, value_name = "FOLDER", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// Settings as JSON, see --print-config; what is left out has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings and stop
    #[arg(long)]
    print_config: bool,
    /// Steps between two checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 250)]
    save_every: u64,
    /// Steps between two evaluations on --validation
    #[arg(long, value_name = "STEPS", default_value_t = 500)]
    evaluate_every: u64,
}

#[derive(Serialize)]
struct Outcome {
    model: String,
    clips: usize,
    /// Files that were left out.
    skipped: usize,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let config = config(options)?;
    if options.print_config {
        return common.print(&config, serde_json::to_string_pretty(&config)?);
    }
    let (Some(out), limits) = (&options.out, Limits::default()) else {
        return Err(Error::Argument("--out is missing".into()).into());
    };
    let device = common.open()?;
    let initial = options.init.as_deref().map(|path| ModelFile::read(path, &limits)).transpose()?;
    let mut files = vec![];
    for list in &options.data {
        let manifest = Manifest::read(list, options.root.as_deref(), &limits)?;
        files.extend(paths(manifest.filtered(&options.filters)?));
    }
    let (clips, skipped) = read(&files, &config, &limits, common)?;
    let validation = match &options.validation {
        Some(list) => {
            let manifest = Manifest::read(list, options.root.as_deref(), &limits)?;
            Some(read(&paths(manifest), &config, &limits, common)?.0)
        }
        None => None,
    };
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let run = RunOptions {
        save_every: options.save_every,
        evaluate_every: options.evaluate_every,
        interrupt: Interrupt::on_signals()?,
        quiet: common.quiet,
    };
    let clips = Arc::new(clips);
    let mut model = training::train(
        &config,
        &clips,
        validation.as_ref(),
        initial.as_ref(),
        out,
        &run,
        &device,
    )?;
    model.card.provenance.insert("training".to_owned(), serde_json::to_value(&config)?);
    let path = out.join("model.safetensors");
    model.write(&path, true)?;
    let outcome = Outcome { model: path.display().to_string(), clips: clips.len(), skipped };
    let text = format!("trained on {} clips; model in {}", outcome.clips, outcome.model);
    common.print(&outcome, text)
}

/// The settings of --config, with the defaults beneath them.
fn config(options: &Options) -> anyhow::Result<TrainConfig> {
    let config = match &options.config {
        Some(path) => {
            let text = read_text(path, &Limits::default())?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())?
        }
        None => TrainConfig::default(),
    };
    config.validate()?;
    Ok(config)
}

fn paths(manifest: Manifest) -> Vec<PathBuf> {
    manifest.utterances.into_iter().map(|utterance| utterance.path).collect()
}

/// The clips in `files`, and the number of files that were left out, which are listed.
fn read(
    files: &[impl AsRef<Path>],
    config: &TrainConfig,
    limits: &Limits,
    common: &Common,
) -> anyhow::Result<(ClipSet, usize)> {
    let files: Vec<PathBuf> = files.iter().map(|path| path.as_ref().to_path_buf()).collect();
    let (clips, failures) =
        ClipSet::read(&files, config.form(), CACHE_BYTES, limits, common.quiet)?;
    for error in &failures {
        common.note(format!("left out: {error}"));
    }
    Ok((clips, failures.len()))
}
