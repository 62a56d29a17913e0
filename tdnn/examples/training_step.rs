//! Times a training step of one architecture, whole and by operation:
//! `cargo run --release -p tdnn --example training_step -- [ARCHITECTURE] [BATCH] [FRAMES]`.

use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use shared::nn::functional::{Activation, ConvOptions, batch_norm_train, conv1d, linear};
use shared::nn::{Weights, functional};
use shared::rng::Stream;
use shared::train::{AdamConfig, Gradients, Optimiser, Rule};
use shared::{Error, Result};
use tdnn::{Architecture, NetworkConfig, Objective, SpeakerClassifier, Subnet, cost};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SPEAKERS: usize = 380;
const REPEATS: usize = 5;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &str| arguments.get(i).cloned().unwrap_or(default.into());
    let count = |text: String| {
        text.parse::<usize>().map_err(|_| Error::Argument(format!("{text}: expected a number")))
    };
    let architecture: Architecture = argument(0, "3.256.256.256.256.5.3.3.3.768").parse()?;
    let (batch, frames) = (count(argument(1, "64"))?, count(argument(2, "200"))?);
    let config = NetworkConfig::published(architecture);

    whole_step(&config, batch, frames)?;
    by_operation(&config, batch, frames)
}

fn whole_step(config: &NetworkConfig, batch: usize, frames: usize) -> Result<()> {
    let weights = Weights::fresh(1, DType::F32, &Device::Cpu);
    let network = Subnet::new(config.clone(), &weights)?;
    let head = SpeakerClassifier::new(&weights.at("loss"), config.embedding, SPEAKERS)?;
    let parameters = weights.variables();
    let mut optimiser = Optimiser::new(&parameters, Rule::Adam(AdamConfig::default()))?;
    let x = noise(&[batch, config.features, frames])?;
    let labels: Vec<u32> = (0..batch).map(|i| (i % SPEAKERS) as u32).collect();
    let mut times = [f64::INFINITY; 3];
    for _ in 0..REPEATS {
        let start = Instant::now();
        let loss = head.forward(&network.forward(&x, true)?, &labels, Objective::default())?.loss;
        let forward = start.elapsed().as_secs_f64();
        let gradients = Gradients::of(&loss, &parameters)?;
        let backward = start.elapsed().as_secs_f64() - forward;
        optimiser.step(1e-3, &gradients)?;
        let step = start.elapsed().as_secs_f64() - forward - backward;
        for (best, time) in times.iter_mut().zip([forward, backward, step]) {
            *best = best.min(time);
        }
    }
    let total: f64 = times.iter().sum();
    // A multiply-accumulate is two operations, and the gradients take two more products.
    let operations = 6.0 * cost::macs(config, frames as u64) as f64 * batch as f64;
    let [forward, backward, step] = times.map(|seconds| 1e3 * seconds);
    println!("{} on {batch} x {frames} frames", config.architecture);
    println!("forward {forward:.0} ms, backward {backward:.0} ms, optimiser {step:.0} ms");
    println!("total {:.0} ms, {:.0} GFLOP/s", 1e3 * total, operations / total / 1e9);
    Ok(())
}

/// The network's operations one by one, forward and backward, best of some repeats.
fn by_operation(config: &NetworkConfig, batch: usize, frames: usize) -> Result<()> {
    let architecture = &config.architecture;
    let (trunk, cat, depth) = (architecture.trunk(), architecture.cat(), architecture.depth());
    let signal = |channels: usize| noise(&[batch, channels, frames]);
    println!("\n{:34} {:>5} {:>9} {:>9} {:>9}", "operation", "times", "fwd ms", "bwd ms", "all ms");
    let convolution = |name: &str, times, input, output, kernel, dilation| -> Result<()> {
        let padding = (kernel - 1) / 2 * dilation;
        let options = ConvOptions {
            dilation: [dilation],
            padding: [(padding, padding)],
            activation: Activation::Relu,
            ..ConvOptions::default()
        };
        let inputs = [signal(input)?, noise(&[output, input, kernel])?];
        let name = format!("{name} {input} -> {output}, k {kernel}");
        time(&name, times, &inputs, |x| conv1d(&x[0], &x[1], None, &options))
    };
    convolution("stem", 1, config.features, trunk, architecture.stem_kernel(), 1)?;
    for (i, block) in architecture.blocks().iter().enumerate() {
        convolution("first", 1, trunk, block.mid, 1, 1)?;
        convolution("res2", 7, block.split(), block.split(), block.kernel, i + 2)?;
        convolution("last", 1, block.mid, trunk, 1, 1)?;
    }
    convolution("aggregation", 1, trunk * depth, cat, 1, 1)?;
    convolution("attention", 1, cat, 128, 1, 1)?;
    convolution("attention", 1, 128, cat, 1, 1)?;

    let (mid, split) = (architecture.blocks()[0].mid, architecture.blocks()[0].split());
    for (times, channels) in [(1 + 2 * depth, trunk), (7 * depth, split)] {
        let inputs = [signal(channels)?, noise(&[channels])?, noise(&[channels])?];
        time(&format!("batch norm of {channels}"), times, &inputs, |x| {
            Ok(batch_norm_train(&x[0], &x[1], &x[2], 1e-5)?.0)
        })?;
    }
    time("split and concatenate", depth, &[signal(mid)?], |x| {
        Ok(Tensor::cat(&x[0].chunk(8, 1)?, 1)?)
    })?;
    time("cascade's sum", 6 * depth, &[signal(mid)?, signal(split)?], |x| {
        Ok((x[0].narrow(1, split, split)? + &x[1])?)
    })?;
    time("residual sum", 2 * depth - 1, &[signal(trunk)?, signal(trunk)?], |x| {
        Ok((&x[0] + &x[1])?)
    })?;
    time("squeeze", depth, &[signal(trunk)?], |x| Ok(x[0].mean(2)?))?;
    time("excite", depth, &[signal(trunk)?, noise(&[batch, trunk])?], |x| {
        Ok(x[0].broadcast_mul(&x[1].unsqueeze(2)?)?)
    })?;
    let blocks: Vec<Tensor> = (0..depth).map(|_| signal(trunk)).collect::<Result<_>>()?;
    time("concatenate blocks", 1, &blocks, |x| Ok(Tensor::cat(x, 1)?))?;
    time("tanh", 1, &[signal(128)?], |x| functional::activate(&x[0], Activation::Tanh))?;
    time("attentive statistics", 1, &[signal(cat)?, signal(cat)?], |x| {
        functional::attentive_statistics(&x[0], &x[1])
    })?;
    let embedding = config.embedding;
    let inputs = [noise(&[batch, 2 * cat])?, noise(&[embedding, 2 * cat])?];
    time("linear", 1, &inputs, |x| linear(&x[0], &x[1], None, Activation::Identity))
}

fn time(
    name: &str,
    times: usize,
    inputs: &[Tensor],
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let variables: Vec<Var> =
        inputs.iter().map(|x| Ok(Var::from_tensor(x)?)).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = variables.iter().map(|var| var.as_tensor().clone()).collect();
    let (mut forward, mut backward) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..REPEATS {
        let start = Instant::now();
        let y = operation(&tensors)?;
        forward = forward.min(1e3 * start.elapsed().as_secs_f64());
        // The gradient that reaches the operation costs a broadcast, which is timed with it.
        let loss = y.sum_all()?;
        let start = Instant::now();
        loss.backward()?;
        backward = backward.min(1e3 * start.elapsed().as_secs_f64());
    }
    let all = times as f64 * (forward + backward);
    println!("{name:34} {times:>5} {forward:>9.2} {backward:>9.2} {all:>9.1}");
    Ok(())
}

fn noise(dims: &[usize]) -> Result<Tensor> {
    let mut values = vec![0.0; dims.iter().product()];
    Stream::new(1, "noise", dims.iter().sum::<usize>() as u64).fill_normal(&mut values);
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}
