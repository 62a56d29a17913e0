//! Published networks whose outputs stand for clips, loaded from their published weight files.

mod i3d;
mod max_pool;
mod vggish;

use std::path::Path;

use candle_core::{DType, Device};
use sha2::{Digest, Sha256};
use shared::checkpoint;
use shared::limits::Limits;
use shared::nn::Weights;
use shared::{Error, Result};

pub use i3d::I3d;
pub use vggish::{RATE_HZ as VGGISH_RATE_HZ, Vggish};

/// The networks that are used.
#[derive(Debug, Default)]
pub struct Extractors {
    /// For pictures.
    pub i3d: Option<I3d>,
    /// For sounds.
    pub vggish: Option<Vggish>,
    /// Hashes of the weights, for telling measurements apart.
    pub(super) hashes: Vec<String>,
}

impl Extractors {
    /// The networks in the given weight files.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when a file cannot be read; [`Error::Tensors`] when its tensors are not
    /// those of the network; [`Error::NonFinite`].
    pub fn read(
        i3d: Option<&Path>,
        vggish: Option<&Path>,
        limits: &Limits,
        device: &Device,
    ) -> Result<Self> {
        let mut hashes = vec![];
        let mut weights = |path: &Path| -> Result<Weights> {
            let checkpoint = checkpoint::read(path, limits)?;
            checkpoint::check_finite(&checkpoint.tensors, path)?;
            hashes.push(hex(&Sha256::digest(std::fs::read(path).map_err(Error::io(path))?)));
            Ok(Weights::loaded(checkpoint.tensors, path, false, DType::F32, device))
        };
        let i3d = i3d.map(|path| I3d::new(&weights(path)?, 1)).transpose()?;
        let vggish = vggish.map(|path| Vggish::new(&weights(path)?, 1)).transpose()?;
        Ok(Self { i3d, vggish, hashes })
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Tensor;
    use serde::Deserialize;

    use super::*;

    /// `reference.json` has the outputs of the networks written in PyTorch, with channels divided by
    /// `divisor` and these weights.
    #[derive(Deserialize)]
    pub struct Reference {
        pub divisor: usize,
        pub i3d_shape: [usize; 5],
        pub i3d: Vec<Vec<f64>>,
        pub vggish_samples: usize,
        pub vggish: Vec<Vec<f64>>,
    }

    /// Number `index` of tensor `place`, from -1 to 1, by arithmetic that is the same everywhere.
    pub fn number(place: usize, index: usize) -> f64 {
        let mixed = (index as u64 + 1).wrapping_mul(2_654_435_761) ^ ((place as u64 + 1) * 40_503);
        let mixed = (mixed & 0xffff_ffff).wrapping_mul(2_246_822_519) & 0xffff_ffff;
        (mixed ^ (mixed >> 15)) as f64 / 2_147_483_648.0 - 1.0
    }

    /// Weights of the shapes that `build` asks for, in the order of their names.
    pub fn weights(build: impl Fn(&Weights) -> Result<()>) -> Weights {
        let shapes = Weights::shapes();
        build(&shapes).unwrap();
        let fill = |(place, (name, tensor)): (usize, (String, Tensor))| {
            let dims = tensor.dims().to_vec();
            let fan_in = dims.iter().skip(1).product::<usize>().max(1) as f64;
            let value = |index| {
                let number = number(place, index);
                let is_scale = name.ends_with("bn.weight") || name.ends_with("running_var");
                (if is_scale {
                    1.0 + 0.5 * number
                } else if dims.len() == 1 {
                    0.3 * number
                } else {
                    2.4 * number / fan_in.sqrt()
                }) as f32
            };
            let values = (0..tensor.elem_count()).map(value).collect();
            let filled = match name.ends_with("num_batches_tracked") {
                true => Tensor::new(3i64, &Device::Cpu).unwrap(),
                false => Tensor::from_vec(values, dims, &Device::Cpu).unwrap(),
            };
            (name, filled)
        };
        let tensors: BTreeMap<String, Tensor> =
            shapes.state().into_iter().enumerate().map(fill).collect();
        Weights::loaded(tensors, Path::new("test"), false, DType::F32, &Device::Cpu)
    }

    fn agree(found: &[Vec<f32>], expected: &[Vec<f64>]) {
        assert_eq!((found.len(), found[0].len()), (expected.len(), expected[0].len()));
        let largest = expected.iter().flatten().fold(0.0f64, |most, it| most.max(it.abs()));
        for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((f64::from(*a) - b).abs() < 1e-4 * largest, "{a} {b}");
        }
    }

    fn reference() -> Reference {
        serde_json::from_str(include_str!("reference.json")).unwrap()
    }

    #[test]
    fn i3d_agrees_with_pytorch() {
        let Reference { divisor, i3d_shape, i3d, .. } = reference();
        let weights = weights(|weights| I3d::new(weights, divisor).map(drop));
        let network = I3d::new(&weights, divisor).unwrap();
        let values = (0..i3d_shape.iter().product()).map(|index| number(99, index) as f32);
        let video = Tensor::from_vec(values.collect(), &i3d_shape, &Device::Cpu).unwrap();
        agree(&network.logits(&video).unwrap().to_vec2().unwrap(), &i3d);
    }

    #[test]
    fn vggish_agrees_with_pytorch() {
        let Reference { divisor, vggish_samples, vggish, .. } = reference();
        let weights = weights(|weights| Vggish::new(weights, divisor).map(drop));
        let network = Vggish::new(&weights, divisor).unwrap();
        let tone = |index: usize| (0.4 * (0.05 * index as f64).sin()) + 0.2 * number(98, index);
        let samples: Vec<f32> = (0..vggish_samples).map(|index| tone(index) as f32).collect();
        agree(&network.examples(&samples).unwrap().to_vec2().unwrap(), &vggish);
    }

    #[test]
    fn other_weights_are_refused_with_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i3d.safetensors");
        let tensors = BTreeMap::from([(
            "logits.conv3d.bias".to_owned(),
            Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap(),
        )]);
        checkpoint::safetensors::write(&path, &tensors, &BTreeMap::new(), false).unwrap();
        let read = |i3d, vggish| Extractors::read(i3d, vggish, &Limits::default(), &Device::Cpu);
        let error = read(Some(&path), None).unwrap_err().to_string();
        for words in ["i3d.safetensors", "Conv3d_2b_1x1.conv3d.weight", "logits.conv3d.bias"] {
            assert!(error.contains(words), "{words}: {error}");
        }
        let error = read(None, Some(&path)).unwrap_err().to_string();
        assert!(error.contains("features.0.weight"), "{error}");
        assert!(read(None, Some(Path::new("missing"))).is_err());
    }
}
