//! Times the layers of the models, one at a time, on request:
//! `cargo run --release -p shared --example kernels -- [THREADS]`. `tests/bench/kernels.sh` sets
//! them beside PyTorch's.
//!
//! Writes a line of JSON for each layer, then an empty line. After that, each line with the number
//! of a layer on stdin is answered with its times, a line of JSON: the best of some runs, forward
//! without gradients, and forward and backward together, which is candle's whole pass with its
//! accumulation of gradients.

#[path = "../benches/workloads/mod.rs"]
mod workloads;

use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use serde::Serialize;
use shared::Result;
use shared::device;
use workloads::{Operation, Work, Workload, peaks, workloads};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Each time is the best of at least so many runs that take at least so long.
const MIN_RUNS: usize = 3;
const MIN_TIME: Duration = Duration::from_millis(100);

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
