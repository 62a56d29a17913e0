//! The noise of samples.

use candle_core::{Device, Tensor};
use shared::Result;
use shared::rng::Stream;

use crate::state::{Modality, State};

/// Standard normal noise for some samples: that of each sample and modality comes from a stream of its
/// own, so that it is the same whatever other samples it is drawn with.
pub(crate) struct Noise {
    seed: u64,
    purpose: String,
    samples: Vec<u64>,
    streams: Vec<(Modality, Vec<Stream>)>,
}

impl Noise {
    /// The noise of the samples of these numbers under `seed`; another `purpose`, other noise.
    pub fn new(seed: u64, purpose: impl Into<String>, samples: &[u64]) -> Self {
        Self { seed, purpose: purpose.into(), samples: samples.to_vec(), streams: vec![] }
    }

    /// The next noise `[B, shape]` of a modality.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn draw(&mut self, modality: Modality, shape: &[usize], device: &Device) -> Result<Tensor> {
        let place = match self.streams.iter().position(|(known, _)| *known == modality) {
            Some(place) => place,
            None => {
                let purpose = format!("{} of {}", self.purpose, modality.name());
                let stream = |sample: &u64| Stream::new(self.seed, &purpose, *sample);
                self.streams.push((modality, self.samples.iter().map(stream).collect()));
                self.streams.len() - 1
            }
        };
        let elements: usize = shape.iter().product();
        let mut values = vec![0f32; elements * self.samples.len()];
        if let Some((_, streams)) = self.streams.get_mut(place) {
            for (stream, values) in streams.iter_mut().zip(values.chunks_mut(elements.max(1))) {
                stream.fill_normal(values);
            }
        }
        let shape = [&[self.samples.len()], shape].concat();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)?)
    }

    /// The next noise of the shape of `x`.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn like<S: State>(&mut self, x: &S) -> Result<S> {
        S::each(|part| {
            let x = part.of(x);
            self.draw(part.modality, x.dims().get(1..).unwrap_or_default(), x.device())
        })
    }
}
