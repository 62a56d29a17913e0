//! `mmdiffusion bench`: how fast the networks are here.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use mmdiffusion::bench::{Measurement, measure};
use mmdiffusion::{NetworkConfig, SuperResolutionConfig, UnetConfig};
use serde_json::Value;
use shared::cli::{self, Common};
use shared::report::{Progress, Table};

use super::model::{self, Dtype};

#[derive(Args)]
pub struct Options {
    /// Model whose networks' sizes are measured, weights being random [default: the published
    /// coupled and super-resolution networks]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Clips or pictures that are computed at once
    #[arg(long, value_name = "N", default_values_t = [1])]
    batch: Vec<usize>,
    /// Numbers in which convolutions and linear layers compute
    #[arg(long, value_enum, value_name = "TYPE", default_values = ["f32"])]
    dtype: Vec<Dtype>,
    /// Runs of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Measure this one of all cases, in this process, and print it as JSON
    #[arg(long, value_name = "I", hide = true)]
    case: Option<usize>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    ensure!(
        options.runs > 0 && options.batch.iter().all(|n| *n > 0),
        "--runs and --batch must be at least 1"
    );
    let cases = Case::all(options)?;
    if let Some(number) = options.case {
        let case = cases.get(number).context("no such case")?;
        println!("{}", serde_json::to_string(&case.measure(options.runs, common)?)?);
        return Ok(());
    }
    let progress = Progress::new("bench", "cases", Some(cases.len() as u64), common.quiet);
    let mut table = Table::new([
        "network",
        "dtype",
        "batch",
        "ms",
        "GFLOP",
        "GFLOP/s",
        "peak GFLOP/s",
        "% of peak",
        "weights MB",
        "peak MB",
    ]);
    for (number, case) in cases.iter().enumerate() {
        let mut found = cli::case_apart::<Value>(number)?;
        found["dtype"] = case.dtype.name().into();
        progress.inc(1);
        let rounded = |name: &str, factor: f64| match found[name].as_f64() {
            Some(value) => format!("{:.0}", factor * value),
            None => "-".to_owned(),
        };
        table.row([
            found["network"].as_str().unwrap_or_default().to_owned(),
            case.dtype.name().to_owned(),
            case.batch.to_string(),
            rounded("milliseconds", 1.0),
            rounded("gflop", 1.0),
            rounded("gflop_per_s", 1.0),
            rounded("peak_gflop_per_s", 1.0),
            rounded("share_of_peak", 100.0),
            rounded("weights_mb", 1.0),
            rounded("peak_memory_mb", 1.0),
        ]);
        if common.json {
            common.print(&found, "")?;
        }
    }
    progress.finish();
    if common.json {
        return Ok(());
    }
    common.note(format!(
        "one evaluation, random weights, median of {} runs after one more; peak: the fastest \
         product of f32 matrices of order 1024 in the same process; memory: all that the process \
         of one line had resident at most",
        options.runs
    ));
    common.print(&(), table.to_string().trim_end())
}

/// One network on one size of batch.
struct Case {
    network: NetworkConfig,
    dtype: Dtype,
    batch: usize,
}

impl Case {
    /// All that are to be measured, in order.
    fn all(options: &Options) -> anyhow::Result<Vec<Self>> {
        let networks = match &options.model {
            Some(path) => vec![model::load(Some(path))?.card.network],
            None => vec![
                NetworkConfig::Coupled(UnetConfig::published()),
                NetworkConfig::SuperResolution(SuperResolutionConfig::default()),
            ],
        };
        let mut cases = vec![];
        for network in networks {
            for &dtype in &options.dtype {
                for &batch in &options.batch {
                    cases.push(Self { network: network.clone(), dtype, batch });
                }
            }
        }
        Ok(cases)
    }

    fn measure(&self, runs: usize, common: &Common) -> anyhow::Result<Measurement> {
        let device = common.open()?;
        Ok(measure(&self.network, self.dtype.precision(), self.batch, runs, &device)?)
    }
}
