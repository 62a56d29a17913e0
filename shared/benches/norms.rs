//! Speed of normalisation, softmax and pooling on the shapes of TDNN training, in bytes of the
//! tensors that each must read or write at least once. `backward` is candle's whole backward pass
//! of the one operation, with its accumulation of gradients.
//!
//! Run with `cargo bench -p shared --bench norms`.

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shared::Result;
use shared::nn::functional::{batch_norm_eval, batch_norm_train, softmax};
use shared::rng::Stream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Shapes `[B, C, T]`: a Res2 split, a narrow and a wide trunk, the pooling layer.
const SHAPES: [[usize; 3]; 4] = [[64, 64, 200], [64, 256, 200], [64, 512, 300], [64, 1536, 200]];

fn variable(index: u64, dims: &[usize]) -> Var {
    let mut values = vec![0.0; dims.iter().product()];
    Stream::new(0, "bench", index).fill_normal(&mut values);
    let values = Tensor::from_vec(values, dims, &Device::Cpu);
    values.and_then(|values| Var::from_tensor(&values)).expect("a small tensor")
}

fn bench(
    criterion: &mut Criterion,
    operation: &str,
    shapes: &[[usize; 3]],
    apply: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) {
    let mut group = criterion.benchmark_group(operation);
    group.sample_size(15).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    for shape in shapes {
        let x = variable(0, shape);
        let (weight, bias) = (variable(1, &shape[1..2]), variable(2, &shape[1..2]));
        let bytes = |tensors: usize| Throughput::Bytes((4 * tensors * x.elem_count()) as u64);
        group.throughput(bytes(2)).bench_function(format!("forward {shape:?}"), |bencher| {
            bencher.iter(|| black_box(apply(&x, &weight, &bias)));
        });
        let y = apply(&x, &weight, &bias).expect("fitting shapes");
        group.throughput(bytes(3)).bench_function(format!("backward {shape:?}"), |bencher| {
            bencher.iter(|| black_box(y.backward()));
        });
    }
    group.finish();
}

fn norms(criterion: &mut Criterion) {
    bench(criterion, "batch_norm_train", &SHAPES, |x, weight, bias| {
        Ok(batch_norm_train(x, weight, bias, 1e-5)?.0)
    });
    bench(criterion, "batch_norm_train [B, C]", &[[64, 3072, 1]], |x, weight, bias| {
        Ok(batch_norm_train(&x.squeeze(2)?, weight, bias, 1e-5)?.0)
    });
    bench(criterion, "batch_norm_eval", &SHAPES[2..3], |x, weight, bias| {
        let variance = Tensor::ones(weight.dims(), DType::F32, &Device::Cpu)?;
        batch_norm_eval(x, bias, &variance, weight, bias, 1e-5)
    });
    bench(criterion, "softmax", &SHAPES[2..], |x, _, _| softmax(x, 2));
}

criterion_group!(benches, norms);
criterion_main!(benches);
