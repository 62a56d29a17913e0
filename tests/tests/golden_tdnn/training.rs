//! Losses, gradients and training steps.

use anyhow::{Context, Result, ensure};
use candle_core::{Tensor, Var};
use shared::nn::{Parameter, Weights};
use shared::train::{AdamConfig, Gradients, Optimiser, Rule, Unreached};
use tdnn::{Objective, SpeakerClassifier};
use tests::golden::{Case, Class};

use crate::networks::{architecture, supernet};
use crate::number;

pub fn loss(case: &mut Case) -> Result<()> {
    let objective = match case.config["is_softmax"].as_bool() {
        Some(true) => Objective::Softmax,
        _ => Objective::AngularMargin {
            margin: number(&case.config["margin"])?,
            scale: number(&case.config["scale"])?,
            easy_margin: case.config["easy_margin"].as_bool().unwrap_or(false),
        },
    };
    let (classifier, parameter) = classifier(case, "w.W")?;
    let x = Var::from_tensor(&case.tensor("in.x")?)?;
    let result = classifier.forward(&x, &labels(case, "in.label")?, objective)?;
    case.check("logits", &result.logits, Class::Forward)?;
    case.check("loss", &result.loss, Class::Forward)?;
    let gradients = result.loss.backward()?;
    let gradient = |var: &Var| gradients.get(var).cloned().context("no gradient");
    case.check("grad_x", &gradient(&x)?, Class::Gradient)?;
    case.check("grad_W", &gradient(&parameter.var)?, Class::Gradient)
}

pub fn gradients(case: &mut Case) -> Result<()> {
    let (supernet, weights) = supernet(case)?;
    let (classifier, head) = classifier(case, "w.loss.W")?;
    let x = Var::from_tensor(&case.tensor("in.x")?)?;
    let embeddings = supernet.forward(&x, &architecture(&case.config["arch"])?, true)?;
    let result =
        classifier.forward(&embeddings, &labels(case, "in.label")?, Objective::default())?;
    case.check("emb", &embeddings, Class::Forward)?;
    case.check("loss", &result.loss, Class::Forward)?;
    let gradients = result.loss.backward()?;
    case.check("grad_x", gradients.get(&x).context("no gradient of x")?, Class::Gradient)?;
    let unreached = case.config["no_grad"].as_array().cloned().unwrap_or_default();
    for Parameter { name, var } in weights.variables().into_iter().chain([head]) {
        let expected = !unreached.iter().any(|other| other.as_str() == Some(&name));
        match gradients.get(&var) {
            Some(gradient) if expected => {
                let result = format!("grad.{name}");
                if is_noise(&name) {
                    case.check_noise(&result, gradient, noise_of_gradient(case, &result)?)?;
                } else {
                    case.check(&result, gradient, Class::Gradient)?;
                }
            }
            found => ensure!(
                found.is_some() == expected,
                "{name}: {} a gradient",
                if expected { "lacks" } else { "has" }
            ),
        }
    }
    Ok(())
}

pub fn steps(case: &mut Case) -> Result<()> {
    let (supernet, weights) = supernet(case)?;
    let (classifier, head) = classifier(case, "w.loss.W")?;
    let mut parameters = weights.variables();
    parameters.push(head.clone());
    let adam = AdamConfig { weight_decay: 2e-5, ..AdamConfig::default() };
    let unreached = match case.path.file_stem().and_then(|stem| stem.to_str()) {
        Some(stem) if stem.ends_with("zero") => Unreached::Zero,
        Some(stem) if stem.ends_with("none") => Unreached::Skip,
        _ => anyhow::bail!("the case is neither of mode zero nor of mode none"),
    };
    let mut optimiser = Optimiser::new(&parameters, Rule::Adam(adam))?.with_unreached(unreached);
    let rates = case.config["lr"].as_array().context("config.lr")?.clone();
    for (i, rate) in rates.iter().enumerate() {
        let path = architecture(&case.config["archs"][i])?;
        let x = case.tensor(&format!("in.x{i}"))?;
        let embeddings = supernet.forward(&x, &path, true)?;
        let labels = labels(case, &format!("in.label{i}"))?;
        let result = classifier.forward(&embeddings, &labels, Objective::default())?;
        case.check_noise(&format!("loss{i}"), &result.loss, 1e-4)?;
        optimiser.step(number(rate)?, &Gradients::of(&result.loss, &parameters)?)?;
    }
    let mut state = weights.state();
    state.insert(head.name.clone(), head.var.as_tensor().clone());
    for (name, tensor) in state {
        let result = format!("final.{name}");
        if tensor.dtype().is_int() {
            case.check_equal(&result, &tensor)?;
        } else if is_noise(&name) {
            case.check_noise(&result, &tensor, 5e-3)?;
        } else if name == "bnembed.running_mean" {
            case.check_noise(&result, &tensor, 1e-3)?;
        } else {
            case.check(&result, &tensor, Class::Gradient)?;
        }
    }
    Ok(())
}

/// Parameters whose gradient is zero but for rounding: a batch norm follows, or a positive factor
/// before a ReLU and a batch norm.
fn is_noise(name: &str) -> bool {
    ["bnpool.bn.bias", "linear.linear.bias", ".k31"].iter().any(|noise| name.ends_with(noise))
}

/// Largest difference to allow in a gradient that is zero but for rounding: what cancels in it are
/// products as large as the gradients of the layer's other parameters, of which f32 keeps 7 digits.
fn noise_of_gradient(case: &Case, name: &str) -> Result<f64> {
    let largest = |name: &str| -> Result<f64> {
        Ok(case.array(name)?.values.iter().fold(0.0f64, |a, b| a.max(b.abs())))
    };
    let (layer, _) = name.rsplit_once('.').context("a parameter without a layer")?;
    let prefix = format!("out64.{layer}.");
    let mut cancelled = 0.0f64;
    for parameter in case.names(&prefix) {
        cancelled = cancelled.max(largest(&format!("{prefix}{parameter}"))?);
    }
    Ok(1e-6 + 1e-4 * largest(&format!("out64.{name}"))? + 1e-6 * cancelled)
}

/// The head with the case's weight `name`, and its parameter.
fn classifier(case: &Case, name: &str) -> Result<(SpeakerClassifier, Parameter)> {
    let tensor = case.tensor(name)?;
    let (embedding, classes) = tensor.dims2()?;
    let name = name.trim_start_matches("w.").to_string();
    let prefix = name.strip_suffix(".W").unwrap_or_default().to_string();
    let weights = weights_of(case, name, tensor);
    let scoped = if prefix.is_empty() { weights.clone() } else { weights.at(prefix) };
    let classifier = SpeakerClassifier::new(&scoped, embedding, classes)?;
    weights.check(false)?;
    let parameter = weights.variables().pop().context("the head has no parameter")?;
    Ok((classifier, parameter))
}

fn weights_of(case: &Case, name: String, tensor: Tensor) -> Weights {
    Weights::loaded(
        [(name, tensor)].into(),
        &case.path,
        true,
        candle_core::DType::F32,
        &candle_core::Device::Cpu,
    )
}

fn labels(case: &Case, name: &str) -> Result<Vec<u32>> {
    Ok(case.array(name)?.values.iter().map(|label| *label as u32).collect())
}
