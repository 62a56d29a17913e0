//! `lighthubert sample`: random subnets.

use std::path::PathBuf;

use clap::Args;
use lighthubert::space::BUDGET_SAMPLES;
use lighthubert::{Budget, Sizes, SpaceName, Subnet, SupernetConfig, cost};
use serde::Serialize;
use shared::Error;
use shared::cli::Common;
use shared::rng::Stream;

use super::model;

#[derive(Args)]
pub struct Options {
    /// Search space: base, small or stage1
    #[arg(long, value_name = "NAME", required_unless_present = "model", conflicts_with = "model")]
    space: Option<SpaceName>,
    /// Supernet whose search space and sizes count
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// How many
    #[arg(long, short, value_name = "N", default_value_t = 1)]
    num: u64,
    /// Most parameters, counted as in the published results
    #[arg(long, value_name = "N")]
    max_parameters: Option<u64>,
    /// Most multiply-accumulates for 10 s of audio, in billions
    #[arg(long, value_name = "BILLIONS")]
    max_gmacs: Option<f64>,
    /// Seed; subnet i of a seed is always the same
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
struct Outcome {
    subnet: Subnet,
    parameters: u64,
    /// Multiply-accumulates for 10 s of audio.
    macs_10s: u64,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let (supernet, space) = match (&options.model, options.space) {
        (Some(path), _) => match model::load(path, common)?.card.sizes {
            Sizes::Supernet { config, space: Some(space) } => (config, space),
            _ => {
                let text = format!("{}: no supernet of a known search space", path.display());
                return Err(Error::Argument(text).into());
            }
        },
        (None, space) => (SupernetConfig::published(), space.unwrap_or(SpaceName::Base)),
    };
    let macs = options.max_gmacs.map(|billions| (1e9 * billions) as u64);
    let budget = Budget { parameters: options.max_parameters, macs };
    for index in 0..options.num {
        let mut stream = Stream::new(options.seed, "subnet", index);
        let subnet = space.space().sample_within(&supernet, &budget, &mut stream)?;
        let outcome = Outcome {
            parameters: cost::parameters(&supernet, &subnet),
            macs_10s: cost::macs(&supernet.network(&subnet)?, BUDGET_SAMPLES),
            subnet,
        };
        common.note(format!(
            "{} layers of width {}: {} parameters, {:.1} billion multiply-accumulates for 10 s",
            outcome.subnet.depth(),
            outcome.subnet.embed_dim(),
            outcome.parameters,
            1e-9 * outcome.macs_10s as f64
        ));
        common.print(&outcome, serde_json::to_string(&outcome.subnet)?)?;
    }
    Ok(())
}
