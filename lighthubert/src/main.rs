//! The command-line tool `lighthubert`: speech features and recognition with LightHuBERT and its subnets.

mod commands;

use std::process::ExitCode;

use clap::Parser;
use shared::cli::{self, Common};

// Fresh large tensors from the system's allocator cost page faults, which take longer than the
// arithmetic on them: element-wise operations are 3 to 10 times faster with this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Turns speech into text and into features with LightHuBERT, its subnets and HuBERT, and all that goes
/// with it: fine-tuning, scoring, taking subnets out, drawing them under a budget, converting, timing.
///
/// Recordings may be WAV, FLAC, MP3, Ogg, M4A, CAF, AIFF, MKV or WebM at any sampling rate.
/// Results go to stdout, everything else to stderr. Exit codes: 0 success, 2 wrong usage or bad input,
/// 3 an internal error, 130 interrupted.
#[derive(Parser)]
#[command(name = "lighthubert", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::run(&cli.common, || commands::run(cli.command, &cli.common))
}
