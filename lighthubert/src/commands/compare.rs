//! `lighthubert compare`: recognisers by error rate and cost.

use std::path::PathBuf;

use clap::Args;
use lighthubert::comparison::Comparison;
use shared::cli::Common;
use shared::limits::Limits;

#[derive(Args)]
pub struct Options {
    /// Files with what `lighthubert evaluate --json` printed for each recogniser
    #[arg(required = true, value_name = "FILE")]
    results: Vec<PathBuf>,
    /// Folder for comparison.html and the plots
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Overwrite these
    #[arg(long)]
    force: bool,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let comparisons = Comparison::read(&options.results, &Limits::default())?;
    if let Some(out) = &options.out {
        Comparison::write(&comparisons, out, options.force)?;
    }
    for Comparison { title, rows } in comparisons.iter().filter(|_| common.json) {
        let object = serde_json::json!({ "title": title, "rows": rows });
        common.print(&object, "")?;
    }
    let text = |it: &Comparison| format!("{}\n\n{}", it.title, it.table());
    let texts: Vec<String> = comparisons.iter().map(text).collect();
    if !common.json {
        common.print(&(), texts.join("\n").trim_end())?;
    }
    Ok(())
}
