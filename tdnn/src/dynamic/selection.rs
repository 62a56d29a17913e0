//! Which channels of a layer are active.

use std::sync::Arc;

use candle_core::Tensor;
use shared::{Error, Result};

use crate::architecture::RES2_SCALE;

/// A choice among the channels of a full layer, in the order in which they are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Every channel.
    All,
    /// The leading channels.
    First(usize),
    /// The channels of these numbers.
    Index(Arc<[u32]>),
}

impl Channels {
    /// The channels `numbers`.
    pub fn index(numbers: impl IntoIterator<Item = u32>) -> Self {
        Self::Index(numbers.into_iter().collect())
    }

    /// The first `width` channels of each of `slabs` consecutive slabs of `slab`.
    pub fn first_of_slabs(slabs: usize, slab: usize, width: usize) -> Self {
        if width == slab {
            return Self::First(slabs * slab);
        }
        Self::index((0..slabs).flat_map(|i| (0..width).map(move |r| (i * slab + r) as u32)))
    }

    /// The mid channels of a block of `full` that are active when `mid` of them are: the same
    /// share of each Res2 group.
    pub fn res2_groups(full: usize, mid: usize) -> Self {
        Self::first_of_slabs(RES2_SCALE, full / RES2_SCALE, mid / RES2_SCALE)
    }

    /// How many of `full` channels are chosen.
    pub fn count(&self, full: usize) -> usize {
        match self {
            Self::All => full,
            Self::First(count) => *count,
            Self::Index(numbers) => numbers.len(),
        }
    }

    /// Whether the choice leaves none of `full` channels out.
    pub fn is_complete(&self, full: usize) -> bool {
        self.count(full) == full
    }

    /// The chosen slices of `tensor` along `dim`; differentiable.
    ///
    /// # Errors
    /// When a chosen channel does not exist.
    pub fn select(&self, tensor: &Tensor, dim: usize) -> Result<Tensor> {
        let full = tensor.dim(dim)?;
        let missing = |channel: usize| {
            Error::Argument(format!("channel {channel} was chosen from a layer of {full}"))
        };
        match self {
            Self::First(count) if *count > full => Err(missing(*count)),
            Self::First(count) if *count < full => Ok(tensor.narrow(dim, 0, *count)?),
            Self::All | Self::First(_) => Ok(tensor.clone()),
            Self::Index(numbers) => {
                if let Some(number) = numbers.iter().find(|number| **number as usize >= full) {
                    return Err(missing(*number as usize));
                }
                let index = Tensor::new(&**numbers, tensor.device())?;
                Ok(tensor.contiguous()?.index_select(&index, dim)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn choices_take_the_channels_they_name() {
        let rows = Tensor::arange(0u32, 32, &Device::Cpu).unwrap().reshape((16, 2)).unwrap();
        for (channels, expected) in [
            (Channels::All, (0..16).collect::<Vec<u32>>()),
            (Channels::First(16), (0..16).collect()),
            (Channels::First(3), vec![0, 1, 2]),
            (Channels::index([5, 0, 5]), vec![5, 0, 5]),
            (Channels::first_of_slabs(2, 8, 3), vec![0, 1, 2, 8, 9, 10]),
            (Channels::first_of_slabs(1, 8, 8), (0..8).collect()),
            (Channels::res2_groups(16, 8), vec![0, 2, 4, 6, 8, 10, 12, 14]),
            // A rest of the division by eight is left out.
            (Channels::res2_groups(16, 15), vec![0, 2, 4, 6, 8, 10, 12, 14]),
            (Channels::res2_groups(16, 16), (0..16).collect()),
        ] {
            let chosen: Vec<Vec<u32>> = channels.select(&rows, 0).unwrap().to_vec2().unwrap();
            let firsts: Vec<u32> = chosen.iter().map(|row| row[0] / 2).collect();
            assert_eq!(firsts, expected, "{channels:?}");
            assert_eq!(channels.count(16), expected.len(), "{channels:?}");
        }
    }

    #[test]
    fn channels_that_do_not_exist_are_refused() {
        let row = Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap();
        for channels in [Channels::First(5), Channels::index([4]), Channels::index([0, 9])] {
            assert!(channels.select(&row, 0).is_err(), "{channels:?}");
        }
    }
}
