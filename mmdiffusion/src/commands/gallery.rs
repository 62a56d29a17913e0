//! `mmdiffusion gallery`: a folder of clips as one page.

use std::path::PathBuf;

use clap::Args;
use mmdiffusion::gallery::Gallery;
use serde::Serialize;
use shared::cli::Common;
use shared::files::check_output;
use shared::limits::Limits;

#[derive(Args)]
pub struct Options {
    /// Folder with clips
    folder: PathBuf,
    /// The page [default: gallery.html in the folder]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite the page
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    clips: usize,
    notes: Vec<String>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let out = options.out.clone().unwrap_or_else(|| options.folder.join("gallery.html"));
    check_output(&out, options.force)?;
    let Gallery { page, clips, notes } = Gallery::new(&options.folder, &Limits::default())?;
    page.write(&out, options.force)?;
    notes.iter().for_each(|note| common.note(note));
    let outcome = Outcome { out: out.display().to_string(), clips, notes };
    let text = format!("{clips} clips in {}", outcome.out);
    common.print(&outcome, text)
}
