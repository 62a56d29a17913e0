//! Models small enough to run in no time, with random weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use mmdiffusion::{
    DiffusionFlags, ModelCard, ModelFile, NetworkConfig, SuperResolutionConfig, UnetConfig,
};
use shared::nn::{Precision, Weights};
use shared::rng::Stream;

/// Settings of a coupled network for clips of 4 frames of 16 x 16 pixels and 0.4 s of sound.
pub fn coupled() -> NetworkConfig {
    NetworkConfig::Coupled(UnetConfig {
        video_size: [4, 3, 16, 16],
        audio_size: [1, 6400],
        num_channels: 32,
        num_res_blocks: 1,
        num_head_channels: Some(16),
        channel_mult: vec![1, 1],
        cross_attention_resolutions: vec![2],
        cross_attention_windows: vec![2],
        video_attention_resolutions: vec![2],
        ..UnetConfig::published()
    })
}

/// Settings of a super-resolution network from 16 x 16 to 32 x 32 pixels.
pub fn super_resolution() -> NetworkConfig {
    NetworkConfig::SuperResolution(SuperResolutionConfig {
        large_size: 32,
        small_size: 16,
        num_channels: 32,
        num_res_blocks: 1,
        attention_resolutions: vec![2],
        channel_mult: vec![1, 1],
        ..SuperResolutionConfig::default()
    })
}

/// Random tensors of a network, those included that are 0 before any training.
pub fn tensors(network: &NetworkConfig) -> BTreeMap<String, Tensor> {
    let weights = Weights::fresh(1, DType::F32, &Device::Cpu);
    let built = network.build(&weights, Precision::F32);
    built.unwrap_or_else(|error| panic!("{error}"));
    let mut tensors = weights.state();
    for (name, tensor) in &mut tensors {
        let mut noise = vec![0.0; tensor.elem_count()];
        Stream::new(1, name, 0).fill_normal(&mut noise);
        let noise = Tensor::from_vec(noise, tensor.dims(), &Device::Cpu)
            .and_then(|noise| &*tensor + noise.affine(0.05, 0.0)?);
        *tensor = noise.unwrap_or_else(|error| panic!("{error}"));
    }
    tensors
}

/// Writes a model file.
pub fn write(path: &Path, network: NetworkConfig, tensors: &BTreeMap<String, Tensor>) {
    let card = ModelCard::new(network, DiffusionFlags::default());
    let written = ModelFile::new(card, tensors, DType::F32).and_then(|it| it.write(path, false));
    written.unwrap_or_else(|error| panic!("{error}"));
}
