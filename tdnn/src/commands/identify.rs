//! `tdnn identify`: which speaker of a book is heard?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use shared::report::Table;
use tdnn::book::SpeakerBook;

use super::model::ModelOptions;

#[derive(Args)]
pub struct Options {
    /// The recording
    recording: PathBuf,
    /// The speaker book that `tdnn enroll` made
    #[arg(long, value_name = "FILE", default_value = "speakers.safetensors")]
    book: PathBuf,
    /// Score from which on a speaker counts as recognised [default: from the model's calibration
    /// and --prior]
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    threshold: Option<f64>,
    /// How probable it is before listening that the best candidate is the speaker; sets the
    /// threshold of a calibrated model
    #[arg(long, value_name = "PROBABILITY", default_value_t = 0.5)]
    prior: f64,
    /// Candidates to list
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Exit with 1 when the speaker is unknown
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    model: ModelOptions,
}

#[derive(Serialize)]
struct Outcome {
    recording: String,
    /// `None` for an unknown speaker.
    speaker: Option<String>,
    threshold: f64,
    candidates: Vec<Candidate>,
    speech_s: f64,
    duration_s: f64,
}

#[derive(Serialize)]
struct Candidate {
    name: String,
    score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_likelihood_ratio: Option<f64>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    let verifier = options.model.verifier(common)?;
    let threshold = verifier.threshold(options.threshold, options.prior)?;
    let limits = options.model.limits();
    let book = SpeakerBook::read(&options.book, verifier.origin(), &limits)?;
    let voice = verifier.listen(&options.recording)?;
    voice.notes.iter().for_each(|note| common.note(note));
    let ranked = book.rank(&voice.embedding, &verifier.scorer()?)?;
    let best = ranked.first().filter(|best| best.score >= threshold);
    let outcome = Outcome {
        recording: options.recording.display().to_string(),
        speaker: best.map(|best| best.name.to_owned()),
        threshold,
        candidates: ranked
            .iter()
            .take(options.top)
            .map(|candidate| Candidate {
                name: candidate.name.to_owned(),
                score: candidate.score,
                log_likelihood_ratio: verifier.log_likelihood_ratio(candidate.score),
            })
            .collect(),
        speech_s: voice.speech_s,
        duration_s: voice.duration_s,
    };
    common.print(&outcome, outcome.text())?;
    Ok(match outcome.speaker.is_some() || !options.check {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}

impl Outcome {
    fn text(&self) -> String {
        let mut table = Table::new(["speaker", "score"]);
        for candidate in &self.candidates {
            table.row([candidate.name.clone(), format!("{:.4}", candidate.score)]);
        }
        format!(
            "{}\n  threshold {:.4}, speech {:.1} of {:.1} s\n{table}",
            self.speaker.as_deref().unwrap_or("unknown speaker"),
            self.threshold,
            self.speech_s,
            self.duration_s
        )
    }
}
