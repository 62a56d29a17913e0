//! SUPERB's heads on top of the encoder.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use lighthubert::heads::{LayerMixture, RecurrentHead, RecurrentSize, UtteranceClassifier};
use shared::nn::Weights;
use shared::nn::functional::{CtcOptions, ctc_loss, ctc_mean, log_softmax};
use tests::golden::{Case, Class};

/// Mixture of layers, recurrent recogniser, classifier; the gradients of the sum of their losses.
pub fn superb(case: &mut Case) -> Result<()> {
    let dims = case.config["dims"].clone();
    let size = |key: &str| dims[key].as_u64().map(|it| it as usize).context(key.to_string());
    let (inputs, projected, classes) = (size("embed")?, size("proj")?, size("classes")?);
    // The classifier's layers have names of their own in the reference.
    let renamed = |name: String| match name.strip_prefix("cls_") {
        Some(rest) => format!("classifier.{}", rest.replace("out", "linear")),
        None => name,
    };
    let tensors = case.weights()?.into_iter().map(|(name, it)| (renamed(name), it)).collect();
    let weights = Weights::loaded(tensors, &case.path, true, DType::F32, &Device::Cpu);
    let mixture = LayerMixture::new(&weights, size("layers")?)?;
    let recurrent = RecurrentSize {
        inputs,
        projected,
        hidden: size("lstm")?,
        layers: 2,
        classes: size("vocab")?,
    };
    let recogniser = RecurrentHead::new(&weights, recurrent)?;
    let classifier =
        UtteranceClassifier::new(&weights.at("classifier"), inputs, projected, classes)?;
    weights.check(false)?;

    let whole = |name: &str| -> Result<Vec<usize>> {
        Ok(case.array(name)?.values.iter().map(|value| *value as usize).collect())
    };
    let lengths = whole("in.lengths")?;
    let target_lengths = whole("in.target_lengths")?;
    let targets = case.array("in.targets")?.clone();
    let labels: Vec<Vec<u32>> = targets
        .values
        .chunks(targets.dims[1])
        .zip(&target_lengths)
        .map(|(row, length)| row[..*length].iter().map(|label| *label as u32).collect())
        .collect();
    let states = case.tensor("in.hidden_states")?;
    let states: Vec<Tensor> =
        (0..states.dim(0)?).map(|layer| Ok(states.get(layer)?)).collect::<Result<_>>()?;

    let features = mixture.forward(&states)?;
    case.check("weighted", &features, Class::Forward)?;
    let logits = recogniser.forward(&features, &lengths, None)?;
    case.check("log_probs", &log_softmax(&logits, 2)?, Class::Forward)?;
    let loss = ctc_mean(&ctc_loss(&logits, &lengths, &labels, CtcOptions::default())?, &labels)?;
    case.check("ctc_loss", &loss.reshape(1)?, Class::Forward)?;
    let logits = classifier.forward(&features, &lengths)?;
    case.check("cls_logits", &logits, Class::Forward)?;
    let batch = lengths.len();
    let own: Vec<u32> = (0..batch).map(|item| (item % classes) as u32).collect();
    let own = Tensor::from_vec(own, (batch, 1), &Device::Cpu)?;
    let cross_entropy = log_softmax(&logits, 1)?.gather(&own, 1)?.mean_all()?.neg()?;
    let gradients = (loss + cross_entropy)?.backward()?;
    for parameter in weights.variables() {
        let gradient = gradients.get(&parameter.var).context(parameter.name.clone())?;
        let name = match parameter.name.strip_prefix("classifier.") {
            Some(rest) => format!("cls_{}", rest.replace("linear", "out")),
            None => parameter.name.clone(),
        };
        case.check(&format!("grad.{name}"), gradient, Class::Gradient)?;
    }
    Ok(())
}
