//! `lighthubert bench`: how fast the published networks are here.

use std::str::FromStr;

use anyhow::{Context, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use lighthubert::{Conditions, Network, RATE_HZ, SpaceName, Subnet, SupernetConfig, cost};
use serde::{Deserialize, Serialize};
use shared::cli::{self, Common};
use shared::measure::{PEAK_ORDER, median, peak_gflop_per_s, peak_memory_mb, times_s};
use shared::nn::Weights;
use shared::report::{Progress, Table};
use shared::rng::Stream;
use shared::{Error, Result, device};

#[derive(Args)]
pub struct Options {
    /// Networks: a search space (base or small) and max, default or min
    #[arg(
        long,
        value_name = "SPACE:SUBNET",
        default_values = ["base:max", "base:default", "base:min", "small:max", "small:min"]
    )]
    network: Vec<Published>,
    /// Length of the recording
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Runs of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Measure this one of all cases, in this process, and print it as JSON
    #[arg(long, value_name = "I", hide = true)]
    case: Option<usize>,
}

/// A network of a published search space.
#[derive(Clone, Debug)]
struct Published {
    name: String,
    subnet: Subnet,
}

impl FromStr for Published {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = || {
            Error::Argument(format!("{name:?} is not of the form base:max, with default or min"))
        };
        let (space, subnet) = name.split_once(':').ok_or_else(wrong)?;
        let space: SpaceName = space.parse()?;
        let subnet = match subnet {
            "max" => space.space().largest(),
            "min" => space.space().smallest(),
            "default" => space.default_subnet(),
            _ => return Err(wrong()),
        };
        Ok(Self { name: name.to_owned(), subnet })
    }
}

/// One network on one recording.
#[derive(Serialize, Deserialize)]
struct Measurement {
    network: String,
    parameters: u64,
    seconds: f64,
    threads: usize,
    runs: usize,
    /// Median time from samples to features.
    total_ms: f64,
    /// Median time of the convolutional extractor, of which the former consists in part.
    extractor_ms: f64,
    /// A multiply-accumulate as two operations.
    gflop: f64,
    gflop_per_s: f64,
    /// The fastest product of two matrices of order [`PEAK_ORDER`], in the same process.
    peak_gflop_per_s: f64,
    share_of_peak: f64,
    /// Computing time over audio time.
    real_time_factor: f64,
    /// Largest resident memory of the process up to the last run.
    peak_memory_mb: Option<f64>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    ensure!(options.runs > 0 && options.seconds > 0.0, "--runs and --seconds must be above 0");
    if let Some(case) = options.case {
        println!("{}", serde_json::to_string(&measure(options, case, common)?)?);
        return Ok(());
    }
    let cases = options.network.len();
    let progress = Progress::new("bench", "cases", Some(cases as u64), common.quiet);
    let mut table = Table::new([
        "network",
        "parameters",
        "ms",
        "extractor ms",
        "GFLOP",
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
            found.network.clone(),
            format!("{:.1} M", 1e-6 * found.parameters as f64),
            format!("{:.0}", found.total_ms),
            format!("{:.0}", found.extractor_ms),
            format!("{:.1}", found.gflop),
            format!("{:.0}", found.gflop_per_s),
            format!("{:.0}", found.peak_gflop_per_s),
            format!("{:.0}", 100.0 * found.share_of_peak),
            format!("{:.4}", found.real_time_factor),
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
         of matrices of order {PEAK_ORDER} in the same process; memory: all that the process of one \
         line had resident at most",
        options.seconds, options.runs
    ));
    common.print(&(), table.to_string().trim_end())
}

fn measure(options: &Options, case: usize, common: &Common) -> anyhow::Result<Measurement> {
    let device = common.open()?;
    let Published { name, subnet } = options.network.get(case).context("no such case")?;
    let supernet = SupernetConfig::published();
    let mut config = supernet.network(subnet)?;
    config.encoder.heads.counts.fill(0);
    // The network, frozen as in use: an empty checkpoint leaves all its weights random.
    let origin = std::path::Path::new("random weights");
    let weights = Weights::loaded([].into(), origin, false, DType::F32, &device);
    let network = Network::new(config, &weights)?;
    let samples = (options.seconds * f64::from(RATE_HZ)).round() as usize;
    let mut noise = vec![0.0; samples];
    Stream::new(0, "bench", 0).fill_normal(&mut noise);
    let source = Tensor::from_vec(noise, (1, samples), &device)?;

    let conditions = Conditions::default();
    let total_s = median(&times_s(options.runs, || network.forward(&source, &conditions))?);
    let extractor_s = median(&times_s(options.runs, || network.extractor().forward(&source))?);
    let peak_memory_mb = peak_memory_mb();
    let peak_gflop_per_s = peak_gflop_per_s(&device, 2 * options.runs)?;
    let gflop = 2e-9 * cost::macs(network.config(), samples) as f64;
    Ok(Measurement {
        network: name.clone(),
        parameters: cost::parameters(&supernet, subnet),
        seconds: options.seconds,
        threads: device::set_threads(common.threads)?,
        runs: options.runs,
        total_ms: 1e3 * total_s,
        extractor_ms: 1e3 * extractor_s,
        gflop,
        gflop_per_s: gflop / total_s,
        peak_gflop_per_s,
        share_of_peak: gflop / total_s / peak_gflop_per_s,
        real_time_factor: total_s / options.seconds,
        peak_memory_mb,
    })
}
