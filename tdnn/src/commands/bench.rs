//! `tdnn bench`: how fast the published networks are here.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{DType, Device};
use clap::Args;
use serde::{Deserialize, Serialize};
use shared::cli::{self, Common};
use shared::device;
use shared::measure::{PEAK_ORDER, median, peak_gflop_per_s, peak_memory_mb, times_s};
use shared::nn::Weights;
use shared::report::{Progress, Table};
use shared::rng::Stream;
use tdnn::{Architecture, Frontend, FrontendConfig, NetworkConfig, Subnet, cost};

#[derive(Args)]
pub struct Options {
    /// Architectures or their published names; `max` is the whole supernet
    #[arg(long, value_name = "ARCHITECTURE", default_values = ["max", "Base", "Mobile", "Small"])]
    architecture: Vec<Architecture>,
    /// Recordings in a batch
    #[arg(long, value_name = "N", default_values_t = [1, 32])]
    batch: Vec<usize>,
    /// Length of each recording
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// Runs of which the median counts
    #[arg(long, value_name = "N", default_value_t = 11)]
    runs: usize,
    /// Measure this one of all cases, in this process, and print it as JSON
    #[arg(long, value_name = "I", hide = true)]
    case: Option<usize>,
}

/// One network on one size of batch.
#[derive(Serialize, Deserialize)]
struct Measurement {
    /// The published name, if there is one.
    name: Option<String>,
    architecture: String,
    batch: usize,
    seconds: f64,
    threads: usize,
    runs: usize,
    /// Median time from samples to features.
    frontend_ms: f64,
    /// Median time from features to embeddings.
    network_ms: f64,
    /// Of the network, a multiply-accumulate as two operations.
    gflop_per_s: f64,
    /// The fastest product of two matrices of order [`PEAK_ORDER`], in the same process.
    peak_gflop_per_s: f64,
    share_of_peak: f64,
    /// Computing time, front-end included, over audio time.
    real_time_factor: f64,
    /// Largest resident memory of the process up to the last run.
    peak_memory_mb: Option<f64>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    ensure!(
        options.runs > 0 && options.batch.iter().all(|n| *n > 0),
        "--runs and --batch must be at least 1"
    );
    if let Some(case) = options.case {
        println!("{}", serde_json::to_string(&measure(options, case, common)?)?);
        return Ok(());
    }
    let cases = options.architecture.len() * options.batch.len();
    let progress = Progress::new("bench", "cases", Some(cases as u64), common.quiet);
    let mut table = Table::new([
        "network",
        "batch",
        "front-end ms",
        "network ms",
        "GFLOP/s",
        "peak GFLOP/s",
        "% of peak",
        "real-time factor",
        "peak MB",
    ]);
    for case in 0..cases {
        let found = cli::case_apart::<Measurement>(case)?;
        progress.inc(1);
        table.row([
            found.name.clone().unwrap_or_else(|| found.architecture.clone()),
            found.batch.to_string(),
            format!("{:.1}", found.frontend_ms),
            format!("{:.1}", found.network_ms),
            format!("{:.0}", found.gflop_per_s),
            format!("{:.0}", found.peak_gflop_per_s),
            format!("{:.0}", 100.0 * found.share_of_peak),
            format!("{:.5}", found.real_time_factor),
            found.peak_memory_mb.map_or("-".into(), |mb| format!("{mb:.0}")),
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
        "{} s of audio, random weights, median of {} runs after one more; peak: the fastest product \
         of matrices of order {PEAK_ORDER} in the same process; memory: all that the process of \
         one line had resident at most",
        options.seconds, options.runs
    ));
    common.print(&(), table.to_string().trim_end())
}

fn measure(options: &Options, case: usize, common: &Common) -> anyhow::Result<Measurement> {
    let device = common.open()?;
    let batch = options.batch[case % options.batch.len()];
    let architecture =
        options.architecture.get(case / options.batch.len()).context("no such case")?;
    let network = network(architecture, &device)?;
    let frontend = Frontend::new(FrontendConfig::default())?;
    let samples = (options.seconds * f64::from(frontend.rate_hz())).round() as usize;
    let recordings: Vec<Vec<f32>> = (0..batch as u64)
        .map(|index| {
            let mut stream = Stream::new(0, "bench", index);
            (0..samples).map(|_| 0.1 * stream.normal() as f32).collect()
        })
        .collect();

    let features = frontend.batch(&recordings, &device)?;
    let frontend_s = median(&times_s(options.runs, || frontend.batch(&recordings, &device))?);
    let network_s = median(&times_s(options.runs, || network.forward(&features, false))?);
    let peak_memory_mb = peak_memory_mb();
    let peak_gflop_per_s = peak_gflop_per_s(&device, options.runs)?;

    let frames = frontend.frames(samples) as u64;
    let gflop = 2e-9 * (cost::macs(network.config(), frames) * batch as u64) as f64;
    Ok(Measurement {
        name: architecture.name().map(str::to_owned),
        architecture: architecture.to_string(),
        batch,
        seconds: options.seconds,
        threads: device::set_threads(common.threads)?,
        runs: options.runs,
        frontend_ms: 1e3 * frontend_s,
        network_ms: 1e3 * network_s,
        gflop_per_s: gflop / network_s,
        peak_gflop_per_s,
        share_of_peak: gflop / network_s / peak_gflop_per_s,
        real_time_factor: (frontend_s + network_s) / (options.seconds * batch as f64),
        peak_memory_mb,
    })
}

/// The network, frozen as in use: an empty checkpoint leaves all its weights random.
fn network(architecture: &Architecture, device: &Device) -> anyhow::Result<Subnet> {
    let config = NetworkConfig::published(architecture.clone());
    let origin = Path::new("random weights");
    let weights = Weights::loaded(BTreeMap::new(), origin, false, DType::F32, device);
    Ok(Subnet::new(config, &weights)?)
}
