//! Times convolutions and linear layers of the models' sizes, one at a time, on request:
//! `cargo run --release -p shared --example layers -- [THREADS]`. `samples/bench/layers.sh` sets
//! them beside PyTorch's.
//!
//! Writes a line of JSON for each layer, then an empty line. After that, each line with the number
//! of a layer on stdin is answered with its times, a line of JSON: the best of some runs, forward
//! without gradients, and the gradients at input and weight, which is candle's whole backward pass
//! with its accumulation.

use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor, Var};
use serde::Serialize;
use shared::Result;
use shared::device;
use shared::nn::functional::{Activation, ConvOptions, conv1d, conv2d, linear};
use shared::rng::Stream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A layer without bias on an input `[B, C, ..]`; the kernel has a size for each spatial
/// dimension, none for linear layers. Convolutions are padded to keep the length at stride 1.
#[derive(Serialize)]
struct Layer {
    input: &'static [usize],
    outputs: usize,
    kernel: &'static [usize],
    stride: usize,
    dilation: usize,
    groups: usize,
}

const fn layer(input: &'static [usize], outputs: usize, kernel: &'static [usize]) -> Layer {
    Layer { input, outputs, kernel, stride: 1, dilation: 1, groups: 1 }
}

const LAYERS: [Layer; 26] = [
    // Speaker networks on a batch of 3 s (Base): stem, pointwise, Res2, aggregation, attention,
    // embedding.
    layer(&[32, 80, 301], 512, &[5]),
    layer(&[32, 512, 301], 512, &[1]),
    Layer { dilation: 2, ..layer(&[32, 64, 301], 64, &[3]) },
    Layer { dilation: 4, ..layer(&[32, 64, 301], 64, &[3]) },
    layer(&[32, 1536, 301], 1536, &[1]),
    layer(&[32, 1536, 301], 128, &[1]),
    layer(&[32, 128, 301], 1536, &[1]),
    layer(&[32, 3072], 192, &[]),
    // The same on one recording, and those of Small.
    layer(&[1, 80, 301], 512, &[5]),
    layer(&[1, 512, 301], 512, &[1]),
    Layer { dilation: 3, ..layer(&[1, 64, 301], 64, &[3]) },
    layer(&[1, 1536, 301], 1536, &[1]),
    layer(&[1, 3072], 192, &[]),
    layer(&[1, 256, 301], 256, &[1]),
    Layer { dilation: 3, ..layer(&[1, 32, 301], 32, &[3]) },
    // Training on crops of 2 s.
    layer(&[64, 256, 201], 256, &[1]),
    Layer { dilation: 2, ..layer(&[64, 32, 201], 32, &[3]) },
    Layer { dilation: 4, ..layer(&[64, 48, 201], 48, &[5]) },
    // Diffusion of video and sound.
    layer(&[16, 128, 64, 64], 128, &[3, 3]),
    Layer { stride: 2, ..layer(&[16, 128, 64, 64], 128, &[3, 3]) },
    layer(&[4096, 128, 16], 128, &[3]),
    // Speech encoders: feature extractor, position, depthwise, feed-forward.
    Layer { stride: 2, ..layer(&[4, 512, 3200], 512, &[3]) },
    Layer { groups: 16, ..layer(&[4, 768, 400], 768, &[128]) },
    Layer { groups: 256, ..layer(&[8, 256, 400], 256, &[31]) },
    layer(&[1600, 768], 3072, &[]),
    // A plain product of matrices.
    layer(&[1024, 1024], 1024, &[]),
];

/// Each time is the best of at least so many runs that take at least so long.
const MIN_RUNS: usize = 3;
const MIN_TIME: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Times {
    forward_ms: f64,
    backward_ms: f64,
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map(|threads| threads.parse()).transpose()?;
    device::set_threads(threads)?;
    let mut stdout = io::stdout().lock();
    for layer in &LAYERS {
        writeln!(stdout, "{}", serde_json::to_string(layer)?)?;
    }
    writeln!(stdout)?;
    stdout.flush()?;
    for line in io::stdin().lock().lines() {
        let layer = LAYERS.get(line?.trim().parse::<usize>()?).ok_or("no such layer")?;
        writeln!(stdout, "{}", serde_json::to_string(&layer.times()?)?)?;
        stdout.flush()?;
    }
    Ok(())
}

impl Layer {
    fn times(&self) -> Result<Times> {
        let weight_dims = [&[self.outputs, self.input[1] / self.groups], self.kernel].concat();
        let (x, weight) = (variable(0, self.input)?, variable(1, &weight_dims)?);
        let (fixed_x, fixed_weight) = (x.as_detached_tensor(), weight.as_detached_tensor());
        let y = self.apply(&x, &weight)?;
        Ok(Times {
            forward_ms: best_ms(|| self.apply(&fixed_x, &fixed_weight))?,
            backward_ms: best_ms(|| Ok(y.backward()?))?,
        })
    }

    fn apply(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        match self.kernel.len() {
            0 => linear(x, weight, None, Activation::Identity),
            1 => conv1d(x, weight, None, &self.options()),
            _ => conv2d(x, weight, None, &self.options()),
        }
    }

    fn options<const D: usize>(&self) -> ConvOptions<D> {
        let padding = |axis: usize| self.dilation * (self.kernel[axis] - 1) / 2;
        ConvOptions {
            stride: [self.stride; D],
            dilation: [self.dilation; D],
            padding: std::array::from_fn(|axis| (padding(axis), padding(axis))),
            groups: self.groups,
            activation: Activation::Identity,
        }
    }
}

fn variable(index: u64, dims: &[usize]) -> Result<Var> {
    let mut values = vec![0.0; dims.iter().product()];
    Stream::new(0, "bench", index).fill_normal(&mut values);
    Ok(Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu)?)?)
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
