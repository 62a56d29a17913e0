//! The checkpoints that authors publish: LightHuBERT's supernets, and HuBERT as fairseq saves it.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;
use shared::checkpoint::{self, Checkpoint, LoadReport};
use shared::limits::Limits;
use shared::{Error, Result};

use crate::config::{
    EncoderConfig, ExtractorMode, FfnActivation, HeadsConfig, PositionalConfig, SUPERNET_LAYERS,
    SupernetConfig,
};
use crate::conv_layers;
use crate::space::SpaceName;
use crate::subnet::HEAD_DIM;
use crate::supernet::Supernet;

/// What pre-training needed and nothing else does.
const LEFT_OUT: [&str; 3] = ["label_embs_concat", "final_proj.weight", "final_proj.bias"];

/// A checkpoint as a supernet.
pub struct Published {
    /// The supernet; of a network that has no subnets, only the largest is of use.
    pub supernet: Supernet,
    /// The search space that it was trained for, as far as the checkpoint tells.
    pub space: Option<SpaceName>,
    /// The tensors of the file against those asked for.
    pub report: LoadReport,
    /// What was left out, a sentence each.
    pub notes: Vec<String>,
}

/// The supernet in a checkpoint of LightHuBERT, or HuBERT as its largest network. Its weights are
/// frozen, on the CPU.
///
/// # Errors
/// [`Error::Checkpoint`] when the file cannot be read or holds no such model; [`Error::Tensors`] when
/// tensors are missing, unexpected or of another shape; [`Error::NonFinite`].
pub fn read(path: &Path, limits: &Limits) -> Result<Published> {
    of_checkpoint(checkpoint::read(path, limits)?, path)
}

/// The same of a checkpoint that is read already, from `path`.
///
/// # Errors
/// As [`read`].
pub fn of_checkpoint(checkpoint: Checkpoint, path: &Path) -> Result<Published> {
    let mut tensors = checkpoint.tensors_under("model");
    if !tensors.contains_key(KNOWN) {
        return Err(Error::checkpoint(
            path,
            format!("no speech encoder: there is no tensor {KNOWN} in an entry `model`"),
        ));
    }
    let mut notes = checkpoint.notes;
    for name in LEFT_OUT {
        if tensors.remove(name).is_some() {
            notes.push(format!("{name} is left out: only pre-training needs it"));
        }
    }
    checkpoint::check_finite(&tensors, path)?;
    let tensors: BTreeMap<String, Tensor> =
        tensors.into_iter().map(|(name, tensor)| (older_name(name), tensor)).collect();
    let values = checkpoint.values.to_json();
    let wrong = |error: Error| Error::checkpoint(path, error.to_string());
    let setting = |path: &str| values.pointer(path).unwrap_or(&Value::Null);
    let mut config = supernet_config(setting("/cfg/model")).map_err(wrong)?;
    adapt_to_tensors(&mut config, &tensors);
    // Models with layer norms in the extractor were trained on normalised signals.
    let is_layer_norm = config.encoder.extractor.mode == ExtractorMode::LayerNorm;
    config.encoder.normalise = setting("/cfg/task/normalize").as_bool().unwrap_or(is_layer_norm);
    let (supernet, report) = Supernet::from_tensors(config, tensors, path, &Device::Cpu)?;
    let space = space(setting("/cfg/model"));
    Ok(Published { supernet, space, report, notes })
}

const KNOWN: &str = "encoder.layers.0.fc1.weight";

/// The supernet that the `model` part of a published configuration describes. What it lacks has the
/// published program's defaults; entries that say nothing about sizes are not read.
///
/// # Errors
/// [`Error::Argument`] that names the entry at fault.
pub fn supernet_config(model: &Value) -> Result<SupernetConfig> {
    let published = SupernetConfig::published();
    let wrong = |name: &str, expected: &str| {
        Error::Argument(format!("configuration: {name} is {}, expected {expected}", model[name]))
    };
    let size = |name: &str, default: usize| match &model[name] {
        Value::Null => Ok(default),
        value => value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| wrong(name, "a whole number")),
    };
    let flag = |name: &str, default: bool| match &model[name] {
        Value::Null => Ok(default),
        value => value.as_bool().ok_or_else(|| wrong(name, "true or false")),
    };
    let mut extractor = published.encoder.extractor;
    extractor.mode = match model["extractor_mode"].as_str().unwrap_or("layer_norm") {
        "layer_norm" => ExtractorMode::LayerNorm,
        "default" => ExtractorMode::Default,
        _ => return Err(wrong("extractor_mode", "layer_norm or default")),
    };
    if let Some(text) = model["conv_feature_layers"].as_str() {
        extractor.layers = conv_layers::parse(text)?;
    }
    extractor.bias = flag("conv_bias", false)?;
    let activation = match &model["activation_fn"] {
        Value::Null => FfnActivation::Gelu,
        name => serde_json::from_value(name.clone()).map_err(|_| {
            let names = "gelu, gelu_accurate, gelu_fast, relu, relu_squared, tanh or linear";
            wrong("activation_fn", names)
        })?,
    };
    if size("encoder_layers", SUPERNET_LAYERS)? != SUPERNET_LAYERS {
        return Err(wrong("encoder_layers", "12"));
    }
    if model["layer_type"].as_str().unwrap_or("transformer") != "transformer" {
        return Err(wrong("layer_type", "transformer"));
    }
    let embed_dim = size("encoder_embed_dim", published.embed_dim)?;
    let heads = size("encoder_attention_heads", 12)?;
    if heads.checked_mul(HEAD_DIM) != Some(embed_dim) {
        return Err(wrong("encoder_attention_heads", "encoder_embed_dim / 64"));
    }
    let counts = match model["layer_pred_num"].as_str() {
        None => published.encoder.heads.counts,
        Some(text) => text
            .split(',')
            .map(|count| count.trim().parse().ok())
            .collect::<Option<Vec<usize>>>()
            .filter(|counts| counts.len() == SUPERNET_LAYERS)
            .ok_or_else(|| wrong("layer_pred_num", "12 numbers with commas between them"))?,
    };
    let positional = PositionalConfig {
        kernel: size("conv_pos", 128)?,
        groups: size("conv_pos_groups", 16)?,
        depth: size("pos_conv_depth", 1)?,
        inner_width: None,
    };
    let config = SupernetConfig {
        encoder: EncoderConfig {
            normalise: extractor.mode == ExtractorMode::LayerNorm,
            extractor,
            positional,
            activation,
            layer_norm_first: flag("layer_norm_first", false)?,
            sequence_multiple: size("required_seq_len_multiple", 2)?,
            heads: HeadsConfig { size: size("teacher_embed_dim", 768)?, counts },
        },
        embed_dim,
        ffn_embed_dim: size("encoder_ffn_embed_dim", published.ffn_embed_dim)?,
        prune_positional: flag("prune_encoder_pos_conv", true)?,
    };
    config.check()?;
    Ok(config)
}

/// Lets the tensors decide what configurations leave open: the norms of the extractor, and whether
/// there are prediction heads, which HuBERT lacks.
fn adapt_to_tensors(config: &mut SupernetConfig, tensors: &BTreeMap<String, Tensor>) {
    let has = |name: &str| tensors.contains_key(name);
    let extractor = &mut config.encoder.extractor;
    if has("feature_extractor.conv_layers.0.2.1.weight") {
        extractor.mode = ExtractorMode::LayerNorm;
    } else if has("feature_extractor.conv_layers.0.2.weight") {
        extractor.mode = ExtractorMode::Default;
    }
    extractor.bias |= has("feature_extractor.conv_layers.0.0.bias");
    if !tensors.keys().any(|name| name.starts_with("layer_pred_heads.")) {
        config.encoder.heads.counts = vec![0; SUPERNET_LAYERS];
    }
}

/// The search space that a published configuration names.
fn space(model: &Value) -> Option<SpaceName> {
    match model["_name"].as_str()? {
        "student_hubert" => Some(SpaceName::Stage1),
        "hubert_pruner" => {
            let path = model["pruner_supernet"].as_str()?.to_lowercase();
            let spaces = [("base.yaml", SpaceName::Base), ("small.yaml", SpaceName::Small)];
            spaces.into_iter().find_map(|(end, space)| path.ends_with(end).then_some(space))
        }
        _ => None,
    }
}

/// The older name of a weight norm's tensors, by which the supernet knows them.
fn older_name(name: String) -> String {
    name.replace("parametrizations.weight.original0", "weight_g")
        .replace("parametrizations.weight.original1", "weight_v")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn configurations_have_their_defaults() {
        assert_eq!(supernet_config(&Value::Null).unwrap(), SupernetConfig::published());
        let config = supernet_config(&json!({
            "_name": "hubert", "extractor_mode": "default", "untie_final_proj": true,
            "layer_norm_first": true, "activation_fn": "gelu_fast",
        }));
        let encoder = config.unwrap().encoder;
        assert!(encoder.layer_norm_first && !encoder.normalise);
        assert_eq!(encoder.activation, FfnActivation::GeluAccurate);
        for (name, value) in [
            ("encoder_layers", json!(24)),
            ("encoder_attention_heads", json!(16)),
            ("encoder_embed_dim", json!("wide")),
            ("activation_fn", json!("swish")),
            ("extractor_mode", json!("group")),
            ("layer_pred_num", json!("0,1")),
            ("conv_bias", json!(1)),
        ] {
            let message = supernet_config(&json!({ name: value })).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn configurations_name_their_space() {
        let pruner = |path: &str| json!({ "_name": "hubert_pruner", "pruner_supernet": path });
        assert_eq!(space(&pruner("/a/Supernet-Small.yaml")), Some(SpaceName::Small));
        assert_eq!(space(&pruner("base.yaml")), Some(SpaceName::Base));
        assert_eq!(space(&pruner("")), None);
        assert_eq!(space(&json!({ "_name": "student_hubert" })), Some(SpaceName::Stage1));
        assert_eq!(space(&json!({ "_name": "hubert" })), None);
    }
}
