//! Parts of networks.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use lighthubert::config::{ConvLayer, ExtractorConfig, ExtractorMode, PositionalConfig};
use lighthubert::extractor::ConvExtractor;
use lighthubert::positional::PositionalConv;
use lighthubert::transformer::{TransformerLayer, attend};
use lighthubert::{EncoderConfig, LayerShape, Subnet, Supernet, SupernetConfig, Window};
use serde_json::Value;
use shared::nn::Weights;
use tests::golden::{Case, Class};

use crate::{size, sizes};

/// Weights that gradients flow to, or that are frozen as in use.
fn loaded(case: &Case, tensors: BTreeMap<String, Tensor>, trainable: bool) -> Weights {
    Weights::loaded(tensors, &case.path, trainable, DType::F32, &Device::Cpu)
}

pub fn extractor(case: &mut Case) -> Result<()> {
    let mode: ExtractorMode = serde_json::from_value(case.config["mode"].clone())?;
    let layers = case.config["conv_layers"].as_array().context("conv_layers")?.iter();
    let layers = layers.map(|layer| {
        let layer = sizes(layer)?;
        Ok(ConvLayer { channels: layer[0], kernel: layer[1], stride: layer[2] })
    });
    let bias = case.config["conv_bias"].as_bool().context("conv_bias")?;
    let config = ExtractorConfig { mode, layers: layers.collect::<Result<_>>()?, bias };
    let source = case.tensor("in.source")?;
    for trainable in [false, true] {
        let weights = loaded(case, case.weights()?, trainable);
        let extractor = ConvExtractor::new(&config, &weights)?;
        weights.check(false)?;
        let mut x = source.unsqueeze(1)?;
        for (i, block) in extractor.blocks().iter().enumerate() {
            x = block.forward(&x)?;
            if i == 0 {
                case.check("layer.0_first64", &x.narrow(2, 0, 64)?, Class::Forward)?;
            } else {
                case.check(&format!("layer.{i}"), &x, Class::Forward)?;
            }
        }
        anyhow::ensure!(x.dims() == extractor.forward(&source)?.dims());
        anyhow::ensure!(x.dim(2)? == config.frames(source.dim(1)?));
    }
    Ok(())
}

pub fn positional(case: &mut Case) -> Result<()> {
    let (embed, kernel) = (size(&case.config["E"])?, size(&case.config["kernel"])?);
    let groups = size(&case.config["groups"])?;
    let config = PositionalConfig { kernel, groups, depth: 1, inner_width: None };
    let encoder = EncoderConfig { positional: config.clone(), ..EncoderConfig::published() };
    let supernet = SupernetConfig {
        encoder,
        embed_dim: embed,
        ffn_embed_dim: 4 * embed,
        prune_positional: true,
    };
    // A supernet of which only this layer matters.
    let weights = Weights::fresh(0, DType::F32, &Device::Cpu);
    Supernet::new(supernet.clone(), &weights)?;
    let mut tensors = weights.state();
    for (name, tensor) in case.weights()? {
        let known = tensors.insert(format!("encoder.pos_conv.{name}"), tensor);
        anyhow::ensure!(known.is_some(), "{name} is no weight of the layer");
    }
    let weights = loaded(case, tensors, false);
    let supernet = Supernet::new(supernet, &weights)?;
    weights.check(false)?;
    case.check("baked_weight", &supernet.positional_weight()?, Class::Forward)?;
    for width in sizes(&case.config["widths"])? {
        let layers = supernet.config().largest().layers().to_vec();
        let layers = layers.into_iter().map(|layer| LayerShape { ffn: width, ..layer });
        let (_, tensors) = supernet.materialise(&Subnet::new(width, layers.collect()))?;
        let tensors = tensors.into_iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix("encoder.pos_conv.")?.to_string(), tensor))
        });
        let weights = loaded(case, tensors.collect(), false);
        let layer = PositionalConv::new(&config, width, &weights)?;
        weights.check(false)?;
        let y = layer.forward(&case.tensor(&format!("in.x{width}"))?)?;
        case.check(&format!("y{width}"), &y, Class::Forward)?;
    }
    Ok(())
}

pub fn transformer(case: &mut Case) -> Result<()> {
    let (embed, ffn) = (size(&case.config["embed"])?, size(&case.config["ffn"])?);
    let encoder = EncoderConfig {
        activation: serde_json::from_value(case.config["activation"].clone())?,
        layer_norm_first: case.config["layer_norm_first"].as_bool().context("layer_norm_first")?,
        ..EncoderConfig::published()
    };
    let config = SupernetConfig {
        encoder: encoder.clone(),
        embed_dim: embed,
        ffn_embed_dim: ffn,
        prune_positional: true,
    };
    anyhow::ensure!(config.attention_heads() == size(&case.config["heads"])?);
    // A supernet of which only the first layer matters.
    let weights = Weights::fresh(0, DType::F32, &Device::Cpu);
    Supernet::new(config.clone(), &weights)?;
    let mut tensors = weights.state();
    for (name, tensor) in case.weights()? {
        let known = tensors.insert(format!("encoder.layers.0.{name}"), tensor);
        anyhow::ensure!(known.is_some(), "{name} is no weight of a layer");
    }
    let weights = loaded(case, tensors, false);
    let supernet = Supernet::new(config, &weights)?;
    weights.check(false)?;
    let time_first = |x: &Tensor| -> Result<Tensor> { Ok(x.transpose(0, 1)?.contiguous()?) };
    for (name, value) in case.sub_cases("subs")? {
        let shape = LayerShape {
            heads: size(&value["heads"])?,
            ffn: size(&value["ffn_embed"])?,
            window: window(&value["slide_wsz"])?,
        };
        let width = size(&value["embed_dim"])?;
        let (_, tensors) = supernet.materialise(&Subnet::new(width, vec![shape; 12]))?;
        let tensors = tensors.into_iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix("encoder.layers.0.")?.to_string(), tensor))
        });
        let weights = loaded(case, tensors.collect(), false);
        let layer = TransformerLayer::new(&encoder, width, &shape, &weights)?;
        weights.check(false)?;
        let x = time_first(&case.tensor(&format!("in.{name}.x"))?)?;
        let mask = case.tensor("in.padding_mask")?.to_dtype(DType::U8)?;
        for (form, padding) in [("nopad", None), ("pad", Some(&mask))] {
            let output = layer.forward(&x, padding, None)?;
            let attended = layer.attention().forward(&x, padding)?;
            for (part, found) in
                [("attn", attended), ("layer_result", output.layer_result), ("y", output.x)]
            {
                let part = format!("{name}.{form}.{part}");
                case.check(&part, &time_first(&found)?, Class::Forward)?;
            }
        }
    }
    Ok(())
}

/// The reach of attention; global where none is given.
fn window(value: &Value) -> Result<Window> {
    match value {
        Value::Null => Ok(Window::Global),
        Value::String(name) if name == "global" => Ok(Window::Global),
        value => Ok(Window::Frames(size(value)?)),
    }
}

/// The reference has a dense form, `mask`, and a banded one, `stride`, which is wrong in two cases that
/// the specification names; those are left out.
pub fn sliding_attention(case: &mut Case) -> Result<()> {
    for (name, spec) in case.sub_cases("specs")? {
        let (heads, frames) = (size(&spec["heads"])?, size(&spec["T"])?);
        let batch = size(&spec["batch"])?;
        let operand = |part: &str| -> Result<Tensor> {
            Ok(case.tensor(&format!("in.{name}.{part}"))?.transpose(0, 1)?.contiguous()?)
        };
        let [q, k, v] = [operand("q")?, operand("k")?, operand("v")?];
        let mask = case.tensor(&format!("in.{name}.padding_mask")).ok();
        let mask = mask.map(|mask| mask.to_dtype(DType::U8)).transpose()?;
        let attend = |window| -> Result<Tensor> {
            // The reference's queries are scaled already.
            let y = attend([&q, &k, &v], heads, 1.0, window, mask.as_ref())?;
            let y = y.reshape((batch, frames, heads, 64))?.transpose(1, 2)?;
            Ok(y.reshape((batch * heads, frames, 64))?)
        };
        let global = attend(Window::Global)?;
        case.check(&format!("{name}.global"), &global, Class::Forward)?;
        let sliding = attend(Window::Frames(size(&spec["swz"])?))?;
        let is_wrong = |bug: &str| spec[bug].as_bool().context("a flag of the reference's bugs");
        let (layout, padding) = (is_wrong("stride_layout_bug")?, is_wrong("stride_padding_bug")?);
        for (form, is_defined) in
            [("mask", true), ("stride_contig", !padding), ("stride_asis", !layout && !padding)]
        {
            let form = format!("{name}.{form}");
            match is_defined {
                true => check_defined(case, &form, &sliding)?,
                false => case.skip(&form),
            }
        }
    }
    Ok(())
}

/// Compares where the reference is a number: frames that see nothing but padding have NaN there, and 0
/// here.
fn check_defined(case: &mut Case, name: &str, found: &Tensor) -> Result<()> {
    let expected = case.array(&format!("out.{name}"))?;
    let defined: Vec<f32> =
        expected.values.iter().map(|value| f32::from(u8::from(!value.is_nan()))).collect();
    let defined = Tensor::from_vec(defined, expected.dims.as_slice(), &Device::Cpu)?;
    let undefined = (found * defined.affine(-1.0, 1.0)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    anyhow::ensure!(undefined == 0.0, "{name}: {undefined} where the reference is undefined");
    let map = |value: f64| if value.is_nan() { 0.0 } else { value };
    case.check_map(name, map, found, Class::Forward)
}
