//! Connectionist temporal classification (Graves, Fernández, Gomez and Schmidhuber 2006).

mod lattice;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};

use super::real::Real;
use super::rows::{Rows, contiguous_rows};
use super::{parallel, to_compute_dtype, to_dtype};
use crate::{Error, Result};
use lattice::Lattice;

/// Settings of [`ctc_loss`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtcOptions {
    /// The class that stands for no label.
    pub blank: u32,
    /// Utterances that are too short for their labels have loss and gradient 0, instead of an infinite
    /// loss without gradient (NaN).
    pub zero_infinity: bool,
}

impl Default for CtcOptions {
    fn default() -> Self {
        Self { blank: 0, zero_infinity: true }
    }
}

/// The loss `[B]` of each utterance: minus the logarithm of the probability that the softmax of
/// `logits [B, T, C]` gives to all ways of spreading the labels over the first `lengths[b]` frames
/// (equations 3 and 8). An utterance without labels has only blanks.
///
/// Computed in f64 from logarithms, whatever the dtype. The gradient is that at the logits (equation
/// 16); frames beyond the length have none.
///
/// # Errors
/// When there are not as many lengths and label sequences as utterances, a length is above T, or a
/// label is the blank or no class.
pub fn ctc_loss(
    logits: &Tensor,
    lengths: &[usize],
    labels: &[Vec<u32>],
    options: CtcOptions,
) -> Result<Tensor> {
    let &[batch, frames, classes] = logits.dims() else {
        return Err(Error::shape("logits of CTC", "[B, T, C]", logits.dims()));
    };
    if lengths.len() != batch || labels.len() != batch {
        return Err(Error::Argument(format!(
            "CTC: {} lengths and {} label sequences for a batch of {batch}",
            lengths.len(),
            labels.len()
        )));
    }
    if let Some(length) = lengths.iter().find(|length| **length > frames) {
        return Err(Error::Argument(format!("CTC: length {length} is above the {frames} frames")));
    }
    let is_label = |label: u32| (label as usize) < classes && label != options.blank;
    if let Some(label) = labels.iter().flatten().find(|label| !is_label(**label)) {
        return Err(Error::Argument(format!(
            "CTC: label {label} is the blank {} or none of {classes} classes",
            options.blank
        )));
    }
    if options.blank as usize >= classes {
        let blank = options.blank;
        return Err(Error::Argument(format!("CTC: blank {blank} is none of {classes} classes")));
    }
    let op = Ctc { lengths: lengths.to_vec(), labels: labels.to_vec(), options, classes };
    let rows = contiguous_rows(&to_compute_dtype("logits of CTC", logits)?, 1)?;
    to_dtype(rows.apply_op1(op)?, logits.dtype())
}

/// The mean over the batch of each utterance's loss (`[B]`, from [`ctc_loss`]) over its number of
/// labels, or over 1 where it has none: a scalar.
///
/// # Errors
/// When there are not as many label sequences as losses, or none.
pub fn ctc_mean(losses: &Tensor, labels: &[Vec<u32>]) -> Result<Tensor> {
    if losses.dims() != [labels.len()] || labels.is_empty() {
        let expected = format!("[{}], one a label sequence", labels.len());
        return Err(Error::shape("losses of CTC", expected, losses.dims()));
    }
    let shares: Vec<f64> = labels
        .iter()
        .map(|labels| 1.0 / (labels.len().max(1) * losses.elem_count()) as f64)
        .collect();
    let shares = Tensor::new(shares, losses.device())?.to_dtype(losses.dtype())?;
    Ok((losses * shares)?.sum_all()?)
}

struct Ctc {
    lengths: Vec<usize>,
    labels: Vec<Vec<u32>>,
    options: CtcOptions,
    classes: usize,
}

impl Ctc {
    fn lattice<T: Real>(&self, logits: &Rows<'_, T>, item: usize) -> Lattice {
        let logits = &logits.row(item)[..self.lengths[item] * self.classes];
        Lattice::new(logits, self.classes, &self.labels[item], self.options.blank)
    }

    fn forward<T: Real>(&self, logits: &Rows<'_, T>) -> Vec<T> {
        parallel::map_rows(logits.count(), logits.len(), |item| {
            let loss = self.lattice(logits, item).loss();
            T::from_f64(if loss.is_infinite() && self.options.zero_infinity { 0.0 } else { loss })
        })
    }

    fn backward<T: Real>(&self, logits: &Rows<'_, T>, dloss: &[T]) -> Vec<T> {
        let mut gradient = vec![T::zero(); logits.count() * logits.len()];
        parallel::fill_rows(&mut gradient, logits.len(), |item, gradient| {
            let lattice = self.lattice(logits, item);
            let scale = dloss[item].to_f64();
            match lattice.gradient() {
                Some(values) => {
                    for (gradient, value) in gradient.iter_mut().zip(values) {
                        *gradient = T::from_f64(scale * value);
                    }
                }
                None if self.options.zero_infinity => {}
                None => gradient.fill(T::from_f64(f64::NAN)),
            }
        });
        gradient
    }
}

impl CustomOp1 for Ctc {
    fn name(&self) -> &'static str {
        "ctc-loss"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let losses = match x {
            CpuStorage::F64(_) => CpuStorage::F64(self.forward(&Rows::new(x, layout, 1)?)),
            _ => CpuStorage::F32(self.forward(&Rows::new(x, layout, 1)?)),
        };
        Ok((losses, Shape::from(self.lengths.len())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let device = x.device();
        let gradient = match x.dtype() {
            DType::F64 => {
                let dy = dy.to_vec1()?;
                let dx = Rows::<f64>::of(x, 1, |x| Ok(self.backward(&x, &dy)))?;
                Tensor::from_vec(dx, x.shape(), device)?
            }
            _ => {
                let dy = dy.to_vec1()?;
                let dx = Rows::<f32>::of(x, 1, |x| Ok(self.backward(&x, &dy)))?;
                Tensor::from_vec(dx, x.shape(), device)?
            }
        };
        Ok(Some(gradient))
    }
}
