//! Whole networks.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use lighthubert::padding::lengths_of;
use lighthubert::{
    Conditions, Encoded, Network, NetworkConfig, PaddingRule, Subnet, Supernet, Window, cost,
    published,
};
use serde_json::Value;
use shared::limits::Limits;
use shared::nn::Weights;
use tests::golden::{Case, Class};

use crate::size;

/// Every subnet as slices of the supernet, and as a network of its own.
pub fn model(case: &mut Case) -> Result<()> {
    let supernet = supernet(case)?;
    let source = case.tensor("in.source")?;
    let u8s = |name: &str| case.tensor(name).ok().map(|it| it.to_dtype(DType::U8)).transpose();
    let (padding_mask, frame_mask) = (u8s("in.padding_mask")?, u8s("in.mask_indices")?);
    let lengths = padding_mask.as_ref().map(lengths_of).transpose()?;
    let conditions = Conditions {
        lengths: lengths.as_deref(),
        rule: PaddingRule::Chunks,
        frame_mask: frame_mask.as_ref(),
        channel_mask: None,
        regularisation: None,
    };
    for (name, value) in case.sub_cases("subnets")? {
        let subnet: Subnet = serde_json::from_value(value)?;
        let stated = size(&case.config["calc_sampled_param_num"][&name])? as u64;
        let ours = cost::parameters(supernet.config(), &subnet);
        anyhow::ensure!(stated == ours, "{name}: {ours} parameters, the reference has {stated}");
        let sliced = supernet.network(&subnet)?.forward(&source, &conditions)?;
        let plain = plain(&supernet, &subnet)?;
        let state = plain.1.state();
        let without_heads = state.iter().filter(|(name, _)| !name.starts_with("layer_pred_heads."));
        let count: usize = without_heads.map(|(_, tensor)| tensor.elem_count()).sum();
        anyhow::ensure!(
            count as u64 == cost::plain_parameters(plain.0.config()),
            "{name}: {count}"
        );
        if is_undefined(case, &subnet, &sliced)? {
            case.names(&format!("out.{name}."))
                .iter()
                .for_each(|it| case.skip(&format!("{name}.{it}")));
            continue;
        }
        check(case, &name, &sliced)?;
        check(case, &name, &plain.0.forward(&source, &conditions)?)?;
    }
    Ok(())
}

/// Whether the reference computed sliding windows in its banded form where that is wrong: several
/// sequences at once, with a length that the window divides or with padding.
fn is_undefined(case: &Case, subnet: &Subnet, encoded: &Encoded) -> Result<bool> {
    let (batch, frames, _) = encoded.x.dims3()?;
    let frames = frames.next_multiple_of(2);
    let is_wrong = |heads: usize, window: Window| match window {
        Window::Global => false,
        Window::Frames(window) => {
            batch * heads > 1 && frames.is_multiple_of(window)
                || batch > 1 && encoded.padding.is_some()
        }
    };
    let is_banded = case.config["slide_mode"] != "mask";
    Ok(is_banded && subnet.layers().iter().any(|layer| is_wrong(layer.heads, layer.window)))
}

/// The published layouts, new and old, in all of which the same model is.
pub fn checkpoints(case: &mut Case) -> Result<()> {
    let source = case.tensor("in.source")?;
    anyhow::ensure!(!case.files.is_empty());
    for files in case.files.clone() {
        let path = case.path.with_file_name(files.get("checkpoint").context("checkpoint")?);
        let published = published::read(&path, &Limits::default())?;
        let left_out = published.notes.iter().filter(|note| note.contains("left out")).count();
        anyhow::ensure!(left_out == 3 && published.report.missing.is_empty());
        let space = serde_json::to_value(published.space)?;
        anyhow::ensure!(space == case.config["supernet_type"], "search space {space}");
        for (name, value) in case.sub_cases("subnets")? {
            let subnet: Subnet = serde_json::from_value(value)?;
            let network = plain(&published.supernet, &subnet)?.0;
            let encoded = network.forward(&source, &Conditions::default())?;
            let head = encoded.predictions.last().and_then(|it| it.last()).context("no head")?;
            case.check(&format!("{name}.cat_last"), head, Class::Forward)?;
            check(case, &name, &encoded)?;
        }
    }
    Ok(())
}

/// The supernet of the case with its weights.
pub fn supernet(case: &Case) -> Result<Supernet> {
    let config = published::supernet_config(&case.config["model"])?;
    Ok(Supernet::from_tensors(config, case.weights()?, &case.path, &Device::Cpu)?.0)
}

fn plain(supernet: &Supernet, subnet: &Subnet) -> Result<(Network, Weights)> {
    let (config, tensors): (NetworkConfig, _) = supernet.materialise(subnet)?;
    let path = Path::new("subnet");
    let (network, weights, _) = Network::from_tensors(config, tensors, path, false, &Device::Cpu)?;
    Ok((network, weights))
}

/// Compares all that the case has of one subnet.
fn check(case: &mut Case, subnet: &str, encoded: &Encoded) -> Result<()> {
    let first_head = 12 - encoded.predictions.len();
    for name in case.names(&format!("out.{subnet}.")) {
        let parts: Vec<&str> = name.split('.').collect();
        let full = format!("{subnet}.{name}");
        let found = match parts.as_slice() {
            ["x"] => encoded.x.clone(),
            ["hs", k] => {
                let state = encoded.hidden_states.get(k.parse::<usize>()?);
                state.with_context(|| format!("no hidden state {k}"))?.clone()
            }
            ["head", layer, part] => {
                let layer = layer.parse::<usize>()?.checked_sub(first_head).context("layer")?;
                let parts = encoded.predictions.get(layer).context("no such head")?;
                parts.get(part.parse::<usize>()?).context("no such part of a head")?.clone()
            }
            ["padding_mask"] => {
                let padding = encoded.padding.as_ref().context("no padding")?;
                case.check_equal(&full, &padding.to_dtype(DType::I64)?)?;
                continue;
            }
            ["features_pen"] => encoded.features_penalty()?.reshape(1)?,
            ["cat_last"] => continue,
            _ => anyhow::bail!("unknown result {name}"),
        };
        case.check(&full, &found, Class::Forward)?;
    }
    let states = case.names(&format!("out.{subnet}.hs.")).len();
    anyhow::ensure!(states == 0 || states == encoded.hidden_states.len(), "{states} states");
    Ok(())
}

/// The subnet in `value`.
pub fn subnet(value: &Value) -> Result<Subnet> {
    Ok(serde_json::from_value(value.clone())?)
}
