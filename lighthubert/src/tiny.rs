//! A network small enough to run in no time, for tests.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use shared::nn::Weights;
use shared::rng::Stream;

use crate::config::{EncoderConfig, ExtractorMode, SupernetConfig};
use crate::network::Network;
use crate::supernet::Supernet;

/// Sizes of a supernet of width 128.
pub fn config(mode: ExtractorMode) -> SupernetConfig {
    let mut encoder = EncoderConfig::published();
    encoder.extractor.mode = mode;
    encoder.extractor.layers.iter_mut().for_each(|layer| layer.channels = 16);
    encoder.positional.kernel = 16;
    encoder.heads.size = 32;
    SupernetConfig { encoder, embed_dim: 128, ffn_embed_dim: 512, prune_positional: true }
}

/// A supernet with random weights.
pub fn supernet(mode: ExtractorMode) -> Supernet {
    let fresh = Weights::fresh(4, DType::F32, &Device::Cpu);
    Supernet::new(config(mode), &fresh).unwrap();
    // Bias and norms matter, too.
    let spread = |(name, tensor): (String, Tensor)| {
        let mut noise = vec![0.0; tensor.elem_count()];
        Stream::new(5, &name, 0).fill_normal(&mut noise);
        let noise = Tensor::from_vec(noise, tensor.dims(), &Device::Cpu).unwrap();
        (name, (tensor + noise.affine(0.1, 0.0).unwrap()).unwrap())
    };
    let tensors = fresh.state().into_iter().map(spread).collect();
    let weights = Weights::loaded(tensors, Path::new("tiny"), false, DType::F32, &Device::Cpu);
    Supernet::new(config(mode), &weights).unwrap()
}

/// A plain network of width 64 with 12 layers.
pub fn network(mode: ExtractorMode) -> Network {
    let supernet = supernet(mode);
    let mut layers = supernet.config().largest().layers().to_vec();
    for (i, layer) in layers.iter_mut().enumerate() {
        layer.heads = 1 + i % 2;
        layer.ffn = 192 + 64 * (i % 2);
    }
    let (config, tensors) = supernet.materialise(&crate::Subnet::new(64, layers)).unwrap();
    let path = Path::new("tiny");
    Network::from_tensors(config, tensors, path, false, &Device::Cpu).unwrap().0
}

/// Noise that is neither centred nor of variance 1.
pub fn noise(samples: usize, index: u64) -> Vec<f32> {
    let mut stream = Stream::new(2, "noise", index);
    (0..samples).map(|_| 0.02 + 0.1 * stream.normal() as f32).collect()
}
