//! Training of the super-resolution network.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use shared::media::image::write_png;
use shared::rng::Stream;
use shared::train::Tape;
use shared::{Error, Result};

use super::config::SuperResolutionTraining;
use super::objective::{Losses, Objective};
use super::pictures::{PictureSet, SizedPicture};
use super::run::{self, Examples, Job, Part, RunOptions, Start, Subject};
use crate::SuperResolutionUnet;
use crate::clip::{Clip, Rates};
use crate::diffusion::{Diffusion, DiffusionConfig, Spacing};
use crate::generate::Upscaler;
use crate::model_file::{ModelCard, ModelFile};
use crate::network::{Network, NetworkConfig};
use crate::segment::Training;
use crate::super_resolution::resize_bilinear;

/// Trains a super-resolution network as `config` says on `pictures`, in `folder`, which holds all that
/// is needed to go on after an interruption. The model that comes out has the averaged weights of the
/// first rate, if there is any.
///
/// # Errors
/// [`Error::Interrupted`] with everything saved; those of [`shared::train::Trainer::run`].
pub fn train_super_resolution(
    config: &SuperResolutionTraining,
    start: &Start,
    pictures: &Arc<PictureSet>,
    validation: Option<&PictureSet>,
    folder: &Path,
    options: &RunOptions,
    device: &Device,
) -> Result<ModelFile> {
    config.validate()?;
    let Network::SuperResolution(network) = &start.network else { return Err(start.unfit()) };
    let spacing: Spacing = config.diffusion.timestep_respacing.parse()?;
    let process = DiffusionConfig::from_flags(&config.diffusion, config.network.learn_sigma)?;
    let subject = SuperResolution {
        config,
        network,
        diffusion: Diffusion::new(&process, &spacing)?,
        process,
        pictures,
        device,
    };
    let job = Job {
        optimisation: &config.optimisation,
        settings: json!(config),
        examples: pictures,
        mirror: config.mirror,
        validation,
        weights: &start.weights,
        folder,
        options,
    };
    let tensors = run::run(&subject, job)?;
    let network = NetworkConfig::SuperResolution(config.network.clone());
    ModelFile::new(ModelCard::new(network, config.diffusion.clone()), &tensors, DType::F16)
}

impl Examples for PictureSet {
    type Item = SizedPicture;

    fn len(&self) -> usize {
        Self::len(self)
    }

    fn draw(&self, number: usize, mirror: f64, stream: &mut Stream) -> Result<SizedPicture> {
        self.picture(number, mirror, stream)
    }
}

struct SuperResolution<'a> {
    config: &'a SuperResolutionTraining,
    network: &'a SuperResolutionUnet,
    process: DiffusionConfig,
    diffusion: Diffusion,
    pictures: &'a PictureSet,
    device: &'a Device,
}

impl Subject for SuperResolution<'_> {
    type Examples = PictureSet;

    fn losses<'a>(
        &'a self,
        items: Vec<SizedPicture>,
        part: &Part,
        tape: Option<&Tape<'a>>,
    ) -> Result<Losses> {
        let rescale_bound = self.config.diffusion.rescale_learned_sigmas;
        let objective = Objective { diffusion: &self.diffusion, rescale_bound };
        let [clean, low_res] = self.pictures.tensors(items, self.device)?;
        let dropout = part.dropout()?;
        let training = Training { dropout: dropout.as_ref(), tape };
        objective.losses(&clean, &part.noise(&clean)?, &part.t, |x, time| {
            self.network.forward_training(x, time, &low_res, training)
        })
    }

    fn steps(&self) -> usize {
        self.diffusion.steps()
    }

    fn dropout(&self) -> f64 {
        self.config.network.dropout
    }

    fn uses_tape(&self) -> bool {
        self.config.network.use_checkpoint
    }

    /// A PNG with a row for each sample: what is given, what the network makes of it, and the original.
    fn preview(&self, count: usize, folder: &Path, name: &str) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let count = count.min(self.pictures.len()).max(1);
        let seed = self.config.optimisation.seed;
        let spread = |i: usize| {
            let number = i * self.pictures.len() / count;
            self.pictures.picture(number, 0.0, &mut Stream::new(seed, "preview", i as u64))
        };
        let pictures = (0..count).map(spread).collect::<Result<_>>()?;
        let [large, small] = self.pictures.tensors(pictures, self.device)?;
        let upscaler = Upscaler {
            network: self.network,
            diffusion: self.process.clone(),
            sampler: Upscaler::default_sampler(),
            seed,
            batch: self.config.optimisation.part,
            device: self.device.clone(),
        };
        let enlarged = upscaler.upscale(0, &small, &mut |_, _| Ok(()))?.detach();
        let (_, _, height, width) = large.dims4()?;
        let given = resize_bilinear(&small, [height, width])?;
        // [count, 3 kinds, 3 colours, H, W], row by row.
        let rows = Tensor::stack(&[given, enlarged, large], 1)?.flatten(0, 1)?;
        let rates = Rates { fps: 10, rate_hz: 16_000 };
        let audio = Tensor::zeros((1, 1), DType::F32, self.device)?;
        let grid = Clip { video: rows, audio, rates }.frames()?.grid(3);
        write_png(&folder.join(format!("{name}.png")), &grid, &[], true)
    }
}
