//! Where layers get their tensors from: a checkpoint, or fresh values from a seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Shape, Tensor, Var};

use crate::checkpoint::LoadReport;
use crate::rng::Stream;
use crate::{Error, Result};

/// How a fresh tensor is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every element the same.
    Constant(f64),
    /// The identity matrix.
    Identity,
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

impl Init {
    /// PyTorch's default for convolution and linear weights and biases: uniform within
    /// `1 / sqrt(fan_in)`.
    pub fn fan_in(fan_in: usize) -> Self {
        Self::Uniform { bound: 1.0 / (fan_in.max(1) as f64).sqrt() }
    }

    fn fill(self, shape: &Shape, stream: &mut Stream, dtype: DType) -> Result<Tensor> {
        let count = shape.elem_count();
        let values: Vec<f32> = match self {
            Self::Constant(value) => vec![value as f32; count],
            Self::Identity => {
                let (rows, columns) = shape.dims2()?;
                (0..rows * columns)
                    .map(|i| if i / columns == i % columns { 1.0 } else { 0.0 })
                    .collect()
            }
            Self::Uniform { bound } => {
                (0..count).map(|_| stream.uniform_in(-bound, bound) as f32).collect()
            }
            Self::Normal { std } => (0..count).map(|_| (std * stream.normal()) as f32).collect(),
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?)
    }
}

/// A trainable tensor and its full name.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name as in the checkpoint.
    pub name: String,
    /// The tensor.
    pub var: Var,
}

/// A name-scoped source of weights. Layers ask it for their parameters and buffers while they are
/// built; it remembers each, so that the whole model can be saved, trained and checked against
/// the checkpoint that it came from.
///
/// Building never stops at the first wrong tensor: once the model stands, [`Weights::report`]
/// tells of all that was missing, unexpected or misshapen.
#[derive(Clone)]
pub struct Weights {
    store: Arc<Mutex<Store>>,
    prefix: String,
    /// What fresh parameters are filled with, whatever the layer would have.
    init: Option<Init>,
}

/// What a model is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Training,
    Inference,
    /// As they are: gradients flow to what they were computed from.
    Derived,
    /// To see the names and shapes of its tensors.
    Shapes,
}

struct Store {
    source: BTreeMap<String, Tensor>,
    source_path: Option<PathBuf>,
    seed: u64,
    dtype: DType,
    device: Device,
    use_for: Use,
    parameters: BTreeMap<String, Tensor>,
    variables: Vec<Parameter>,
    buffers: BTreeMap<String, Var>,
    report: LoadReport,
}

impl Weights {
    /// Fresh trainable weights. Each tensor's values depend on `seed` and its name only.
    pub fn fresh(seed: u64, dtype: DType, device: &Device) -> Self {
        Self::new(BTreeMap::new(), None, seed, Use::Training, dtype, device)
    }

    /// Weights for building a model only to see the names and shapes of its tensors, [`Weights::state`]:
    /// they are 0 and take no memory, whatever their size.
    pub fn shapes() -> Self {
        Self::new(BTreeMap::new(), None, 0, Use::Shapes, DType::F32, &Device::Cpu)
    }

    /// The weights of a checkpoint, converted to `dtype` on `device`. With `trainable`, parameters
    /// are variables that an optimiser can change; without, they are copies that nothing changes, and
    /// layers may pack and keep them.
    pub fn loaded(
        tensors: BTreeMap<String, Tensor>,
        path: &Path,
        trainable: bool,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let use_for = if trainable { Use::Training } else { Use::Inference };
        Self::new(tensors, Some(path.to_path_buf()), 0, use_for, dtype, device)
    }

    /// Tensors that were computed from others, such as slices of larger weights. Layers use them as they
    /// are, so that gradients flow to what they were computed from; `path` names them in messages.
    pub fn derived(tensors: BTreeMap<String, Tensor>, path: &Path) -> Self {
        let (dtype, device) = tensors
            .values()
            .next()
            .map_or((DType::F32, Device::Cpu), |first| (first.dtype(), first.device().clone()));
        Self::new(tensors, Some(path.to_path_buf()), 0, Use::Derived, dtype, &device)
    }

    fn new(
        source: BTreeMap<String, Tensor>,
        source_path: Option<PathBuf>,
        seed: u64,
        use_for: Use,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let store = Store {
            source,
            source_path,
            seed,
            dtype,
            device: device.clone(),
            use_for,
            parameters: BTreeMap::new(),
            variables: vec![],
            buffers: BTreeMap::new(),
            report: LoadReport::default(),
        };
        Self { store: Arc::new(Mutex::new(store)), prefix: String::new(), init: None }
    }

    /// The prefix of the names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The same weights with `name` appended to the prefix: `weights.at("blocks").at(0)`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.name(&name.to_string()), ..self.clone() }
    }

    /// The same weights, in which fresh parameters are filled with `init`, whatever their layers would
    /// fill them with.
    pub fn with_init(&self, init: Init) -> Self {
        Self { init: Some(init), ..self.clone() }
    }

    /// The parameter `name` under the current prefix.
    ///
    /// # Errors
    /// Only when a fresh value cannot be made; see [`Weights::report`] for what was missing.
    pub fn parameter(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        let name = self.name(name);
        let mut store = self.lock();
        let value = store.take(&name, &shape.into(), self.init.unwrap_or(init), None)?;
        let tensor = match store.use_for {
            Use::Training => {
                let var = Var::from_tensor(&value)?;
                let tensor = var.as_tensor().clone();
                store.variables.push(Parameter { name: name.clone(), var });
                tensor
            }
            Use::Inference => value.force_contiguous()?.detach(),
            Use::Derived | Use::Shapes => value,
        };
        store.parameters.insert(name, tensor.clone());
        Ok(tensor)
    }

    /// The buffer `name` under the current prefix: saved with the model, not trained, but changed
    /// in place by layers such as batch norm. `dtype` overrides the dtype of the weights.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn buffer(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
        dtype: Option<DType>,
    ) -> Result<Var> {
        let name = self.name(name);
        let mut store = self.lock();
        let value = store.take(&name, &shape.into(), init, dtype)?;
        let var = Var::from_tensor(&value)?;
        store.buffers.insert(name, var.clone());
        Ok(var)
    }

    /// Dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.lock().dtype
    }

    /// Device of the weights.
    pub fn device(&self) -> Device {
        self.lock().device.clone()
    }

    /// All trainable parameters, in the order in which the layers asked for them.
    pub fn variables(&self) -> Vec<Parameter> {
        self.lock().variables.clone()
    }

    /// All parameters and buffers by full name: the state to save.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let store = self.lock();
        let buffers =
            store.buffers.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone()));
        store.parameters.clone().into_iter().chain(buffers).collect()
    }

    /// What came of matching the checkpoint's tensors with those that the model asked for. Call it
    /// once the model is built.
    pub fn report(&self) -> LoadReport {
        let store = self.lock();
        let mut report = store.report.clone();
        if store.source_path.is_some() {
            report.unexpected = store.source.keys().cloned().collect();
        }
        report
    }

    /// Fails unless the model and its checkpoint match; with `allow_missing`, tensors that the
    /// checkpoint lacks stay fresh.
    ///
    /// # Errors
    /// [`Error::Tensors`] with the whole report.
    pub fn check(&self, allow_missing: bool) -> Result<LoadReport> {
        let report = self.report();
        if report.fits(allow_missing) {
            return Ok(report);
        }
        let path = self.lock().source_path.clone().unwrap_or_default();
        Err(Error::Tensors { path, report: report.to_string() })
    }

    fn name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        // A panic while building one layer leaves the maps themselves intact.
        self.store.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Store {
    fn take(
        &mut self,
        name: &str,
        shape: &Shape,
        init: Init,
        dtype: Option<DType>,
    ) -> Result<Tensor> {
        let dtype = dtype.unwrap_or(self.dtype);
        match self.source.remove(name) {
            Some(tensor) if tensor.shape() == shape => {
                self.report.loaded.push(name.to_string());
                return Ok(tensor.to_device(&self.device)?.to_dtype(dtype)?);
            }
            Some(tensor) => self.report.misshapen.push((
                name.to_string(),
                shape.dims().to_vec(),
                tensor.dims().to_vec(),
            )),
            None if self.source_path.is_some() => self.report.missing.push(name.to_string()),
            None if self.use_for == Use::Shapes => {
                return Ok(Tensor::zeros((), dtype, &self.device)?.broadcast_as(shape)?);
            }
            None => {}
        }
        let fresh = init.fill(shape, &mut Stream::new(self.seed, name, 0), dtype)?;
        Ok(fresh.to_device(&self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Conv1d, functional::ConvOptions};

    fn layer(weights: &Weights, channels: usize) -> Conv1d {
        let options = ConvOptions::default();
        Conv1d::new(&weights.at("conv"), channels, channels, [3], true, options).unwrap()
    }

    #[test]
    fn shapes_take_no_memory() {
        // The weight would have 12 TB.
        let weights = Weights::shapes();
        layer(&weights, 1 << 20);
        let dims: Vec<(String, Vec<usize>)> =
            weights.state().into_iter().map(|(name, it)| (name, it.dims().to_vec())).collect();
        let expected = [("conv.bias", vec![1 << 20]), ("conv.weight", vec![1 << 20, 1 << 20, 3])];
        assert_eq!(dims, expected.map(|(name, dims)| (name.to_string(), dims)));
    }

    #[test]
    fn gradients_flow_through_derived_weights() {
        let full = Weights::fresh(0, DType::F32, &Device::Cpu);
        let whole = layer(&full, 4);
        let slice = whole.weight().unwrap().narrow(0, 0, 2).unwrap().narrow(1, 0, 2).unwrap();
        let bias = whole.bias().unwrap().narrow(0, 0, 2).unwrap();
        let tensors =
            [("conv.weight", slice), ("conv.bias", bias)].map(|(name, it)| (name.to_string(), it));
        let derived = Weights::derived(tensors.into(), Path::new("slices"));
        let part = layer(&derived, 2);
        derived.check(false).unwrap();
        let x = Tensor::ones((1, 2, 3), DType::F32, &Device::Cpu).unwrap();
        let gradients = part.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(whole.weight().unwrap()).unwrap().sum((1, 2)).unwrap();
        assert_eq!(gradient.to_vec1::<f32>().unwrap(), [6.0, 6.0, 0.0, 0.0]);
        assert!(gradients.get(whole.bias().unwrap()).is_some());
    }

    #[test]
    fn a_given_filling_takes_precedence() {
        let weights = Weights::fresh(0, DType::F32, &Device::Cpu);
        let zero = layer(&weights.with_init(Init::Constant(0.0)), 2);
        let largest =
            |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(largest(zero.weight().unwrap()), 0.0);
        assert!(largest(layer(&weights, 2).weight().unwrap()) > 0.0);
    }
}
