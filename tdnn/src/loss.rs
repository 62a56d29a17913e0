//! The training objective: speaker classification with an additive angular margin.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};
use shared::nn::functional::matmul;
use shared::nn::{Init, Weights};
use shared::{Error, Result};

/// Norm below which a vector is not scaled up further.
const NORM_FLOOR: f64 = 1e-12;
/// Squared sine below which the angle gets no gradient: its derivative is infinite at 0.
const SQUARED_SINE_FLOOR: f64 = 1e-12;

/// How logits follow from embeddings and class weights. It may change from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Inner products, for warming up.
    Softmax,
    /// AAM-softmax (Deng et al. 2019, equation 3): cosines, the angle to the true class widened by
    /// `margin`, times `scale`.
    AngularMargin {
        /// Added to the angle, in radians.
        margin: f64,
        /// Factor on the cosines.
        scale: f64,
        /// Where the widened angle would pass pi: with it, the margin holds for angles below a
        /// right angle only; without, `cos - margin sin(margin)` continues the logit beyond.
        easy_margin: bool,
    },
}

impl Default for Objective {
    fn default() -> Self {
        Self::AngularMargin { margin: 0.2, scale: 30.0, easy_margin: false }
    }
}

/// The classification head of training: a weight vector for each speaker.
pub struct SpeakerClassifier {
    weight: Tensor,
}

/// What [`SpeakerClassifier::forward`] returns.
pub struct Classification {
    /// Mean cross-entropy, a scalar.
    pub loss: Tensor,
    /// Logits `[B, classes]`, margin included.
    pub logits: Tensor,
}

impl SpeakerClassifier {
    /// A head for `classes` speakers, parameter `W` `[embedding, classes]` (Xavier's normal
    /// initialisation).
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(weights: &Weights, embedding: usize, classes: usize) -> Result<Self> {
        let std = (2.0 / (embedding + classes) as f64).sqrt();
        Ok(Self { weight: weights.parameter("W", (embedding, classes), Init::Normal { std })? })
    }

    /// Number of speakers.
    pub fn classes(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Mean cross-entropy and logits of `embeddings` `[B, embedding]`, normalised or not, whose
    /// speakers are `labels` `[B]` (integers).
    ///
    /// # Errors
    /// When shapes differ or a label is no class.
    pub fn forward(
        &self,
        embeddings: &Tensor,
        labels: &[u32],
        objective: Objective,
    ) -> Result<Classification> {
        self.check(embeddings, labels)?;
        let labels = Tensor::new(labels, embeddings.device())?.unsqueeze(1)?;
        let logits = match objective {
            Objective::Softmax => matmul(embeddings, &self.weight)?,
            Objective::AngularMargin { margin, scale, easy_margin } => {
                let cosines =
                    matmul(&unit_vectors(embeddings, 1)?, &unit_vectors(&self.weight, 0)?)?;
                let own = cosines.gather(&labels, 1)?;
                let gain = (with_margin(&own, margin, easy_margin)? - own)?;
                (cosines.add(&gain.broadcast_mul(&one_hot(&labels, &cosines)?)?)? * scale)?
            }
        };
        let loss = cross_entropy(&logits, &labels)?;
        Ok(Classification { loss, logits })
    }

    fn check(&self, embeddings: &Tensor, labels: &[u32]) -> Result<()> {
        let (embedding, classes) = self.weight.dims2()?;
        if embeddings.dims() != [labels.len(), embedding] || labels.is_empty() {
            let expected = format!("[{}, {embedding}], one a label", labels.len());
            return Err(Error::shape("embeddings", expected, embeddings.dims()));
        }
        match labels.iter().find(|label| **label as usize >= classes) {
            Some(label) => Err(Error::Argument(format!("label {label} is none of {classes}"))),
            None => Ok(()),
        }
    }
}

/// `x` with its vectors along `dim` scaled to length 1.
pub fn unit_vectors(x: &Tensor, dim: usize) -> Result<Tensor> {
    let norm = x.sqr()?.sum_keepdim(dim)?.sqrt()?.maximum(NORM_FLOOR)?;
    Ok(x.broadcast_div(&norm)?)
}

/// `cos(angle + margin)` of the cosines `own`, continued as `easy_margin` says.
fn with_margin(own: &Tensor, margin: f64, easy_margin: bool) -> Result<Tensor> {
    let sine = own.sqr()?.affine(-1.0, 1.0)?.clamp(SQUARED_SINE_FLOOR, 1.0)?.sqrt()?;
    let widened = ((own * margin.cos())? - (sine * margin.sin())?)?;
    let (boundary, beyond) = if easy_margin {
        (0.0, own.clone())
    } else {
        let pi = std::f64::consts::PI;
        ((pi - margin).cos(), (own - margin * (pi - margin).sin())?)
    };
    Ok(own.gt(boundary)?.where_cond(&widened, &beyond)?)
}

/// 1 at `labels` `[B, 1]` and 0 elsewhere, in the shape of `like` `[B, classes]`.
fn one_hot(labels: &Tensor, like: &Tensor) -> Result<Tensor> {
    let classes = Tensor::arange(0u32, like.dims()[1] as u32, like.device())?;
    Ok(labels.broadcast_eq(&classes.unsqueeze(0)?)?.to_dtype(like.dtype())?)
}

/// Mean of `-log softmax(logits)[label]` over the batch.
fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let largest = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&largest)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok((log_sum - shifted.gather(labels, 1)?)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use candle_core::{DType, Device, Var};

    use super::*;

    const CLASSES: usize = 4;

    /// Embeddings at known angles to the class weights, which are the unit vectors.
    fn head() -> (SpeakerClassifier, Weights) {
        let identity = Tensor::eye(CLASSES, DType::F32, &Device::Cpu).unwrap();
        let tensors = [("W".to_string(), (identity * 3.0).unwrap())].into();
        let origin = std::path::Path::new("test");
        let weights = Weights::loaded(tensors, origin, true, DType::F32, &Device::Cpu);
        (SpeakerClassifier::new(&weights, CLASSES, CLASSES).unwrap(), weights)
    }

    fn at_angle(angle: f64) -> Tensor {
        let values = [2.0 * angle.cos(), 2.0 * angle.sin(), 0.0, 0.0];
        Tensor::new(&[values], &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
    }

    #[test]
    fn the_margin_widens_the_angle_to_the_true_class_only() {
        let (head, _) = head();
        let (margin, scale) = (0.3, 10.0);
        for (angle, easy_margin, expected) in [
            (0.5, false, (0.5f64 + 0.3).cos()),
            (2.0, false, 2.3f64.cos()),
            (3.0, false, 3f64.cos() - 0.3 * 0.3f64.sin()),
            (0.5, true, 0.8f64.cos()),
            (2.0, true, 2f64.cos()),
        ] {
            let objective = Objective::AngularMargin { margin, scale, easy_margin };
            let result = head.forward(&at_angle(angle), &[0], objective).unwrap();
            let logits: Vec<f32> = result.logits.flatten_all().unwrap().to_vec1().unwrap();
            let all = [expected, angle.sin(), 0.0, 0.0].map(|cosine| scale * cosine);
            for (found, expected) in logits.iter().zip(all) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{angle} {found} {expected}");
            }
            let sum: f64 = all.iter().map(|logit| logit.exp()).sum();
            let loss = f64::from(result.loss.to_scalar::<f32>().unwrap());
            assert!((loss - (sum.ln() - all[0])).abs() < 1e-4, "{angle} {loss}");
        }
    }

    #[test]
    fn gradients_stay_finite_where_the_angle_is_zero_or_straight() {
        for angle in [0.0, PI] {
            let (head, weights) = head();
            let x = Var::from_tensor(&at_angle(angle)).unwrap();
            let loss = head.forward(&x, &[0], Objective::default()).unwrap().loss;
            let gradients = loss.backward().unwrap();
            for var in [&x, &weights.variables()[0].var] {
                let gradient = gradients.get(var).unwrap().flatten_all().unwrap();
                let gradient: Vec<f32> = gradient.to_vec1().unwrap();
                assert!(gradient.iter().all(|value| value.is_finite()), "{angle}: {gradient:?}");
            }
        }
    }

    #[test]
    fn wrong_labels_and_shapes_are_refused() {
        let (head, _) = head();
        let x = at_angle(0.1);
        assert!(head.forward(&x, &[CLASSES as u32], Objective::Softmax).is_err());
        assert!(head.forward(&x, &[0, 1], Objective::Softmax).is_err());
        assert!(head.forward(&x.narrow(1, 0, 3).unwrap(), &[0], Objective::Softmax).is_err());
    }
}
