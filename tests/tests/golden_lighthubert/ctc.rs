//! The CTC loss, its gradient, and greedy decoding.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use lighthubert::decode::{Emissions, greedy};
use serde_json::Value;
use shared::nn::functional::{CtcOptions, ctc_loss, ctc_mean, log_softmax};
use tests::golden::{Case, Class};

/// The numbers of a JSON list.
fn numbers<T: TryFrom<u64>>(list: &Value) -> Result<Vec<T>> {
    let list = list.as_array().with_context(|| format!("expected a list, found {list}"))?;
    let number = |value: &Value| value.as_u64().and_then(|it| T::try_from(it).ok());
    list.iter()
        .map(|it| number(it).with_context(|| format!("expected a number, found {it}")))
        .collect()
}

/// Losses, reduced in every way, and gradients of batches; labels that do not fit, empty ones, blanks
/// in other places.
pub fn losses(case: &mut Case) -> Result<()> {
    for (name, spec) in case.sub_cases("specs")? {
        let lists = |key: &str| spec[key].as_array().with_context(|| format!("{name}: {key}"));
        let labels: Vec<Vec<u32>> = lists("targets")?.iter().map(numbers).collect::<Result<_>>()?;
        let lengths: Vec<usize> = numbers(&spec["input_lengths"])?;
        let blank = spec["blank"].as_u64().context("blank")? as u32;
        let logits = case.tensor(&format!("in.{name}.logits"))?;
        let log_probabilities = log_softmax(&logits, 2)?;
        case.check(&format!("{name}.log_probs"), &log_probabilities, Class::Forward)?;
        for (item, expected) in lists("greedy")?.iter().enumerate() {
            let own = log_probabilities.narrow(1, item, 1)?.squeeze(1)?;
            let emissions = Emissions::new(&own.narrow(0, 0, lengths[item])?)?;
            let found: Vec<u32> = greedy(&emissions, blank).iter().map(|it| it.class).collect();
            let expected: Vec<u32> = numbers(expected)?;
            case.check_that(&format!("{name}.greedy"), found == expected, || {
                format!("{found:?} instead of {expected:?}")
            });
        }
        for zero_infinity in [false, true] {
            let name = format!("{name}.zi{}", u8::from(zero_infinity));
            let options = CtcOptions { blank, zero_infinity };
            for reduction in ["none", "sum", "mean"] {
                let logits = Var::from_tensor(&logits)?;
                // The reference has the time first.
                let batch = logits.as_tensor().transpose(0, 1)?;
                let losses = ctc_loss(&batch, &lengths, &labels, options)?;
                let reduced = match reduction {
                    "none" => losses,
                    "sum" => losses.sum_all()?.reshape(1)?,
                    _ => ctc_mean(&losses, &labels)?.reshape(1)?,
                };
                let name = format!("{name}.{reduction}");
                check_with_infinities(case, &name, &reduced)?;
                let gradient = format!("{name}.grad_logits");
                if case.array(&format!("out.{gradient}")).is_ok() {
                    let gradients = reduced.sum_all()?.backward()?;
                    let found = gradients.get(&logits).context("no gradient")?;
                    case.check(&gradient, found, Class::Gradient)?;
                }
            }
        }
    }
    Ok(())
}

/// Compares, where infinities must be in the same places.
fn check_with_infinities(case: &mut Case, name: &str, result: &Tensor) -> Result<()> {
    let found: Vec<f32> = result.to_vec1()?;
    let expected = case.array(&format!("out.{name}"))?.f32s();
    let is_infinite = |values: &[f32]| values.iter().map(|it| it.is_infinite()).collect::<Vec<_>>();
    if is_infinite(&found) != is_infinite(&expected) {
        case.check_that(name, false, || format!("{found:?} instead of {expected:?}"));
        return Ok(());
    }
    let finite = |value: f64| if value.is_infinite() { 0.0 } else { value };
    let values: Vec<f32> = found.iter().map(|it| finite((*it).into()) as f32).collect();
    case.check_map(name, finite, &Tensor::new(values, &Device::Cpu)?, Class::Forward)
}
