//! `tdnn evaluate`: error rates on labelled trials.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use shared::Error;
use shared::cli::Common;
use shared::data::{Manifest, TrialList};
use shared::eval::verification::{
    Bootstrap, Calibration, CostModel, ErrorRates, Interval, Trials, Unit,
};
use shared::files::{read_text, write_atomic};
use shared::limits::Limits;
use shared::report::{Axis, Page, Plot, Table};
use tdnn::Verifier;
use tdnn::score_file::ScoreFile;

use super::model;
use super::trials::{self, ScoringOptions};

/// Bins of the score histogram.
const BINS: usize = 50;

#[derive(Args)]
pub struct Options {
    /// Labelled trials; may be given several times
    #[arg(long, value_name = "LIST", required = true)]
    trials: Vec<PathBuf>,
    /// Scores of the one list, made with `tdnn score`, instead of scoring it here
    #[arg(long, value_name = "FILE", conflicts_with_all = ["embeddings", "cohort"])]
    scores: Option<PathBuf>,
    /// Folder for the report: report.html, det.svg, metrics.json
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Resampled lists behind the confidence intervals
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
    /// Seed of the resampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Who speaks in the recordings, a table with columns `path` and `speaker`: the confidence
    /// intervals are then over speakers instead of over trials, which are not independent
    #[arg(long, value_name = "LIST")]
    speakers: Option<PathBuf>,
    /// Other systems' error rates to show beside, as JSON:
    /// [{"system": "name", "equal_error_rate_percent": {"list": 4.2}}]
    #[arg(long, value_name = "FILE")]
    references: Option<PathBuf>,
    /// Overwrite the report
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    scoring: ScoringOptions,
}

/// A figure with its 95 % confidence interval.
#[derive(Clone, Copy, Serialize)]
struct Figure {
    value: f64,
    interval: Interval,
}

/// A system's error rates as somebody published them, by the names of the lists.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    system: String,
    equal_error_rate_percent: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Metrics {
    list: String,
    model: String,
    targets: usize,
    nontargets: usize,
    /// From 0 to 1.
    equal_error_rate: Figure,
    threshold: f64,
    min_dcf_01: Figure,
    min_dcf_05: Figure,
    /// In bits; of the model's log-likelihood ratios, where it is calibrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    cllr: Option<Figure>,
    min_cllr: f64,
    resamples: usize,
    /// What was resampled: trials or speakers.
    resampled: &'static str,
    /// EER of other systems in percent.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    references: BTreeMap<String, f64>,
}

/// Everything known of one list.
struct Evaluation {
    metrics: Metrics,
    det: Vec<ErrorRates>,
    scores: Vec<f64>,
    labels: Vec<bool>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    if options.scores.is_some() && options.trials.len() > 1 {
        let message = "--scores goes with one list of trials".to_owned();
        return Err(Error::Argument(message).into());
    }
    let report = options.out.as_deref().map(|out| out.join("report.html"));
    if let Some(report) = report.filter(|report| report.exists() && !options.force) {
        return Err(Error::Exists { path: report }.into());
    }
    let limits = options.scoring.model.limits();
    let references = match &options.references {
        Some(path) => references(path, &limits)?,
        None => vec![],
    };
    let speakers = match &options.speakers {
        Some(table) => Some(Manifest::read(table, options.scoring.root.as_deref(), &limits)?),
        None => None,
    };
    let verifier = options.scoring.verifier(common)?;
    let evaluations: Vec<Evaluation> = options
        .trials
        .iter()
        .map(|list| {
            let mut evaluation = evaluate(list, &verifier, speakers.as_ref(), options, common)?;
            evaluation.metrics.set_references(&references);
            Ok(evaluation)
        })
        .collect::<anyhow::Result<_>>()?;
    let mut table = Table::new([
        "list",
        "targets",
        "non-targets",
        "EER %",
        "minDCF 0.01",
        "minDCF 0.05",
        "Cllr",
        "min Cllr",
    ]);
    for Evaluation { metrics, .. } in &evaluations {
        table.row(metrics.row());
    }
    let mut tables = vec![table];
    if !references.is_empty() {
        tables.push(comparison(&evaluations, &references));
    }
    if let Some(out) = &options.out {
        write_report(out, &evaluations, &tables, options.force)?;
    }
    if common.json {
        return evaluations.iter().try_for_each(|evaluation| common.print(&evaluation.metrics, ""));
    }
    let tables: Vec<String> = tables.iter().map(Table::to_string).collect();
    common.print(&(), tables.join("\n").trim_end())
}

fn evaluate(
    list: &Path,
    verifier: &Verifier,
    speakers: Option<&Manifest>,
    options: &Options,
    common: &Common,
) -> anyhow::Result<Evaluation> {
    let limits = options.scoring.model.limits();
    let (trials, labels) = trials::labelled(list, &limits)?;
    // A speaker that is missing is better found before listening.
    let pairs = speakers
        .map(|manifest| speaker_pairs(manifest, options.scoring.root(list), &trials))
        .transpose()?;
    let scores = match &options.scores {
        Some(path) => {
            let file = ScoreFile::read(path, &limits)?;
            file.check(&trials).with_context(|| path.display().to_string())?;
            file.scores()
        }
        None => options.scoring.score(verifier, list, &trials, None, common)?,
    };
    let calibration = verifier.calibration();
    let metrics = measure(list, pairs.as_deref(), &scores, &labels, calibration, options)
        .with_context(|| list.display().to_string())?;
    let det = Trials::new(&scores, &labels)?.det_curve(0.01);
    Ok(Evaluation { metrics, det, scores, labels })
}

fn references(path: &Path, limits: &Limits) -> anyhow::Result<Vec<Reference>> {
    let text = read_text(path, limits)?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The speakers of both recordings of each trial, as `manifest` has them; the paths of the trials
/// start at `root`.
fn speaker_pairs<'a>(
    manifest: &'a Manifest,
    root: &Path,
    trials: &TrialList,
) -> anyhow::Result<Vec<(&'a str, &'a str)>> {
    let known: HashMap<&Path, &str> = manifest
        .utterances
        .iter()
        .filter_map(|utterance| Some((utterance.path.as_path(), utterance.speaker.as_deref()?)))
        .collect();
    let speaker = |name: &str| {
        known.get(root.join(name).as_path()).copied().ok_or_else(|| {
            let table = manifest.source.display();
            Error::Argument(format!("{table}: no speaker for recording {name}"))
        })
    };
    trials.pairs().map(|(a, b)| Ok((speaker(a)?, speaker(b)?))).collect()
}

/// The error rates of the model beside those of other systems.
fn comparison(evaluations: &[Evaluation], references: &[Reference]) -> Table {
    let names: Vec<String> =
        evaluations.iter().map(|evaluation| evaluation.metrics.name()).collect();
    let mut table =
        Table::new([vec!["EER % (others as published)".to_owned()], names.clone()].concat());
    let ours = evaluations
        .iter()
        .map(|evaluation| format!("{:.2}", 100.0 * evaluation.metrics.equal_error_rate.value));
    let model = evaluations.first().map_or_else(String::new, |e| e.metrics.model.clone());
    table.row([model].into_iter().chain(ours));
    for reference in references {
        let rates = names.iter().map(|name| {
            let rate = reference.equal_error_rate_percent.get(name);
            rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}"))
        });
        table.row([reference.system.clone()].into_iter().chain(rates));
    }
    table
}

fn measure(
    list: &Path,
    speakers: Option<&[(&str, &str)]>,
    scores: &[f64],
    labels: &[bool],
    calibration: Option<Calibration>,
    options: &Options,
) -> anyhow::Result<Metrics> {
    let trials = Trials::new(scores, labels)?;
    let (dcf_01, dcf_05) = (CostModel::prior(0.01), CostModel::prior(0.05));
    let figures = |trials: &Trials| {
        let cost = |model| trials.min_dcf(model).map_or(f64::NAN, |minimum| minimum.cost);
        [trials.equal_error_rate().rate, cost(dcf_01), cost(dcf_05)]
    };
    let bootstrap =
        Bootstrap { resamples: options.resamples, seed: options.seed, ..Bootstrap::default() };
    let unit = speakers.map_or(Unit::Trials, Unit::Speakers);
    let intervals = bootstrap.intervals(scores, labels, unit, figures)?;
    let [eer, min_01, min_05] =
        std::array::from_fn(|i| Figure { value: figures(&trials)[i], interval: intervals[i] });
    let cllr = calibration
        .map(|calibration| -> anyhow::Result<Figure> {
            let ratios: Vec<f64> = scores.iter().map(|score| calibration.llr(*score)).collect();
            let [interval] =
                bootstrap.intervals(&ratios, labels, unit, |trials| [trials.cllr()])?;
            Ok(Figure { value: Trials::new(&ratios, labels)?.cllr(), interval })
        })
        .transpose()?;
    let targets = labels.iter().filter(|target| **target).count();
    Ok(Metrics {
        list: list.display().to_string(),
        model: model::name(options.scoring.model.model.as_deref()),
        targets,
        nontargets: labels.len() - targets,
        equal_error_rate: eer,
        threshold: trials.equal_error_rate().threshold,
        min_dcf_01: min_01,
        min_dcf_05: min_05,
        cllr,
        min_cllr: trials.min_cllr(),
        resamples: options.resamples,
        resampled: if speakers.is_some() { "speakers" } else { "trials" },
        references: BTreeMap::new(),
    })
}

impl Metrics {
    fn row(&self) -> [String; 8] {
        let share = |figure: Figure| figure.text(100.0, 2);
        let cost = |figure: Figure| figure.text(1.0, 3);
        [
            self.name(),
            self.targets.to_string(),
            self.nontargets.to_string(),
            share(self.equal_error_rate),
            cost(self.min_dcf_01),
            cost(self.min_dcf_05),
            self.cllr.map_or_else(|| "-".to_owned(), cost),
            format!("{:.3}", self.min_cllr),
        ]
    }

    /// Puts the error rates of other systems on this list beside.
    fn set_references(&mut self, references: &[Reference]) {
        let name = self.name();
        self.references = references
            .iter()
            .filter_map(|reference| {
                let rate = reference.equal_error_rate_percent.get(&name)?;
                Some((reference.system.clone(), *rate))
            })
            .collect();
    }

    /// The list's file name without its ending.
    fn name(&self) -> String {
        let stem = Path::new(&self.list).file_stem();
        stem.map_or_else(|| self.list.clone(), |stem| stem.to_string_lossy().into_owned())
    }
}

impl Figure {
    fn text(self, factor: f64, decimals: usize) -> String {
        let Interval { low, high } = self.interval;
        let [value, low, high] =
            [self.value, low, high].map(|number| format!("{:.decimals$}", factor * number));
        format!("{value} [{low}, {high}]")
    }
}

fn write_report(
    out: &Path,
    evaluations: &[Evaluation],
    tables: &[Table],
    force: bool,
) -> anyhow::Result<()> {
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let det = det_plot(evaluations);
    det.write(&out.join("det.svg"), force)?;
    let metrics: Vec<&Metrics> = evaluations.iter().map(|evaluation| &evaluation.metrics).collect();
    let json = serde_json::to_string_pretty(&metrics)?;
    write_atomic(&out.join("metrics.json"), force, |file| {
        std::io::Write::write_all(file, json.as_bytes())
    })?;
    let mut page = Page::new("Speaker verification");
    let over = match evaluations.first().map(|evaluation| evaluation.metrics.resampled) {
        Some("speakers") => "speakers.",
        _ => "trials; speakers occur in many trials, so that the true uncertainty is larger.",
    };
    page.paragraph(&format!(
        "EER: the rate at which misses and false alarms are equally frequent, interpolated on the \
         ROC's convex steps with ties grouped. minDCF: the least detection cost with unit costs at \
         the prior given, over that of the better trivial system. Cllr: the cost of the \
         log-likelihood ratios in bits; min Cllr: after the best monotone recalibration. In \
         brackets: 95 % bootstrap intervals over {over}",
    ));
    for table in tables {
        page.table(table);
    }
    page.plot(
        &det,
        "DET curve: misses over false alarms on probit axes; nearer the corner is better",
    );
    for evaluation in evaluations {
        page.heading(&evaluation.metrics.name());
        page.plot(&histogram(evaluation), "Scores of target and non-target trials");
    }
    page.write(&out.join("report.html"), force)?;
    Ok(())
}

fn det_plot(evaluations: &[Evaluation]) -> Plot {
    // Beyond these the axes have no room.
    const EDGE: f64 = 5e-4;
    let axis = |label| Axis::probit(label).range(EDGE, 0.6);
    let plot = Plot::new("DET", axis("false alarms (%)"), axis("misses (%)"));
    evaluations.iter().fold(plot, |plot, evaluation| {
        let inside = |rates: &&ErrorRates| {
            [rates.false_alarm, rates.miss].iter().all(|rate| (EDGE..1.0 - EDGE).contains(rate))
        };
        let points =
            evaluation.det.iter().filter(inside).map(|rates| (rates.false_alarm, rates.miss));
        let name = format!(
            "{} (EER {:.2} %)",
            evaluation.metrics.name(),
            100.0 * evaluation.metrics.equal_error_rate.value
        );
        plot.line(&name, points)
    })
}

/// Densities of the two classes' scores.
fn histogram(evaluation: &Evaluation) -> Plot {
    let scores = &evaluation.scores;
    let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let width = ((high - low) / BINS as f64).max(f64::MIN_POSITIVE);
    let density = |class: bool| {
        let mut counts = [0usize; BINS];
        for (score, _) in
            scores.iter().zip(&evaluation.labels).filter(|(_, label)| **label == class)
        {
            counts[(((score - low) / width) as usize).min(BINS - 1)] += 1;
        }
        let total = counts.iter().sum::<usize>().max(1) as f64;
        counts.into_iter().enumerate().map(move |(bin, count)| {
            (low + (bin as f64 + 0.5) * width, count as f64 / total / width)
        })
    };
    Plot::new("Scores", Axis::linear("score"), Axis::linear("density"))
        .line("different speakers", density(false))
        .line("same speaker", density(true))
}
