//! Options of the commands that use a model.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use lighthubert::language_model::{NgramModel, parse_arpa};
use lighthubert::{ModelFile, Sizes, Subnet};
use shared::cli::Common;
use shared::data::lines::Lines;
use shared::files::read_text;
use shared::limits::Limits;
use shared::{Error, Result};

/// The recogniser that is used where no other is named.
static SHIPPED: &[u8] = include_bytes!("../../../samples/models/recogniser.safetensors");

/// The words that it expects.
static SHIPPED_WORDS: &[u8] = include_bytes!("../../../samples/models/recogniser.arpa.gz");

/// What it is called in messages and results.
const SHIPPED_NAME: &str = "shipped recogniser";

/// Which model, and which subnet of it.
#[derive(Args, Debug)]
pub struct ModelOptions {
    /// Model: a file made by `lighthubert`, a published checkpoint (.pt), or a folder in Hugging Face's
    /// layout [default: the recogniser shipped with this program]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Subnet of a supernet: default, max, min, or a JSON file as `lighthubert sample` prints them
    #[arg(long, value_name = "NAME")]
    pub subnet: Option<SubnetChoice>,
}

impl ModelOptions {
    /// The model, and the subnet that is meant if one is named.
    pub fn load(&self, common: &Common) -> anyhow::Result<(ModelFile, Option<Subnet>)> {
        let model = load_or_shipped(self.model.as_deref(), common)?;
        let subnet = self.subnet.as_ref().map(|choice| choice.of(&model)).transpose()?;
        Ok((model, subnet))
    }
}

/// The model at `path`, or the shipped one; notes on it go to stderr.
pub fn load_or_shipped(path: Option<&Path>, common: &Common) -> anyhow::Result<ModelFile> {
    match path {
        Some(path) => load(path, common),
        None => Ok(ModelFile::from_bytes(SHIPPED, Path::new(SHIPPED_NAME), &Limits::default())?),
    }
}

/// How the model is called in results.
pub fn name(path: Option<&Path>) -> String {
    path.map_or_else(|| SHIPPED_NAME.to_owned(), |path| path.display().to_string())
}

/// The language model of the shipped recogniser.
pub fn shipped_language_model() -> Result<NgramModel> {
    let name = Path::new("shipped language model");
    parse_arpa(Lines::of_bytes(SHIPPED_WORDS, name, &Limits::default())?)
}

/// The model at `path`; notes on it go to stderr.
pub fn load(path: &Path, common: &Common) -> anyhow::Result<ModelFile> {
    let model = ModelFile::read(path, &Limits::default())?;
    model.notes.iter().for_each(|note| common.note(format!("{}: {note}", path.display())));
    Ok(model)
}

/// A subnet as users name it.
#[derive(Clone, Debug)]
pub enum SubnetChoice {
    Default,
    Max,
    Min,
    File(PathBuf),
}

impl FromStr for SubnetChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "default" => Self::Default,
            "max" => Self::Max,
            "min" => Self::Min,
            path => Self::File(path.into()),
        })
    }
}

impl SubnetChoice {
    /// The subnet of `model`.
    pub fn of(&self, model: &ModelFile) -> anyhow::Result<Subnet> {
        let space = match &model.card.sizes {
            Sizes::Supernet { space, .. } => space.map(|space| space.space()),
            Sizes::Network { .. } | Sizes::Recogniser { .. } => None,
        };
        Ok(match self {
            Self::Default => model.default_subnet(),
            Self::Max | Self::Min => {
                let space = space.ok_or_else(|| {
                    Error::Argument(
                        "the model does not say which search space it was trained for".into(),
                    )
                })?;
                if matches!(self, Self::Max) { space.largest() } else { space.smallest() }
            }
            Self::File(path) => {
                let text = read_text(path, &Limits::default())?;
                let described: serde_json::Value =
                    serde_json::from_str(&text).with_context(|| path.display().to_string())?;
                // What `sample --json` prints has the subnet within.
                let subnet = described.get("subnet").unwrap_or(&described).clone();
                serde_json::from_value(subnet).with_context(|| path.display().to_string())?
            }
        })
    }
}
