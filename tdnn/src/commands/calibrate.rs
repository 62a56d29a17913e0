//! `tdnn calibrate`: scores to likelihood ratios.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use shared::eval::verification::{Calibration, CostModel, Trials};
use shared::files::check_output;
use tdnn::batch::{partial_path, remove_partial};

use super::trials::{self, ScoringOptions};

#[derive(Args)]
pub struct Options {
    /// Labelled trials of speakers that the model was not trained on
    #[arg(long, value_name = "LIST")]
    trials: PathBuf,
    /// The calibrated model
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Probability of the same speaker around which decisions are to be best
    #[arg(long, value_name = "PROBABILITY", default_value_t = 0.5)]
    prior: f64,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    scoring: ScoringOptions,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    trials: usize,
    calibration: Calibration,
    /// Score at which both errors are equally dear at the prior.
    threshold: f64,
    equal_error_rate: f64,
    cllr: f64,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    check_output(&options.out, options.force)?;
    let (list, labels) = trials::labelled(&options.trials, &options.scoring.model.limits())?;
    let mut model = options.scoring.model.load()?;
    let verifier = options.scoring.verifier(common)?;
    let store = partial_path(&options.out);
    let (trials, store) = (&options.trials, store.as_deref());
    let scores = options.scoring.score(&verifier, trials, &list, store, common)?;
    let scored = Trials::new(&scores, &labels)?;
    let calibration = Calibration::fit(&scored, options.prior)?;
    let ratios: Vec<f64> = scores.iter().map(|score| calibration.llr(*score)).collect();
    model.card.calibration = Some(calibration);
    model.card.scoring = verifier.scoring();
    model.cohort = verifier.cohort().cloned();
    model.write(&options.out, options.force)?;
    remove_partial(store);
    let outcome = Outcome {
        out: options.out.display().to_string(),
        trials: labels.len(),
        calibration,
        threshold: calibration.threshold(CostModel::prior(options.prior)),
        equal_error_rate: scored.equal_error_rate().rate,
        cllr: Trials::new(&ratios, &labels)?.cllr(),
    };
    let text = format!(
        "log-likelihood ratio = {:.4} score + {:.4}; threshold {:.4}\nEER {:.2} %, Cllr {:.3} bits \
         on the {} trials it was fitted to\nsaved in {}",
        calibration.slope,
        calibration.offset,
        outcome.threshold,
        100.0 * outcome.equal_error_rate,
        outcome.cllr,
        outcome.trials,
        outcome.out
    );
    common.print(&outcome, text)
}
