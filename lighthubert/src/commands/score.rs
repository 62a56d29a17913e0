//! `lighthubert score`: transcripts against references.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lighthubert::score_report::ScoreReport;
use shared::Error;
use shared::cli::Common;
use shared::data::Filter;
use shared::eval::Bootstrap;
use shared::eval::wer::{Evaluation, Missing, Normaliser, Transcripts, Unit};
use shared::limits::Limits;

#[derive(Args)]
pub struct Options {
    /// What was said: NIST trn, Kaldi text, a table with columns `id` or `path` and `text`, JSON
    /// lines, or a folder in LibriSpeech's or Kaldi's form; may be compressed with gzip
    #[arg(long = "ref", value_name = "LIST")]
    references: PathBuf,
    /// What was recognised, in one of the same forms, under the same names
    #[arg(long = "hyp", value_name = "LIST")]
    hypotheses: PathBuf,
    /// Only references whose column has the value, `column=value`; may be given several times
    #[arg(long = "where", value_name = "FILTER")]
    filters: Vec<Filter>,
    #[command(flatten)]
    scoring: Scoring,
}

/// How transcripts are scored.
#[derive(Args)]
pub struct Scoring {
    /// What is done to both texts first: `none`; `basic` (lower case, no punctuation); `librispeech`
    /// (capital letters, no punctuation)
    #[arg(long, value_name = "NAME", default_value_t = Normaliser::None)]
    normaliser: Normaliser,
    /// Count references without a hypothesis as not recognised at all, instead of refusing them
    #[arg(long)]
    missing_as_empty: bool,
    /// What the confidence intervals are over [default: speakers if those of all utterances are known]
    #[arg(long, value_name = "UNIT")]
    resample: Option<Resample>,
    /// Resampled lists behind the confidence intervals
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
    /// Seed of the resampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for the report: report.html, metrics.json, alignment.txt
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Overwrite the report
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Resample {
    Utterances,
    Speakers,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    options.scoring.check()?;
    let limits = Limits::default();
    let references = Transcripts::read(&options.references, false, &options.filters, &limits)?;
    let hypotheses = Transcripts::read(&options.hypotheses, true, &[], &limits)?;
    options.scoring.report(&references, &hypotheses, common)
}

impl Scoring {
    /// Fails where the report could not be written.
    pub fn check(&self) -> anyhow::Result<()> {
        let report = self.out.as_deref().map(|out| out.join("report.html"));
        match report.filter(|report| report.exists() && !self.force) {
            Some(path) => Err(Error::Exists { path }.into()),
            None => Ok(()),
        }
    }

    /// Scores, writes the report and prints the figures.
    pub fn report(
        &self,
        references: &Transcripts,
        hypotheses: &Transcripts,
        common: &Common,
    ) -> anyhow::Result<()> {
        let missing = if self.missing_as_empty { Missing::Empty } else { Missing::Refused };
        let evaluation = Evaluation::new(references, hypotheses, self.normaliser, missing)?;
        if evaluation.unused > 0 {
            common.note(format!("{} hypotheses have no reference", evaluation.unused));
        }
        let bootstrap =
            Bootstrap { resamples: self.resamples, seed: self.seed, ..Bootstrap::default() };
        let unit = self.resample.map(|resample| match resample {
            Resample::Utterances => Unit::Utterances,
            Resample::Speakers => Unit::Speakers,
        });
        let sources = [references, hypotheses].map(|list| list.source.display().to_string());
        let sources = sources.each_ref().map(String::as_str);
        let report = ScoreReport::new(evaluation, sources, &bootstrap, unit)?;
        if let Some(out) = &self.out {
            report.write(out, self.force)?;
        }
        common.print(report.metrics(), report.table().to_string().trim_end())
    }
}
