//! The gradients of one training step: accumulated, checked, clipped.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::Tape;
use super::elements::with_elements;
use crate::nn::Parameter;
use crate::{Error, Result};

/// Elements that one task sums; the order of the sums is the same for every thread count.
const CHUNK: usize = 1 << 15;

/// One gradient per parameter, `None` where no loss has reached it so far.
#[derive(Clone, Debug)]
pub struct Gradients {
    parameters: Vec<Parameter>,
    tensors: Vec<Option<Tensor>>,
    weight: f64,
    /// Factor that is still to be applied to `tensors`; the optimiser does so while it reads them.
    scale: f64,
}

impl Gradients {
    /// No gradients yet for `parameters`.
    pub fn new(parameters: &[Parameter]) -> Self {
        Self {
            parameters: parameters.to_vec(),
            tensors: vec![None; parameters.len()],
            weight: 0.0,
            scale: 1.0,
        }
    }

    /// The gradients of the scalar `loss` by `parameters`.
    ///
    /// # Errors
    /// When a layer on the way has no gradient.
    pub fn of(loss: &Tensor, parameters: &[Parameter]) -> Result<Self> {
        let mut gradients = Self::new(parameters);
        gradients.add(loss, 1.0)?;
        Ok(gradients)
    }

    /// Adds `weight` times the gradients of the scalar `loss`. For several parts of one batch, the
    /// weight is the number of examples in the part; [`Gradients::average`] then gives the
    /// gradients of the mean loss over the batch.
    ///
    /// # Errors
    /// As [`Gradients::of`].
    pub fn add(&mut self, loss: &Tensor, weight: f64) -> Result<()> {
        self.add_taped(loss, weight, Tape::new())
    }

    /// [`Gradients::add`] of a loss that was computed from the results of a tape.
    ///
    /// # Errors
    /// As [`Tape::backward`].
    pub fn add_taped(&mut self, loss: &Tensor, weight: f64, tape: Tape) -> Result<()> {
        let weighted = if weight == 1.0 { loss.clone() } else { (loss * weight)? };
        let mut store = tape.backward(&weighted)?;
        for (sum, parameter) in self.tensors.iter_mut().zip(&self.parameters) {
            let gradient = store.remove(parameter.var.as_tensor());
            *sum = match (sum.take(), gradient) {
                (Some(sum), Some(gradient)) => Some(((sum * self.scale)? + gradient)?),
                (Some(sum), None) => Some((sum * self.scale)?),
                (None, gradient) => gradient,
            };
        }
        self.scale = 1.0;
        self.weight += weight;
        Ok(())
    }

    /// Multiplies all gradients by `factor`.
    pub fn scale(&mut self, factor: f64) {
        self.scale *= factor;
    }

    /// Divides all gradients by the sum of the weights given to [`Gradients::add`].
    ///
    /// # Errors
    /// When that sum is not positive.
    pub fn average(&mut self) -> Result<()> {
        if self.weight <= 0.0 || !self.weight.is_finite() {
            let message = format!("cannot average gradients of total weight {}", self.weight);
            return Err(Error::Argument(message));
        }
        self.scale(1.0 / self.weight);
        self.weight = 1.0;
        Ok(())
    }

    /// Fails unless every parameter that `used` accepts has a gradient.
    ///
    /// # Errors
    /// [`Error::NoGradient`] with the names of those that have none.
    pub fn require(&self, used: impl Fn(&Parameter) -> bool) -> Result<()> {
        let missing =
            self.named(|parameter, gradient| Ok(gradient.is_none() && used(parameter)))?;
        if missing.is_empty() { Ok(()) } else { Err(Error::NoGradient { parameters: missing }) }
    }

    /// The Euclidean norm of all gradients as one vector.
    ///
    /// # Errors
    /// [`Error::NoGradient`] with the names of the parameters whose gradient holds a NaN or an
    /// infinity.
    pub fn norm(&self) -> Result<f64> {
        let squares: Result<Vec<f64>> =
            self.tensors.par_iter().flatten().map(sum_squares).collect();
        let squares: f64 = squares?.iter().sum();
        let norm = self.scale.abs() * squares.sqrt();
        if norm.is_finite() {
            return Ok(norm);
        }
        let parameters = self.named(|_, gradient| match gradient {
            Some(gradient) => Ok(!(self.scale * sum_squares(gradient)?).is_finite()),
            None => Ok(false),
        })?;
        Err(Error::NoGradient { parameters })
    }

    /// Scales the gradients down to a norm of at most `max_norm`, as PyTorch's
    /// `clip_grad_norm_`; returns the norm before.
    ///
    /// # Errors
    /// As [`Gradients::norm`].
    pub fn clip(&mut self, max_norm: f64) -> Result<f64> {
        let norm = self.norm()?;
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            self.scale(factor);
        }
        Ok(norm)
    }

    /// The gradient of the parameter at `index`, in the order given to [`Gradients::new`].
    ///
    /// # Errors
    /// Only when the tensor library fails.
    pub fn get(&self, index: usize) -> Result<Option<Tensor>> {
        match self.tensors.get(index).and_then(Option::as_ref) {
            Some(gradient) => Ok(Some((gradient * self.scale)?)),
            None => Ok(None),
        }
    }

    /// The gradients before the factor that [`Gradients::pending_scale`] tells.
    pub(super) fn unscaled(&self) -> &[Option<Tensor>] {
        &self.tensors
    }

    /// The factor that [`Gradients::unscaled`] still lack.
    pub(super) fn pending_scale(&self) -> f64 {
        self.scale
    }

    /// Names of the parameters for which `predicate` holds.
    fn named(
        &self,
        predicate: impl Fn(&Parameter, Option<&Tensor>) -> Result<bool>,
    ) -> Result<Vec<String>> {
        let mut names = vec![];
        for (parameter, gradient) in self.parameters.iter().zip(&self.tensors) {
            if predicate(parameter, gradient.as_ref())? {
                names.push(parameter.name.clone());
            }
        }
        Ok(names)
    }
}

/// The sum of the squares of all elements, in f64.
fn sum_squares(tensor: &Tensor) -> Result<f64> {
    if tensor.dtype() == DType::F64 {
        let values = tensor.flatten_all()?.to_vec1::<f64>()?;
        return Ok(values.iter().map(|x| x * x).sum());
    }
    let tensor = tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    Ok(with_elements(&tensor, |values| {
        let sums: Vec<f64> = values.par_chunks(CHUNK).map(sum_squares_of_chunk).collect();
        Ok(sums.iter().sum())
    })?)
}

fn sum_squares_of_chunk(values: &[f32]) -> f64 {
    // Independent partial sums, so that the additions need not wait for each other.
    let mut lanes = [0f64; 16];
    let (groups, rest) = values.as_chunks::<16>();
    for group in groups {
        for (lane, value) in lanes.iter_mut().zip(group) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let rest: f64 = rest.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn parameter(name: &str, values: &[f32]) -> Parameter {
        Parameter { name: name.into(), var: Var::new(values, &Device::Cpu).unwrap() }
    }

    /// A loss whose gradient by the parameter is `gradient`.
    fn loss(parameter: &Parameter, gradient: &[f32]) -> Tensor {
        let gradient = Tensor::new(gradient, &Device::Cpu).unwrap();
        (parameter.var.as_tensor() * gradient).unwrap().sum_all().unwrap()
    }

    fn values(gradients: &Gradients, index: usize) -> Vec<f32> {
        gradients.get(index).unwrap().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn clipping_agrees_with_pytorch() {
        // torch.nn.utils.clip_grad_norm_([a, b], 5.0), torch 2.15.
        let parameters = [parameter("a", &[0.0; 3]), parameter("b", &[0.0; 2])];
        let loss = (loss(&parameters[0], &[3.0, -4.0, 12.0]) + loss(&parameters[1], &[84.0, 0.5]))
            .unwrap();
        let mut gradients = Gradients::of(&loss, &parameters).unwrap();
        assert!((gradients.clip(5.0).unwrap() - 85.00147247314453).abs() < 1e-5);
        let expected = [
            vec![0.17646753787994385, -0.2352900505065918, 0.7058701515197754],
            vec![4.941091060638428, 0.029411256313323975],
        ];
        for (index, expected) in expected.iter().enumerate() {
            for (got, expected) in values(&gradients, index).iter().zip(expected) {
                let error = (f64::from(*got) - expected).abs();
                assert!(error <= 1e-6 * expected.abs(), "{got} {expected}");
            }
        }
        // Below the bound nothing changes.
        let before = values(&gradients, 0);
        assert!((gradients.clip(6.0).unwrap() - 5.0).abs() < 1e-6);
        assert_eq!(values(&gradients, 0), before);
    }

    #[test]
    fn parts_of_unequal_size_average_to_the_whole_batch() {
        // The loss is the mean over examples of x_i * p: its gradient is the mean of x.
        let p = [parameter("p", &[2.0])];
        let mean_loss = |x: &[f32]| {
            let x = Tensor::new(x, &Device::Cpu).unwrap();
            x.broadcast_mul(p[0].var.as_tensor()).unwrap().mean_all().unwrap()
        };
        let mut parts = Gradients::new(&p);
        parts.add(&mean_loss(&[1.0, 2.0, 3.0]), 3.0).unwrap();
        parts.add(&mean_loss(&[10.0]), 1.0).unwrap();
        parts.average().unwrap();
        assert_eq!(values(&parts, 0), [4.0]);
        // Adding after averaging or scaling keeps the earlier part as it was.
        parts.add(&mean_loss(&[1.0]), 1.0).unwrap();
        assert_eq!(values(&parts, 0), [5.0]);
        assert!(Gradients::new(&p).average().is_err());
    }

    #[test]
    fn a_used_parameter_without_gradient_is_named() {
        let parameters = [parameter("a", &[1.0]), parameter("b", &[1.0]), parameter("c", &[1.0])];
        let gradients = Gradients::of(&loss(&parameters[0], &[1.0]), &parameters).unwrap();
        gradients.require(|parameter| parameter.name == "a").unwrap();
        match gradients.require(|_| true) {
            Err(Error::NoGradient { parameters }) => assert_eq!(parameters, ["b", "c"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named() {
        let parameters = [parameter("fine", &[1.0]), parameter("broken", &[1.0, 1.0])];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let loss = (loss(&parameters[0], &[1.0]) + loss(&parameters[1], &[1.0, bad])).unwrap();
            match Gradients::of(&loss, &parameters).unwrap().norm() {
                Err(Error::NoGradient { parameters }) => assert_eq!(parameters, ["broken"]),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_norm_sees_every_element_of_any_layout_and_type() {
        let n = 3 * CHUNK + 7;
        let ramp: Vec<f32> = (0..n).map(|i| (i % 101) as f32 / 101.0 - 0.4).collect();
        let expected = ramp.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        let tensor = Tensor::new(ramp, &Device::Cpu).unwrap();
        let close = |got: f64, tolerance: f64| (got - expected).abs() < tolerance * expected;
        assert!(close(sum_squares(&tensor).unwrap(), 1e-12));
        let wide = Tensor::stack(&[&tensor, &tensor], 1).unwrap();
        assert!(close(sum_squares(&wide.narrow(1, 1, 1).unwrap()).unwrap(), 1e-12));
        assert!(close(sum_squares(&tensor.to_dtype(DType::F64).unwrap()).unwrap(), 1e-12));
        assert!(close(sum_squares(&tensor.to_dtype(DType::BF16).unwrap()).unwrap(), 1e-2));
    }
}
