//! Clips of any length: each window begins with the end of the one before.

use candle_core::Tensor;
use shared::{Error, Result};

use super::{Event, Generator, Sampled, finish};
use crate::conditioning::Given;
use crate::pair::Pair;

/// How clips are continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// Frames of the finished clip.
    pub frames: usize,
    /// Most frames that a window is given; with their sound, the network sees no more of what was
    /// before. The more, the better it fits, and the more windows there are.
    pub overlap: usize,
}

impl Generator<'_> {
    /// Makes the samples of these numbers, in their order, each a continuation of `start`: picture
    /// `[1, F, C, H, W]` and sound `[1, C, L]` of as many frames, which stand exactly at the
    /// beginning of the clips.
    ///
    /// # Errors
    /// As [`Generator::generate`]; when the samples of a clip do not divide among its frames, and
    /// when the numbers of frames leave nothing to generate or to begin with.
    pub fn extend(
        &self,
        samples: &[u64],
        start: &Pair,
        continuation: Continuation,
        observe: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let per_frame = self.size.samples_per_frame()?;
        self.check(start, per_frame, continuation)?;
        for batch in self.batches(samples) {
            let mut clips = Pair {
                video: start.video.repeat((batch.len(), 1, 1, 1, 1))?,
                audio: start.audio.repeat((batch.len(), 1, 1))?,
            };
            for window in 0.. {
                let frames = clips.video.dim(1)?;
                if frames >= continuation.frames {
                    break;
                }
                let known = frames.min(continuation.overlap);
                let end = frames_of(&clips, [frames - known, known], per_frame)?;
                let given = Given::Start(end);
                let Sampled { clip, .. } = self.sample(batch, window, Some(&given), observe)?;
                let fresh = [known, self.size.frames() - known];
                let fresh = frames_of(&clip, fresh, per_frame)?;
                clips = Pair {
                    video: Tensor::cat(&[clips.video, fresh.video], 1)?,
                    audio: Tensor::cat(&[clips.audio, fresh.audio], 2)?,
                };
            }
            let clips = frames_of(&clips, [0, continuation.frames], per_frame)?;
            finish(batch, &clips, observe)?;
        }
        Ok(())
    }

    fn check(&self, start: &Pair, per_frame: usize, continuation: Continuation) -> Result<()> {
        let Continuation { frames, overlap } = continuation;
        let [window, channels, height, width] = self.size.video;
        let [sounds, _] = self.size.audio;
        let known = start.video.dims().get(1).copied().unwrap_or(0);
        if start.video.dims() != [1, known, channels, height, width] || known == 0 {
            let expected = format!("[1, frames, {channels}, {height}, {width}]");
            return Err(Error::shape("start of the video", expected, start.video.dims()));
        }
        if start.audio.dims() != [1, sounds, known * per_frame] {
            let expected = format!("[1, {sounds}, {}]", known * per_frame);
            return Err(Error::shape("start of the audio", expected, start.audio.dims()));
        }
        if frames <= known {
            return Err(Error::Argument(format!(
                "a clip of {known} frames cannot be continued to {frames}; ask for more frames or \
                 give fewer"
            )));
        }
        if !(1..window).contains(&overlap) {
            return Err(Error::Argument(format!(
                "a window is given 1 to {} of its {window} frames, not {overlap}",
                window.saturating_sub(1)
            )));
        }
        Ok(())
    }
}

/// So many frames from the first on, and their sound.
fn frames_of(clips: &Pair, [first, count]: [usize; 2], per_frame: usize) -> Result<Pair> {
    Ok(Pair {
        video: clips.video.narrow(1, first, count)?.contiguous()?,
        audio: clips.audio.narrow(2, first * per_frame, count * per_frame)?.contiguous()?,
    })
}
