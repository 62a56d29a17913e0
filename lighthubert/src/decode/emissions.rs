//! What a recogniser says of each frame.

use candle_core::{DType, Tensor};
use shared::{Error, Result};

/// Logarithms of the probabilities of all classes in each frame of one utterance.
#[derive(Clone, Debug, PartialEq)]
pub struct Emissions {
    values: Vec<f32>,
    classes: usize,
}

impl Emissions {
    /// The emissions in a tensor `[T, C]` of natural logarithms of probabilities.
    ///
    /// # Errors
    /// [`Error::Shape`], also without classes; [`Error::NonFinite`] when one is NaN or infinity (minus
    /// infinity is a probability of 0).
    pub fn new(log_probabilities: &Tensor) -> Result<Self> {
        let (_, classes) = match log_probabilities.dims() {
            &[frames, classes] if classes > 0 => (frames, classes),
            other => return Err(Error::shape("emissions", "[T, C] with C > 0", other)),
        };
        let values = log_probabilities.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if values.iter().any(|value| value.is_nan() || *value == f32::INFINITY) {
            return Err(Error::NonFinite { what: "a probability of the recogniser".into() });
        }
        Ok(Self { values, classes })
    }

    /// Those of some frames.
    pub fn slice(&self, frames: std::ops::Range<usize>) -> Self {
        let range = frames.start * self.classes..frames.end * self.classes;
        let values = self.values.get(range).unwrap_or_default().to_vec();
        Self { values, classes: self.classes }
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.values.len() / self.classes
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The frames in order, each with the logarithm of each class's probability.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.classes)
    }

    /// The logarithm of the probability of a class in a frame; minus infinity where there is none such.
    pub fn at(&self, frame: usize, class: u32) -> f64 {
        let value = self.iter().nth(frame).and_then(|frame| frame.get(class as usize));
        value.map_or(f64::NEG_INFINITY, |value| f64::from(*value))
    }
}
