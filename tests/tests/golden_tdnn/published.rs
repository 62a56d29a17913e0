//! Networks put together from published files.

use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use shared::data::evaluation_segments;
use shared::eval::verification::{CostModel, Trials};
use shared::limits::Limits;
use tdnn::score::mean_cosine;
use tdnn::{Embedder, Frontend, FrontendConfig, NetworkConfig, Subnet, WindowConfig, published};
use tests::golden::{Case, Class};

use crate::networks::{architecture, supernet_config};

/// Shortest recording that is not repeated, and the length of the two evaluation segments.
const MIN_SAMPLES: usize = 48_000;
const SEGMENT_SAMPLES: usize = 64_000;
/// Values of 16-bit samples in one of full scale 1.
const FULL_SCALE: f32 = 32_768.0;

/// The checkpoints of one set of files.
struct Files {
    supernet: PathBuf,
    batch_norms: PathBuf,
}

fn file_sets(case: &Case) -> Result<Vec<Files>> {
    let sets = case.files.iter().map(|set| {
        let path = |role: &str| -> Result<PathBuf> {
            Ok(case.path.with_file_name(set.get(role).with_context(|| format!("files: {role}"))?))
        };
        Ok(Files { supernet: path("supernet")?, batch_norms: path("bn")? })
    });
    let sets: Vec<Files> = sets.collect::<Result<_>>()?;
    anyhow::ensure!(!sets.is_empty(), "no checkpoint files are named");
    Ok(sets)
}

impl Files {
    fn read(&self) -> Result<published::PublishedSubnet> {
        let limits = Limits::default();
        Ok(published::read_subnet(&self.supernet, &self.batch_norms, false, &limits, &Device::Cpu)?)
    }

    fn network(&self) -> Result<Subnet> {
        let published::PublishedSubnet { config, tensors, .. } = self.read()?;
        Ok(Subnet::from_tensors(config, tensors, &self.supernet, false, &Device::Cpu)?.0)
    }
}

pub fn embedding(case: &mut Case) -> Result<()> {
    let frontend = Frontend::new(FrontendConfig { amplitude: 1.0, ..FrontendConfig::default() })?;
    let waveform = case.array("in.waveform")?.f32s();
    let features = frontend.batch(&[&waveform], &Device::Cpu)?;
    case.check("features", &features, Class::Forward)?;
    let quiet: Vec<f32> = waveform.iter().map(|sample| sample / FULL_SCALE).collect();
    let quiet = frontend.batch(&[&quiet], &Device::Cpu)?;
    for files in file_sets(case)? {
        let largest = supernet_config(&case.config["supernet"])?;
        let (supernet, _) =
            published::read_supernet(&files.supernet, false, &Limits::default(), &Device::Cpu)?;
        anyhow::ensure!(*supernet.config() == largest, "found {:?}", supernet.config());
        // Cutting the subnet out leaves the reference's supernet in that architecture.
        let path = architecture(&case.config["arch"])?;
        let elastic = supernet.forward(&features, &path, false)?;
        case.check("supernet_max_emb", &elastic, Class::Forward)?;

        let published::PublishedSubnet { config, tensors, .. } = files.read()?;
        anyhow::ensure!(config == NetworkConfig { architecture: path, ..largest });
        for (name, tensor) in &tensors {
            let result = format!("subnet.{name}");
            match tensor.dtype() {
                DType::I64 => case.check_equal(&result, tensor)?,
                _ => case.check(&result, tensor, Class::Forward)?,
            }
        }
        let network = files.network()?;
        case.check("subnet_emb", &network.forward(&features, false)?, Class::Forward)?;
        case.check("subnet_emb_unit_scale", &network.forward(&quiet, false)?, Class::Forward)?;
    }
    Ok(())
}

pub fn verification(case: &mut Case) -> Result<()> {
    let recordings = case.names("in.wav.");
    let trials = case.config["trials"].as_array().context("config.trials")?.clone();
    let labels: Vec<f64> =
        trials.iter().map(|trial| crate::number(&trial[0])).collect::<Result<_>>()?;
    case.check_numbers("labels", &labels, 0.0)?;
    for files in file_sets(case)? {
        let windows = WindowConfig {
            min_samples: 257,
            repeat_below_samples: MIN_SAMPLES + 1,
            window_samples: usize::MAX / 4,
        };
        let frontend = Frontend::new(FrontendConfig::default())?;
        let embedder = Embedder::new(frontend, vec![files.network()?], windows, Device::Cpu)?;
        for (protocol, length, count) in [("whole", 0, 1), ("seg2x4s", SEGMENT_SAMPLES, 2)] {
            let mut embeddings = std::collections::BTreeMap::new();
            for name in &recordings {
                let samples: Vec<f32> = case
                    .array(&format!("in.wav.{name}"))?
                    .f32s()
                    .iter()
                    .map(|sample| sample / FULL_SCALE)
                    .collect();
                let pieces = match length {
                    // The embedder repeats short recordings itself.
                    0 => vec![samples],
                    _ => evaluation_segments(&samples, length, count, MIN_SAMPLES),
                };
                let found = embedder.embed_all(&pieces)?;
                let tensor = Tensor::new(found.clone(), &Device::Cpu)?;
                case.check(&format!("emb_{protocol}.{name}"), &tensor, Class::Forward)?;
                embeddings.insert(name.clone(), found);
            }
            let of = |value: &serde_json::Value| {
                value.as_str().and_then(|name| embeddings.get(name)).context("trial")
            };
            let scores: Vec<f64> = trials
                .iter()
                .map(|trial| Ok(mean_cosine(of(&trial[1])?, of(&trial[2])?)))
                .collect::<Result<_>>()?;
            case.check_numbers(&format!("scores_{protocol}"), &scores, 1e-6)?;
            let targets: Vec<bool> = labels.iter().map(|label| *label == 1.0).collect();
            let scored = Trials::new(&scores, &targets)?;
            let rate = scored.equal_error_rate().rate;
            case.check_number(&format!("eer_{protocol}"), rate, 1e-9)?;
            let cost = scored.min_dcf(CostModel::prior(0.01))?.cost;
            case.check_number(&format!("mindcf0.01_{protocol}"), cost, 1e-12)?;
        }
    }
    Ok(())
}
