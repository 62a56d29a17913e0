//! Batch-norm statistics for a network that was cut out of a supernet.

use candle_core::Tensor;
use shared::{Error, Result};

use crate::subnet::Subnet;

/// Feeds `batches` of features `[B, features, T]` through `network`, so that its running
/// statistics follow what it now sees, and returns how many there were. The old statistics fade by
/// 0.9 a batch: 50 batches leave half a percent of them.
///
/// # Errors
/// Those of `batches` and of [`Subnet::forward`]; when there is no batch.
pub fn recalibrate(
    network: &Subnet,
    batches: impl IntoIterator<Item = Result<Tensor>>,
) -> Result<usize> {
    let mut count = 0;
    for batch in batches {
        network.forward(&batch?, true)?;
        count += 1;
    }
    if count == 0 {
        return Err(Error::Argument("recalibration needs at least one batch".into()));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use shared::nn::Weights;

    use super::*;
    use crate::NetworkConfig;

    #[test]
    fn old_statistics_fade() {
        let config = NetworkConfig {
            features: 4,
            embedding: 6,
            architecture: "1.8.8.1.1.8".parse().unwrap(),
        };
        let weights = Weights::fresh(1, DType::F32, &Device::Cpu);
        let network = Subnet::new(config, &weights).unwrap();
        let mean = || weights.state()["layer1.bn.running_mean"].to_vec1::<f32>().unwrap();
        let values: Vec<f32> = (0..2 * 4 * 5).map(|i| (i % 7) as f32).collect();
        let batch = Tensor::from_vec(values, (2, 4, 5), &Device::Cpu).unwrap();
        assert_eq!(recalibrate(&network, [Ok(batch.clone())]).unwrap(), 1);
        // From 0, by a tenth of the way; then ever nearer.
        let first = mean();
        assert_eq!(recalibrate(&network, (0..99).map(|_| Ok(batch.clone()))).unwrap(), 99);
        for (first, last) in first.iter().zip(mean()) {
            assert!((10.0 * first - last).abs() <= 1e-3 * last.abs(), "{first} {last}");
        }
    }

    #[test]
    fn no_batches_and_broken_batches_are_errors() {
        let config = NetworkConfig::published("1.8.8.1.1.8".parse().unwrap());
        let weights = Weights::fresh(1, DType::F32, &Device::Cpu);
        let network = Subnet::new(config, &weights).unwrap();
        assert!(recalibrate(&network, []).is_err());
        let broken = Error::Argument("unreadable".into());
        assert!(recalibrate(&network, [Err(broken)]).is_err());
    }
}
