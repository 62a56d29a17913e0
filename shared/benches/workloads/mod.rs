//! The layers that the models spend their time in, at the sizes that they have there.

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use serde::Serialize;
use shared::Result;
use shared::nn::functional::{
    Activation, ConvOptions, GroupNormOptions, activate, avg_pool2d, batch_norm_train, conv1d,
    conv2d, conv3d, group_norm_with, layer_norm_of_sum, linear, matmul,
    scaled_dot_product_attention, upsample_nearest,
};
use shared::rng::Stream;

/// Groups of MM-Diffusion's group norms.
const NORM_GROUPS: usize = 32;

/// One layer and the model that it stems from.
#[derive(Serialize)]
pub struct Workload {
    pub model: &'static str,
    #[serde(flatten)]
    pub layer: Operation,
}

/// A layer without bias, written as JSON for those who time the same elsewhere.
#[derive(Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Operation {
    /// On `[B, C, ..]`, a kernel size for each spatial dimension; padded to keep the size at
    /// stride 1.
    Convolution {
        input: &'static [usize],
        outputs: usize,
        kernel: &'static [usize],
        stride: usize,
        dilation: usize,
        groups: usize,
    },
    /// `[rows, inputs]` to `[rows, outputs]`.
    Linear { rows: usize, inputs: usize, outputs: usize },
    /// `batch` products of `[rows, depth]` and `[depth, columns]`.
    Product { batch: usize, rows: usize, depth: usize, columns: usize },
    /// Scaled dot-product attention of `[B, H, T, D]`.
    Attention { batch: usize, heads: usize, length: usize, size: usize },
    /// Group norm of `[B, C, ..]`, times `1 + scale [B, C]`, plus `shift [B, C]`, then SiLU.
    GroupNorm { input: &'static [usize] },
    /// Of `[rows, channels]` and a residual of the same size.
    LayerNorm { rows: usize, channels: usize },
    /// With statistics of its own, of `[B, C, T]`.
    BatchNorm { input: &'static [usize] },
    /// Of `[B, C, H, W]` by 2.
    Upsample { input: &'static [usize] },
    /// Of `[B, C, H, W]` by 2.
    Pool { input: &'static [usize] },
    /// Element by element.
    Silu { elements: usize },
}

const fn convolution(
    input: &'static [usize],
    outputs: usize,
    kernel: &'static [usize],
    [stride, dilation, groups]: [usize; 3],
) -> Operation {
    Operation::Convolution { input, outputs, kernel, stride, dilation, groups }
}

const PLAIN: [usize; 3] = [1, 1, 1];

const MM_DIFFUSION: &[Operation] = &[
    // Pictures, frame by frame.
    convolution(&[16, 128, 64, 64], 128, &[3, 3], PLAIN),
    convolution(&[16, 256, 64, 64], 128, &[3, 3], PLAIN),
    convolution(&[16, 256, 32, 32], 256, &[3, 3], PLAIN),
    convolution(&[16, 384, 32, 32], 256, &[3, 3], PLAIN),
    convolution(&[16, 384, 16, 16], 384, &[3, 3], PLAIN),
    convolution(&[16, 512, 8, 8], 512, &[3, 3], PLAIN),
    convolution(&[16, 256, 64, 64], 128, &[1, 1], PLAIN),
    convolution(&[1, 128, 16, 64, 64], 3, &[3, 3, 3], PLAIN),
    // Over frames, at each place.
    convolution(&[1, 128, 16, 64, 64], 128, &[3, 1, 1], PLAIN),
    convolution(&[1, 256, 16, 32, 32], 256, &[3, 1, 1], PLAIN),
    convolution(&[1, 384, 16, 16, 16], 384, &[3, 1, 1], PLAIN),
    convolution(&[1, 512, 16, 8, 8], 512, &[3, 1, 1], PLAIN),
    // Sound.
    convolution(&[1, 128, 25600], 128, &[3], [1, 1, 1]),
    convolution(&[1, 128, 25600], 128, &[3], [1, 512, 1]),
    convolution(&[1, 256, 6400], 256, &[3], [1, 4, 1]),
    convolution(&[1, 384, 1600], 384, &[3], [1, 16, 1]),
    convolution(&[1, 512, 400], 512, &[3], [1, 64, 1]),
    // What is between.
    Operation::GroupNorm { input: &[16, 128, 64, 64] },
    Operation::GroupNorm { input: &[16, 256, 32, 32] },
    Operation::GroupNorm { input: &[16, 512, 8, 8] },
    Operation::GroupNorm { input: &[1, 128, 25600] },
    Operation::Attention { batch: 16, heads: 4, length: 1024, size: 64 },
    Operation::Attention { batch: 16, heads: 4, length: 256, size: 96 },
    Operation::Attention { batch: 16, heads: 4, length: 64, size: 128 },
    Operation::Attention { batch: 1024, heads: 4, length: 16, size: 64 },
    Operation::Upsample { input: &[16, 256, 32, 32] },
    Operation::Pool { input: &[16, 128, 64, 64] },
    Operation::Silu { elements: 16 * 128 * 64 * 64 },
];

const SUPER_RESOLUTION: &[Operation] = &[
    convolution(&[1, 192, 256, 256], 192, &[3, 3], PLAIN),
    convolution(&[1, 384, 64, 64], 384, &[3, 3], PLAIN),
    convolution(&[1, 768, 8, 8], 768, &[3, 3], PLAIN),
];

const LIGHT_HUBERT: &[Operation] = &[
    // On 10 s: the first convolutions of the extractor, and the place in time.
    convolution(&[1, 1, 160_000], 512, &[10], [5, 1, 1]),
    convolution(&[1, 512, 31_999], 512, &[3], [2, 1, 1]),
    convolution(&[1, 512, 1999], 512, &[2], [2, 1, 1]),
    convolution(&[1, 768, 499], 768, &[128], [1, 1, 16]),
    Operation::Linear { rows: 499, inputs: 768, outputs: 768 },
    Operation::Linear { rows: 499, inputs: 768, outputs: 3072 },
    Operation::Linear { rows: 499, inputs: 3072, outputs: 768 },
    Operation::Attention { batch: 1, heads: 12, length: 499, size: 64 },
    Operation::Attention { batch: 1, heads: 12, length: 1500, size: 64 },
    Operation::LayerNorm { rows: 499, channels: 768 },
    Operation::LayerNorm { rows: 8 * 499, channels: 768 },
];

const TDNN: &[Operation] = &[
    convolution(&[1, 80, 301], 512, &[5], PLAIN),
    convolution(&[1, 512, 301], 512, &[1], PLAIN),
    convolution(&[1, 64, 301], 64, &[3], [1, 2, 1]),
    convolution(&[1, 1536, 301], 1536, &[1], PLAIN),
    Operation::Linear { rows: 1, inputs: 3072, outputs: 192 },
    convolution(&[8, 512, 301], 512, &[1], PLAIN),
    convolution(&[8, 128, 301], 128, &[3], [1, 4, 1]),
    convolution(&[32, 80, 301], 512, &[5], PLAIN),
    convolution(&[32, 512, 301], 512, &[1], PLAIN),
    convolution(&[32, 512, 301], 512, &[3], [1, 2, 1]),
    convolution(&[32, 1024, 301], 1024, &[1], PLAIN),
    convolution(&[32, 64, 301], 64, &[3], [1, 2, 1]),
    convolution(&[32, 64, 301], 64, &[5], [1, 4, 1]),
    convolution(&[32, 128, 301], 128, &[3], [1, 3, 1]),
    convolution(&[32, 1536, 301], 1536, &[1], PLAIN),
    Operation::Linear { rows: 32, inputs: 3072, outputs: 192 },
    // Training on crops of 2 s.
    convolution(&[64, 256, 201], 256, &[1], PLAIN),
    convolution(&[64, 32, 201], 32, &[3], [1, 2, 1]),
    convolution(&[64, 48, 201], 48, &[5], [1, 4, 1]),
    Operation::BatchNorm { input: &[64, 256, 201] },
];

const GENERAL: &[Operation] = &[
    Operation::Product { batch: 1, rows: 1024, depth: 1024, columns: 1024 },
    Operation::Product { batch: 64, rows: 256, depth: 64, columns: 256 },
    convolution(&[8, 256, 400], 256, &[31], [1, 1, 256]),
];

/// All workloads.
pub fn workloads() -> impl Iterator<Item = Workload> {
    let models = [
        ("MM-Diffusion", MM_DIFFUSION),
        ("super-resolution", SUPER_RESOLUTION),
        ("LightHuBERT", LIGHT_HUBERT),
        ("TDNN", TDNN),
        ("general", GENERAL),
    ];
    models.into_iter().flat_map(|(model, layers)| {
        layers.iter().map(move |layer| Workload { model, layer: layer.clone() })
    })
}

/// What a layer has to do at least.
pub enum Work {
    /// Floating-point operations of the definition: an algorithm that does with fewer is faster
    /// than the machine.
    Flops(f64),
    /// Bytes of the tensors that it reads and writes.
    Bytes(f64),
}

impl Operation {
    /// Shapes of the tensors that it is applied to.
    pub fn shapes(&self) -> Vec<Vec<usize>> {
        match *self {
            Self::Convolution { input, outputs, kernel, groups, .. } => {
                vec![input.to_vec(), [&[outputs, input[1] / groups], kernel].concat()]
            }
            Self::Linear { rows, inputs, outputs } => {
                vec![vec![rows, inputs], vec![outputs, inputs]]
            }
            Self::Product { batch, rows, depth, columns } => {
                vec![vec![batch, rows, depth], vec![batch, depth, columns]]
            }
            Self::Attention { batch, heads, length, size } => {
                vec![vec![batch, heads, length, size]; 3]
            }
            Self::GroupNorm { input } => {
                let [batch, channels] = [input[0], input[1]];
                vec![input.to_vec(), vec![batch, channels], vec![batch, channels]]
            }
            Self::LayerNorm { rows, channels } => vec![vec![rows, channels]; 2],
            Self::BatchNorm { input } | Self::Upsample { input } | Self::Pool { input } => {
                vec![input.to_vec()]
            }
            Self::Silu { elements } => vec![vec![elements]],
        }
    }

    /// The layer's output.
    pub fn apply(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        match self {
            Self::Convolution { kernel, .. } => match kernel.len() {
                1 => conv1d(x, &inputs[1], None, &self.options()),
                2 => conv2d(x, &inputs[1], None, &self.options()),
                _ => conv3d(x, &inputs[1], None, &self.options()),
            },
            Self::Linear { .. } => linear(x, &inputs[1], None, Activation::Identity),
            Self::Product { .. } => matmul(x, &inputs[1]),
            Self::Attention { size, .. } => {
                let scale = (*size as f64).sqrt().recip();
                scaled_dot_product_attention(x, &inputs[1], &inputs[2], None, scale)
            }
            Self::GroupNorm { .. } => {
                let options = GroupNormOptions {
                    groups: NORM_GROUPS,
                    scale: Some(&inputs[1]),
                    shift: Some(&inputs[2]),
                    activation: Activation::Silu,
                    ..GroupNormOptions::default()
                };
                group_norm_with(x, &options)
            }
            Self::LayerNorm { .. } => layer_norm_of_sum(x, &inputs[1], None, None, 1e-5),
            Self::BatchNorm { input } => {
                let ones = Tensor::ones(input[1], x.dtype(), x.device())?;
                Ok(batch_norm_train(x, &ones, &ones.zeros_like()?, 1e-5)?.0)
            }
            Self::Upsample { .. } => upsample_nearest(x, &[2, 2]),
            Self::Pool { .. } => avg_pool2d(x, [2, 2], [2, 2]),
            Self::Silu { .. } => activate(x, Activation::Silu),
        }
    }

    /// How a convolution moves.
    pub fn options<const D: usize>(&self) -> ConvOptions<D> {
        let Self::Convolution { kernel, stride, dilation, groups, .. } = self else {
            return ConvOptions::default();
        };
        let padding = |axis: usize| dilation * (kernel[axis] - 1) / 2;
        ConvOptions {
            stride: [*stride; D],
            dilation: [*dilation; D],
            padding: std::array::from_fn(|axis| (padding(axis), padding(axis))),
            groups: *groups,
            activation: Activation::Identity,
        }
    }

    /// What there is to do in a forward pass.
    pub fn work(&self) -> Work {
        let shapes = self.shapes();
        let sizes: Vec<f64> =
            shapes.iter().map(|dims| dims.iter().map(|dim| *dim as f64).product()).collect();
        let bytes = |written: f64| Work::Bytes(4.0 * (sizes.iter().sum::<f64>() + written));
        match self {
            Self::Convolution { input, kernel, stride, .. } => {
                let lengths = input[2..].iter().zip(*kernel).map(|(length, taps)| {
                    // Even kernels lose an element.
                    ((length - (taps + 1) % 2 - 1) / stride + 1) as f64
                });
                Work::Flops(2.0 * sizes[1] * input[0] as f64 * lengths.product::<f64>())
            }
            Self::Linear { rows, .. } => Work::Flops(2.0 * sizes[1] * *rows as f64),
            Self::Product { columns, .. } => Work::Flops(2.0 * sizes[0] * *columns as f64),
            Self::Attention { length, .. } => Work::Flops(4.0 * sizes[0] * *length as f64),
            Self::Upsample { .. } => bytes(4.0 * sizes[0]),
            Self::Pool { .. } => bytes(sizes[0] / 4.0),
            Self::GroupNorm { .. }
            | Self::LayerNorm { .. }
            | Self::BatchNorm { .. }
            | Self::Silu { .. } => bytes(sizes[0]),
        }
    }

    /// Normally distributed inputs.
    pub fn inputs(&self) -> Result<Vec<Var>> {
        let variable = |(index, dims): (usize, &Vec<usize>)| {
            let mut values = vec![0.0; dims.iter().product()];
            Stream::new(0, "bench", index as u64).fill_normal(&mut values);
            Ok(Var::from_tensor(&Tensor::from_vec(values, &**dims, &Device::Cpu)?)?)
        };
        self.shapes().iter().enumerate().map(variable).collect()
    }
}

/// Order of the square matrices whose product shows what the machine can do at most.
const PEAK_ORDER: usize = 1024;
/// Bytes that are copied to show how fast memory is: more than caches hold.
const PEAK_BYTES: usize = 1 << 28;

/// The fastest product, in FLOP/s, and the fastest copy, in bytes read and written a second, of
/// some.
pub fn peaks() -> Result<(f64, f64)> {
    let order = PEAK_ORDER;
    let square = Operation::Product { batch: 1, rows: order, depth: order, columns: order };
    let matrices: Vec<Tensor> =
        square.inputs()?.iter().map(|input| input.as_detached_tensor()).collect();
    let source = vec![1.0f32; PEAK_BYTES / size_of::<f32>()];
    let mut target = source.clone();
    let (mut product_s, mut copy_s) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..10 {
        let start = Instant::now();
        black_box(square.apply(&matrices)?);
        product_s = product_s.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let share = source.len().div_ceil(rayon::current_num_threads());
        rayon::scope(|scope| {
            for (target, source) in target.chunks_mut(share).zip(source.chunks(share)) {
                scope.spawn(|_| target.copy_from_slice(source));
            }
        });
        black_box(&mut target);
        copy_s = copy_s.min(start.elapsed().as_secs_f64());
    }
    Ok((2.0 * (order as f64).powi(3) / product_s, 2.0 * PEAK_BYTES as f64 / copy_s))
}
