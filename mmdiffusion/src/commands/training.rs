//! What the training commands have in common.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use candle_core::Device;
use clap::Args;
use mmdiffusion::training::{LibraryOptions, RunOptions, Start};
use mmdiffusion::{ModelFile, NetworkConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::Error;
use shared::cli::Common;
use shared::data::{Filter, Manifest, files_in};
use shared::files::read_text;
use shared::limits::Limits;
use shared::train::Interrupt;

/// Decoded clips beyond this are read from their files again each time.
const MEMORY_BYTES: u64 = 8 << 30;

#[derive(Args)]
pub struct TrainingOptions {
    /// What is trained on: a folder, a table with a column `path`, or JSON lines; may be given several
    /// times
    #[arg(long, value_name = "LIST", required_unless_present = "print_config")]
    pub data: Vec<PathBuf>,
    /// Where the relative paths of the lists start [default: each list's folder]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Take only rows of lists in which a column has a value, e.g. split=train; may be given several
    /// times
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<Filter>,
    /// Others, on which the loss is evaluated now and then
    #[arg(long, value_name = "LIST")]
    validation: Option<PathBuf>,
    /// Begin with the weights of this model
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    /// Begin at random with the tensors that the model of --init lacks
    #[arg(long, requires = "init")]
    allow_missing: bool,
    /// Folder for checkpoints, logs, previews and the model; a run that is there is gone on with
    #[arg(long, short, value_name = "FOLDER", required_unless_present = "print_config")]
    out: Option<PathBuf>,
    /// Settings as JSON, see --print-config; what is left out has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings and stop
    #[arg(long)]
    pub print_config: bool,
    /// Steps between two checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 250)]
    save_every: u64,
    /// Steps between two evaluations: the loss on --validation, and samples to look at
    #[arg(long, value_name = "STEPS", default_value_t = 500)]
    evaluate_every: u64,
    /// Samples to look at in each evaluation, in the folder `previews`
    #[arg(long, value_name = "N", default_value_t = 4)]
    previews: usize,
}

impl TrainingOptions {
    /// The settings of --config, with the defaults beneath them.
    pub fn config<C: DeserializeOwned + Default>(&self) -> anyhow::Result<C> {
        let Some(path) = &self.config else { return Ok(C::default()) };
        let text = read_text(path, &Limits::default())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// A training about to begin, or to go on.
pub struct Job {
    pub folder: PathBuf,
    pub start: Start,
    pub options: RunOptions,
    pub device: Device,
}

#[derive(Serialize)]
struct Outcome {
    model: String,
    examples: usize,
    /// Files that were left out.
    skipped: usize,
}

impl Job {
    pub fn open(
        options: &TrainingOptions,
        network: &NetworkConfig,
        seed: u64,
        common: &Common,
    ) -> anyhow::Result<Self> {
        let Some(folder) = options.out.clone() else {
            return Err(Error::Argument("--out is missing".into()).into());
        };
        let device = common.open()?;
        let limits = Limits::default();
        let initial =
            options.init.as_deref().map(|path| ModelFile::read(path, &limits)).transpose()?;
        let allow_missing = options.allow_missing;
        let start = Start::new(network, initial.as_ref(), allow_missing, seed, &device)?;
        if let Some(report) = &start.report {
            common.note(report);
        }
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let options = RunOptions {
            save_every: options.save_every,
            evaluate_every: options.evaluate_every,
            previews: options.previews,
            interrupt: Interrupt::on_signals()?,
            quiet: common.quiet,
        };
        Ok(Self { folder, start, options, device })
    }

    /// How files are read, with an index of this name in the folder.
    pub fn library(&self, index: &str, common: &Common) -> LibraryOptions {
        let index = Some(self.folder.join(index));
        LibraryOptions { memory_bytes: MEMORY_BYTES, index, quiet: common.quiet }
    }

    /// What `read` finds in --validation.
    pub fn validation<T>(
        &self,
        options: &TrainingOptions,
        read: impl Fn(&[PathBuf], &str) -> anyhow::Result<(T, usize)>,
    ) -> anyhow::Result<Option<T>> {
        let list = options.validation.as_slice();
        if list.is_empty() {
            return Ok(None);
        }
        Ok(Some(read(list, "validation.json")?.0))
    }

    /// Writes the model and tells about it.
    pub fn finish(
        &self,
        mut model: ModelFile,
        config: &impl Serialize,
        [examples, skipped]: [usize; 2],
        common: &Common,
    ) -> anyhow::Result<()> {
        model.card.provenance.insert("training".to_owned(), serde_json::to_value(config)?);
        let path = self.folder.join("model.safetensors");
        model.write(&path, true)?;
        let outcome = Outcome { model: path.display().to_string(), examples, skipped };
        let text = format!("trained on {examples} examples; model in {}", outcome.model);
        common.print(&outcome, text)
    }
}

/// The files that `lists` name: those of such extensions in folders, and those in the rows of others
/// that --where accepts.
pub fn files(
    options: &TrainingOptions,
    lists: &[PathBuf],
    extensions: &[&str],
    limits: &Limits,
) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for list in lists {
        if list.is_dir() {
            files.extend(files_in(list, extensions)?);
            continue;
        }
        let manifest = Manifest::read(list, options.root.as_deref(), limits)?;
        let rows = manifest.filtered(&options.filters)?.utterances;
        files.extend(rows.into_iter().map(|row| row.path));
    }
    Ok(files)
}

/// Tells which files are left out.
pub fn list(failures: &[Error], common: &Common) {
    for error in failures {
        common.note(format!("left out: {error}"));
    }
}
