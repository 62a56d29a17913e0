//! What is diffused: a pair of picture and sound, or pictures alone.

use candle_core::Tensor;
use shared::{Error, Result};

use crate::pair::Pair;

/// What a tensor shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modality {
    /// Moving pictures, `[B, F, C, H, W]`.
    Video,
    /// Sound, `[B, C, L]`.
    Audio,
    /// Still pictures, `[N, C, H, W]`.
    Image,
}

impl Modality {
    /// The name in messages and in the purposes of random streams.
    pub fn name(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Audio => "audio",
            Self::Image => "image",
        }
    }

    /// The axis of the channels.
    pub fn channel_axis(self) -> usize {
        match self {
            Self::Video => 2,
            Self::Audio | Self::Image => 1,
        }
    }
}

/// Takes the tensor of one modality out of a state.
pub struct Part<S> {
    /// Which one.
    pub modality: Modality,
    get: fn(&S) -> &Tensor,
}

impl<S> Part<S> {
    /// The tensor of this modality in `state`.
    pub fn of<'a>(&self, state: &'a S) -> &'a Tensor {
        (self.get)(state)
    }
}

/// Tensors that are diffused together. All have the samples along their first axis.
pub trait State: Clone {
    /// The state whose tensor of each modality is what `make` returns for it.
    ///
    /// # Errors
    /// Those of `make`.
    fn each(make: impl FnMut(Part<Self>) -> Result<Tensor>) -> Result<Self>;

    /// Its tensors.
    fn tensors(&self) -> Vec<(Modality, &Tensor)>;

    /// Number of samples.
    ///
    /// # Errors
    /// When the tensors disagree about it.
    fn batch(&self) -> Result<usize> {
        let mut batch = None;
        for (modality, tensor) in self.tensors() {
            let samples = tensor.dims().first().copied().unwrap_or(0);
            if *batch.get_or_insert(samples) != samples {
                let expected = format!("{batch:?} samples first");
                return Err(Error::shape(modality.name(), expected, tensor.dims()));
            }
        }
        Ok(batch.unwrap_or(0))
    }

    /// The same numbers, of which no gradients are taken.
    ///
    /// # Errors
    /// Those of the tensor library.
    fn detached(&self) -> Result<Self> {
        Self::each(|part| Ok(part.of(self).detach()))
    }

    /// The sum of `terms`, each a factor and a state.
    ///
    /// # Errors
    /// When shapes differ, or there is no term.
    fn combine(terms: &[(f64, &Self)]) -> Result<Self> {
        Self::each(|part| {
            weighted_sum(terms.iter().map(|(factor, state)| (*factor, part.of(state))))
        })
    }

    /// Fails unless all numbers are finite.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming the modality and `place`.
    fn check_finite(&self, place: impl FnOnce() -> String) -> Result<()> {
        for (modality, tensor) in self.tensors() {
            // Nothing times NaN or infinity is NaN.
            let sum = tensor.affine(0.0, 0.0)?.sum_all()?.to_scalar::<f32>()?;
            if sum.is_nan() {
                return Err(Error::NonFinite {
                    what: format!("the {} {}", modality.name(), place()),
                });
            }
        }
        Ok(())
    }
}

/// The sum of tensors times factors.
///
/// # Errors
/// When shapes differ, or there is no term.
pub(crate) fn weighted_sum<'a>(
    terms: impl IntoIterator<Item = (f64, &'a Tensor)>,
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (factor, tensor) in terms {
        let term = tensor.affine(factor, 0.0)?;
        sum = Some(match sum {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    sum.ok_or_else(|| Error::Argument("a sum without terms".to_string()))
}

impl State for Pair {
    fn each(mut make: impl FnMut(Part<Self>) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            video: make(Part { modality: Modality::Video, get: |pair| &pair.video })?,
            audio: make(Part { modality: Modality::Audio, get: |pair| &pair.audio })?,
        })
    }

    fn tensors(&self) -> Vec<(Modality, &Tensor)> {
        vec![(Modality::Video, &self.video), (Modality::Audio, &self.audio)]
    }
}

/// Pictures `[N, C, H, W]`.
impl State for Tensor {
    fn each(mut make: impl FnMut(Part<Self>) -> Result<Tensor>) -> Result<Self> {
        make(Part { modality: Modality::Image, get: |tensor| tensor })
    }

    fn tensors(&self) -> Vec<(Modality, &Tensor)> {
        vec![(Modality::Image, self)]
    }
}
