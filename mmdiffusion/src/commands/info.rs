//! `mmdiffusion info`: what a model is.

use std::path::PathBuf;

use clap::Args;
use mmdiffusion::{ModelCard, NetworkConfig, cost};
use serde::Serialize;
use shared::cli::Common;
use shared::report::format::count;

use super::model;

#[derive(Args)]
pub struct Options {
    /// Model file [default: the model shipped with this program]
    model: Option<PathBuf>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    model: String,
    parameters: u64,
    /// Operations of one evaluation for one clip or picture.
    flop: u64,
    card: &'a ModelCard,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let model = model::load(options.model.as_deref())?;
    let card = &model.card;
    let outcome = Outcome {
        model: model::name(options.model.as_deref()),
        parameters: card.network.parameters()?,
        flop: cost::flop(&card.network)?,
        card,
    };
    common.print(&outcome, outcome.text())
}

impl Outcome<'_> {
    fn text(&self) -> String {
        let card = self.card;
        let sizes = match &card.network {
            NetworkConfig::Coupled(config) => {
                let [frames, _, height, width] = config.video_size;
                let [channels, samples] = config.audio_size;
                format!(
                    "{frames} frames of {width} x {height} pixels at {} a second, {samples} samples \
                     in {channels} channels at {} Hz",
                    card.frames_per_second, card.rate_hz
                )
            }
            NetworkConfig::SuperResolution(config) => {
                let (small, large) = (config.small_size, config.large_size);
                format!("pictures from {small} x {small} to {large} x {large} pixels")
            }
        };
        let mut lines = vec![
            ("model", self.model.clone()),
            ("network", card.network.kind().to_owned()),
            ("sizes", sizes),
            ("parameters", count(self.parameters)),
            ("operations", format!("{} for one evaluation", count(self.flop))),
            (
                "diffusion",
                format!(
                    "{} steps, {} schedule, predicts the {}",
                    card.diffusion.diffusion_steps,
                    card.diffusion.noise_schedule,
                    if card.diffusion.predict_xstart { "clean clip" } else { "noise" }
                ),
            ),
            ("tensors", format!("sha256 {}", card.tensors_sha256())),
        ];
        let provenance =
            card.provenance.iter().map(|(name, value)| (name.as_str(), value.to_string()));
        lines.extend(provenance);
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<String> =
            lines.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
        lines.join("\n")
    }
}
