//! Times the layers of the models, one at a time, on request:
//! `cargo run --release -p shared --example kernels -- [THREADS]`. `tests/bench/kernels.sh` sets
//! them beside PyTorch's.
//!
//! Writes a line of JSON for each layer, then an empty line. After that, each line with the number
//! of a layer on stdin is answered with its times, a line of JSON: the best of some runs, forward
//! without gradients, and forward and backward together, which is candle's whole pass with its
//! accumulation of gradients.
//!
//! With a second argument `precisions`, prints instead how long the dense layers take without
//! training, in each precision that they can compute in: `tests/bench/precisions.sh`.

#[path = "../benches/workloads/mod.rs"]
mod workloads;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use shared::Result;
use shared::device;
use shared::nn::functional::{ConvOptions, Precision};
use shared::nn::{Conv, Conv1d, Conv2d, Conv3d, Linear, Weights};
use shared::report::Table;
use workloads::{Operation, Work, Workload, peaks, workloads};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Each time is the best of at least so many runs that take at least so long.
const MIN_RUNS: usize = 3;
const MIN_TIME: Duration = Duration::from_millis(100);

/// Fewest channels of a dense layer.
const MIN_CHANNELS: usize = 64;

#[derive(Serialize)]
struct Times {
    forward_ms: f64,
    forward_backward_ms: f64,
    /// Share of the machine's measured peak that the forward pass reaches.
    of_peak: f64,
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map(|threads| threads.parse()).transpose()?;
    device::set_threads(threads)?;
    if std::env::args().nth(2).as_deref() == Some("precisions") {
        return Ok(print_precisions()?);
    }
    let mut stdout = io::stdout().lock();
    let workloads: Vec<Workload> = workloads().collect();
    for workload in &workloads {
        writeln!(stdout, "{}", serde_json::to_string(workload)?)?;
    }
    writeln!(stdout)?;
    stdout.flush()?;
    let peaks = peaks()?;
    for line in io::stdin().lock().lines() {
        let workload = workloads.get(line?.trim().parse::<usize>()?).ok_or("no such layer")?;
        let times = times(&workload.layer, peaks)?;
        writeln!(stdout, "{}", serde_json::to_string(&times)?)?;
        stdout.flush()?;
    }
    Ok(())
}

fn times(layer: &Operation, (peak_flops, peak_bytes): (f64, f64)) -> Result<Times> {
    let variables = layer.inputs()?;
    let tracked: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let fixed: Vec<Tensor> = variables.iter().map(|v| v.as_detached_tensor()).collect();
    let forward_ms = best_ms(|| layer.apply(&fixed))?;
    let share = match layer.work() {
        Work::Flops(flops) => flops / peak_flops,
        Work::Bytes(bytes) => bytes / peak_bytes,
    };
    Ok(Times {
        forward_ms,
        forward_backward_ms: best_ms(|| Ok(layer.apply(&tracked)?.backward()?))?,
        of_peak: share / (forward_ms / 1e3),
    })
}

/// Rounds in which the precisions take turns.
const ROUNDS: usize = 5;

/// Times of the dense layers in each precision, with weights that are kept: a table.
fn print_precisions() -> Result<()> {
    let precisions = [Precision::F32, Precision::Bf16, Precision::Int8];
    let mut table = Table::new(["layer", "f32 ms", "bf16 ms", "int8 ms", "f32/bf16", "f32/int8"]);
    let (mut sums, mut count) = ([0.0; 2], 0.0);
    for Workload { layer, .. } in workloads() {
        let Some((name, layers)) = frozen(&layer, precisions)? else { continue };
        let x = layer.inputs()?[0].as_detached_tensor();
        let mut best = [f64::INFINITY; 3];
        for _ in 0..ROUNDS {
            for (best, layer) in best.iter_mut().zip(&layers) {
                *best = best.min(best_ms(|| layer(&x))?);
            }
        }
        let gains = [best[0] / best[1], best[0] / best[2]];
        sums = [0, 1].map(|i| sums[i] + gains[i].ln());
        count += 1.0;
        let cells = best.map(|ms| format!("{ms:.3}")).into_iter();
        table.row([name].into_iter().chain(cells).chain(gains.map(|gain| format!("{gain:.2}"))));
    }
    let means = sums.map(|sum| format!("{:.2}", f64::exp(sum / count)));
    table.row(["geometric mean".into(), "".into(), "".into(), "".into()].into_iter().chain(means));
    println!("{table}");
    Ok(())
}

type Layer = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// The name of a dense layer, and the layer in each precision, with random weights.
fn frozen(layer: &Operation, precisions: [Precision; 3]) -> Result<Option<(String, Vec<Layer>)>> {
    let origin = Path::new("random weights");
    let weights = Weights::loaded(BTreeMap::new(), origin, false, DType::F32, &Device::Cpu);
    let layers = precisions.into_iter();
    Ok(Some(match layer {
        Operation::Convolution { input, outputs, kernel, groups: 1, .. }
            if input[1].min(*outputs) >= MIN_CHANNELS =>
        {
            let name = format!("{input:?} -> {outputs}, {kernel:?}");
            let sizes = (input[1], *outputs);
            let layers = layers.map(|precision| match **kernel {
                [a] => conv(&weights, sizes, [a], layer.options(), precision, Conv1d::forward),
                [a, b] => {
                    conv(&weights, sizes, [a, b], layer.options(), precision, Conv2d::forward)
                }
                _ => {
                    let kernel = [kernel[0], kernel[1], kernel[2]];
                    conv(&weights, sizes, kernel, layer.options(), precision, Conv3d::forward)
                }
            });
            (name, layers.collect::<Result<_>>()?)
        }
        Operation::Linear { rows, inputs, outputs } if *rows > 1 => {
            let layers = layers.map(|precision| -> Result<Layer> {
                let layer = Linear::new(&weights, *inputs, *outputs, false)?;
                let layer = layer.with_precision(precision)?;
                Ok(Box::new(move |x| layer.forward(x)))
            });
            (format!("{rows} x {inputs} -> {outputs}"), layers.collect::<Result<_>>()?)
        }
        _ => return Ok(None),
    }))
}

fn conv<const D: usize>(
    weights: &Weights,
    (inputs, outputs): (usize, usize),
    kernel: [usize; D],
    options: ConvOptions<D>,
    precision: Precision,
    forward: fn(&Conv<D>, &Tensor) -> Result<Tensor>,
) -> Result<Layer> {
    let layer = Conv::new(weights, inputs, outputs, kernel, false, options)?;
    let layer = layer.with_precision(precision)?;
    Ok(Box::new(move |x| forward(&layer, x)))
}

fn best_ms<T>(job: impl Fn() -> Result<T>) -> Result<f64> {
    job()?;
    let (begin, mut runs, mut best) = (Instant::now(), 0, f64::INFINITY);
    while runs < MIN_RUNS || begin.elapsed() < MIN_TIME {
        let start = Instant::now();
        black_box(job()?);
        best = best.min(1e3 * start.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best)
}
