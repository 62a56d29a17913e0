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
}

struct Store {
    source: BTreeMap<String, Tensor>,
    source_path: Option<PathBuf>,
    seed: u64,
    dtype: DType,
    device: Device,
    trainable: bool,
    parameters: BTreeMap<String, Tensor>,
    variables: Vec<Parameter>,
    buffers: BTreeMap<String, Var>,
    report: LoadReport,
}

impl Weights {
    /// Fresh trainable weights. Each tensor's values depend on `seed` and its name only.
    pub fn fresh(seed: u64, dtype: DType, device: &Device) -> Self {
        Self::new(BTreeMap::new(), None, seed, true, dtype, device)
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
        Self::new(tensors, Some(path.to_path_buf()), 0, trainable, dtype, device)
    }

    fn new(
        source: BTreeMap<String, Tensor>,
        source_path: Option<PathBuf>,
        seed: u64,
        trainable: bool,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let store = Store {
            source,
            source_path,
            seed,
            dtype,
            device: device.clone(),
            trainable,
            parameters: BTreeMap::new(),
            variables: vec![],
            buffers: BTreeMap::new(),
            report: LoadReport::default(),
        };
        Self { store: Arc::new(Mutex::new(store)), prefix: String::new() }
    }

    /// The same weights with `name` appended to the prefix: `weights.at("blocks").at(0)`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { store: self.store.clone(), prefix: self.name(&name.to_string()) }
    }

    /// The parameter `name` under the current prefix.
    ///
    /// # Errors
    /// Only when a fresh value cannot be made; see [`Weights::report`] for what was missing.
    pub fn parameter(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        let name = self.name(name);
        let mut store = self.lock();
        let value = store.take(&name, &shape.into(), init, None)?;
        let tensor = if store.trainable {
            let var = Var::from_tensor(&value)?;
            let tensor = var.as_tensor().clone();
            store.variables.push(Parameter { name: name.clone(), var });
            tensor
        } else {
            value.force_contiguous()?.detach()
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
            None => {}
        }
        let fresh = init.fill(shape, &mut Stream::new(self.seed, name, 0), dtype)?;
        Ok(fresh.to_device(&self.device)?)
    }
}
