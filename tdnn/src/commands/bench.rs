//! `tdnn bench`: how fast the published networks are here.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use candle_core::{DType, Device, Tensor};
use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use shared::device;
use shared::nn::Weights;
use shared::nn::functional::matmul;
use shared::report::{Progress, Table};
use shared::rng::Stream;
use tdnn::{Architecture, Frontend, FrontendConfig, NetworkConfig, Subnet, cost};

/// Order of the square matrices whose product measures the peak.
const PEAK_ORDER: usize = 1024;

#[derive(Args)]
pub struct Options {
    /// Architectures or their published names
    #[arg(long, value_name = "ARCHITECTURE", default_values = ["max", "Base", "Mobile", "Small"])]
    architecture: Vec<Architecture>,
    /// Recordings in a batch
    #[arg(long, value_name = "N", default_values_t = [1, 32])]
    batch: Vec<usize>,
    /// Length of each recording
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// Runs of which the median counts
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: usize,
}

#[derive(Serialize)]
struct Measurement {
    architecture: String,
    batch: usize,
    frontend_ms: f64,
    network_ms: f64,
    gflop_per_s: f64,
    /// Of the measured peak.
    share_of_peak: f64,
    /// Computing time over audio time.
    real_time_factor: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_mb: Option<f64>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    ensure!(
        options.runs > 0 && options.batch.iter().all(|n| *n > 0),
        "--runs and --batch must be at least 1"
    );
    let device = common.open()?;
    let threads = device::set_threads(common.threads)?;
    let frontend = Frontend::new(FrontendConfig::default())?;
    let peak = peak_gflop_per_s(&device, options.runs)?;
    common.note(format!(
        "{threads} threads, matrix product of order {PEAK_ORDER}: {peak:.0} GFLOP/s; random weights"
    ));
    let cases = options.architecture.len() * options.batch.len();
    let progress = Progress::new("bench", "networks", Some(cases as u64), common.quiet);
    let mut table = Table::new([
        "architecture",
        "batch",
        "front-end ms",
        "network ms",
        "GFLOP/s",
        "% of peak",
        "RTF",
        "peak MB",
    ]);
    for architecture in &options.architecture {
        let network = network(architecture, &device)?;
        for &batch in &options.batch {
            let found = measure(&network, &frontend, batch, peak, options, &device)?;
            progress.inc(1);
            table.row([
                found.architecture.clone(),
                found.batch.to_string(),
                format!("{:.1}", found.frontend_ms),
                format!("{:.1}", found.network_ms),
                format!("{:.0}", found.gflop_per_s),
                format!("{:.0}", 100.0 * found.share_of_peak),
                format!("{:.5}", found.real_time_factor),
                found.peak_memory_mb.map_or("-".into(), |mb| format!("{mb:.0}")),
            ]);
            if common.json {
                common.print(&found, "")?;
            }
        }
    }
    progress.finish();
    if common.json { Ok(()) } else { common.print(&(), table.to_string().trim_end()) }
}

/// The network with random weights, frozen as in use.
fn network(architecture: &Architecture, device: &Device) -> anyhow::Result<Subnet> {
    let config = NetworkConfig::published(architecture.clone());
    let fresh = Weights::fresh(0, DType::F32, device);
    Subnet::new(config.clone(), &fresh)?;
    let origin = Path::new("random weights");
    Ok(Subnet::from_tensors(config, fresh.state(), origin, false, device)?.0)
}

fn measure(
    network: &Subnet,
    frontend: &Frontend,
    batch: usize,
    peak: f64,
    options: &Options,
    device: &Device,
) -> anyhow::Result<Measurement> {
    let samples = (options.seconds * f64::from(frontend.rate_hz())).round() as usize;
    let recordings: Vec<Vec<f32>> = (0..batch as u64)
        .map(|index| {
            let mut stream = Stream::new(0, "bench", index);
            (0..samples).map(|_| 0.1 * stream.normal() as f32).collect()
        })
        .collect();
    let features = frontend.batch(&recordings, device)?;
    reset_peak_memory();
    network.forward(&features, false)?;
    let frontend_s = median_s(options.runs, || Ok(frontend.batch(&recordings, device)?))?;
    let network_s = median_s(options.runs, || Ok(network.forward(&features, false)?))?;
    let frames = frontend.frames(samples) as u64;
    let gflop = 2e-9 * (cost::macs(network.config(), frames) * batch as u64) as f64;
    Ok(Measurement {
        architecture: network.config().architecture.to_string(),
        batch,
        frontend_ms: 1e3 * frontend_s,
        network_ms: 1e3 * network_s,
        gflop_per_s: gflop / network_s,
        share_of_peak: gflop / network_s / peak,
        real_time_factor: (frontend_s + network_s) / (options.seconds * batch as f64),
        peak_memory_mb: peak_memory_mb(),
    })
}

fn peak_gflop_per_s(device: &Device, runs: usize) -> anyhow::Result<f64> {
    let ones = Tensor::ones((PEAK_ORDER, PEAK_ORDER), DType::F32, device)?;
    matmul(&ones, &ones)?;
    let seconds = median_s(runs, || Ok(matmul(&ones, &ones)?))?;
    Ok(2e-9 * (PEAK_ORDER as f64).powi(3) / seconds)
}

fn median_s<T>(runs: usize, mut job: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    let mut seconds = vec![];
    for _ in 0..runs {
        let start = Instant::now();
        job()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[runs / 2])
}

/// Makes the peak start anew, where the system can (Linux).
fn reset_peak_memory() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn peak_memory_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1e3)
}
