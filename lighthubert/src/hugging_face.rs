//! Networks in the layout of Hugging Face's `HubertModel`: a folder with `config.json` and
//! `model.safetensors`.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use shared::checkpoint::{self, safetensors};
use shared::files::{check_output, read_text, write_atomic};
use shared::limits::Limits;
use shared::{Error, Result};

use crate::config::{
    ConvLayer, EncoderConfig, ExtractorConfig, ExtractorMode, FfnActivation, HeadsConfig,
    NetworkConfig, PositionalConfig, RATE_HZ,
};
use crate::subnet::{HEAD_DIM, LayerShape, Subnet, Window};

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const MODEL: &str = "model.safetensors";

/// Names of a transformer layer's parts: ours, theirs.
const LAYER_PARTS: [(&str, &str); 8] = [
    ("self_attn.q_proj", "attention.q_proj"),
    ("self_attn.k_proj", "attention.k_proj"),
    ("self_attn.v_proj", "attention.v_proj"),
    ("self_attn.out_proj", "attention.out_proj"),
    ("self_attn_layer_norm", "layer_norm"),
    ("fc1", "feed_forward.intermediate_dense"),
    ("fc2", "feed_forward.output_dense"),
    ("final_layer_norm", "final_layer_norm"),
];
/// Names of the other parts: ours, theirs.
const PARTS: [(&str, &str); 3] = [
    ("layer_norm", "feature_projection.layer_norm"),
    ("post_extract_proj", "feature_projection.projection"),
    ("encoder.layer_norm", "encoder.layer_norm"),
];
const POSITIONAL: &str = "encoder.pos_conv.0.weight";
const MAGNITUDES: [&str; 2] = [
    "encoder.pos_conv_embed.conv.weight_g",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
];
const DIRECTIONS: [&str; 2] = [
    "encoder.pos_conv_embed.conv.weight_v",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
];

/// A network out of such a folder.
pub struct Imported {
    /// Its sizes.
    pub config: NetworkConfig,
    /// Its tensors, under the names of [`crate::Network`].
    pub tensors: BTreeMap<String, Tensor>,
    /// What was left out, a sentence each.
    pub notes: Vec<String>,
}

/// Whether there is such a model in `folder`.
pub fn is_model(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

/// The network in `folder`; a `HubertForCTC` without its last layer.
///
/// # Errors
/// [`Error::Checkpoint`] when the configuration is of another model or has settings that are not
/// supported here; [`Error::Io`]; those of reading the tensors. Tensors that are missing or of another
/// shape are found when the network is built.
pub fn read(folder: &Path, limits: &Limits) -> Result<Imported> {
    let path = folder.join(CONFIG);
    let json = |path: &Path| -> Result<Value> {
        let text = read_text(path, limits)?;
        serde_json::from_str(&text).map_err(|error| Error::checkpoint(path, error.to_string()))
    };
    let settings = json(&path)?;
    let preprocessor = folder.join(PREPROCESSOR);
    let normalise = match preprocessor.is_file() {
        true => json(&preprocessor)?.get("do_normalize").and_then(Value::as_bool),
        false => None,
    };
    let config =
        config_of(&settings, normalise).map_err(|reason| Error::checkpoint(&path, reason))?;
    let path = folder.join(MODEL);
    let read = checkpoint::read(&path, limits)?;
    checkpoint::check_finite(&read.tensors, &path)?;
    let mut notes = read.notes;
    let mut tensors = BTreeMap::new();
    let mut rest: BTreeMap<String, Tensor> = read.tensors.into_iter().map(without_prefix).collect();
    for (ours, theirs) in names(&config) {
        if let Some(tensor) = rest.remove(&theirs) {
            tensors.insert(ours, tensor);
        }
    }
    let [magnitude, direction] =
        [MAGNITUDES, DIRECTIONS].map(|names| names.into_iter().find_map(|name| rest.remove(name)));
    if let (Some(magnitude), Some(direction)) = (magnitude, direction) {
        tensors.insert(POSITIONAL.into(), baked(&magnitude, &direction)?);
    }
    if !tensors.contains_key("mask_emb") {
        // Models that are not trained further are saved without.
        let zeros =
            Tensor::zeros(config.subnet.embed_dim(), DType::F32, &candle_core::Device::Cpu)?;
        tensors.insert("mask_emb".into(), zeros);
        notes.push("masked_spec_embed is missing and taken for 0: only training needs it".into());
    }
    notes.extend(rest.keys().map(|name| format!("{} is left out", name.escape_debug())));
    Ok(Imported { config, tensors, notes })
}

/// Writes the network of `config` and its `tensors` to `folder`, which is made where there is none.
/// Prediction heads are left out.
///
/// # Errors
/// [`Error::Argument`] that names the layer when layers differ from one another, or heads are not as
/// many as the width over 64, which that layout has no words for; [`Error::Exists`] without `force`;
/// [`Error::Io`].
pub fn write(
    folder: &Path,
    config: &NetworkConfig,
    tensors: &BTreeMap<String, Tensor>,
    force: bool,
) -> Result<()> {
    let settings = settings_of(config)?;
    let mut renamed = BTreeMap::new();
    for (ours, theirs) in names(config) {
        let tensor = tensors.get(&ours).ok_or_else(|| missing(&ours))?;
        renamed.insert(theirs, tensor.to_dtype(DType::F32)?.contiguous()?);
    }
    let weight =
        tensors.get(POSITIONAL).ok_or_else(|| missing(POSITIONAL))?.to_dtype(DType::F32)?;
    let [magnitude, direction] = split(&weight)?;
    renamed.insert("encoder.pos_conv_embed.conv.weight_g".into(), magnitude);
    renamed.insert("encoder.pos_conv_embed.conv.weight_v".into(), direction);
    let preprocessor = json!({
        "do_normalize": config.encoder.normalise,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": config.encoder.extractor.mode == ExtractorMode::LayerNorm,
        "sampling_rate": RATE_HZ,
    });
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    for name in [CONFIG, PREPROCESSOR, MODEL] {
        check_output(&folder.join(name), force)?;
    }
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::write(&folder.join(MODEL), &renamed, &metadata, force)?;
    for (name, value) in [(PREPROCESSOR, preprocessor), (CONFIG, settings)] {
        write_atomic(&folder.join(name), force, |file| writeln!(file, "{value:#}"))?;
    }
    Ok(())
}

/// A name without the prefix that models with a further layer on top have.
fn without_prefix((name, tensor): (String, Tensor)) -> (String, Tensor) {
    (name.strip_prefix("hubert.").map(str::to_string).unwrap_or(name), tensor)
}

fn missing(name: &str) -> Error {
    Error::Argument(format!("the network has no tensor {name}"))
}

/// Our name and theirs of every tensor but the weight of the positional convolution.
fn names(config: &NetworkConfig) -> Vec<(String, String)> {
    let mut parts: Vec<(String, String)> =
        PARTS.map(|(ours, theirs)| (ours.to_string(), theirs.to_string())).to_vec();
    for i in 0..config.subnet.depth() {
        let layer = |part: &str| format!("encoder.layers.{i}.{part}");
        parts.extend(LAYER_PARTS.map(|(ours, theirs)| (layer(ours), layer(theirs))));
    }
    let extractor = &config.encoder.extractor;
    let mut names = vec![("mask_emb".to_string(), "masked_spec_embed".to_string())];
    for i in 0..extractor.layers.len() {
        let conv = |part: &str| format!("feature_extractor.conv_layers.{i}.{part}");
        names.push((conv("0.weight"), conv("conv.weight")));
        if extractor.bias {
            names.push((conv("0.bias"), conv("conv.bias")));
        }
        match extractor.mode {
            ExtractorMode::LayerNorm => parts.push((conv("2.1"), conv("layer_norm"))),
            ExtractorMode::Default if i == 0 => parts.push((conv("2"), conv("layer_norm"))),
            ExtractorMode::Default => {}
        }
    }
    for (ours, theirs) in parts {
        for kind in ["weight", "bias"] {
            names.push((format!("{ours}.{kind}"), format!("{theirs}.{kind}")));
        }
    }
    names.push(("encoder.pos_conv.0.bias".into(), "encoder.pos_conv_embed.conv.bias".into()));
    names
}

/// The weight of the positional convolution out of its two parts.
fn baked(magnitude: &Tensor, direction: &Tensor) -> Result<Tensor> {
    let [magnitude, direction] = [magnitude.to_dtype(DType::F32)?, direction.to_dtype(DType::F32)?];
    if direction.rank() != 3 {
        return Err(Error::shape(
            "weight of the positional convolution",
            "[E, E/G, K]",
            direction.dims(),
        ));
    }
    let norm = direction.sqr()?.sum_keepdim((0, 1))?.sqrt()?;
    Ok(direction.broadcast_mul(&magnitude.broadcast_div(&norm)?)?)
}

/// Magnitude and direction of a weight. A tap that is 0 has a direction all the same.
fn split(weight: &Tensor) -> Result<[Tensor; 2]> {
    let norm = weight.sqr()?.sum_keepdim((0, 1))?.sqrt()?;
    let is_zero = norm.eq(0.0)?.broadcast_as(weight.shape())?;
    let direction = is_zero.where_cond(&weight.ones_like()?, weight)?;
    Ok([norm.contiguous()?, direction.contiguous()?])
}

/// The sizes that a `config.json` states; a reason when they are not supported.
fn config_of(settings: &Value, normalise: Option<bool>) -> Result<NetworkConfig, String> {
    let wrong =
        |name: &str, expected: &str| format!("{name} is {}, expected {expected}", settings[name]);
    if settings["model_type"] != "hubert" {
        return Err(wrong("model_type", "\"hubert\""));
    }
    let size = |name: &str, default: u64| {
        let value = &settings[name];
        let size = if value.is_null() { Some(default) } else { value.as_u64() };
        size.and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| wrong(name, "a whole number"))
    };
    let flag = |name: &str, default: bool| settings[name].as_bool().unwrap_or(default);
    let list = |name: &str, default: &[usize]| match &settings[name] {
        Value::Null => Ok(default.to_vec()),
        list => serde_json::from_value::<Vec<usize>>(list.clone())
            .map_err(|_| wrong(name, "a list of whole numbers")),
    };
    if flag("conv_pos_batch_norm", false) {
        return Err(wrong("conv_pos_batch_norm", "false"));
    }
    if !flag("feat_proj_layer_norm", true) {
        return Err(wrong("feat_proj_layer_norm", "true"));
    }
    if !matches!(settings["feat_extract_activation"].as_str(), None | Some("gelu")) {
        return Err(wrong("feat_extract_activation", "\"gelu\""));
    }
    let activation = match settings["hidden_act"].as_str().unwrap_or("gelu") {
        "gelu" => FfnActivation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => FfnActivation::GeluAccurate,
        "relu" => FfnActivation::Relu,
        _ => return Err(wrong("hidden_act", "gelu, gelu_new, gelu_pytorch_tanh or relu")),
    };
    let mode = match settings["feat_extract_norm"].as_str().unwrap_or("group") {
        "group" => ExtractorMode::Default,
        "layer" => ExtractorMode::LayerNorm,
        _ => return Err(wrong("feat_extract_norm", "group or layer")),
    };
    let channels = list("conv_dim", &[512; 7])?;
    let kernels = list("conv_kernel", &[10, 3, 3, 3, 3, 2, 2])?;
    let strides = list("conv_stride", &[5, 2, 2, 2, 2, 2, 2])?;
    if kernels.len() != channels.len() || strides.len() != channels.len() {
        return Err("conv_dim, conv_kernel and conv_stride are of different lengths".into());
    }
    let layers = channels.into_iter().zip(kernels).zip(strides);
    let layers = layers.map(|((channels, kernel), stride)| ConvLayer { channels, kernel, stride });
    let (embed, heads) = (size("hidden_size", 768)?, size("num_attention_heads", 12)?);
    if heads.checked_mul(HEAD_DIM) != Some(embed) {
        return Err(wrong("num_attention_heads", "hidden_size / 64"));
    }
    let depth = size("num_hidden_layers", 12)?;
    if depth > 1024 {
        return Err(wrong("num_hidden_layers", "at most 1024"));
    }
    let shape = LayerShape { heads, ffn: size("intermediate_size", 3072)?, window: Window::Global };
    Ok(NetworkConfig {
        encoder: EncoderConfig {
            extractor: ExtractorConfig {
                mode,
                layers: layers.collect(),
                bias: flag("conv_bias", false),
            },
            positional: PositionalConfig {
                kernel: size("num_conv_pos_embeddings", 128)?,
                groups: size("num_conv_pos_embedding_groups", 16)?,
                depth: 1,
                inner_width: None,
            },
            activation,
            layer_norm_first: flag("do_stable_layer_norm", false),
            sequence_multiple: 1,
            heads: HeadsConfig { size: 1, counts: vec![0; depth] },
            normalise: normalise.unwrap_or(mode == ExtractorMode::LayerNorm),
        },
        subnet: Subnet::new(embed, vec![shape; depth]),
    })
}

/// The `config.json` of a network.
fn settings_of(config: &NetworkConfig) -> Result<Value> {
    let NetworkConfig { encoder, subnet } = config;
    let wrong = |reason: String| Err(Error::Argument(format!("Hugging Face's layout: {reason}")));
    let heads = subnet.embed_dim() / HEAD_DIM;
    let Some(first) = subnet.layers().first() else {
        return wrong("the network has no layers".into());
    };
    for (i, layer) in subnet.layers().iter().enumerate() {
        if layer.attention_dim() != subnet.embed_dim() {
            return wrong(format!(
                "layer {i} has {} heads, but can only have width / 64 = {heads}",
                layer.heads
            ));
        }
        if layer.ffn != first.ffn {
            return wrong(format!(
                "layer {i} has {} hidden units, but can only have as many as layer 0, {}",
                layer.ffn, first.ffn
            ));
        }
        if layer.window != Window::Global {
            return wrong(format!(
                "layer {i} attends to a sliding window, but can only attend to all"
            ));
        }
    }
    if encoder.positional.depth != 1 {
        return wrong("several positional convolutions, but there can only be one".into());
    }
    let hidden_act = match encoder.activation {
        FfnActivation::Gelu => "gelu",
        FfnActivation::GeluAccurate => "gelu_new",
        FfnActivation::Relu => "relu",
        other => return wrong(format!("activation {other:?} has no name")),
    };
    let extractor = &encoder.extractor;
    let each = |size: fn(&ConvLayer) -> usize| -> Vec<usize> {
        extractor.layers.iter().map(size).collect()
    };
    Ok(json!({
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "hidden_size": subnet.embed_dim(),
        "num_hidden_layers": subnet.depth(),
        "num_attention_heads": heads,
        "intermediate_size": first.ffn,
        "hidden_act": hidden_act,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": match extractor.mode {
            ExtractorMode::LayerNorm => "layer",
            ExtractorMode::Default => "group",
        },
        "feat_proj_layer_norm": true,
        "conv_dim": each(|layer| layer.channels),
        "conv_kernel": each(|layer| layer.kernel),
        "conv_stride": each(|layer| layer.stride),
        "conv_bias": extractor.bias,
        "num_feat_extract_layers": extractor.layers.len(),
        "num_conv_pos_embeddings": encoder.positional.kernel,
        "num_conv_pos_embedding_groups": encoder.positional.groups,
        "do_stable_layer_norm": encoder.layer_norm_first,
        "layer_norm_eps": 1e-5,
        "torch_dtype": "float32",
    }))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::network::{Conditions, Network};
    use crate::tiny;

    fn plain(mode: ExtractorMode, heads: usize) -> (NetworkConfig, BTreeMap<String, Tensor>) {
        let supernet = tiny::supernet(mode);
        let mut layers = supernet.config().largest().layers()[..11].to_vec();
        layers.iter_mut().for_each(|layer| (layer.heads, layer.ffn) = (1, 192));
        layers[4].heads = heads;
        supernet.materialise(&Subnet::new(64, layers)).unwrap()
    }

    #[test]
    fn networks_go_out_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [ExtractorMode::LayerNorm, ExtractorMode::Default] {
            let (config, tensors) = plain(mode, 1);
            write(folder.path(), &config, &tensors, true).unwrap();
            assert!(is_model(folder.path()));
            let read = read(folder.path(), &Limits::default()).unwrap();
            assert!(read.notes.is_empty(), "{:?}", read.notes);
            assert_eq!(read.config.subnet, config.subnet);
            assert_eq!(read.config.encoder.normalise, config.encoder.normalise);
            let source = Tensor::from_vec(tiny::noise(4000, 0), (2, 2000), &Device::Cpu).unwrap();
            let [before, after] =
                [(config, tensors), (read.config, read.tensors)].map(|(config, tensors)| {
                    let path = folder.path();
                    let (network, ..) =
                        Network::from_tensors(config, tensors, path, false, &Device::Cpu).unwrap();
                    network.forward(&source, &Conditions::default()).unwrap().x
                });
            let difference = (before - after).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
        }
        let (config, tensors) = plain(ExtractorMode::LayerNorm, 1);
        let again = write(folder.path(), &config, &tensors, false);
        assert!(matches!(again, Err(Error::Exists { .. })));
    }

    #[test]
    fn networks_that_the_layout_lacks_words_for_name_the_layer() {
        let folder = tempfile::tempdir().unwrap();
        let (config, tensors) = plain(ExtractorMode::LayerNorm, 2);
        let message = write(folder.path(), &config, &tensors, false).unwrap_err().to_string();
        assert!(message.contains("layer 4 has 2 heads"), "{message}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_models_are_refused() {
        for (name, value) in [
            ("model_type", json!("wav2vec2")),
            ("hidden_act", json!("silu")),
            ("conv_pos_batch_norm", json!(true)),
            ("num_attention_heads", json!(10)),
            ("conv_stride", json!([5])),
            ("hidden_size", json!(-1)),
        ] {
            let mut settings = json!({ "model_type": "hubert" });
            assert!(config_of(&settings, None).is_ok());
            settings[name] = value;
            assert!(config_of(&settings, None).is_err(), "{name}");
        }
    }

    #[test]
    fn taps_of_zero_stay_zero() {
        let weight = Tensor::new(&[[[0.0f32, 3.0]], [[0.0, 4.0]]], &Device::Cpu).unwrap();
        let [magnitude, direction] = split(&weight).unwrap();
        let found = baked(&magnitude, &direction).unwrap();
        assert_eq!(found.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.0, 3.0, 0.0, 4.0]);
    }
}
