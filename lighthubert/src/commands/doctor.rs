//! `lighthubert doctor`: does everything work here?

use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use shared::device;
use shared::kernels::isa::{self, InstructionSet};

use super::model;

#[derive(Args)]
pub struct Options {
    /// Model to check
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
    model: Option<String>,
    /// Cosine of the features of a synthetic signal with those stored in the model.
    self_test: Option<f64>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let opened = common.open()?;
    let model = options.model.as_deref().map(|path| model::load(path, common)).transpose()?;
    let self_test = model.map(|model| model.self_test(&opened)).transpose()?.flatten();
    let outcome = Outcome {
        version: env!("CARGO_PKG_VERSION"),
        device: format!("{:?}", opened.location()),
        threads: device::set_threads(common.threads)?,
        instruction_sets: device::instruction_sets(),
        kernels: isa::chosen()?.name(),
        available_kernels: InstructionSet::available().map(InstructionSet::name).collect(),
        ffmpeg: device::ffmpeg_version(),
        model: options.model.as_ref().map(|path| path.display().to_string()),
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
        outcome.model.as_deref().unwrap_or("none given"),
        match (&outcome.model, self_test) {
            (_, Some(cosine)) => format!("passed, cosine {cosine:.6}"),
            (Some(_), None) => "not stored in this model; `lighthubert convert` stores one".into(),
            (None, None) => "needs --model".into(),
        }
    );
    common.print(&outcome, text)
}
