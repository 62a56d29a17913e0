//! `lighthubert transcribe`: what is said in recordings.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use lighthubert::captions::{captions, srt, vtt};
use lighthubert::{Decoder, Transcriber, Transcription};
use serde::Serialize;
use shared::cli::{Common, Shard};
use shared::data::{Filter, Manifest, Utterance};
use shared::files::write_atomic;
use shared::limits::Limits;
use shared::report::Progress;
use shared::train::Interrupt;
use shared::{Error, Result};

use super::decoding::DecodingOptions;
use super::model;

#[derive(Args)]
pub struct Options {
    /// Recordings, folders, or lists of recordings: tables with a column `path`, Kaldi's wav.scp, JSON lines
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Recogniser made by `lighthubert finetune` [default: the one shipped with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Folder for a file with the text of each recording; without it texts go to stdout
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// What is written: text; json, with the time and confidence of each word; srt or vtt, captions for
    /// films. Several only into a folder
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',', default_value = "text")]
    format: Vec<Format>,
    #[command(flatten)]
    decoding: DecodingOptions,
    /// Where the relative paths of lists start [default: each list's folder]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Take only rows of lists in which a column has a value, e.g. split=train; may be given several times
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<Filter>,
    /// Only part I of N, I from 0 [default: as the launcher's environment says, or all]
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Leave recordings alone whose files are in the folder already
    #[arg(long, requires = "out")]
    resume: bool,
    /// Refuse recordings that are longer than this, in hours
    #[arg(long, value_name = "HOURS", default_value_t = 24.0)]
    max_hours: f64,
    /// Overwrite files
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Srt,
    Vtt,
}

impl Format {
    fn ending(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Json => "json",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
        }
    }

    fn write(self, outcome: &Outcome) -> anyhow::Result<String> {
        let words = &outcome.transcription.words;
        Ok(match self {
            Self::Text => format!("{}\n", outcome.transcription.text),
            Self::Json => format!("{}\n", serde_json::to_string(outcome)?),
            Self::Srt => srt(&captions(words)),
            Self::Vtt => vtt(&captions(words)),
        })
    }
}

/// What came of a recording.
#[derive(Serialize)]
struct Outcome {
    id: String,
    path: String,
    duration_s: f64,
    #[serde(flatten)]
    transcription: Transcription,
    model: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    if options.out.is_none() && options.format.len() > 1 {
        return Err(Error::Argument("several formats need a folder (--out)".into()).into());
    }
    let limits = Limits { duration_s: 3600.0 * options.max_hours, ..Limits::default() };
    let utterances = utterances(options, &limits)?;
    let is_one = utterances.len() == 1;
    let device = common.open()?;
    let model = model::load_or_shipped(options.model.as_deref(), common)?;
    let decoding = &options.decoding;
    let words = decoding.words(options.model.as_deref())?;
    let decoder = decoding.decoder(&decoding.config(&model), words)?;
    let transcriber =
        Transcriber::new(model.recogniser(&device)?, model.card.chunks, device.clone())?;
    let name = model::name(options.model.as_deref());
    drop(model);
    if let Some(out) = &options.out {
        fs::create_dir_all(out).map_err(Error::io(out))?;
    }
    let outputs = outputs(options, &utterances)?;
    let interrupt = Interrupt::on_signals()?;
    let total = utterances.len() as u64;
    let progress = Progress::new("transcribe", "recordings", Some(total), common.quiet || is_one);
    let mut failed = 0;
    for (utterance, files) in utterances.iter().zip(&outputs) {
        if interrupt.requested() {
            return Err(Error::Interrupted.into());
        }
        if options.resume && !files.is_empty() && files.iter().all(|file| file.exists()) {
            progress.inc(1);
            continue;
        }
        match transcribed(&transcriber, utterance, &decoder, &limits, &name) {
            Ok(outcome) => {
                if !(common.quiet || common.json) {
                    // With one recording there is no progress to stand beside.
                    outcome.notes.iter().for_each(|note| match is_one {
                        true => common.note(note),
                        false => progress.note(note),
                    });
                }
                for (format, file) in options.format.iter().zip(files) {
                    let text = format.write(&outcome)?;
                    write_atomic(file, options.force || options.resume, |file| {
                        file.write_all(text.as_bytes())
                    })?;
                }
                print(&outcome, options, is_one, common)?;
            }
            // One recording that cannot be heard does not keep the others from being.
            Err(error) if !is_one => {
                failed += 1;
                progress.note(format!("not transcribed: {}: {error}", utterance.id));
            }
            Err(error) => return Err(error.into()),
        }
        progress.inc(1);
    }
    progress.finish();
    if failed > 0 {
        let reason = format!("{failed} of {total} recordings could not be transcribed, see above");
        return Err(Error::Argument(reason).into());
    }
    Ok(ExitCode::SUCCESS)
}

fn print(
    outcome: &Outcome,
    options: &Options,
    is_one: bool,
    common: &Common,
) -> anyhow::Result<()> {
    let format = options.format.first().copied().unwrap_or(Format::Text);
    let text = match (&options.out, format, is_one) {
        (None, Format::Text, false) => {
            format!("{}\t{}", outcome.id, outcome.transcription.text)
        }
        (None, format, _) => format.write(outcome)?.trim_end().to_owned(),
        (Some(_), ..) => format!("{}\t{}", outcome.id, outcome.transcription.text),
    };
    common.print(outcome, text)
}

fn transcribed(
    transcriber: &Transcriber,
    utterance: &Utterance,
    decoder: &Decoder,
    limits: &Limits,
    model: &str,
) -> Result<Outcome> {
    let heard = transcriber.hear(utterance, limits)?;
    let transcription = transcriber.transcribe(&heard.emissions, decoder)?;
    let mut notes = heard.notes;
    if transcription.text.is_empty() {
        notes.push(format!("{}: no speech was recognised", utterance.path.display()));
    }
    Ok(Outcome {
        id: utterance.id.clone(),
        path: utterance.path.display().to_string(),
        duration_s: heard.duration_s,
        transcription,
        model: model.to_owned(),
        notes,
    })
}

/// The recordings of this shard: the inputs themselves, or what folders and lists hold.
fn utterances(options: &Options, limits: &Limits) -> anyhow::Result<Vec<Utterance>> {
    let mut utterances = vec![];
    for input in &options.inputs {
        let ending = input.extension().and_then(|ending| ending.to_str());
        let is_list = input.is_dir()
            || ending.is_some_and(|it| ["scp", "tsv", "jsonl", "json", "txt"].contains(&it));
        if is_list {
            let manifest = Manifest::read(input, options.root.as_deref(), limits)?;
            utterances.extend(manifest.filtered(&options.filters)?.utterances);
        } else {
            let id = input.display().to_string();
            utterances.push(Utterance { id, path: input.clone(), ..Utterance::default() });
        }
    }
    let shard = options.shard.map_or_else(Shard::from_environment, Ok)?;
    let range = shard.range(utterances.len());
    Ok(utterances.drain(range).collect())
}

/// The files of each recording, one for each format; none without a folder.
fn outputs(options: &Options, utterances: &[Utterance]) -> anyhow::Result<Vec<Vec<PathBuf>>> {
    let Some(out) = &options.out else { return Ok(vec![vec![]; utterances.len()]) };
    let mut owners: HashMap<PathBuf, &str> = HashMap::new();
    let mut outputs = vec![];
    for utterance in utterances {
        let mut files = vec![];
        for format in &options.format {
            let file = out.join(format!("{}.{}", file_stem(utterance), format.ending()));
            if let Some(other) = owners.insert(file.clone(), &utterance.id) {
                let (file, id) = (file.display(), &utterance.id);
                return Err(
                    Error::Argument(format!("{other} and {id} would both be {file}")).into()
                );
            }
            if !(options.force || options.resume) && file.exists() {
                return Err(Error::Exists { path: file }.into());
            }
            files.push(file);
        }
        outputs.push(files);
    }
    Ok(outputs)
}

/// The name of an utterance's files: that of the recording where it is named after its path.
fn file_stem(utterance: &Utterance) -> String {
    let stem = Path::new(&utterance.id).with_extension("");
    let stem = match utterance.path.ends_with(&utterance.id) && utterance.start_s.is_none() {
        true => stem.display().to_string(),
        false => utterance.id.clone(),
    };
    let is_plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let name: String = stem.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    name.trim_start_matches(['.', '_']).to_owned()
}
