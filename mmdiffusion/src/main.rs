//! The command-line tool `mmdiffusion`: sound and picture, generated together.

mod commands;

use std::process::ExitCode;

use clap::Parser;
use shared::cli::{self, Common};

// Fresh large tensors from the system's allocator cost page faults, which take longer than the
// arithmetic on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Generates short videos with their sound, the sound of a video, or the video of a sound, with
/// MM-Diffusion.
///
/// Clips may be MP4, MOV, WebM, MKV, AVI or GIF at any size and frame rate, sounds WAV, FLAC, MP3,
/// Ogg, M4A and more at any sampling rate. Results go to stdout, everything else to stderr. Exit
/// codes: 0 success, 2 wrong usage or bad input, 3 an internal error, 130 interrupted.
#[derive(Parser)]
#[command(name = "mmdiffusion", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::run(&cli.common, || {
        commands::run(cli.command, &cli.common)?;
        Ok(ExitCode::SUCCESS)
    })
}
