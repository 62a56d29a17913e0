//! `lighthubert features`: the features of recordings.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use lighthubert::feature_file::FeatureFile;
use lighthubert::{ChunkConfig, Layers, RATE_HZ, SpeechEncoder, recording};
use serde::Serialize;
use shared::cli::{Common, Shard};
use shared::data::{Filter, Manifest, Utterance};
use shared::files::check_output;
use shared::limits::Limits;
use shared::report::Progress;
use shared::train::Interrupt;
use shared::{Error, Result};

use super::model::ModelOptions;

/// Samples of short recordings that are encoded together at most.
const GROUP_SAMPLES: usize = 120 * RATE_HZ as usize;

#[derive(Args)]
pub struct Options {
    /// A recording, or a list of recordings: Kaldi's wav.scp, a table with a column `path`, JSON
    /// lines, or a folder
    input: PathBuf,
    /// Where the features go: a NumPy file `[frames, width]`, or for a list a folder with such a file for
    /// each recording; those found there are not made again
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelOptions,
    /// Which: `last`; a number for one hidden state, 0 being what enters the transformer; `all` for all of
    /// them (`[frames, layers + 1, width]`); or weights with commas between them for their weighted sum
    #[arg(long, value_name = "LAYERS", default_value = "last")]
    layers: LayersArgument,
    /// Longer recordings are cut into overlapping windows of this length
    #[arg(long, value_name = "SECONDS")]
    window: Option<f64>,
    /// Seconds at either end of a window that are only heard, not used, where the recording goes on
    #[arg(long, value_name = "SECONDS")]
    context: Option<f64>,
    /// Where the relative paths of a list start [default: the list's folder]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Only part I of N of a list, I from 0 [default: as the launcher's environment says, or all]
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Take only rows in which a column has a value, e.g. split=train; may be given several times
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<Filter>,
    /// Leave out recordings that cannot be used, and list them
    #[arg(long)]
    skip_errors: bool,
    /// Refuse recordings that are longer than this, in hours
    #[arg(long, value_name = "HOURS", default_value_t = 24.0)]
    max_hours: f64,
    /// Overwrite outputs
    #[arg(long)]
    force: bool,
}

/// [`Layers`] as users write them.
#[derive(Clone, Debug)]
struct LayersArgument(Layers);

impl FromStr for LayersArgument {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let weights = || {
            let weights: Option<Vec<f64>> =
                text.split(',').map(|it| it.trim().parse().ok()).collect();
            weights.filter(|weights| weights.iter().all(|weight| weight.is_finite()))
        };
        let layers = match (text, text.parse()) {
            ("last", _) => Layers::Last,
            ("all", _) => Layers::All,
            (_, Ok(layer)) => Layers::One(layer),
            _ => Layers::Weighted(weights().ok_or_else(|| {
                Error::Argument(format!(
                    "layers {text:?} are none of last, all, a number and weights"
                ))
            })?),
        };
        Ok(Self(layers))
    }
}

/// The features of one recording.
#[derive(Serialize)]
struct Outcome {
    id: String,
    out: String,
    frames: usize,
    duration_s: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let limits = Limits { duration_s: 3600.0 * options.max_hours, ..Limits::default() };
    let jobs = jobs(options, &limits)?;
    let device = common.open()?;
    let (model, subnet) = options.model.load(common)?;
    let network = model.network(subnet.as_ref(), &device)?;
    let seconds_per_frame =
        network.config().encoder.extractor.hop_samples() as f64 / f64::from(RATE_HZ);
    let frames = |seconds: f64| (seconds / seconds_per_frame).round() as usize;
    let stored = model.card.chunks;
    // The network has weights of its own.
    drop(model);
    let chunks = ChunkConfig {
        window_frames: options.window.map_or(stored.window_frames, frames),
        context_frames: options.context.map_or(stored.context_frames, frames),
    };
    let encoder = SpeechEncoder::new(network, chunks, device)?;
    let work = Work { encoder, layers: &options.layers.0, limits, force: options.force };
    let interrupt = Interrupt::on_signals()?;
    let progress = Progress::new("features", "recordings", Some(jobs.len() as u64), common.quiet);
    let mut skipped = 0;
    for group in work.grouped(&jobs) {
        for (job, outcome) in group.iter().zip(work.encode(group)) {
            progress.inc(1);
            match outcome {
                Ok(outcome) => {
                    outcome.notes.iter().for_each(|note| progress.note(note));
                    let text = format!("{}\t{} frames", outcome.out, outcome.frames);
                    common.print(&outcome, text)?;
                }
                Err(error) if options.skip_errors => {
                    skipped += 1;
                    progress.note(format!("skipped {}: {error}", job.utterance.id));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if interrupt.requested() {
            return Err(Error::Interrupted.into());
        }
    }
    progress.finish();
    if skipped > 0 {
        common.note(format!("{skipped} of {} recordings skipped", jobs.len()));
    }
    Ok(())
}

/// A recording, and where its features go.
struct Job {
    utterance: Utterance,
    out: PathBuf,
}

/// The recordings that are to be encoded: the input itself where it is one, else those of this shard that
/// it lists, without those that have features already.
fn jobs(options: &Options, limits: &Limits) -> anyhow::Result<Vec<Job>> {
    let ending = options.input.extension().and_then(|ending| ending.to_str());
    let is_list = options.input.is_dir()
        || ending.is_some_and(|it| ["scp", "tsv", "jsonl", "json", "txt"].contains(&it));
    if !is_list {
        if !options.filters.is_empty() || options.shard.is_some() {
            let text = "--where and --shard go with a list of recordings";
            return Err(Error::Argument(text.into()).into());
        }
        check_output(&options.out, options.force)?;
        let id = options.input.display().to_string();
        let utterance = Utterance { id, path: options.input.clone(), ..Utterance::default() };
        return Ok(vec![Job { utterance, out: options.out.clone() }]);
    }
    let manifest = Manifest::read(&options.input, options.root.as_deref(), limits)?;
    let manifest = manifest.filtered(&options.filters)?;
    fs::create_dir_all(&options.out).map_err(Error::io(&options.out))?;
    let shard = options.shard.map_or_else(Shard::from_environment, Ok)?;
    let range = shard.range(manifest.utterances.len());
    let mut owners: HashMap<PathBuf, String> = HashMap::new();
    let mut jobs = vec![];
    for (place, utterance) in manifest.utterances.into_iter().enumerate() {
        let out = options.out.join(file_name(&utterance.id));
        if let Some(other) = owners.insert(out.clone(), utterance.id.clone()) {
            let text = format!("{other} and {} would both be {}", utterance.id, out.display());
            return Err(Error::Argument(text).into());
        }
        if range.contains(&place) && (options.force || !out.exists()) {
            jobs.push(Job { utterance, out });
        }
    }
    Ok(jobs)
}

/// The name of the features' file of an utterance.
fn file_name(id: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let name: String = id.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    format!("{}.npy", name.trim_start_matches('.'))
}

/// How recordings are encoded.
struct Work<'a> {
    encoder: SpeechEncoder,
    layers: &'a Layers,
    limits: Limits,
    force: bool,
}

impl Work<'_> {
    /// The jobs in groups that are encoded together: by what the list says of their lengths, up to two
    /// minutes; those of unknown length one by one.
    fn grouped<'j>(&self, jobs: &'j [Job]) -> Vec<&'j [Job]> {
        let length = |job: &Job| {
            let seconds = job.utterance.duration_s.filter(|it| it.is_finite() && *it > 0.0);
            seconds.map_or(GROUP_SAMPLES, |seconds| (seconds * f64::from(RATE_HZ)) as usize)
        };
        let mut groups = vec![];
        let (mut first, mut total) = (0, 0);
        for (i, job) in jobs.iter().enumerate() {
            if i > first && total + length(job) > GROUP_SAMPLES {
                groups.push(&jobs[first..i]);
                (first, total) = (i, 0);
            }
            total += length(job);
        }
        if first < jobs.len() {
            groups.push(&jobs[first..]);
        }
        groups
    }

    fn encode(&self, group: &[Job]) -> Vec<Result<Outcome>> {
        match group {
            [job] => vec![self.encode_stream(job).map_err(|error| unusable(job, error))],
            _ => self.encode_together(group),
        }
    }

    /// A recording of any length, which is heard twice: once for its mean and variance.
    fn encode_stream(&self, job: &Job) -> Result<Outcome> {
        let survey = recording::survey(&job.utterance, &self.limits)?;
        let mut stream = self.encoder.start(&survey.statistics, self.layers);
        let frames = self.encoder.frames(survey.samples());
        let mut file: Option<FeatureFile> = None;
        let mut write = |features| self.append(&mut file, job, frames, &features);
        recording::for_blocks(&job.utterance, &self.limits, |block| {
            stream.push(block, &mut write)
        })?;
        stream.finish(&mut write)?;
        file.map_or(Ok(()), FeatureFile::finish)?;
        let duration_s = survey.duration_s();
        Ok(self.outcome(job, frames, duration_s, survey.notes))
    }

    /// Short recordings in batches; each by itself where one of them cannot be encoded.
    fn encode_together(&self, group: &[Job]) -> Vec<Result<Outcome>> {
        let together = || -> Result<Vec<Outcome>> {
            let mut recordings = vec![];
            let mut notes = vec![];
            for job in group {
                let mut samples = vec![];
                let keep = |block: &[f32]| {
                    samples.extend_from_slice(block);
                    Ok(())
                };
                notes.push(recording::for_blocks(&job.utterance, &self.limits, keep)?);
                recordings.push(samples);
            }
            let features = self.encoder.encode_all(&recordings, self.layers)?;
            let parts = group.iter().zip(features).zip(recordings).zip(notes);
            let outcome = |(((job, features), samples), notes): (((&Job, _), Vec<f32>), _)| {
                let frames = self.encoder.frames(samples.len());
                let mut file = None;
                self.append(&mut file, job, frames, &features)?;
                file.map_or(Ok(()), FeatureFile::finish)?;
                Ok(self.outcome(job, frames, samples.len() as f64 / f64::from(RATE_HZ), notes))
            };
            parts.map(outcome).collect()
        };
        let alone = |job| self.encode_stream(job).map_err(|error| unusable(job, error));
        match together() {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(_) => group.iter().map(alone).collect(),
        }
    }

    /// Writes the next features of a recording; the first ones start its file.
    fn append(
        &self,
        file: &mut Option<FeatureFile>,
        job: &Job,
        frames: usize,
        features: &candle_core::Tensor,
    ) -> Result<()> {
        let file = match file {
            Some(file) => file,
            None => {
                let frame = match *features.dims() {
                    [layers, _, width] => vec![layers, width],
                    _ => vec![features.dim(candle_core::D::Minus1)?],
                };
                file.insert(FeatureFile::create(&job.out, frames, &frame, self.force)?)
            }
        };
        file.append(features)
    }

    fn outcome(&self, job: &Job, frames: usize, duration_s: f64, notes: Vec<String>) -> Outcome {
        let (id, out) = (job.utterance.id.clone(), job.out.display().to_string());
        Outcome { id, out, frames, duration_s, notes }
    }
}

/// An error that says which recording it is about.
fn unusable(job: &Job, error: Error) -> Error {
    let path: &Path = &job.utterance.path;
    match error {
        Error::TooShort { .. } | Error::NonFinite { .. } => {
            Error::Recording { path: path.to_path_buf(), source: Box::new(error) }
        }
        other => other,
    }
}
