//! I3D (Carreira and Zisserman, "Quo vadis, action recognition?", 2017), the video network behind FVD.

use candle_core::{D, Device, Tensor};
use shared::media::image::Frames;
use shared::nn::functional::{Activation, ConvOptions, activate, avg_pool2d, conv3d};
use shared::nn::{BatchNorm1d, Init, Weights};
use shared::{Error, Result};

use super::max_pool::max_along;
use crate::clip::video_tensor;
use crate::super_resolution::resize_bilinear;

/// Classes of Kinetics-400.
const CLASSES: usize = 400;
/// Width and height of the pictures that the network sees.
const SIDE_PIXELS: usize = 224;
/// Rows and columns of the last features, over which they are averaged, and frames that go together.
const LAST_SIDE: usize = 7;
const LAST_FRAMES: usize = 2;
const EPS: f64 = 1e-5;

/// Names and channels of the inception blocks: of the single kernel, of the two pairs of a reduction
/// and a 3 x 3 x 3 kernel, and after the pool.
const MIXED: [(&str, [usize; 6]); 9] = [
    ("Mixed_3b", [64, 96, 128, 16, 32, 32]),
    ("Mixed_3c", [128, 128, 192, 32, 96, 64]),
    ("Mixed_4b", [192, 96, 208, 16, 48, 64]),
    ("Mixed_4c", [160, 112, 224, 24, 64, 64]),
    ("Mixed_4d", [128, 128, 256, 24, 64, 64]),
    ("Mixed_4e", [112, 144, 288, 32, 64, 64]),
    ("Mixed_4f", [256, 160, 320, 32, 128, 128]),
    ("Mixed_5b", [256, 160, 320, 32, 128, 128]),
    ("Mixed_5c", [384, 192, 384, 48, 128, 128]),
];

/// The network, with the names of the published `i3d_pretrained_400.pt`.
#[derive(Debug)]
pub struct I3d {
    stem: [Unit; 3],
    mixed: Vec<Mixed>,
    logits: Unit,
}

impl I3d {
    /// What its features are, in words.
    pub const DEFINITION: &'static str = "logits of I3D for Kinetics-400, frames bilinearly \
        enlarged to 224 x 224 and from -1 to 1, mean over time";

    /// The network with all channels divided by `divisor`, which is 1 for the published weights.
    ///
    /// # Errors
    /// [`Error::Tensors`] when the weights are another network's.
    pub fn new(weights: &Weights, divisor: usize) -> Result<Self> {
        let thin = |channels: usize| channels.div_ceil(divisor.max(1));
        let stem = [
            Unit::new(&weights.at("Conv3d_1a_7x7"), 3, thin(64), 7, 2)?,
            Unit::new(&weights.at("Conv3d_2b_1x1"), thin(64), thin(64), 1, 1)?,
            Unit::new(&weights.at("Conv3d_2c_3x3"), thin(64), thin(192), 3, 1)?,
        ];
        let mut channels = thin(192);
        let mut mixed = vec![];
        for (name, widths) in MIXED {
            let widths = widths.map(thin);
            mixed.push(Mixed::new(&weights.at(name), channels, widths)?);
            let [single, _, first, _, second, pooled] = widths;
            channels = single + first + second + pooled;
        }
        let logits = Unit::last(&weights.at("logits"), channels, CLASSES.div_ceil(divisor.max(1)))?;
        weights.check(false)?;
        Ok(Self { stem, mixed, logits })
    }

    /// The features `[400]` of a clip.
    ///
    /// # Errors
    /// [`Error::Shape`] for fewer than 9 frames.
    pub fn features(&self, frames: &Frames) -> Result<Vec<f32>> {
        let video = resize_bilinear(&video_tensor(frames, &Device::Cpu)?, [SIDE_PIXELS; 2])?;
        let video = video.transpose(0, 1)?.unsqueeze(0)?.contiguous()?;
        Ok(self.logits(&video)?.squeeze(0)?.to_vec1()?)
    }

    /// The logits `[B, 400]`, their mean over time, of videos `x` `[B, 3, F, 224, 224]` from -1 to 1.
    ///
    /// # Errors
    /// [`Error::Shape`] when the videos are too small or too short.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.stem;
        let mut x = pool(&first.forward(x)?, [1, 3, 3], [1, 2, 2])?;
        x = third.forward(&second.forward(&x)?)?;
        x = pool(&x, [1, 3, 3], [1, 2, 2])?;
        for (mixed, (name, _)) in self.mixed.iter().zip(MIXED) {
            x = match name {
                "Mixed_4b" => pool(&x, [3, 3, 3], [2, 2, 2])?,
                "Mixed_5b" => pool(&x, [2, 2, 2], [2, 2, 2])?,
                _ => x,
            };
            x = mixed.forward(&x)?;
        }
        let (batch, channels, frames, height, width) = x.dims5()?;
        if frames < LAST_FRAMES || height < LAST_SIDE || width < LAST_SIDE {
            let expected = "at least 9 frames of 224 x 224 pixels";
            return Err(Error::shape("last features of I3D", expected, x.dims()));
        }
        let planes = x.reshape((batch * channels, frames, height, width))?;
        let planes = avg_pool2d(&planes, [LAST_SIDE; 2], [1, 1])?;
        let (_, _, height, width) = planes.dims4()?;
        let x = planes.reshape((batch, channels, frames, height, width))?;
        let pairs =
            (x.narrow(2, 0, frames - 1)? + x.narrow(2, 1, frames - 1)?)?.affine(0.5, 0.0)?;
        let logits = self.logits.forward(&pairs)?;
        // The published network takes squares of 224 pixels, which leave one place.
        Ok(logits.flatten_from(2)?.mean(D::Minus1)?)
    }
}

/// Four branches side by side.
#[derive(Debug)]
struct Mixed {
    single: Unit,
    pairs: [[Unit; 2]; 2],
    after_pool: Unit,
}

impl Mixed {
    fn new(weights: &Weights, channels: usize, widths: [usize; 6]) -> Result<Self> {
        let [single, reduced_1, first, reduced_2, second, pooled] = widths;
        let unit = |name: &str, from, to, kernel| Unit::new(&weights.at(name), from, to, kernel, 1);
        Ok(Self {
            single: unit("b0", channels, single, 1)?,
            pairs: [
                [unit("b1a", channels, reduced_1, 1)?, unit("b1b", reduced_1, first, 3)?],
                [unit("b2a", channels, reduced_2, 1)?, unit("b2b", reduced_2, second, 3)?],
            ],
            after_pool: unit("b3b", channels, pooled, 1)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pair = |[reduce, widen]: &[Unit; 2]| widen.forward(&reduce.forward(x)?);
        let [first, second] = &self.pairs;
        let pooled = self.after_pool.forward(&pool(x, [3, 3, 3], [1, 1, 1])?)?;
        Ok(Tensor::cat(&[self.single.forward(x)?, pair(first)?, pair(second)?, pooled], 1)?)
    }
}

/// Convolution, batch norm and ReLU; the last one has a bias instead of the other two.
#[derive(Debug)]
struct Unit {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: Option<BatchNorm1d>,
    kernel: usize,
    stride: usize,
}

impl Unit {
    fn new(
        weights: &Weights,
        from: usize,
        to: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<Self> {
        let norm = Some(BatchNorm1d::new(&weights.at("bn"), to, EPS, 0.1)?);
        let weight = Self::weight(weights, from, to, kernel)?;
        Ok(Self { weight, bias: None, norm, kernel, stride })
    }

    fn last(weights: &Weights, from: usize, to: usize) -> Result<Self> {
        let weight = Self::weight(weights, from, to, 1)?;
        let bias = Some(weights.at("conv3d").parameter("bias", to, Init::Constant(0.0))?);
        Ok(Self { weight, bias, norm: None, kernel: 1, stride: 1 })
    }

    fn weight(weights: &Weights, from: usize, to: usize, kernel: usize) -> Result<Tensor> {
        let fan_in = Init::fan_in(from * kernel.pow(3));
        weights.at("conv3d").parameter("weight", vec![to, from, kernel, kernel, kernel], fan_in)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, frames, height, width) = x.dims5()?;
        let options = ConvOptions {
            stride: [self.stride; 3],
            padding: [frames, height, width].map(|size| same(size, self.kernel, self.stride)),
            ..ConvOptions::default()
        };
        let y = conv3d(x, &self.weight, self.bias.as_ref(), &options)?;
        let Some(norm) = &self.norm else { return Ok(y) };
        let normed = norm.forward(&y.flatten_from(2)?, false)?;
        Ok(activate(&normed, Activation::Relu)?.reshape(y.shape())?)
    }
}

/// Zeros before and after a dimension so that a window begins at every `stride`-th place of it, as
/// TensorFlow adds them: an odd one after.
fn same(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let covered = match size % stride {
        0 => stride,
        rest => rest,
    };
    let zeros = kernel.saturating_sub(covered);
    (zeros / 2, zeros - zeros / 2)
}

/// Maxima over windows, where the zeros around the input count as values.
fn pool(x: &Tensor, kernel: [usize; 3], stride: [usize; 3]) -> Result<Tensor> {
    let mut x = x.clone();
    for (axis, (kernel, stride)) in (2..).zip(kernel.into_iter().zip(stride)) {
        let (before, after) = same(x.dim(axis)?, kernel, stride);
        x = max_along(&x.pad_with_zeros(axis, before, after)?, axis, kernel, stride)?;
    }
    Ok(x)
}
