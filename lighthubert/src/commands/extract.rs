//! `lighthubert extract`: a subnet to a file of its own.

use std::path::PathBuf;

use clap::Args;
use lighthubert::Subnet;
use serde::Serialize;
use serde_json::json;
use shared::cli::{Common, Storage};
use shared::files::check_output;

use super::model::{self, ModelOptions};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    model: ModelOptions,
    /// The network's file
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Keep the prediction heads, which only distillation needs
    #[arg(long)]
    keep_heads: bool,
    /// Type in which matrices and kernels are stored
    #[arg(long, value_enum, default_value = "f32")]
    storage: Storage,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    subnet: Subnet,
    parameters: u64,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    check_output(&options.out, options.force)?;
    let (model, subnet) = options.model.load(common)?;
    let mut network = model.extract(subnet.as_ref(), options.keep_heads)?;
    let config = network.plain(None)?.0;
    let parameters: usize = network.tensors.values().map(|tensor| tensor.elem_count()).sum();
    let parameters = parameters as u64;
    let subnet = config.subnet;
    let seal = model.card.seal.as_ref().map(|seal| seal.tensors_sha256.as_str());
    let origin = json!({ "model": model::name(options.model.model.as_deref()), "sha256": seal });
    network.card.provenance.insert("extracted_from".into(), origin);
    network.write(&options.out, options.storage.dtype(), options.force)?;
    let out = options.out.display().to_string();
    let text = format!(
        "{} layers of width {}, {parameters} parameters, in {out}",
        subnet.depth(),
        subnet.embed_dim()
    );
    common.print(&Outcome { out, subnet, parameters }, text)
}
