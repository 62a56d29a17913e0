//! The model of a command.

use std::path::Path;

use clap::ValueEnum;
use mmdiffusion::{ModelCard, ModelFile, Rates};
use shared::Error;
use shared::limits::Limits;
use shared::nn::Precision;

/// The coupled network that is used where no model is named.
static SHIPPED: &[u8] = include_bytes!("../../../samples/models/balls.safetensors");

/// What it is called in messages and results.
const SHIPPED_NAME: &str = "shipped model";

/// Numbers in which convolutions and linear layers compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// Single precision.
    F32,
    /// Inputs and weights in 16 bits, sums in 32.
    Bf16,
}

impl Dtype {
    /// The library's name for it.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// The rates of the clips that a model makes.
pub fn rates(card: &ModelCard) -> anyhow::Result<Rates> {
    let fps = card.frames_per_second;
    if fps.fract() != 0.0 || !(1.0..=1000.0).contains(&fps) {
        let reason = format!("the model makes {fps} frames a second; expected 1 to 1000, whole");
        return Err(Error::Argument(reason).into());
    }
    Ok(Rates { fps: fps as u32, rate_hz: card.rate_hz })
}

/// A memory limit in GiB as bytes.
pub fn bytes(gib: f64) -> anyhow::Result<u64> {
    if !(gib > 0.0 && gib < 1e9) {
        let reason = format!("--memory-limit {gib}: expected a number of GiB above 0");
        return Err(Error::Argument(reason).into());
    }
    Ok((gib * f64::from(1 << 30)) as u64)
}

/// The model file at `path`, or the shipped coupled network.
pub fn load(path: Option<&Path>) -> anyhow::Result<ModelFile> {
    let limits = Limits::default();
    Ok(match path {
        Some(path) => ModelFile::read(path, &limits)?,
        None => ModelFile::from_bytes(SHIPPED, Path::new(SHIPPED_NAME), &limits)?,
    })
}

/// The model file at `path`, which is to be a super-resolution network; none is shipped.
pub fn load_enlarging(path: Option<&Path>) -> anyhow::Result<ModelFile> {
    let path = path.ok_or_else(|| {
        Error::Argument(
            "no super-resolution network is built into this version: give one with --model; \
             `mmdiffusion convert` makes one from published weights, `mmdiffusion train-sr` trains one"
                .into(),
        )
    })?;
    load(Some(path))
}

/// How the model is called in results.
pub fn name(path: Option<&Path>) -> String {
    path.map_or_else(|| SHIPPED_NAME.to_owned(), |path| path.display().to_string())
}
