//! VGGish (Hershey et al., "CNN architectures for large-scale audio classification", 2017), the audio
//! network behind FAD.

use candle_core::{Device, Tensor};
use shared::dsp::{Complex, Stft, StftOptions, Window, WindowShape};
use shared::nn::functional::{Activation, ConvOptions};
use shared::nn::{Conv2d, Linear, Weights};
use shared::{Error, Result};

use super::max_pool::max_along;

/// Sampling rate of the sounds that the network hears.
pub const RATE_HZ: u32 = 16_000;
const FFT_SAMPLES: usize = 512;
const HOP_SAMPLES: usize = 160;
const WINDOW_SAMPLES: usize = 400;
/// Mel bands, and the edges of the first and the last.
const BANDS: usize = 64;
const LOW_HZ: f64 = 125.0;
const HIGH_HZ: f64 = 7_500.0;
/// Added to the magnitude of a band before its logarithm.
const LOG_OFFSET: f32 = 0.01;
/// Frames of an example, 0.96 s.
const EXAMPLE_FRAMES: usize = 96;

/// Place in the list of layers and channels of the convolutions; after those with `true` comes a pool.
const CONVOLUTIONS: [(usize, usize, bool); 6] = [
    (0, 64, true),
    (3, 128, true),
    (6, 256, false),
    (8, 256, true),
    (11, 512, false),
    (13, 512, true),
];

/// The network, with the names of the published `vggish-10086976.pth`.
#[derive(Debug)]
pub struct Vggish {
    convolutions: Vec<Conv2d>,
    linear: [Linear; 3],
    stft: Stft<f32>,
    /// For each band the weight of each bin.
    filters: Vec<Vec<f32>>,
}

impl Vggish {
    /// What its features are, in words.
    pub const DEFINITION: &'static str = "VGGish at 16 kHz after the last ReLU, \
        without PCA, mean over examples of 0.96 s one after another";

    /// The network with all channels but the last divided by `divisor`, which is 1 for the published
    /// weights.
    ///
    /// # Errors
    /// [`Error::Tensors`] when the weights are another network's.
    pub fn new(weights: &Weights, divisor: usize) -> Result<Self> {
        let thin = |channels: usize| channels.div_ceil(divisor.max(1));
        let options = ConvOptions {
            padding: [(1, 1); 2],
            activation: Activation::Relu,
            ..ConvOptions::default()
        };
        let features = weights.at("features");
        let mut channels = 1;
        let mut convolutions = vec![];
        for (place, width, _) in CONVOLUTIONS {
            let width = thin(width);
            let at = features.at(place);
            convolutions.push(Conv2d::new(&at, channels, width, [3, 3], true, options.clone())?);
            channels = width;
        }
        let embeddings = weights.at("embeddings");
        // Four pools halve both sides.
        let inputs = channels * (EXAMPLE_FRAMES / 16) * (BANDS / 16);
        let linear = [
            Linear::new(&embeddings.at(0), inputs, thin(4096), true)?,
            Linear::new(&embeddings.at(2), thin(4096), thin(4096), true)?,
            Linear::new(&embeddings.at(4), thin(4096), 128, true)?,
        ];
        weights.check(false)?;
        let stft = Stft::new(StftOptions {
            fft_samples: FFT_SAMPLES,
            hop_samples: HOP_SAMPLES,
            window_samples: WINDOW_SAMPLES,
            window: Window::periodic(WindowShape::Hann),
            centered: false,
        })?;
        Ok(Self { convolutions, linear, filters: filters(stft.bins()), stft })
    }

    /// The features `[128]` of a sound at 16 kHz: the mean of its examples.
    ///
    /// # Errors
    /// [`Error::TooShort`] below 0.96 s.
    pub fn features(&self, samples: &[f32]) -> Result<Vec<f32>> {
        Ok(self.examples(samples)?.mean(0)?.to_vec1()?)
    }

    /// The output `[E, 128]` for each whole example in a sound at 16 kHz.
    ///
    /// # Errors
    /// As [`Vggish::features`].
    pub fn examples(&self, samples: &[f32]) -> Result<Tensor> {
        let levels = self.levels(samples)?;
        let examples = levels.len() / (EXAMPLE_FRAMES * BANDS);
        if examples == 0 {
            let need_samples = WINDOW_SAMPLES + (EXAMPLE_FRAMES - 1) * HOP_SAMPLES;
            return Err(Error::TooShort { have_samples: samples.len(), need_samples });
        }
        let whole = levels.into_iter().take(examples * EXAMPLE_FRAMES * BANDS).collect();
        let mut x = Tensor::from_vec(whole, (examples, 1, EXAMPLE_FRAMES, BANDS), &Device::Cpu)?;
        for (convolution, (_, _, is_pooled)) in self.convolutions.iter().zip(CONVOLUTIONS) {
            x = convolution.forward(&x)?;
            if is_pooled {
                x = max_along(&max_along(&x, 2, 2, 2)?, 3, 2, 2)?;
            }
        }
        let mut x = x.permute((0, 2, 3, 1))?.flatten_from(1)?.contiguous()?;
        for linear in &self.linear {
            x = linear.forward_with(&x, Activation::Relu)?;
        }
        Ok(x)
    }

    /// The logarithm of the magnitude in each band, frame after frame.
    fn levels(&self, samples: &[f32]) -> Result<Vec<f32>> {
        // A frame is as long as the window; the transform reads as many zeros on either side of it.
        let zeros = vec![0.0; (FFT_SAMPLES - WINDOW_SAMPLES) / 2];
        let samples = [&zeros, samples, &zeros].concat();
        let mut levels = vec![];
        self.stft.for_each_frame(&samples, |_, spectrum| {
            let magnitudes: Vec<f32> =
                spectrum.iter().map(Complex::norm_sqr).map(f32::sqrt).collect();
            let level = |filter: &Vec<f32>| {
                let sum: f32 = filter.iter().zip(&magnitudes).map(|(a, b)| a * b).sum();
                (sum + LOG_OFFSET).ln()
            };
            levels.extend(self.filters.iter().map(level));
        })?;
        Ok(levels)
    }
}

/// Triangles whose sides are straight over mel (`1127 ln(1 + f / 700)`), not over frequency; the bin of
/// 0 Hz has no weight.
fn filters(bins: usize) -> Vec<Vec<f32>> {
    let mel = |hertz: f64| 1127.0 * (1.0 + hertz / 700.0).ln();
    let (low, high) = (mel(LOW_HZ), mel(HIGH_HZ));
    let corner = |index: usize| low + (high - low) * index as f64 / (BANDS + 1) as f64;
    let filter = |band: usize| {
        let [left, middle, right] = [0, 1, 2].map(|offset| corner(band + offset));
        let weight = |bin: usize| {
            let here = mel(bin as f64 * f64::from(RATE_HZ) / 2.0 / (bins - 1) as f64);
            let slope = ((here - left) / (middle - left)).min((right - here) / (right - middle));
            if bin == 0 { 0.0 } else { slope.max(0.0) as f32 }
        };
        (0..bins).map(weight).collect()
    };
    (0..BANDS).map(filter).collect()
}
