//! `lighthubert evaluate`: recordings whose texts are known, recognised and scored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use lighthubert::decode::Emissions;
use lighthubert::language_model::NgramModel;
use lighthubert::score_report::{Metrics, ScoreReport};
use lighthubert::{Decoder, DecodingConfig, ModelFile, RATE_HZ, Transcriber, cost};
use rayon::prelude::*;
use serde::Serialize;
use shared::cli::{Common, Storage};
use shared::data::{Filter, Manifest, Utterance, read_utterance};
use shared::eval::Bootstrap;
use shared::eval::wer::{Counts, Evaluation, Missing, Normaliser, Transcript, Transcripts, align};
use shared::files::check_output;
use shared::limits::Limits;
use shared::measure::peak_memory_mb;
use shared::report::format::count;
use shared::report::{Progress, Table};
use shared::train::Interrupt;
use shared::{Error, Result};

use super::decoding::DecodingOptions;
use super::model;

/// Samples of recordings that are heard together at most.
const GROUP_SAMPLES: usize = 120 * RATE_HZ as usize;
/// Weights and bonuses that --tune tries.
const WEIGHTS: [f64; 9] = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5];
const WORD_BONUSES: [f64; 6] = [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0];

#[derive(Args)]
pub struct Options {
    /// Recordings with their texts: a table with columns `path` and `text`, LibriSpeech's or Kaldi's
    /// folder, or JSON lines
    #[arg(long, value_name = "LIST")]
    data: PathBuf,
    /// Where the relative paths of the list start [default: the list's folder]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Take only rows in which a column has a value, e.g. split=dev,test; may be given several times
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<Filter>,
    /// A row of figures for each value of this column, e.g. split
    #[arg(long, value_name = "COLUMN")]
    by: Option<String>,
    /// Recogniser made by `lighthubert finetune` [default: the one shipped with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    decoding: DecodingOptions,
    /// What is done to both texts first: `none`, `basic` or `librispeech`
    #[arg(long, value_name = "NAME", default_value_t = Normaliser::Librispeech)]
    normaliser: Normaliser,
    /// Leave out recordings that cannot be used, and list them
    #[arg(long)]
    skip_errors: bool,
    /// Folder for reports, one for each row: report.html, metrics.json, alignment.txt
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Overwrite the reports
    #[arg(long)]
    force: bool,
    /// Look for the best weight of the language model and bonus for words on these recordings, which must
    /// then not be those that results are reported on
    #[arg(long)]
    tune: bool,
    /// Write the model with the settings that --tune finds, which are its defaults from then on
    #[arg(long, value_name = "FILE", requires = "tune")]
    save: Option<PathBuf>,
    /// Numbers in which the matrices of that model are stored
    #[arg(long, value_enum, default_value = "bf16", requires = "save")]
    storage: Storage,
}

/// One row of figures.
#[derive(Serialize)]
struct Outcome<'a> {
    recordings: &'a str,
    decoder: &'static str,
    #[serde(flatten)]
    metrics: &'a Metrics,
    /// Time for recognising over the length of the recordings.
    real_time_factor: f64,
    peak_memory_mb: Option<f64>,
    parameters: u64,
    /// Multiply-accumulates of the encoder for 10 s of audio.
    macs_10s: u64,
    model: String,
}

/// Recordings and what the recogniser heard in them.
struct Heard {
    utterances: Vec<Utterance>,
    emissions: Vec<Emissions>,
    durations_s: Vec<f64>,
    seconds: f64,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let limits = Limits::default();
    if let Some(save) = &options.save {
        check_output(save, options.force)?;
    }
    let manifest = Manifest::read(&options.data, options.root.as_deref(), &limits)?;
    let mut utterances = manifest.filtered(&options.filters)?.utterances;
    let before = utterances.len();
    utterances.retain(|utterance| utterance.text.is_some());
    if utterances.is_empty() {
        let reason = format!("{}: no recording with a text", options.data.display());
        return Err(Error::Argument(reason).into());
    }
    if utterances.len() < before {
        common.note(format!("left out: {} recordings without a text", before - utterances.len()));
    }
    let device = common.open()?;
    let model = model::load_or_shipped(options.model.as_deref(), common)?;
    let words = options.decoding.words(options.model.as_deref())?;
    let transcriber =
        Transcriber::new(model.recogniser(&device)?, model.card.chunks, device.clone())?;
    let heard = hear(&transcriber, utterances, options, &limits, common)?;
    if options.tune {
        return tune(&heard, &transcriber, model, words, options, common);
    }
    let mut decoders = vec![("greedy", Decoder::Greedy)];
    let decoder = options.decoding.decoder(&options.decoding.config(&model), words)?;
    if let Decoder::Beam(..) = decoder {
        decoders.push(("beam search", decoder));
    }
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, utterance) in heard.utterances.iter().enumerate() {
        let value = match &options.by {
            Some(column) => utterance.column(column).unwrap_or("-"),
            None => "all",
        };
        groups.entry(value).or_default().push(place);
    }
    let config = transcriber.encoder().network().config();
    let parameters: usize = model.tensors.values().map(|tensor| tensor.elem_count()).sum();
    let macs_10s = cost::macs(config, 10 * RATE_HZ as usize);
    let mut table = Table::new([
        options.by.as_deref().unwrap_or("recordings"),
        "decoder",
        "words",
        "WER % (95 % interval)",
        "CER %",
        "sentence errors %",
        "real-time factor",
    ]);
    for (group, places) in &groups {
        for (name, decoder) in &decoders {
            let (report, seconds) = scored(&heard, places, &transcriber, decoder, name, options)?;
            if let Some(out) = &options.out {
                let folder = format!("{group} {name}").replace(|c: char| !c.is_alphanumeric(), "-");
                report.write(&out.join(folder), options.force)?;
            }
            let of_group = |values: &[f64]| -> f64 {
                places.iter().filter_map(|place| values.get(*place)).sum()
            };
            let duration_s = of_group(&heard.durations_s);
            let share = duration_s / heard.durations_s.iter().sum::<f64>();
            let metrics = report.metrics();
            let outcome = Outcome {
                recordings: group,
                decoder: name,
                metrics,
                real_time_factor: (seconds + share * heard.seconds) / duration_s,
                peak_memory_mb: peak_memory_mb(),
                parameters: parameters as u64,
                macs_10s,
                model: model::name(options.model.as_deref()),
            };
            table.row([
                (*group).to_owned(),
                (*name).to_owned(),
                count(metrics.total.words.reference()),
                metrics.wer.percent(),
                format!("{:.2}", 100.0 * metrics.cer.value),
                format!("{:.1}", 100.0 * metrics.sentence_error_rate.value),
                format!("{:.4}", outcome.real_time_factor),
            ]);
            if common.json {
                common.print(&outcome, "")?;
            }
        }
    }
    if common.json {
        return Ok(());
    }
    common.note(format!(
        "{} recordings, {} parameters, {:.2} GMAC for 10 s, normaliser {}",
        heard.utterances.len(),
        count(parameters as u64),
        1e-9 * macs_10s as f64,
        options.normaliser
    ));
    common.print(&(), table.to_string().trim_end())
}

/// Listens to all recordings.
fn hear(
    transcriber: &Transcriber,
    utterances: Vec<Utterance>,
    options: &Options,
    limits: &Limits,
    common: &Common,
) -> anyhow::Result<Heard> {
    let interrupt = Interrupt::on_signals()?;
    let total = utterances.len() as u64;
    let progress = Progress::new("listen", "recordings", Some(total), common.quiet);
    let mut heard =
        Heard { utterances: vec![], emissions: vec![], durations_s: vec![], seconds: 0.0 };
    let mut waiting: Vec<Vec<f32>> = vec![];
    let least = transcriber.encoder().network().config().encoder.extractor.receptive_samples();
    let count = utterances.len();
    for (place, utterance) in utterances.into_iter().enumerate() {
        if interrupt.requested() {
            return Err(Error::Interrupted.into());
        }
        let samples = read_utterance(&utterance, RATE_HZ, limits).and_then(|samples| {
            let error = match (samples.len() < least, samples.iter().all(|it| it.is_finite())) {
                (true, _) => Error::TooShort { have_samples: samples.len(), need_samples: least },
                (_, false) => Error::NonFinite { what: "a sample of the recording".into() },
                _ => return Ok(samples),
            };
            Err(Error::Recording { path: utterance.path.clone(), source: Box::new(error) })
        });
        match samples {
            Ok(samples) => {
                heard.durations_s.push(samples.len() as f64 / f64::from(RATE_HZ));
                heard.utterances.push(utterance);
                waiting.push(samples);
            }
            Err(error) if options.skip_errors => progress.note(format!("skipped: {error}")),
            Err(error) => return Err(error.into()),
        }
        let waiting_samples: usize = waiting.iter().map(Vec::len).sum();
        if waiting_samples >= GROUP_SAMPLES || place + 1 == count {
            let start = Instant::now();
            let found = transcriber.hear_all(&waiting)?;
            heard.seconds += start.elapsed().as_secs_f64();
            heard.emissions.extend(found);
            waiting.clear();
        }
        progress.inc(1);
    }
    progress.finish();
    Ok(heard)
}

/// The report of some recordings, and the time for finding their texts.
fn scored(
    heard: &Heard,
    places: &[usize],
    transcriber: &Transcriber,
    decoder: &Decoder,
    name: &str,
    options: &Options,
) -> anyhow::Result<(ScoreReport, f64)> {
    let start = Instant::now();
    let texts: Vec<String> = places
        .par_iter()
        .filter_map(|place| heard.emissions.get(*place))
        .map(|emissions| Ok(transcriber.transcribe(emissions, decoder)?.text))
        .collect::<Result<_>>()?;
    let seconds = start.elapsed().as_secs_f64();
    let (mut references, mut hypotheses) = (vec![], vec![]);
    for (place, text) in places.iter().zip(texts) {
        let Some(utterance) = heard.utterances.get(*place) else { continue };
        let id = &utterance.id;
        references.push(Transcript {
            id: id.clone(),
            text: utterance.text.clone().unwrap_or_default(),
            speaker: utterance.speaker.clone(),
            duration_s: heard.durations_s.get(*place).copied(),
        });
        hypotheses.push(Transcript { id: id.clone(), text, ..Transcript::default() });
    }
    let model = model::name(options.model.as_deref());
    let hypothesis = format!("{model}, {name}");
    let references = Transcripts { source: options.data.clone(), entries: references };
    let hypotheses = Transcripts { source: hypothesis.clone().into(), entries: hypotheses };
    let evaluation =
        Evaluation::new(&references, &hypotheses, options.normaliser, Missing::Refused)?;
    let source = options.data.display().to_string();
    let report = ScoreReport::new(evaluation, [&source, &hypothesis], &Bootstrap::default(), None)?;
    Ok((report, seconds))
}

/// One setting that was tried.
#[derive(Serialize)]
struct Tried {
    weight: f64,
    word_bonus: f64,
    wer: f64,
}

fn tune(
    heard: &Heard,
    transcriber: &Transcriber,
    mut model: ModelFile,
    words: Option<NgramModel>,
    options: &Options,
    common: &Common,
) -> anyhow::Result<()> {
    let Some(words) = words else {
        return Err(Error::Argument("--tune needs a language model".into()).into());
    };
    let base = options.decoding.config(&model);
    let interrupt = Interrupt::on_signals()?;
    let total = (WEIGHTS.len() * WORD_BONUSES.len()) as u64;
    let progress = Progress::new("tune", "settings", Some(total), common.quiet);
    let mut best: Option<Tried> = None;
    let mut table = Table::new(
        ["weight".to_owned()]
            .into_iter()
            .chain(WORD_BONUSES.map(|bonus| format!("WER % with bonus {bonus}"))),
    );
    for weight in WEIGHTS {
        let mut row = vec![weight.to_string()];
        for word_bonus in WORD_BONUSES {
            if interrupt.requested() {
                return Err(Error::Interrupted.into());
            }
            let config = DecodingConfig { weight, word_bonus, ..base };
            let decoder = options.decoding.decoder(&config, Some(words.clone()))?;
            let pairs = heard.utterances.par_iter().zip(&heard.emissions);
            let counts: Vec<Counts> = pairs
                .map(|(utterance, emissions)| {
                    let text = transcriber.transcribe(emissions, &decoder)?.text;
                    let [said, heard] = [utterance.text.as_deref().unwrap_or_default(), &text]
                        .map(|text| options.normaliser.apply(text));
                    let [said, heard] =
                        [&said, &heard].map(|it| it.split_whitespace().collect::<Vec<_>>());
                    Ok(Counts::of(&align(&said, &heard)))
                })
                .collect::<Result<_>>()?;
            let wer = counts.into_iter().sum::<Counts>().error_rate();
            row.push(format!("{:.2}", 100.0 * wer));
            if best.as_ref().is_none_or(|best| wer < best.wer) {
                best = Some(Tried { weight, word_bonus, wer });
            }
            progress.inc(1);
        }
        table.row(row);
    }
    progress.finish();
    let Some(best) = best else { return Ok(()) };
    if let Some(save) = &options.save {
        let Tried { weight, word_bonus, .. } = best;
        model.card.decoding = Some(DecodingConfig { weight, word_bonus, ..base });
        model.write(save, options.storage.dtype(), options.force)?;
    }
    let text = format!(
        "{}\n\nbest: --weight {} --word-bonus {}, WER {:.2} %",
        table.to_string().trim_end(),
        best.weight,
        best.word_bonus,
        100.0 * best.wer
    );
    common.print(&best, text)
}
