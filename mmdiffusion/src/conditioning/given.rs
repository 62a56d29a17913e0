//! What can be given of a clip.

use candle_core::{DType, Device, Tensor};
use shared::{Error, Result};

use super::{Condition, Guidance};
use crate::pair::Pair;

/// A part of a clip, from which the rest is generated.
#[derive(Clone, Debug)]
pub enum Given {
    /// The picture, `[B, F, C, H, W]`.
    Video(Tensor),
    /// The sound, `[B, C, L]`.
    Audio(Tensor),
    /// The first frames and their sound: fewer frames and samples than the clip has.
    Start(Pair),
}

impl Given {
    /// The condition on clips that begin as `noise`, the state in which sampling starts. A single
    /// given sample serves the whole batch.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn condition(&self, noise: &Pair, guidance: Guidance) -> Result<Condition<Pair>> {
        let given = Pair {
            video: filled(self.video(), &noise.video, 1, "given video")?,
            audio: filled(self.audio(), &noise.audio, 2, "given audio")?,
        };
        let mask = Pair {
            video: mask(self.video(), &noise.video, 1)?,
            audio: mask(self.audio(), &noise.audio, 2)?,
        };
        Condition::new(given, mask, noise.clone(), guidance)
    }

    fn video(&self) -> Option<&Tensor> {
        match self {
            Self::Video(video) | Self::Start(Pair { video, .. }) => Some(video),
            Self::Audio(_) => None,
        }
    }

    fn audio(&self) -> Option<&Tensor> {
        match self {
            Self::Audio(audio) | Self::Start(Pair { audio, .. }) => Some(audio),
            Self::Video(_) => None,
        }
    }
}

/// `given` with zeros after it along `axis`, in the shape of `noise`.
fn filled(given: Option<&Tensor>, noise: &Tensor, axis: usize, what: &str) -> Result<Tensor> {
    let Some(given) = given else { return Ok(noise.zeros_like()?) };
    let mut expected = noise.dims().to_vec();
    let fits = given.rank() == noise.rank()
        && given.dims().iter().zip(noise.dims()).enumerate().all(|(i, (have, want))| {
            have == want || (i == 0 && *have == 1) || (i == axis && have < want)
        });
    let Some(length) = expected.get_mut(axis).filter(|_| fits) else {
        let expected = format!("{expected:?}, or 1 sample of it, or a start of axis {axis}");
        return Err(Error::shape(what, expected, given.dims()));
    };
    let missing = *length - given.dim(axis)?;
    *length -= missing;
    let given = given.to_dtype(DType::F32)?.broadcast_as(expected)?;
    Ok(given.pad_with_zeros(axis, 0, missing)?.contiguous()?)
}

/// 1 for what is given along `axis`, else 0; broadcast to the shape of `noise`.
fn mask(given: Option<&Tensor>, noise: &Tensor, axis: usize) -> Result<Tensor> {
    let length = noise.dim(axis)?;
    let known = match given {
        Some(given) => given.dim(axis)?,
        None => 0,
    };
    let values = (0..length).map(|i| if i < known { 1f32 } else { 0.0 });
    let mut shape = vec![1; noise.rank()];
    shape[axis] = length;
    Ok(Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)?.to_device(noise.device())?)
}
