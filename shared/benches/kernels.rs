//! Speed of the kernels on the layers of the models, forward, and forward and backward together, as
//! a share of what this machine does at most: a product of matrices and a copy, measured first.
//! Backward is candle's whole pass, with its accumulation of gradients.
//!
//! `cargo bench --workspace --bench kernels [-- FILTER]`. `tests/bench/kernels.sh` sets the same
//! layers beside PyTorch's.

mod workloads;

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use criterion::{Criterion, criterion_group, criterion_main};
use shared::Result;
use workloads::{Work, peaks, workloads};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn bench(criterion: &mut Criterion) {
    shared::device::set_threads(None).expect("threads");
    let (peak_flops, peak_bytes) = peaks().expect("a product of matrices");
    println!(
        "peak: {:.0} GFLOP/s in a product of matrices, {:.1} GB/s in a copy\n",
        peak_flops / 1e9,
        peak_bytes / 1e9
    );
    for workload in workloads() {
        let name = serde_json::to_string(&workload.layer).expect("a layer as JSON");
        let mut group = criterion.benchmark_group(format!("{}: {name}", workload.model));
        let layer = &workload.layer;
        let variables = layer.inputs().expect("inputs");
        let tracked: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
        let fixed: Vec<Tensor> = variables.iter().map(|v| v.as_detached_tensor()).collect();
        type Job<'a> = &'a dyn Fn() -> Result<()>;
        let forward: Job = &|| {
            black_box(layer.apply(&fixed)?);
            Ok(())
        };
        let both: Job = &|| {
            black_box(layer.apply(&tracked)?.backward()?);
            Ok(())
        };
        for (pass, job) in [("forward", forward), ("forward and backward", both)] {
            let best = Cell::new(f64::INFINITY);
            group.bench_function(pass, |bencher| {
                bencher.iter_custom(|iterations| {
                    let mut total = Duration::ZERO;
                    for _ in 0..iterations {
                        let start = Instant::now();
                        job().expect("the layer's output");
                        let elapsed = start.elapsed();
                        best.set(best.get().min(elapsed.as_secs_f64()));
                        total += elapsed;
                    }
                    total
                });
            });
            // Filtered out.
            if best.get() == f64::INFINITY || pass != "forward" {
                continue;
            }
            let (rate, unit, peak) = match layer.work() {
                Work::Flops(flops) => (flops / best.get(), "GFLOP/s", peak_flops),
                Work::Bytes(bytes) => (bytes / best.get(), "GB/s", peak_bytes),
            };
            println!(
                "    best: {:.1} {unit}, {:.0} % of the peak",
                rate / 1e9,
                100.0 * rate / peak
            );
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = bench
}
criterion_main!(benches);
