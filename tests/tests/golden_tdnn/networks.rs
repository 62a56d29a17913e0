//! Whole networks.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use shared::nn::Weights;
use tdnn::{Architecture, NetworkConfig, Subnet, Supernet, cost, recalibrate};
use tests::golden::{Case, Class};

use crate::layers::check_state;
use crate::{number, size, sizes};

pub fn eval(case: &mut Case) -> Result<()> {
    let (supernet, _) = supernet(case)?;
    check_dilations(case)?;
    let x = case.tensor("in.x")?;
    for (name, value) in case.sub_cases("archs")? {
        let architecture = architecture(&value["arch"])?;
        check_costs(case, &name, &architecture, &value)?;
        let seen = std::cell::RefCell::new(BTreeMap::new());
        let embeddings = supernet.forward_observed(&x, &architecture, false, &|part, x| {
            seen.borrow_mut().insert(part.to_string(), x.clone());
        })?;
        case.check(&format!("emb_{name}"), &embeddings, Class::Forward)?;
        let seen = seen.into_inner();
        for part in case.names(&format!("out.{name}.")) {
            let ours = part.strip_suffix("_noresid").unwrap_or(&part);
            let x = seen.get(ours).with_context(|| format!("{part} was not observed"))?;
            let result = format!("{name}.{part}");
            if part == "catconv" {
                // The reference stands before the ReLU.
                case.check_map(&result, |value| value.max(0.0), x, Class::Forward)?;
            } else {
                case.check(&result, x, Class::Forward)?;
            }
        }
    }
    Ok(())
}

pub fn lengths(case: &mut Case) -> Result<()> {
    let (supernet, _) = supernet(case)?;
    let architecture = architecture(&case.config["arch"])?;
    for name in case.names("in.x_") {
        let x = case.tensor(&format!("in.x_{name}"))?;
        let embeddings = supernet.forward(&x, &architecture, false)?;
        case.check(&format!("emb_{name}"), &embeddings, Class::Forward)?;
    }
    Ok(())
}

pub fn train_batch_norms(case: &mut Case) -> Result<()> {
    let x = case.tensor("in.x")?;
    for (name, value) in case.sub_cases("archs")? {
        let (supernet, weights) = supernet(case)?;
        let embeddings = supernet.forward(&x, &architecture(&value["arch"])?, true)?;
        case.check(&format!("emb_{name}"), &embeddings, Class::Forward)?;
        check_state(case, &format!("{name}.after."), &weights)?;
    }
    Ok(())
}

pub fn materialised(case: &mut Case) -> Result<()> {
    let (supernet, _) = supernet(case)?;
    let (subnet, weights) = subnet(&supernet, &architecture(&case.config["arch"])?)?;
    check_state(case, "sub.", &weights)?;
    let embeddings = subnet.forward(&case.tensor("in.x")?, false)?;
    case.check("emb", &embeddings, Class::Forward)
}

pub fn recalibration(case: &mut Case) -> Result<()> {
    let (supernet, _) = supernet(case)?;
    let (subnet, weights) = subnet(&supernet, &architecture(&case.config["arch"])?)?;
    let count = case.names("in.calib").len();
    let batches: Vec<Tensor> =
        (0..count).map(|i| case.tensor(&format!("in.calib{i}"))).collect::<Result<_>>()?;
    recalibrate(&subnet, batches.into_iter().map(Ok))?;
    check_state(case, "bn.", &weights)?;
    let embeddings = subnet.forward(&case.tensor("in.x")?, false)?;
    case.check("emb_after", &embeddings, Class::Forward)
}

/// The published supernet at its full size, with weights from a formula.
pub fn full_size(case: &mut Case) -> Result<()> {
    let salt = case.config["salt"].as_u64().context("config.salt")?;
    let config = NetworkConfig::tdnn8m2g();
    let shapes = Weights::fresh(0, DType::F32, &Device::Cpu);
    Supernet::new(config.clone(), &shapes)?;
    let tensors: BTreeMap<String, Tensor> = shapes
        .state()
        .into_iter()
        .enumerate()
        .map(|(i, (name, tensor))| {
            let tensor = formula_tensor(&name, tensor.dims(), salt * 1000 + i as u64)?;
            Ok((name, tensor))
        })
        .collect::<Result<_>>()?;
    for (name, probe) in case.sub_cases("probe first-element,sum")? {
        let tensor = tensors.get(&name).with_context(|| format!("no tensor {name}"))?;
        let values: Vec<f64> = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        let (first, sum) = (values[0] - number(&probe[0])?, values.iter().sum::<f64>());
        anyhow::ensure!(
            first.abs() < 1e-9 && (sum - number(&probe[1])?).abs() < 1e-6 * sum.abs().max(1.0),
            "the formula gives another tensor {name}"
        );
    }
    let weights = Weights::loaded(tensors, &case.path, false, DType::F32, &Device::Cpu);
    let supernet = Supernet::new(config, &weights)?;
    weights.check(false)?;
    let x = case.tensor("in.x")?;
    for (name, value) in case.sub_cases("archs")? {
        let architecture = architecture(&value)?;
        let (subnet, _) = subnet(&supernet, &architecture)?;
        let result = format!("emb_{name}");
        case.check(&result, &supernet.forward(&x, &architecture, false)?, Class::Forward)?;
        case.check(&result, &subnet.forward(&x, false)?, Class::Forward)?;
    }
    Ok(())
}

/// The supernet of the case and its weights.
pub fn supernet(case: &Case) -> Result<(Supernet, Weights)> {
    let config = supernet_config(&case.config["supernet"])?;
    let tensors = case.weights()?;
    let network: BTreeMap<String, Tensor> =
        tensors.into_iter().filter(|(name, _)| !name.starts_with("loss.")).collect();
    let weights = Weights::loaded(network, &case.path, true, DType::F32, &Device::Cpu);
    let supernet = Supernet::new(config, &weights)?;
    weights.check(false)?;
    Ok((supernet, weights))
}

fn subnet(supernet: &Supernet, architecture: &Architecture) -> Result<(Subnet, Weights)> {
    let (config, tensors) = supernet.materialise(architecture)?;
    Ok(Subnet::from_tensors(config, tensors, Path::new("subnet"), false, &Device::Cpu)?)
}

pub fn supernet_config(value: &Value) -> Result<NetworkConfig> {
    let [widths, kernels] = ["channels", "kernel_sizes"].map(|name| sizes(&value[name]));
    let architecture = Architecture::new(&widths?, &kernels?, size(&value["catconv"])?)?;
    anyhow::ensure!(architecture.depth() == size(&value["num_blocks"])?, "num_blocks");
    Ok(NetworkConfig {
        features: size(&value["in_feats"])?,
        embedding: size(&value["out_embeds"])?,
        architecture,
    })
}

/// The architecture in the list (depth, widths, kernels, cat).
pub fn architecture(value: &Value) -> Result<Architecture> {
    let architecture = Architecture::new(&sizes(&value[1])?, &sizes(&value[2])?, size(&value[3])?)?;
    anyhow::ensure!(architecture.depth() == size(&value[0])?, "depth of {value}");
    Ok(architecture)
}

fn check_dilations(case: &Case) -> Result<()> {
    let dilations = sizes(&case.config["supernet"]["dilations"])?;
    anyhow::ensure!(dilations.iter().enumerate().all(|(i, d)| *d == i + 2), "{dilations:?}");
    Ok(())
}

fn check_costs(case: &Case, name: &str, architecture: &Architecture, value: &Value) -> Result<()> {
    let full = supernet_config(&case.config["supernet"])?;
    let config = NetworkConfig { architecture: architecture.clone(), ..full };
    for (entry, ours) in [
        ("count_ops_300", cost::macs(&config, 300)),
        ("count_ops_301", cost::macs(&config, 301)),
        ("count_params", cost::parameters(&config)),
    ] {
        let stated = number(&value[entry])?;
        anyhow::ensure!(stated == ours as f64, "{name}: {entry} is {stated}, ours {ours}");
    }
    let string = value["string"].as_str().context("string")?;
    anyhow::ensure!(architecture.to_string() == string, "{architecture} is called {string}");
    Ok(())
}

/// A tensor of the full-size case: numbers from splitmix64, scaled by what the tensor is.
fn formula_tensor(name: &str, dims: &[usize], seed: u64) -> Result<Tensor> {
    let count = dims.iter().product::<usize>();
    let last = name.rsplit('.').next().unwrap_or(name);
    let row = count / dims.first().copied().unwrap_or(1);
    let value = |i: usize| -> f64 {
        let u = uniform(seed, i as u64);
        let diagonal = dims.len() == 2 && i / dims[1] == i % dims[1];
        match last {
            "running_mean" => 0.5 * u,
            "running_var" => 1.0 + 0.5 * u,
            "k53" | "k31" => f64::from(u8::from(diagonal)) + 0.25 * u,
            "num_batches_tracked" => 1.0,
            _ if dims.len() >= 2 => u * (6.0 / row as f64).sqrt(),
            "bias" => 0.25 * u,
            _ => 1.0 + 0.4 * u,
        }
    };
    let values: Vec<f64> = (0..count).map(value).collect();
    let dtype = if last == "num_batches_tracked" { DType::I64 } else { DType::F32 };
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)?)
}

/// Number `i` of the sequence `seed`, in [-1, 1).
fn uniform(seed: u64, i: u64) -> f64 {
    let mut z = (i + 1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f64 / (1u64 << 24) as f64 * 2.0 - 1.0
}
