//! The networks and their layers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use mmdiffusion::layers::{Layers, Modulator};
use mmdiffusion::published;
use mmdiffusion::time_embedding::sinusoids;
use mmdiffusion::unet::plan::{CrossPlan, Resampling, ResidualPlan};
use mmdiffusion::unet::{
    Convolution, CrossAttention, Modality, Norm, ResidualBlock, SelfAttention, resample,
};
use mmdiffusion::{CoupledUnet, Pair, SuperResolutionConfig, SuperResolutionUnet, UnetConfig};
use serde_json::Value;
use shared::limits::Limits;
use shared::nn::functional::{Activation, Window};
use shared::nn::{Precision, Weights};
use tests::golden::{Case, Class, Table};

/// Relative L2 error allowed against the reference's run in half precision.
const HALF_PRECISION_ERROR: f64 = 2e-2;

pub fn modules(case: &mut Case) -> Result<()> {
    for name in case.names("out.") {
        let result = module(case, &name).with_context(|| name.clone())?;
        case.check(&name, &result, Class::Forward)?;
    }
    Ok(())
}

fn module(case: &Case, name: &str) -> Result<Tensor> {
    let input = || case.tensor(&format!("in.{name}"));
    let layers = |below: &str| -> Result<(Layers, Weights)> {
        let weights = sub_weights(case, below)?;
        Ok((Layers::new(&weights, Precision::F32), weights))
    };
    let kernel = |weight: &str| -> Result<Vec<usize>> {
        Ok(case.array(&format!("w.{name}.{weight}.weight"))?.dims.clone())
    };
    if let Some(channels) = name.strip_prefix("timestep_embedding_") {
        let time = case.tensor("in.timesteps")?.to_dtype(DType::F32)?;
        return Ok(sinusoids(&time, channels.parse()?)?);
    }
    if let Some((direction, modality)) = name.split_once('.').filter(|(part, _)| part.len() <= 4) {
        let x = case.tensor(&format!("in.resize.{modality}"))?;
        let resampling = if direction == "up" { Resampling::Up } else { Resampling::Down };
        let modality = if modality == "video" { Modality::Video } else { Modality::Audio };
        return Ok(resample(&x, modality, resampling)?);
    }
    if name.starts_with("group_norm.") {
        let (layers, weights) = layers("group_norm")?;
        let norm = Norm::new(&layers, case.array("w.group_norm.GroupNorm.bias")?.dims[0])?;
        weights.check(false)?;
        return Ok(norm.forward(&input()?, Activation::Identity)?);
    }
    let (layers, weights) = layers(name)?;
    let result = if name.starts_with("single_attn") {
        let heads = case.config[name]["num_heads"].as_u64().unwrap_or(4) as usize;
        let attention = SelfAttention::new(&layers, input()?.dim(1)?, heads)?;
        attention.forward(&input()?)?
    } else if let Some(dilation) = name.strip_prefix("audio_conv_d") {
        let [outputs, inputs, size] = kernel("audio_conv")?[..] else { anyhow::bail!("kernel") };
        Convolution::audio(&layers, [inputs, outputs], size, dilation.parse()?)?
            .forward(&input()?)?
    } else if name.starts_with("video_conv_2d1d") {
        let [outputs, inputs, ..] = kernel("video_conv_spatial")?[..] else {
            anyhow::bail!("kernel")
        };
        Convolution::frames_then_time(&layers, [inputs, outputs])?.forward(&input()?)?
    } else if name.starts_with("video_conv_3d") {
        let [outputs, inputs, size, ..] = kernel("video_conv")?[..] else {
            anyhow::bail!("kernel")
        };
        Convolution::video(&layers, [inputs, outputs], size)?.forward(&input()?)?
    } else {
        anyhow::bail!("unknown module")
    };
    weights.check(false)?;
    Ok(result)
}

pub fn residual_blocks(case: &mut Case) -> Result<()> {
    for (name, value) in case.sub_cases("subcases")? {
        let size = |key: &str| value[key].as_u64().map(|size| size as usize);
        let is_set = |key: &str| value[key].as_bool().unwrap_or(false);
        let inputs = size("channels").context("channels")?;
        let outputs = size("out_channels").unwrap_or(inputs);
        let heads = |key: &str| is_set(key).then(|| size("num_heads").unwrap_or(1));
        let plan = ResidualPlan {
            channels: [inputs, outputs],
            dilation: size("audio_dilation").unwrap_or(1),
            resampling: match (is_set("up"), is_set("down")) {
                (true, _) => Resampling::Up,
                (_, true) => Resampling::Down,
                _ => Resampling::None,
            },
            video_heads: heads("video_attention"),
            audio_heads: heads("audio_attention"),
            scales: is_set("use_scale_shift_norm"),
        };
        let weights = sub_weights(case, &name)?;
        let embedding = case.tensor(&format!("in.{name}.emb"))?;
        let width = embedding.dim(1)?;
        let layers = Layers::new(&weights, Precision::F32);
        let block = ResidualBlock::new(&layers, &plan, width)?;
        weights.check(false)?;
        let embedding = Modulator::activate(&embedding)?;
        let result = block.forward(pair(case, &format!("in.{name}."))?, &embedding, None)?;
        check_pair(case, &format!("{name}."), &result)?;
    }
    Ok(())
}

pub fn cross_attention(case: &mut Case) -> Result<()> {
    for (name, value) in case.sub_cases("subcases")? {
        let size = |key: &str| crate::size(&value[key]).with_context(|| key.to_string());
        let plan = CrossPlan {
            channels: size("channels")?,
            heads: size("heads")?,
            window: size("local_window")?,
            shift: value["window_shift"].as_bool().context("window_shift")?.then_some(0),
        };
        let weights = sub_weights(case, &name)?;
        let attention = CrossAttention::new(&Layers::new(&weights, Precision::F32), &plan)?;
        weights.check(false)?;
        let x = pair(case, &format!("in.{name}."))?;
        let shift = size("window_shift_value")?;
        let (_, frames, _, height, width) = x.video.dims5()?;
        let (pixels, samples) = (height * width, x.audio.dim(2)?);
        let [to_audio, to_video] = attention.windows(frames, pixels, samples, shift)?;
        // The reference numbers audio tokens after all video tokens.
        let tokens = frames * pixels;
        let table = key_table(&to_audio, samples, tokens)?;
        case.check_equal(&format!("{name}.video_to_audio_index"), &table)?;
        let table = key_table(&to_video, tokens, 0)?;
        case.check_equal(&format!("{name}.audio_to_video_index"), &table)?;
        check_pair(case, &format!("{name}."), &attention.forward(x, shift)?)?;
    }
    Ok(())
}

/// The numbers of the keys of each window, from `offset` on.
fn key_table(windows: &[Window], keys: usize, offset: usize) -> Result<Tensor> {
    let rows = windows.iter().map(|window| {
        let keys = (0..window.keys).map(|j| (window.first_key + j) % keys + offset);
        keys.map(|key| key as i64).collect::<Vec<_>>()
    });
    Ok(Tensor::new(rows.collect::<Vec<_>>(), &Device::Cpu)?)
}

pub fn unet(case: &mut Case) -> Result<()> {
    let network = coupled(case, Precision::F32)?;
    let seen = RefCell::new(BTreeMap::new());
    let observe = |block: &str, x: &Pair| {
        seen.borrow_mut().insert(format!("{block}.video"), x.video.clone());
        seen.borrow_mut().insert(format!("{block}.audio"), x.audio.clone());
    };
    let run = |case: &Case, network: &CoupledUnet| -> Result<Pair> {
        let x = pair(case, "in.")?;
        let shifts = match case.array("in.window_shifts") {
            Ok(shifts) => shifts.values.iter().map(|shift| *shift as usize).collect(),
            Err(_) => vec![0; network.largest_shifts(x.video.dim(1)?).len()],
        };
        Ok(network.forward_observed(&x, &time(case)?, &shifts, &observe)?)
    };
    let result = run(case, &network)?;
    check_pair(case, "", &result)?;
    seen.borrow_mut().insert("time_embed".into(), network.time_embedding(&time(case)?)?);
    check_intermediate(case, &seen.take())?;
    check_pair(case, "", &run(case, &network.compact()?)?)?;

    for set in case.files.clone() {
        let path = case.path.with_file_name(set.get("checkpoint").context("checkpoint")?);
        let flags = case.config["cfg"].as_object().context("config.cfg")?.clone();
        let published = published::read(&path, flags, DType::F32, &Limits::default())?;
        let network = published.model.into_coupled(Precision::F32, &Device::Cpu)?;
        check_pair(case, "", &run(case, &network)?)?;
    }
    if !case.names("out.fp16.").is_empty() {
        let result = run(case, &coupled(case, Precision::Bf16)?)?;
        case.check_half("fp16.video", &result.video, HALF_PRECISION_ERROR)?;
        case.check_half("fp16.audio", &result.audio, HALF_PRECISION_ERROR)?;
    }
    Ok(())
}

/// The coupled network of the case.
pub fn coupled(case: &Case, precision: Precision) -> Result<CoupledUnet> {
    let flags = case.config["cfg"].as_object().context("config.cfg")?.clone();
    let (config, _) = UnetConfig::from_flags(flags)?;
    let weights = Weights::loaded(case.weights()?, &case.path, false, DType::F32, &Device::Cpu);
    let network = CoupledUnet::new(&config, &weights, precision)?;
    weights.check(false)?;
    Ok(network)
}

pub fn super_resolution(case: &mut Case) -> Result<()> {
    let network = enlarging(case)?;
    let seen = RefCell::new(BTreeMap::new());
    let result = network.forward_observed(
        &case.tensor("in.x")?,
        &time(case)?,
        &case.tensor("in.low_res")?,
        &|block, x| {
            seen.borrow_mut().insert(block.to_string(), x.clone());
        },
    )?;
    case.check("model", &result, Class::Forward)?;
    check_intermediate(case, &seen.take())?;
    let compact = network.clone().compact()?;
    let result =
        compact.forward(&case.tensor("in.x")?, &time(case)?, &case.tensor("in.low_res")?)?;
    case.check("model", &result, Class::Forward)?;
    let (_, _, height, width) = case.tensor("in.x")?.dims4()?;
    let enlarged = mmdiffusion::super_resolution::resize_bilinear(
        &case.tensor("in.low_res")?,
        [height, width],
    )?;
    case.check("upsampled_low_res", &enlarged, Class::Forward)?;
    crate::sampling::super_resolution(case, &network)?;
    crate::training::super_resolution(case, network.config())
}

/// The super-resolution network of the case.
pub fn enlarging(case: &Case) -> Result<SuperResolutionUnet> {
    let model = case.config["model"].as_object().context("config.model")?;
    let mut flags = serde_json::Map::new();
    for (name, value) in model {
        let (name, value) = match name.as_str() {
            "image_size" => ("large_size", value.clone()),
            "model_channels" => ("num_channels", value.clone()),
            "out_channels" => ("learn_sigma", Value::Bool(value == 6)),
            "in_channels" => {
                ensure!(value == 3, "in_channels {value}");
                continue;
            }
            name => (name, value.clone()),
        };
        flags.insert(name.to_string(), value);
    }
    let (config, _) = SuperResolutionConfig::from_flags(flags)?;
    let weights = Weights::loaded(case.weights()?, &case.path, false, DType::F32, &Device::Cpu);
    let network = SuperResolutionUnet::new(&config, &weights, Precision::F32)?;
    weights.check(false)?;
    Ok(network)
}

pub fn keys(table: &mut Table) -> Result<()> {
    for failure in key_disagreements(&table.value.clone())? {
        table.check_that(false, || failure);
    }
    Ok(())
}

#[test]
fn published_keys() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/mmdiffusion");
    for (name, tensors, parameters) in
        [("keys_full", 1046, 133_675_524), ("keys_sr", 566, 311_027_910)]
    {
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(key_disagreements(&value).unwrap(), Vec::<String>::new(), "{name}");
        assert_eq!(
            (&value["num_tensors"], &value["num_params"]),
            (&tensors.into(), &parameters.into())
        );
    }
}

/// How the names and shapes of a network's tensors differ from those of `value`.
fn key_disagreements(value: &Value) -> Result<Vec<String>> {
    let flags = value["config"].as_object().context("config")?.clone();
    let weights = Weights::shapes();
    if flags.contains_key("sr_num_channels") {
        let (config, _) = SuperResolutionConfig::from_flags(flags)?;
        SuperResolutionUnet::new(&config, &weights, Precision::F32)?;
    } else {
        let (config, _) = UnetConfig::from_flags(flags)?;
        CoupledUnet::new(&config, &weights, Precision::F32)?;
    }
    let mut ours = weights.state();
    let mut failures = vec![];
    let parameters: usize = ours.values().map(Tensor::elem_count).sum();
    for (entry, ours) in [("num_tensors", ours.len()), ("num_params", parameters)] {
        let stated = crate::size(&value[entry])?;
        if stated != ours {
            failures.push(format!("{entry}: {ours} instead of {stated}"));
        }
    }
    for (name, dims) in value["keys"].as_object().context("keys")? {
        let dims = crate::sizes(dims)?;
        match ours.remove(name) {
            None => failures.push(format!("{name} is missing")),
            Some(tensor) if tensor.dims() != dims => {
                failures.push(format!("{name}: {:?} instead of {dims:?}", tensor.dims()));
            }
            Some(_) => {}
        }
    }
    failures.extend(ours.into_keys().map(|name| format!("{name} is unexpected")));
    Ok(failures)
}

/// The weights of a sub-case.
fn sub_weights(case: &Case, name: &str) -> Result<Weights> {
    let tensors = case.weights()?.into_iter().filter_map(|(full, tensor)| {
        Some((full.strip_prefix(name)?.strip_prefix('.')?.to_string(), tensor))
    });
    Ok(Weights::loaded(tensors.collect(), &case.path, false, DType::F32, &Device::Cpu))
}

fn pair(case: &Case, prefix: &str) -> Result<Pair> {
    let part = |name: &str| case.tensor(&format!("{prefix}{name}"));
    Ok(Pair { video: part("video")?, audio: part("audio")? })
}

fn time(case: &Case) -> Result<Tensor> {
    Ok(case.tensor("in.timesteps")?.to_dtype(DType::F32)?)
}

fn check_pair(case: &mut Case, prefix: &str, result: &Pair) -> Result<()> {
    case.check(&format!("{prefix}video"), &result.video, Class::Forward)?;
    case.check(&format!("{prefix}audio"), &result.audio, Class::Forward)
}

/// Compares all intermediate results of the case with what was `seen`.
fn check_intermediate(case: &mut Case, seen: &BTreeMap<String, Tensor>) -> Result<()> {
    for name in case.names("mid.") {
        let result = seen.get(&name).with_context(|| format!("{name} was not observed"))?;
        case.check(&name, result, Class::Forward)?;
    }
    Ok(())
}
