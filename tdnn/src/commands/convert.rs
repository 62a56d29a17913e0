//! `tdnn convert`: published weights to a model, any checkpoint to safetensors.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use serde::Serialize;
use shared::Error;
use shared::checkpoint;
use shared::cli::{Common, Storage};
use shared::limits::Limits;
use tdnn::{FrontendConfig, ModelCard, ModelFile, WindowConfig, published};

#[derive(Args)]
pub struct Options {
    /// Any supported checkpoint, which becomes a safetensors file with the same tensors
    #[arg(required_unless_present = "supernet", conflicts_with = "supernet")]
    input: Option<PathBuf>,
    /// A supernet as its authors publish it (.torchparams)
    #[arg(long, value_name = "FILE", requires = "bn")]
    supernet: Option<PathBuf>,
    /// Architecture and batch norms of one of its subnets (.bn.tar); together they become a model
    #[arg(long, value_name = "FILE", requires = "supernet")]
    bn: Option<PathBuf>,
    /// The result
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Go on when tensors are missing: those of the supernet are as before any training, those of
    /// the batch norms stay the supernet's. They are listed
    #[arg(long, requires = "supernet")]
    allow_missing: bool,
    /// Type in which a model's matrices and kernels are stored
    #[arg(long, value_enum, default_value = "f32")]
    storage: Storage,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    tensors: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<String>,
    notes: Vec<String>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let out = options.out.display().to_string();
    let limits = Limits::default();
    let outcome = match (&options.supernet, &options.bn, &options.input) {
        (Some(supernet), Some(bn), _) => {
            let subnet =
                published::read_subnet(supernet, bn, options.allow_missing, &limits, &Device::Cpu)?;
            let architecture = subnet.config.architecture.to_string();
            let mut card =
                ModelCard::new(subnet.config, FrontendConfig::default(), WindowConfig::default());
            card.provenance = subnet.results.into_iter().collect();
            let model = ModelFile::new(card, &subnet.tensors, options.storage.dtype())?;
            model.write(&options.out, options.force)?;
            let mut notes = subnet.notes;
            notes.push(format!("{}: {}", supernet.display(), subnet.supernet));
            notes.push(format!("{}: {}", bn.display(), subnet.batch_norms));
            let tensors = model.tensors.len();
            Outcome { out, tensors, architecture: Some(architecture), notes }
        }
        (_, _, Some(input)) => {
            let report = checkpoint::convert(input, &options.out, options.force, &limits)?;
            Outcome { out, tensors: report.tensors.len(), architecture: None, notes: report.notes }
        }
        _ => return Err(Error::Argument("give a file, or --supernet and --bn".into()).into()),
    };
    outcome.notes.iter().for_each(|note| common.note(note));
    let what = outcome.architecture.as_ref().map(|name| format!(", architecture {name}"));
    let text =
        format!("{} tensors in {}{}", outcome.tensors, outcome.out, what.unwrap_or_default());
    common.print(&outcome, text)
}
