//! A first convolution that hears frequencies from the beginning.

use std::f64::consts::TAU;

use candle_core::Tensor;
use shared::nn::Weights;
use shared::{Error, Result};

use crate::config::{ExtractorConfig, ExtractorMode, RATE_HZ};

/// Lowest and highest centre frequency.
const RANGE_HZ: [f64; 2] = [80.0, 7400.0];
/// From here on gains rise with frequency, against the fall of the spectrum of speech.
const CORNER_HZ: f64 = 500.0;
/// First gain of the norm after the convolution, at which GELU tells loud bands from soft ones.
const NORM_GAIN: f64 = 3.0;

fn mel(hz: f64) -> f64 {
    1127.0 * (1.0 + hz / 700.0).ln()
}

fn hz(mel: f64) -> f64 {
    700.0 * ((mel / 1127.0).exp() - 1.0)
}

/// Makes the first convolution of a layer-normed extractor, whose parameters are in `weights`, a bank of
/// band-pass filters at mel-spaced frequencies: cosines and sines under Hann windows, each with both signs,
/// so that GELU of the four adds up to something like the magnitude (as Gabor filters in Zeghidour et
/// al. 2021, LEAF, section 3.1, without the square). Training changes it like any other start.
///
/// # Errors
/// [`Error::Argument`] when the extractor has instance norms, or a first convolution with too few channels
/// or taps.
pub(super) fn fill(config: &ExtractorConfig, weights: &Weights) -> Result<()> {
    let first = config.layers.first().filter(|layer| layer.channels >= 32 && layer.kernel >= 80);
    let Some(first) = first.filter(|_| config.mode == ExtractorMode::LayerNorm) else {
        return Err(Error::Argument(
            "a filterbank needs an extractor with layer norms whose first convolution has at least 32 \
             channels and 80 taps"
                .into(),
        ));
    };
    for parameter in weights.variables() {
        let var = &parameter.var;
        match parameter.name.strip_prefix(weights.prefix()) {
            Some(".conv_layers.0.0.weight") => {
                let mut values: Vec<f32> = var.flatten_all()?.to_vec1()?;
                let filters = filters(first.channels / 4, first.kernel);
                values.iter_mut().zip(filters).for_each(|(value, filter)| *value = filter as f32);
                var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
            }
            Some(".conv_layers.0.2.1.weight") => {
                var.set(&var.as_tensor().ones_like()?.affine(NORM_GAIN, 0.0)?)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The filters `[4 bands, kernel]` in row-major order.
fn filters(bands: usize, kernel: usize) -> Vec<f64> {
    let rate_hz = f64::from(RATE_HZ);
    let [low, high] = RANGE_HZ.map(mel);
    let step = (high - low) / (bands - 1).max(1) as f64;
    let mut filters = vec![];
    for band in 0..bands {
        let centre = low + step * band as f64;
        let (centre_hz, width_hz) = (hz(centre), hz(centre + step) - hz(centre - step));
        // A Hann window of n samples is about 2 rate / n wide where it is down to a half.
        let taps = (2.0 * rate_hz / width_hz).clamp(0.6 * kernel as f64, kernel as f64);
        let gain = (centre_hz / CORNER_HZ).max(1.0) / taps.sqrt();
        for phase in 0..4 {
            filters.extend((0..kernel).map(|tap| {
                let time = tap as f64 - (kernel - 1) as f64 / 2.0;
                let window = match time.abs() < taps / 2.0 {
                    true => 0.5 + 0.5 * (TAU * time / taps).cos(),
                    false => 0.0,
                };
                let angle = TAU * centre_hz * time / rate_hz + TAU * f64::from(phase) / 4.0;
                gain * window * angle.cos()
            }));
        }
    }
    filters
}
