//! How fast the networks are here.

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use shared::measure::{median, peak_gflop_per_s, peak_memory_mb, times_s};
use shared::nn::Precision;
use shared::rng::Stream;
use shared::{Error, Result};

use crate::network::{Network, NetworkConfig};
use crate::{Pair, cost};

/// Products that the peak is measured with.
const PEAK_RUNS: usize = 11;
/// Time that the networks are asked for.
const MODEL_TIME: f32 = 500.0;

/// What one evaluation of a network takes.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// What kind of network it is.
    pub network: &'static str,
    /// Clips or pictures that were computed at once.
    pub batch: usize,
    /// Runs of which the median counts.
    pub runs: usize,
    /// Median time of an evaluation.
    pub milliseconds: f64,
    /// Operations of an evaluation, see [`cost`], in billions.
    pub gflop: f64,
    /// Of them, in a second.
    pub gflop_per_s: f64,
    /// The fastest product of two matrices of order 1024, before and after.
    pub peak_gflop_per_s: f64,
    /// Of the peak.
    pub share_of_peak: f64,
    /// The network's parameters in f32.
    pub weights_mb: f64,
    /// Largest resident memory of the process up to the last run.
    pub peak_memory_mb: Option<f64>,
}

/// Measures a network with random weights on clips or pictures of the size that it was made for.
///
/// # Errors
/// When `batch` or `runs` is 0, or the network cannot be built.
pub fn measure(
    config: &NetworkConfig,
    precision: Precision,
    batch: usize,
    runs: usize,
    device: &Device,
) -> Result<Measurement> {
    if batch == 0 || runs == 0 {
        return Err(Error::Argument("bench: batch and runs must be at least 1".into()));
    }
    let gflop = 1e-9 * cost::flop(config)? as f64 * batch as f64;
    let weights_mb = 4e-6 * config.parameters()? as f64;
    let network = config.random(precision, device)?.compact()?;
    let evaluation = Evaluation::new(&network, batch, device)?;
    let before = peak_gflop_per_s(device, PEAK_RUNS)?;
    let seconds = median(&times_s(runs, || evaluation.run())?);
    let peak_memory_mb = peak_memory_mb();
    let peak = before.max(peak_gflop_per_s(device, PEAK_RUNS)?);
    Ok(Measurement {
        network: config.kind(),
        batch,
        runs,
        milliseconds: 1e3 * seconds,
        gflop,
        gflop_per_s: gflop / seconds,
        peak_gflop_per_s: peak,
        share_of_peak: gflop / seconds / peak,
        weights_mb,
        peak_memory_mb,
    })
}

/// A network and random input for it.
enum Evaluation<'a> {
    Coupled { network: &'a crate::CoupledUnet, x: Pair, time: Tensor, shifts: Vec<usize> },
    Enlarging { network: &'a crate::SuperResolutionUnet, x: Tensor, small: Tensor, time: Tensor },
}

impl<'a> Evaluation<'a> {
    fn new(network: &'a Network, batch: usize, device: &Device) -> Result<Self> {
        let time = Tensor::full(MODEL_TIME, batch, device)?;
        let noise = |index: u64, dims: &[usize]| -> Result<Tensor> {
            let mut values = vec![0.0; dims.iter().product()];
            Stream::new(0, "bench", index).fill_normal(&mut values);
            Ok(Tensor::from_vec(values, dims, device)?.to_dtype(DType::F32)?)
        };
        Ok(match network {
            Network::Coupled(network) => {
                let config = network.config();
                let [frames, channels, height, width] = config.video_size;
                let [audio_channels, samples] = config.audio_size;
                let x = Pair {
                    video: noise(0, &[batch, frames, channels, height, width])?,
                    audio: noise(1, &[batch, audio_channels, samples])?,
                };
                // Windows that go round the end.
                let shifts = network.largest_shifts(frames);
                Self::Coupled { network, x, time, shifts }
            }
            Network::SuperResolution(network) => {
                let (large, small) = (network.config().large_size, network.config().small_size);
                let x = noise(0, &[batch, 3, large, large])?;
                let small = noise(1, &[batch, 3, small, small])?;
                Self::Enlarging { network, x, small, time }
            }
        })
    }

    fn run(&self) -> Result<()> {
        match self {
            Self::Coupled { network, x, time, shifts } => {
                network.forward(x, time, shifts).map(|_| ())
            }
            Self::Enlarging { network, x, small, time } => {
                network.forward(x, time, small).map(|_| ())
            }
        }
    }
}
