//! `lighthubert finetune`: a recogniser from transcribed recordings.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use lighthubert::Vocabulary;
use lighthubert::training::{self, FinetuneConfig, RunOptions, Start, Trained, TranscribedSpeech};
use serde::Serialize;
use shared::Error;
use shared::cli::{Common, Storage};
use shared::data::{AudioCache, Filter, Manifest, to_f32};
use shared::files::read_text;
use shared::limits::Limits;
use shared::train::Interrupt;

use super::model::{self, SubnetChoice};

/// Most recordings of a kind that are named one by one.
const NAMED: usize = 20;
/// Decoded noises beyond this are left out.
const NOISE_BYTES: u64 = 1 << 30;

#[derive(Args)]
pub struct Options {
    /// Recordings with their texts: a table with columns `path` and `text`, LibriSpeech's or Kaldi's
    /// folder, or JSON lines; may be given several times
    #[arg(long, value_name = "LIST", required_unless_present = "print_config")]
    data: Vec<PathBuf>,
    /// Where the relative paths of the lists start [default: each list's folder]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Take only rows in which a column has a value, e.g. split=train,other; may be given several times
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<Filter>,
    /// Others, on which the error rates are evaluated now and then; without it, but with
    /// --validation-where, rows of --data
    #[arg(long, value_name = "LIST")]
    validation: Option<PathBuf>,
    /// Take only these rows for the evaluation
    #[arg(long, value_name = "COLUMN=VALUE")]
    validation_where: Vec<Filter>,
    /// Begin with the encoder of this model; the head, too, if it is a recogniser of the same classes
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    /// Subnet of a supernet given with --init: default, max, min, or a JSON file
    #[arg(long, value_name = "NAME", requires = "init")]
    subnet: Option<SubnetChoice>,
    /// Classes to recognise, as `lighthubert info --json` prints them or a `tokenizer.json` [default: those
    /// of a recogniser given with --init, else found in the texts]
    #[arg(long, value_name = "FILE")]
    vocabulary: Option<PathBuf>,
    /// Folder or list of noises to mix in
    #[arg(long, value_name = "LIST")]
    noise: Option<PathBuf>,
    /// Folder or list of impulse responses to reverberate with
    #[arg(long, value_name = "LIST")]
    impulse_responses: Option<PathBuf>,
    /// Folder for checkpoints, logs and the model; a run that is there is gone on with
    #[arg(long, short, value_name = "FOLDER", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// Settings as JSON, see --print-config; what is left out has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings and stop
    #[arg(long)]
    print_config: bool,
    /// Numbers in which the model's matrices are stored
    #[arg(long, value_enum, default_value = "f32")]
    storage: Storage,
    /// Steps between two checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 250)]
    save_every: u64,
    /// Steps between two evaluations
    #[arg(long, value_name = "STEPS", default_value_t = 500)]
    evaluate_every: u64,
}

#[derive(Serialize)]
struct Outcome {
    model: String,
    recordings: usize,
    duration_s: f64,
    classes: usize,
    left_out: usize,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let config: FinetuneConfig = match &options.config {
        Some(path) => {
            let text = read_text(path, &Limits::default())?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())?
        }
        None => FinetuneConfig::default(),
    };
    config.validate()?;
    if options.print_config {
        return common.print(&config, serde_json::to_string_pretty(&config)?);
    }
    let Some(out) = &options.out else {
        return Err(Error::Argument("--out is missing".into()).into());
    };
    let device = common.open()?;
    let speech = Arc::new(read(options, &options.data, &options.filters, &config, common)?);
    let validation = match (&options.validation, options.validation_where.is_empty()) {
        (None, true) => None,
        (list, _) => {
            let lists = list.as_ref().map_or(options.data.as_slice(), std::slice::from_ref);
            Some(read(options, lists, &options.validation_where, &config, common)?)
        }
    };
    let initial = options.init.as_deref().map(|path| model::load(path, common)).transpose()?;
    let start = match &initial {
        None => {
            let vocabulary = vocabulary(options, &config, &speech, None)?;
            Start::random(&config, vocabulary, &device)?
        }
        Some(model) => {
            let subnet = options.subnet.as_ref().map(|choice| choice.of(model)).transpose()?;
            let vocabulary = vocabulary(options, &config, &speech, model.vocabulary())?;
            Start::of_model(&config, vocabulary, model, subnet.as_ref(), &device)?
        }
    };
    if let Some(report) = &start.report {
        common.note(report);
    }
    let noises =
        [&options.noise, &options.impulse_responses].map(|list| samples(list.as_deref(), common));
    let [noises, impulse_responses] = noises;
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let run = RunOptions {
        save_every: options.save_every,
        evaluate_every: options.evaluate_every,
        storage: options.storage.dtype(),
        interrupt: Interrupt::on_signals()?,
        quiet: common.quiet,
    };
    let job = training::Job {
        config: &config,
        start: &start,
        speech: &speech,
        noises: [noises?, impulse_responses?],
        validation: validation.as_ref(),
        folder: out,
        options: &run,
        device: &device,
    };
    let Trained { model, left_out } =
        training::finetune(job, |left_out| name(left_out, left_out.len(), common))?;
    let path = out.join("model.safetensors");
    model.write(&path, options.storage.dtype(), true)?;
    let outcome = Outcome {
        model: path.display().to_string(),
        recordings: speech.len() - left_out,
        duration_s: speech.duration_s(),
        classes: start.config.vocabulary.classes(),
        left_out,
    };
    let text = format!(
        "trained on {} recordings, {} classes; model in {}",
        outcome.recordings, outcome.classes, outcome.model
    );
    common.print(&outcome, text)
}

/// The recordings of all lists that pass the filters, with their texts. Those that cannot be used are
/// listed.
fn read(
    options: &Options,
    lists: &[PathBuf],
    filters: &[Filter],
    config: &FinetuneConfig,
    common: &Common,
) -> anyhow::Result<TranscribedSpeech> {
    let limits = Limits::default();
    let mut utterances = vec![];
    for list in lists {
        let manifest = Manifest::read(list, options.root.as_deref(), &limits)?;
        utterances.extend(manifest.filtered(filters)?.utterances);
    }
    let speech = TranscribedSpeech::read(utterances, config.normaliser, &limits);
    let left_out = &speech.left_out;
    if left_out.without_text > 0 {
        common.note(format!("left out: {} recordings without a text", left_out.without_text));
    }
    let lines: Vec<String> =
        left_out.unreadable.iter().map(|it| format!("left out: {}", it.error)).collect();
    name(&lines, lines.len(), common);
    if speech.is_empty() {
        let lists: Vec<String> = lists.iter().map(|list| list.display().to_string()).collect();
        let reason = format!("{}: no recording with a text", lists.join(", "));
        return Err(Error::Argument(reason).into());
    }
    Ok(speech)
}

/// Notes on recordings, the first of them one by one.
fn name(lines: &[String], count: usize, common: &Common) {
    lines.iter().take(NAMED).for_each(|line| common.note(line));
    if count > NAMED {
        common.note(format!("and {} more", count - NAMED));
    }
}

fn vocabulary(
    options: &Options,
    config: &FinetuneConfig,
    speech: &TranscribedSpeech,
    known: Option<&Vocabulary>,
) -> anyhow::Result<Vocabulary> {
    if let Some(path) = &options.vocabulary {
        let text = read_text(path, &Limits::default())?;
        let parsed = serde_json::from_str::<Vocabulary>(&text)
            .or_else(|_| Vocabulary::word_pieces(&text, 0));
        return parsed.with_context(|| path.display().to_string());
    }
    Ok(match (known, config.word_pieces) {
        (Some(known), None) => known.clone(),
        (_, Some(symbols)) => Vocabulary::train(speech.texts(), symbols)?,
        (None, None) => Vocabulary::of_texts(speech.texts())?,
    })
}

/// The samples of all recordings in a list or folder.
fn samples(list: Option<&Path>, common: &Common) -> anyhow::Result<Vec<Vec<f32>>> {
    let Some(list) = list else { return Ok(vec![]) };
    let limits = Limits::default();
    let utterances = Manifest::read(list, None, &limits)?.utterances;
    let (cache, failures) = AudioCache::new(utterances, lighthubert::RATE_HZ, NOISE_BYTES, &limits);
    let lines: Vec<String> =
        failures.iter().map(|failure| format!("left out: {}", failure.error)).collect();
    name(&lines, lines.len(), common);
    let readable = (0..cache.len()).filter(|number| cache.samples_of(*number).is_some());
    Ok(readable.map(|number| Ok(to_f32(&cache.read(number)?))).collect::<shared::Result<_>>()?)
}
