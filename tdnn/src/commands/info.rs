//! `tdnn info`: what a model is.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use shared::report::format::count;
use tdnn::{ModelCard, cost};

use super::model;

/// Longest entry of a card's provenance, as JSON, that is shown as text.
const LONGEST_VALUE: usize = 100;

#[derive(Args)]
pub struct Options {
    /// Model file [default: the shipped model]
    model: Option<PathBuf>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: String,
    /// Of each network.
    architectures: Vec<String>,
    parameters: u64,
    /// Numbers in an embedding.
    embedding: usize,
    /// Multiply-accumulates for 3 s of audio.
    macs_3s: u64,
    card: &'a ModelCard,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let model = model::load(options.model.as_deref())?;
    // Fails where the card describes another network than the tensors are.
    let embedder = model.embedder(&Device::Cpu)?;
    let card = &model.card;
    let rate_hz = card.frontend.log_mel.rate_hz;
    let frames = 3 * u64::from(rate_hz) / card.frontend.log_mel.stft.hop_samples as u64 + 1;
    let outcome = Outcome {
        model: model::name(options.model.as_deref()),
        architectures: card.networks().map(|network| network.architecture.to_string()).collect(),
        embedding: embedder.dimension(),
        parameters: card.networks().map(cost::parameters).sum(),
        macs_3s: card.networks().map(|network| cost::macs(network, frames)).sum(),
        card,
    };
    common.print(&outcome, outcome.text())
}

impl Outcome<'_> {
    fn text(&self) -> String {
        let card = self.card;
        let log_mel = &card.frontend.log_mel;
        let rate_hz = f64::from(log_mel.rate_hz);
        let milliseconds = |samples: usize| 1000.0 * samples as f64 / rate_hz;
        let mut lines = vec![
            ("model", self.model.clone()),
            ("architecture", self.architectures.join(" and ")),
            ("parameters", count(self.parameters)),
            ("operations", format!("{} multiply-accumulates for 3 s", count(self.macs_3s))),
            ("embedding", format!("{} numbers", self.embedding)),
            (
                "front-end",
                format!(
                    "{} mel bands, {} to {} Hz, {} ms every {} ms at {rate_hz} Hz",
                    log_mel.mel.filters,
                    log_mel.mel.low_hz,
                    log_mel.mel.high_hz,
                    milliseconds(log_mel.stft.window_samples),
                    milliseconds(log_mel.stft.hop_samples)
                ),
            ),
            (
                "calibration",
                card.calibration.map_or_else(
                    || "none".to_owned(),
                    |c| format!("log-likelihood ratio = {:.4} score + {:.4}", c.slope, c.offset),
                ),
            ),
            ("tensors", format!("sha256 {}", card.tensors_sha256())),
        ];
        if let Some(hash) = &card.training_data_sha256 {
            lines.push(("training data", format!("sha256 {hash}")));
        }
        let provenance = card.provenance.iter().map(|(name, value)| {
            let value = value.to_string();
            let fits = value.len() <= LONGEST_VALUE;
            (name.as_str(), if fits { value } else { "known, shown with --json".to_owned() })
        });
        lines.extend(provenance);
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<String> =
            lines.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
        lines.join("\n")
    }
}
