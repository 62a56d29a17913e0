//! `tdnn train`: a network from recordings of many speakers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use shared::Error;
use shared::cli::Common;
use shared::data::{AudioCache, Filter, Manifest, Utterance, to_f32};
use shared::files::read_text;
use shared::limits::Limits;
use shared::train::Interrupt;
use tdnn::Architecture;
use tdnn::training::{self, RunOptions, TrainConfig, Trained, TrainingData, ValidationTrials};

use super::trials;

/// Decoded recordings beyond this are read from their files again each time.
const CACHE_BYTES: u64 = 4 << 30;

#[derive(Args)]
pub struct Options {
    /// Recordings with their speakers: a table with columns `path` and `speaker`, Kaldi's folder,
    /// JSON lines, or a folder with one sub-folder a speaker; may be given several times
    #[arg(long, value_name = "LIST", required_unless_present = "print_config")]
    data: Vec<PathBuf>,
    /// Where the relative paths of the lists start [default: each list's folder]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Take only rows in which a column has a value, e.g. split=train; may be given several times
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<Filter>,
    /// Folder or list of noises to mix in
    #[arg(long, value_name = "LIST")]
    noise: Option<PathBuf>,
    /// Folder or list of impulse responses to reverberate with
    #[arg(long, value_name = "LIST")]
    impulse_responses: Option<PathBuf>,
    /// Labelled trials of other speakers, evaluated now and then
    #[arg(long, value_name = "LIST")]
    trials: Option<PathBuf>,
    /// Folder for checkpoints, logs and the model; a run that is there is gone on with
    #[arg(long, short, value_name = "FOLDER", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// Settings as JSON, see --print-config; what is left out has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Architecture or its published name, before the settings in --config
    #[arg(long)]
    architecture: Option<Architecture>,
    /// Seed of everything random, before --config
    #[arg(long)]
    seed: Option<u64>,
    /// Print the settings and stop
    #[arg(long)]
    print_config: bool,
    /// Steps between two checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 250)]
    save_every: u64,
    /// Steps between two evaluations on --trials
    #[arg(long, value_name = "STEPS", default_value_t = 500)]
    evaluate_every: u64,
}

#[derive(Serialize)]
struct Outcome {
    model: String,
    recordings: usize,
    /// Speakers, each speed counting as further ones.
    classes: usize,
    loss: f64,
}

pub fn run(options: Options, common: &Common) -> anyhow::Result<()> {
    let config = config(&options)?;
    if options.print_config {
        return common.print(&config, serde_json::to_string_pretty(&config)?);
    }
    let (Some(out), limits) = (&options.out, Limits::default()) else {
        return Err(Error::Argument("--out is missing".into()).into());
    };
    let device = common.open()?;
    let rate_hz = config.frontend.log_mel.rate_hz;
    let corpus = corpus(&options, &limits)?;
    let (recordings, speakers, hash) =
        (corpus.utterances.len(), corpus.speakers()?, corpus.hash()?);
    let cache = decode(corpus.utterances, rate_hz, &limits, common);
    let extra = |list: &Option<PathBuf>| samples(list.as_deref(), rate_hz, &limits, common);
    let (noises, responses) = (extra(&options.noise)?, extra(&options.impulse_responses)?);
    let data = Arc::new(TrainingData::new(config.clone(), cache, &speakers, noises, responses)?);
    let validation = validation(&options, rate_hz, &limits, common)?;
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let run = RunOptions {
        save_every: options.save_every,
        evaluate_every: options.evaluate_every,
        interrupt: Interrupt::on_signals()?,
        quiet: common.quiet,
    };
    let Trained { mut model, loss } =
        training::train(&config, &data, validation.as_ref(), out, &run, &device)?;
    model.card.training_data_sha256 = Some(hash);
    model.card.provenance.insert("training".to_owned(), serde_json::to_value(&config)?);
    let path = out.join("model.safetensors");
    model.write(&path, true)?;
    let outcome =
        Outcome { model: path.display().to_string(), recordings, classes: data.classes(), loss };
    let text = format!(
        "trained on {recordings} recordings, {} classes, last loss {loss:.3}; model in {}",
        outcome.classes, outcome.model
    );
    common.print(&outcome, text)
}

/// The settings of --config, with what other options say beneath them.
fn config(options: &Options) -> anyhow::Result<TrainConfig> {
    let mut base = serde_json::to_value(TrainConfig::default())?;
    if let Some(architecture) = &options.architecture {
        base["architecture"] = serde_json::to_value(architecture)?;
    }
    if let Some(seed) = options.seed {
        base["seed"] = seed.into();
    }
    if let Some(path) = &options.config {
        let text = read_text(path, &Limits::default())?;
        let chosen: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        for (name, value) in chosen {
            base[name] = value;
        }
    }
    let config: TrainConfig = serde_json::from_value(base).with_context(|| {
        options.config.as_ref().map_or_else(String::new, |p| p.display().to_string())
    })?;
    config.validate()?;
    Ok(config)
}

/// The recordings of all lists that pass the filters.
fn corpus(options: &Options, limits: &Limits) -> anyhow::Result<Manifest> {
    let mut corpus: Option<Manifest> = None;
    for list in &options.data {
        let manifest = Manifest::read(list, options.root.as_deref(), limits)?;
        match &mut corpus {
            None => corpus = Some(manifest),
            Some(corpus) => corpus.utterances.extend(manifest.utterances),
        }
    }
    let corpus = corpus.ok_or_else(|| Error::Argument("--data is missing".into()))?;
    Ok(corpus.filtered(&options.filters)?)
}

/// All recordings in memory; those that cannot be read are listed and left out.
fn decode(
    utterances: Vec<Utterance>,
    rate_hz: u32,
    limits: &Limits,
    common: &Common,
) -> AudioCache {
    let (cache, failures) = AudioCache::new(utterances, rate_hz, CACHE_BYTES, limits);
    for failure in failures {
        common.note(format!("left out: {}", failure.error));
    }
    cache
}

/// The samples of all recordings in a list or folder.
fn samples(
    list: Option<&Path>,
    rate_hz: u32,
    limits: &Limits,
    common: &Common,
) -> anyhow::Result<Vec<Vec<f32>>> {
    let Some(list) = list else { return Ok(vec![]) };
    let manifest = Manifest::read(list, None, limits)?;
    let cache = decode(manifest.utterances, rate_hz, limits, common);
    let readable = (0..cache.len()).filter(|number| cache.samples_of(*number).is_some());
    Ok(readable.map(|number| Ok(to_f32(&cache.read(number)?))).collect::<shared::Result<_>>()?)
}

fn validation(
    options: &Options,
    rate_hz: u32,
    limits: &Limits,
    common: &Common,
) -> anyhow::Result<Option<ValidationTrials>> {
    let Some(list) = &options.trials else { return Ok(None) };
    let (trials, _) = trials::labelled(list, limits)?;
    let root = options.root.as_deref().or(list.parent()).unwrap_or(Path::new(""));
    let recordings = trials::recordings(&trials, root);
    Ok(Some(ValidationTrials { recordings: decode(recordings, rate_hz, limits, common), trials }))
}
