//! Exponential moving averages of the parameters.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;

use super::elements::{with_elements, with_elements_mut};
use super::update::Rule;
use crate::nn::Parameter;
use crate::{Error, Result};

/// Elements that one task averages.
const CHUNK: usize = 1 << 15;

/// Averages of all parameters over time, one for each rate `r`: after every step,
/// `average = r average + (1 - r) parameter`. They start as the parameters themselves. Buffers,
/// such as the running statistics of batch norms, are not averaged.
pub struct Ema {
    parameters: Vec<Parameter>,
    averages: Vec<Average>,
}

struct Average {
    rate: f64,
    /// In the order of the parameters.
    tensors: Vec<Var>,
}

impl Ema {
    /// Averages of `parameters` with these rates, of which there may be none.
    ///
    /// # Errors
    /// When a rate is not in `[0, 1)` or comes twice.
    pub fn new(parameters: &[Parameter], rates: &[f64]) -> Result<Self> {
        let mut averages: Vec<Average> = vec![];
        for &rate in rates {
            if !(0.0..1.0).contains(&rate) || averages.iter().any(|other| other.rate == rate) {
                return Err(Error::Argument(format!(
                    "the rates of averages must differ and be in [0, 1), not {rates:?}"
                )));
            }
            let copy = |parameter: &Parameter| {
                let tensor = parameter.var.to_dtype(Rule::state_dtype(parameter.var.dtype()))?;
                // Detached, it is no variable, of which the new one would share the storage.
                Ok(Var::from_tensor(&tensor.detach())?)
            };
            averages.push(Average {
                rate,
                tensors: parameters.iter().map(copy).collect::<Result<_>>()?,
            });
        }
        Ok(Self { parameters: parameters.to_vec(), averages })
    }

    /// The rates, in the order in which they were given.
    pub fn rates(&self) -> Vec<f64> {
        self.averages.iter().map(|average| average.rate).collect()
    }

    /// Takes the parameters as they are now into the averages.
    ///
    /// # Errors
    /// Only when the tensor library fails.
    pub fn update(&mut self) -> Result<()> {
        for average in &self.averages {
            let pairs = average.tensors.par_iter().zip(&self.parameters);
            pairs.try_for_each(|(tensor, parameter)| {
                move_towards(tensor, parameter.var.as_tensor(), average.rate)
            })?;
        }
        Ok(())
    }

    /// The averaged parameters of the rate at `index` by name.
    ///
    /// # Errors
    /// When there is no such rate.
    pub fn tensors(&self, index: usize) -> Result<BTreeMap<String, Tensor>> {
        let average = self.average(index)?;
        let named = self.parameters.iter().zip(&average.tensors).map(|(parameter, tensor)| {
            let tensor = tensor.to_dtype(parameter.var.dtype())?.copy()?.detach();
            Ok((parameter.name.clone(), tensor))
        });
        named.collect()
    }

    /// Runs `body` while the parameters have their averaged values, those of the rate at `index`,
    /// and gives them back their own afterwards.
    ///
    /// # Errors
    /// When there is no such rate, or `body` fails.
    pub fn with_average<R>(&self, index: usize, body: impl FnOnce() -> Result<R>) -> Result<R> {
        let average = self.average(index)?;
        let mut own = vec![];
        for (parameter, tensor) in self.parameters.iter().zip(&average.tensors) {
            own.push(parameter.var.as_tensor().copy()?.detach());
            parameter.var.set(&tensor.to_dtype(parameter.var.dtype())?)?;
        }
        let result = body();
        for (parameter, tensor) in self.parameters.iter().zip(&own) {
            parameter.var.set(tensor)?;
        }
        result
    }

    /// A copy of all averages as `<rate>.<parameter>`, to be saved beside the parameters.
    ///
    /// # Errors
    /// Only when the tensor library fails.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for average in &self.averages {
            for (parameter, tensor) in self.parameters.iter().zip(&average.tensors) {
                let name = state_name(average.rate, parameter);
                state.insert(name, tensor.as_tensor().copy()?.detach());
            }
        }
        Ok(state)
    }

    /// Continues from `state`.
    ///
    /// # Errors
    /// When it has other rates or other parameters; nothing has changed then.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut restored = vec![];
        for average in &self.averages {
            for (parameter, tensor) in self.parameters.iter().zip(&average.tensors) {
                let name = state_name(average.rate, parameter);
                let saved = state.get(&name).ok_or_else(|| {
                    Error::Argument(format!("the averages lack {name}; were the rates changed?"))
                })?;
                if saved.shape() != tensor.shape() {
                    return Err(Error::shape(name, format!("{:?}", tensor.dims()), saved.dims()));
                }
                restored
                    .push((tensor, saved.to_device(tensor.device())?.to_dtype(tensor.dtype())?));
            }
        }
        if restored.len() != state.len() {
            return Err(Error::Argument("the averages are those of other rates or models".into()));
        }
        restored.into_iter().try_for_each(|(tensor, saved)| Ok(tensor.set(&saved)?))
    }

    fn average(&self, index: usize) -> Result<&Average> {
        self.averages.get(index).ok_or_else(|| {
            let count = self.averages.len();
            Error::Argument(format!("there is no average {index}; {count} are kept"))
        })
    }
}

fn state_name(rate: f64, parameter: &Parameter) -> String {
    format!("{rate}.{}", parameter.name)
}

/// `average = rate average + (1 - rate) target`.
fn move_towards(average: &Var, target: &Tensor, rate: f64) -> Result<()> {
    if average.device().is_cpu() && target.dtype() == DType::F32 {
        let (keep, take) = (rate as f32, (1.0 - rate) as f32);
        with_elements(target, |target| {
            with_elements_mut(average, |average| {
                let chunks = (average.par_chunks_mut(CHUNK), target.par_chunks(CHUNK));
                chunks.into_par_iter().for_each(|(average, target)| {
                    for (average, target) in average.iter_mut().zip(target) {
                        *average = keep * *average + take * target;
                    }
                });
                Ok(())
            })
        })?;
        return Ok(());
    }
    let target = target.to_dtype(average.dtype())?;
    Ok(average.set(&((average.as_tensor() * rate)? + (target * (1.0 - rate))?)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn parameters(dtype: DType) -> Vec<Parameter> {
        let start = Tensor::new(&[1f32, -2.0, 0.5], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        vec![
            Parameter { name: "a".into(), var: Var::from_tensor(&start).unwrap() },
            Parameter { name: "b".into(), var: Var::zeros((2, 2), dtype, &Device::Cpu).unwrap() },
        ]
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Changes the parameters as training would.
    fn change(parameters: &[Parameter], step: usize) {
        for parameter in parameters {
            let changed = (parameter.var.as_tensor() + (0.5 + step as f64)).unwrap();
            parameter.var.set(&changed).unwrap();
        }
    }

    #[test]
    fn averages_follow_the_recursion_in_every_type() {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14), (DType::BF16, 1e-6)] {
            let parameters = parameters(dtype);
            let mut ema = Ema::new(&parameters, &[0.9, 0.5]).unwrap();
            let mut expected = [values(&parameters[0].var), values(&parameters[0].var)];
            for step in 0..4 {
                change(&parameters, step);
                ema.update().unwrap();
                let now = values(&parameters[0].var);
                for (expected, rate) in expected.iter_mut().zip(ema.rates()) {
                    for (average, now) in expected.iter_mut().zip(&now) {
                        *average = rate * *average + (1.0 - rate) * now;
                    }
                }
            }
            let state = ema.state().unwrap();
            assert_eq!(state.len(), 4);
            for (expected, name) in expected.iter().zip(["0.9.a", "0.5.a"]) {
                for (got, expected) in values(&state[name]).iter().zip(expected) {
                    assert!(
                        (got - expected).abs() < tolerance,
                        "{dtype:?} {name} {got} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_parameters_come_back_after_an_evaluation_even_a_failed_one() {
        let parameters = parameters(DType::F32);
        let mut ema = Ema::new(&parameters, &[0.5]).unwrap();
        change(&parameters, 0);
        ema.update().unwrap();
        let own = values(&parameters[0].var);
        let averaged = values(&ema.tensors(0).unwrap()["a"]);
        assert_ne!(own, averaged);
        let seen = ema.with_average(0, || Ok(values(&parameters[0].var))).unwrap();
        assert_eq!(seen, averaged);
        assert_eq!(values(&parameters[0].var), own);
        let failed: Result<()> = ema.with_average(0, || Err(Error::Interrupted));
        assert!(failed.is_err());
        assert_eq!(values(&parameters[0].var), own);
        // What was evaluated did not change the averages.
        assert_eq!(values(&ema.tensors(0).unwrap()["a"]), averaged);
        assert!(ema.with_average(1, || Ok(())).is_err());
    }

    #[test]
    fn restored_averages_continue_exactly() {
        let whole = parameters(DType::F32);
        let mut ema = Ema::new(&whole, &[0.99, 0.9]).unwrap();
        let resumed = parameters(DType::F32);
        let mut second = Ema::new(&resumed, &[0.99, 0.9]).unwrap();
        for step in 0..6 {
            if step == 3 {
                second.restore(&ema.state().unwrap()).unwrap();
                for (to, from) in resumed.iter().zip(&whole) {
                    to.var.set(&from.var).unwrap();
                }
            }
            change(&whole, step);
            ema.update().unwrap();
            if step >= 3 {
                change(&resumed, step);
                second.update().unwrap();
            }
        }
        for (name, tensor) in ema.state().unwrap() {
            assert_eq!(values(&tensor), values(&second.state().unwrap()[&name]), "{name}");
        }
    }

    #[test]
    fn rates_and_states_that_do_not_fit_are_refused() {
        let parameters = parameters(DType::F32);
        for rates in [&[1.0][..], &[-0.1], &[f64::NAN], &[0.9, 0.9]] {
            assert!(Ema::new(&parameters, rates).is_err(), "{rates:?}");
        }
        let state = Ema::new(&parameters, &[0.9, 0.99]).unwrap().state().unwrap();
        for rates in [&[][..], &[0.9], &[0.9, 0.95], &[0.9, 0.99, 0.999]] {
            assert!(Ema::new(&parameters, rates).unwrap().restore(&state).is_err(), "{rates:?}");
        }
        let mut misshapen = state.clone();
        misshapen.insert("0.9.a".into(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap());
        let mut ema = Ema::new(&parameters, &[0.9, 0.99]).unwrap();
        assert!(ema.restore(&misshapen).is_err());
        ema.restore(&state).unwrap();
    }
}
