//! `lighthubert doctor`: does everything work here?

use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use shared::device;
use shared::kernels::isa::{self, InstructionSet};

use super::model;

#[derive(Args)]
pub struct Options {
    /// Model to check [default: the recogniser shipped with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<std::path::PathBuf>,
}

#[derive(Serialize)]
struct Outcome {
    version: &'static str,
    device: String,
    threads: usize,
    instruction_sets: Vec<&'static str>,
    /// Of the sets that kernels are compiled for, the one that is used.
    kernels: &'static str,
    /// All of them that this processor has, best last.
    available_kernels: Vec<&'static str>,
    ffmpeg: Option<String>,
    model: String,
    /// Cosine of the features of a synthetic signal with those stored in the model.
    self_test: Option<f64>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let opened = common.open()?;
    let model = model::load_or_shipped(options.model.as_deref(), common)?;
    let self_test = model.self_test(&opened)?;
    let outcome = Outcome {
        version: env!("CARGO_PKG_VERSION"),
        device: format!("{:?}", opened.location()),
        threads: device::set_threads(common.threads)?,
        instruction_sets: device::instruction_sets(),
        kernels: isa::chosen()?.name(),
        available_kernels: InstructionSet::available().map(InstructionSet::name).collect(),
        ffmpeg: device::ffmpeg_version(),
        model: model::name(options.model.as_deref()),
        self_test,
    };
    let text = format!(
        "lighthubert     {}\ndevice          {}\nthreads         {}\ninstructions    {}\nkernels         {} of {}\nFFmpeg          {}\nmodel           {}\nself-test       {}",
        outcome.version,
        outcome.device,
        outcome.threads,
        outcome.instruction_sets.join(", "),
        outcome.kernels,
        outcome.available_kernels.join(", "),
        outcome.ffmpeg.as_deref().unwrap_or("not in this build (feature `video`); Opus needs it"),
        outcome.model,
        match self_test {
            Some(cosine) => format!("passed, cosine {cosine:.6}"),
            None => "not stored in this model; `lighthubert convert` stores one".into(),
        }
    );
    common.print(&outcome, text)
}
