//! Dynamic layers one by one.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use shared::nn::Weights;
use shared::nn::functional::Activation;
use tdnn::architecture::Block;
use tdnn::dynamic::{
    Channels, ConvSelection, DynamicAttentivePooling, DynamicBatchNorm1d, DynamicBlock,
    DynamicConv1d, DynamicConvReluNorm, DynamicLinear, DynamicRes2, DynamicSqueezeExcite,
};
use tests::golden::{Case, Class};

use crate::size;

pub fn conv(case: &mut Case) -> Result<()> {
    for (name, value) in case.sub_cases("configs")? {
        let weights = weights(case)?;
        let config = &case.config;
        let layer = DynamicConv1d::new(
            &weights,
            size(&config["in"])?,
            size(&config["out"])?,
            size(&config["kernel"])?,
            size(&config["dilation"])?,
        )?;
        weights.check(false)?;
        let selection = conv_selection(&value)?;
        let weight = layer.effective_weight(&selection)?;
        case.check(&format!("weight_{name}"), &weight, Class::Forward)?;
        let x = case.tensor(&format!("in.x_{name}"))?;
        let y = layer.forward(&x, &selection, Activation::Identity)?;
        case.check(&format!("y_{name}"), &y, Class::Forward)?;
    }
    Ok(())
}

pub fn batch_norm(case: &mut Case) -> Result<()> {
    let features = size(&case.config["features"])?;
    eval_and_train(
        case,
        |weights| Ok(DynamicBatchNorm1d::new(weights, features)?),
        |layer, x, value, train| Ok(layer.forward(x, &channels(value)?, train)?),
    )
}

pub fn conv_relu_norm(case: &mut Case) -> Result<()> {
    let [input, output, kernel, dilation] =
        ["in", "out", "kernel", "dilation"].map(|name| size(&case.config[name]));
    let (input, output, kernel, dilation) = (input?, output?, kernel?, dilation?);
    eval_and_train(
        case,
        |weights| Ok(DynamicConvReluNorm::new(weights, input, output, kernel, dilation)?),
        |layer, x, value, train| Ok(layer.forward(x, &conv_selection(value)?, train)?),
    )
}

pub fn res2(case: &mut Case) -> Result<()> {
    let [full, kernel, dilation] =
        ["channels", "kernel", "dilation"].map(|name| size(&case.config[name]));
    let (full, kernel, dilation) = (full?, kernel?, dilation?);
    eval_and_train(
        case,
        |weights| Ok(DynamicRes2::new(weights, full, kernel, dilation)?),
        |layer, x, value, train| {
            let kernel = if value.is_null() { kernel } else { size(&value[1])? };
            Ok(layer.forward(x, kernel, train)?)
        },
    )
}

pub fn block(case: &mut Case) -> Result<()> {
    let [trunk, mid, kernel, dilation] =
        ["channels", "mid", "kernel", "dilation"].map(|name| size(&case.config[name]));
    let (trunk, dilation) = (trunk?, dilation?);
    let largest = Block { mid: mid?, kernel: kernel? };
    eval_and_train(
        case,
        |weights| Ok(DynamicBlock::new(weights, trunk, largest, dilation)?),
        |layer, x, value, train| {
            let shape = match value {
                Value::Null => largest,
                value => Block { mid: size(&value[1])?, kernel: size(&value[2])? },
            };
            Ok(layer.forward(x, shape, train)?)
        },
    )
}

pub fn linear(case: &mut Case) -> Result<()> {
    for (name, value) in case.sub_cases("configs")? {
        let weights = weights(case)?;
        let layer =
            DynamicLinear::new(&weights, size(&case.config["in"])?, size(&case.config["out"])?)?;
        weights.check(false)?;
        let (input, output) = (channels(&value[0])?, channels(&value[1])?);
        let x = case.tensor(&format!("in.x_{name}"))?;
        let y = layer.forward(&x, &input, &output, Activation::Identity)?;
        case.check(&format!("y_{name}"), &y, Class::Forward)?;
    }
    Ok(())
}

pub fn squeeze_excite(case: &mut Case) -> Result<()> {
    for (name, _) in case.sub_cases("configs")? {
        let weights = weights(case)?;
        let layer = DynamicSqueezeExcite::new(&weights, size(&case.config["channels"])?)?;
        weights.check(false)?;
        let y = layer.forward(&case.tensor(&format!("in.x_{name}"))?)?;
        case.check(&format!("y_{name}"), &y, Class::Forward)?;
    }
    Ok(())
}

pub fn pooling(case: &mut Case) -> Result<()> {
    for (name, value) in case.sub_cases("configs")? {
        let weights = weights(case)?;
        let layer = DynamicAttentivePooling::new(
            &weights,
            size(&case.config["channels"])?,
            size(&case.config["bottleneck"])?,
        )?;
        weights.check(false)?;
        let x = case.tensor(&format!("in.x_{name}"))?;
        let y = layer.forward(&x, &channels(&value)?)?;
        let result = format!("y_{name}");
        if is_constant_over_time(&x)? {
            // The deviation of a constant is rounding noise above its floor.
            case.check_noise(&result, &y, 1e-3)?;
        } else {
            case.check(&result, &y, Class::Forward)?;
        }
    }
    Ok(())
}

/// Compares the results of a layer in evaluation and in training, and its state after training.
/// Every sub-case begins with the weights of the case.
fn eval_and_train<L>(
    case: &mut Case,
    build: impl Fn(&Weights) -> Result<L>,
    forward: impl Fn(&L, &Tensor, &Value, bool) -> Result<Tensor>,
) -> Result<()> {
    for (name, value) in case.sub_cases("configs")? {
        let weights = weights(case)?;
        let layer = build(&weights)?;
        weights.check(false)?;
        let x = case.tensor(&format!("in.x_{name}"))?;
        for (result, train) in [("y", false), ("ytrain", true)] {
            let y = forward(&layer, &x, &value, train)?;
            case.check(&format!("{result}_{name}"), &y, Class::Forward)?;
        }
        check_state(case, &format!("after_{name}."), &weights)?;
    }
    Ok(())
}

/// Compares the state of `weights` with all results whose names begin with `prefix`.
pub fn check_state(case: &mut Case, prefix: &str, weights: &Weights) -> Result<()> {
    let state = weights.state();
    for name in case.names(&format!("out.{prefix}")) {
        let tensor = state.get(&name).with_context(|| format!("no tensor {name}"))?;
        let result = format!("{prefix}{name}");
        match tensor.dtype() {
            DType::I64 => case.check_equal(&result, tensor)?,
            _ => case.check(&result, tensor, Class::Forward)?,
        }
    }
    Ok(())
}

/// The weights of the case, trainable.
pub fn weights(case: &Case) -> Result<Weights> {
    let tensors = case.weights()?;
    Ok(Weights::loaded(tensors, Path::new(&case.path), true, DType::F32, &Device::Cpu))
}

fn conv_selection(value: &Value) -> Result<ConvSelection> {
    Ok(ConvSelection {
        input: channels(&value[0])?,
        output: channels(&value[1])?,
        kernel: (!value[2].is_null()).then(|| size(&value[2])).transpose()?,
    })
}

fn channels(value: &Value) -> Result<Channels> {
    match value {
        Value::Null => Ok(Channels::All),
        Value::Number(_) => Ok(Channels::First(size(value)?)),
        Value::Object(choice) => {
            let index = crate::sizes(choice.get("index").context("expected an index")?)?;
            Ok(Channels::index(index.into_iter().map(|number| number as u32)))
        }
        other => bail!("expected a choice of channels, found {other}"),
    }
}

fn is_constant_over_time(x: &Tensor) -> Result<bool> {
    let frames = x.dim(2)?;
    let first = x.narrow(2, 0, 1)?;
    let differences = x.broadcast_sub(&first)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    Ok(frames > 1 && differences == 0.0)
}
