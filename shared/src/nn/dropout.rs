//! Dropout of which each mask can be drawn again.

use candle_core::Tensor;

use crate::rng::Stream;
use crate::{Error, Result};

/// Leaves out features in training and scales the others up (Srivastava et al. 2014). What is left out
/// depends on the seed, the layer and the number of the sample alone, not on the batch it is in, so
/// that what was forgotten can be computed again.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropout {
    rate: f64,
    seed: u64,
    samples: Vec<u64>,
}

impl Dropout {
    /// Leaves out a share `rate` of the features of the samples of these numbers.
    ///
    /// # Errors
    /// [`Error::Argument`] when `rate` is not in 0..1.
    pub fn new(rate: f64, seed: u64, samples: &[u64]) -> Result<Self> {
        if (0.0..1.0).contains(&rate) {
            return Ok(Self { rate, seed, samples: samples.to_vec() });
        }
        Err(Error::Argument(format!("dropout is {rate}, expected 0 to below 1")))
    }

    /// `x [B, ...]` after the layer of a name, of which each layer has its own.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are as many samples as [`Dropout::new`] was told.
    pub fn forward(&self, x: &Tensor, layer: &str) -> Result<Tensor> {
        if self.rate == 0.0 {
            return Ok(x.clone());
        }
        if x.dims().first() != Some(&self.samples.len()) {
            let expected = format!("[{}, ...]", self.samples.len());
            return Err(Error::shape("input of dropout", expected, x.dims()));
        }
        let features = x.elem_count() / self.samples.len().max(1);
        let purpose = format!("dropout of {layer}");
        let scale = (1.0 / (1.0 - self.rate)) as f32;
        let threshold = (self.rate * f64::from(u32::MAX)) as u32;
        let mut mask = Vec::with_capacity(x.elem_count());
        for sample in &self.samples {
            let mut stream = Stream::new(self.seed, &purpose, *sample);
            let halves = std::iter::repeat_with(|| {
                let bits = stream.bits();
                [bits as u32, (bits >> 32) as u32]
            });
            let draws = halves.flatten().take(features);
            mask.extend(draws.map(|draw| if draw < threshold { 0.0 } else { scale }));
        }
        let mask = Tensor::from_vec(mask, x.shape(), x.device())?;
        Ok((x * mask.to_dtype(x.dtype())?)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_share_of_the_features_is_left_out_and_the_mean_stays() {
        let x = Tensor::ones((3, 50, 201), DType::F32, &Device::Cpu).unwrap();
        let values = |rate, samples: &[u64], layer| -> Vec<f32> {
            let dropout = Dropout::new(rate, 1, samples).unwrap();
            let x = x.narrow(0, 0, samples.len()).unwrap();
            dropout.forward(&x, layer).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        for rate in [0.0, 0.1, 0.5] {
            let y = values(rate, &[4, 9, 2], "a");
            let zeros = y.iter().filter(|y| **y == 0.0).count() as f64 / y.len() as f64;
            assert!((zeros - rate).abs() < 0.01, "{zeros}");
            let mean = y.iter().sum::<f32>() / y.len() as f32;
            assert!((mean - 1.0).abs() < 0.02, "{mean}");
            // A sample is the same in another batch.
            assert_eq!(values(rate, &[9], "a"), y[50 * 201..2 * 50 * 201]);
        }
        assert_ne!(values(0.5, &[9], "a"), values(0.5, &[9], "b"));
        assert_ne!(values(0.5, &[9], "a"), values(0.5, &[8], "a"));
        assert!(Dropout::new(1.0, 1, &[0]).is_err());
        assert!(Dropout::new(0.5, 1, &[0]).unwrap().forward(&x, "a").is_err());
    }
}
