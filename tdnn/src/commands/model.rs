//! Options of the commands that use a model.

use std::path::{Path, PathBuf};

use clap::Args;
use shared::cli::Common;
use shared::limits::Limits;
use tdnn::{ModelFile, Verifier};

/// The model that is used where no other is named.
static SHIPPED: &[u8] = include_bytes!("../../../samples/models/tdnn.safetensors");

/// What the model in use is called in messages and results when it is the shipped one.
const SHIPPED_NAME: &str = "shipped model";

/// Which model, and how recordings are prepared for it.
#[derive(Args, Debug)]
pub struct ModelOptions {
    /// Model file [default: the model shipped with this program]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Use all of each recording instead of the parts in which somebody speaks
    #[arg(long)]
    pub no_speech_detection: bool,
    /// Refuse recordings that are longer than this, in hours
    #[arg(long, value_name = "HOURS", default_value_t = 24.0)]
    pub max_hours: f64,
}

impl ModelOptions {
    /// Caps for the files that the command reads.
    pub fn limits(&self) -> Limits {
        Limits { duration_s: self.max_hours * 3600.0, ..Limits::default() }
    }

    /// The model file.
    pub fn load(&self) -> anyhow::Result<ModelFile> {
        load(self.model.as_deref())
    }

    /// The model, ready for use.
    pub fn verifier(&self, common: &Common) -> anyhow::Result<Verifier> {
        let device = common.open()?;
        Ok(Verifier::new(&self.load()?, !self.no_speech_detection, self.limits(), &device)?)
    }
}

/// The model file at `path`, or the shipped model.
pub fn load(path: Option<&Path>) -> anyhow::Result<ModelFile> {
    let limits = Limits::default();
    Ok(match path {
        Some(path) => ModelFile::read(path, &limits)?,
        None => ModelFile::from_bytes(SHIPPED, Path::new(SHIPPED_NAME), &limits)?,
    })
}

/// How the model is called in results.
pub fn name(path: Option<&Path>) -> String {
    path.map_or_else(|| SHIPPED_NAME.to_owned(), |path| path.display().to_string())
}
