//! `lighthubert convert`: between the forms of models.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lighthubert::{Sizes, SpaceName, hugging_face};
use serde::Serialize;
use shared::Error;
use shared::checkpoint;
use shared::cli::{Common, Storage};
use shared::files::check_output;
use shared::limits::Limits;

use super::model::ModelOptions;

#[derive(Args)]
pub struct Options {
    /// A published checkpoint of LightHuBERT or HuBERT (.pt), a folder in Hugging Face's layout, or a
    /// file made by `lighthubert`; for --to safetensors any supported checkpoint
    input: PathBuf,
    /// The result: a file, or a folder for --to hugging-face
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// What the result is
    #[arg(long, value_enum, default_value = "model")]
    to: Form,
    /// Search space that a supernet was trained for (base, small or stage1), where its file says none or
    /// another
    #[arg(long, value_name = "NAME")]
    space: Option<SpaceName>,
    /// For --to hugging-face, the subnet of a supernet: default, max, min, or a JSON file
    #[arg(long, value_name = "NAME")]
    subnet: Option<super::model::SubnetChoice>,
    /// Type in which a model's matrices and kernels are stored
    #[arg(long, value_enum, default_value = "f32")]
    storage: Storage,
    /// Overwrite the output
    #[arg(long)]
    force: bool,
}

/// Forms of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A model that every command takes.
    Model,
    /// A folder for Hugging Face's `HubertModel`.
    HuggingFace,
    /// A safetensors file with the tensors as they are, of whatever model.
    Safetensors,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    tensors: usize,
    notes: Vec<String>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let (out, force) = (&options.out, options.force);
    if options.to != Form::HuggingFace {
        check_output(out, force)?;
    }
    let (tensors, notes) = match options.to {
        Form::Safetensors => {
            let report = checkpoint::convert(&options.input, out, force, &Limits::default())?;
            report.notes.iter().for_each(|note| common.note(note));
            (report.tensors.len(), report.notes)
        }
        form => {
            let input =
                ModelOptions { model: Some(options.input.clone()), subnet: options.subnet.clone() };
            let (mut model, subnet) = input.load(common)?;
            match (&mut model.card.sizes, options.space) {
                (Sizes::Supernet { space, .. }, Some(given)) => *space = Some(given),
                (Sizes::Network { .. } | Sizes::Recogniser { .. }, Some(_)) => {
                    return Err(Error::Argument("--space goes with a supernet".into()).into());
                }
                _ => {}
            }
            if form == Form::HuggingFace {
                let (config, tensors) = model.plain(subnet.as_ref())?;
                hugging_face::write(out, &config, &tensors, force)?;
                (tensors.len(), model.notes)
            } else if subnet.is_some() {
                let text =
                    "--subnet goes with --to hugging-face; `lighthubert extract` makes a model";
                return Err(Error::Argument(text.into()).into());
            } else {
                model.write(out, options.storage.dtype(), force)?;
                (model.tensors.len(), model.notes)
            }
        }
    };
    let outcome = Outcome { out: out.display().to_string(), tensors, notes };
    let text = format!("{tensors} tensors in {}", outcome.out);
    common.print(&outcome, text)
}
