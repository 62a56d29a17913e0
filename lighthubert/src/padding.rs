//! Which frames of a batch are padding.

use candle_core::{Device, Tensor};
use shared::{Error, Result};

use crate::config::ExtractorConfig;

/// How the frames of an utterance in a longer signal are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PaddingRule {
    /// As the published program does: the signal is cut into as many chunks of equal length as there
    /// are frames, and a frame is padding when all samples of its chunk are. Up to two frames more than
    /// the utterance has by itself see nothing but padding and count all the same.
    #[default]
    Chunks,
    /// The frames that the utterance has by itself, so that the result does not depend on the batch.
    Exact,
}

impl PaddingRule {
    /// Frames of an utterance of `length` samples, in a signal of `samples` that has `frames`.
    pub fn valid_frames(
        self,
        length: usize,
        samples: usize,
        frames: usize,
        extractor: &ExtractorConfig,
    ) -> usize {
        match self {
            Self::Exact => extractor.frames(length.min(samples)),
            Self::Chunks => match samples.checked_div(frames) {
                None | Some(0) => 0,
                Some(chunk) => length.div_ceil(chunk).min(frames),
            },
        }
    }
}

/// Which frames are padding: `[B, T]`, `u8`, 1 for padding, where item `i` has `valid[i]` frames.
///
/// # Errors
/// Those of the tensor library.
pub fn frame_padding(valid: &[usize], frames: usize, device: &Device) -> Result<Tensor> {
    let is_padding = valid
        .iter()
        .flat_map(|valid| (0..frames).map(move |frame| u8::from(frame >= *valid)))
        .collect();
    Ok(Tensor::from_vec::<_, u8>(is_padding, (valid.len(), frames), device)?)
}

/// The lengths in a sample-level mask `[B, n]` that is not 0 for padding, which must be at the ends.
///
/// # Errors
/// [`Error::Argument`] when padding is followed by samples; when the mask is no `u8` matrix.
pub fn lengths_of(mask: &Tensor) -> Result<Vec<usize>> {
    let length = |row: Vec<u8>| {
        let length = row.iter().take_while(|padded| **padded == 0).count();
        match row.iter().skip(length).all(|padded| *padded != 0) {
            true => Ok(length),
            false => Err(Error::Argument("padding mask: samples after padding".into())),
        }
    };
    mask.to_vec2::<u8>()?.into_iter().map(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EncoderConfig;

    #[test]
    fn masks_are_made_and_read() {
        let mask = frame_padding(&[3, 0, 2], 3, &Device::Cpu).unwrap();
        assert_eq!(mask.to_vec2::<u8>().unwrap(), [[0, 0, 0], [1, 1, 1], [0, 0, 1]]);
        assert_eq!(lengths_of(&mask).unwrap(), [3, 0, 2]);
        let holes = Tensor::new(&[[0u8, 1, 0]], &Device::Cpu).unwrap();
        assert!(lengths_of(&holes).is_err());
    }

    #[test]
    fn nothing_is_valid_where_there_is_nothing() {
        let extractor = EncoderConfig::published().extractor;
        for rule in [PaddingRule::Chunks, PaddingRule::Exact] {
            assert_eq!(rule.valid_frames(0, 16_000, 49, &extractor), 0);
            assert_eq!(rule.valid_frames(10, 10, 0, &extractor), 0);
            assert_eq!(rule.valid_frames(20_000, 16_000, 49, &extractor), 49);
        }
    }
}
