//! `tdnn verify`: are two recordings of the same speaker?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use shared::cli::Common;

use super::model::ModelOptions;

#[derive(Args)]
pub struct Options {
    /// A recording of a known speaker
    a: PathBuf,
    /// The recording in question
    b: PathBuf,
    /// Score from which on the speakers count as the same [default: from the model's calibration
    /// and --prior]
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    threshold: Option<f64>,
    /// How probable the same speaker is before listening; sets the threshold of a calibrated model
    #[arg(long, value_name = "PROBABILITY", default_value_t = 0.5)]
    prior: f64,
    /// Exit with 1 when the speakers differ
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    model: ModelOptions,
}

#[derive(Serialize)]
struct Outcome {
    a: String,
    b: String,
    score: f64,
    threshold: f64,
    same_speaker: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_likelihood_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f64>,
    speech_s: [f64; 2],
    duration_s: [f64; 2],
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    let verifier = options.model.verifier(common)?;
    let threshold = verifier.threshold(options.threshold, options.prior)?;
    let (a, b) = (verifier.listen(&options.a)?, verifier.listen(&options.b)?);
    for note in a.notes.iter().chain(&b.notes) {
        common.note(note);
    }
    let score = verifier.scorer()?.score(&a.embedding, &b.embedding)?;
    let outcome = Outcome {
        a: options.a.display().to_string(),
        b: options.b.display().to_string(),
        score,
        threshold,
        same_speaker: score >= threshold,
        log_likelihood_ratio: verifier.log_likelihood_ratio(score),
        probability: verifier.probability(score, options.prior),
        speech_s: [a.speech_s, b.speech_s],
        duration_s: [a.duration_s, b.duration_s],
    };
    common.print(&outcome, outcome.text())?;
    Ok(match outcome.same_speaker || !options.check {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}

impl Outcome {
    fn text(&self) -> String {
        let decision = if self.same_speaker { "same speaker" } else { "different speakers" };
        let probability = self
            .probability
            .map(|probability| format!(", probability of the same speaker {probability:.3}"))
            .unwrap_or_default();
        let [speech_a, speech_b] = self.speech_s;
        let [duration_a, duration_b] = self.duration_s;
        format!(
            "{decision}\n  score {:.4}, threshold {:.4}{probability}\n  speech {speech_a:.1} of \
             {duration_a:.1} s in {}\n  speech {speech_b:.1} of {duration_b:.1} s in {}",
            self.score, self.threshold, self.a, self.b
        )
    }
}
