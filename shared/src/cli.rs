//! What the command-line tools have in common: global options, exit codes, results on stdout,
//! shards of a list.
//!
//! Exit codes: 0 success, 1 a negative result (only where a flag such as `--check` asks for it),
//! 2 wrong usage or bad input, 3 an internal error, 130 stopped by the user.

use std::fmt::Display;
use std::io::{self, Write};
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;

use anyhow::Context;
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::device::{self, DeviceName};
use crate::kernels::isa;
use crate::{Error, Result};

/// Type in which a model's matrices and kernels are stored.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Storage {
    /// 32 bits.
    F32,
    /// 16 bits, 10 of them after the point.
    F16,
    /// 16 bits with the range of 32.
    Bf16,
}

impl Storage {
    /// The tensor library's name of it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// What this very program prints as JSON when it is given `--case` beside its present arguments: one
/// of several measurements, in a process of its own, whose memory is that of the one case.
///
/// # Errors
/// When the process cannot be started, fails, or prints something else.
pub fn case_apart<T: DeserializeOwned>(case: usize) -> anyhow::Result<T> {
    let child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(["--case", &case.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(child.status.success(), "measuring case {case} failed: {}", child.status);
    serde_json::from_slice(&child.stdout).context("the result of one case")
}

/// Options that every command takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Print results as JSON, a line each
    #[arg(long, global = true)]
    pub json: bool,
    /// Threads that compute [default: one per core]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// Device that computes: cpu, cuda, cuda:N or metal
    #[arg(long, global = true, value_name = "NAME", default_value = "cpu")]
    pub device: DeviceName,
    /// Show no progress and no notes
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Common {
    /// Sets the number of threads and opens the device.
    ///
    /// # Errors
    /// When either cannot be had, or not the instruction set that [`isa::VARIABLE`] names.
    pub fn open(&self) -> Result<Device> {
        device::set_threads(self.threads)?;
        isa::chosen()?;
        self.device.open()
    }

    /// Prints one result: `value` as a line of JSON with `--json`, else `text`.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn print(&self, value: &impl Serialize, text: impl Display) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut stdout, value).map_err(io::Error::from)?;
            writeln!(stdout)?;
        } else {
            writeln!(stdout, "{text}")?;
        }
        stdout.flush()?;
        Ok(())
    }

    /// Tells the user something that is not a result, on stderr.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}

/// Runs a tool's main function and turns its outcome into an exit code; errors go to stderr with
/// their causes, and with `--json` to stdout as well, as `{"error": .., "kind": ..}`. A reader that
/// closes our stdout early (`| head`) ends the tool in peace.
pub fn run(common: &Common, tool: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    match panic::catch_unwind(AssertUnwindSafe(tool)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            let code = exit_code(&error);
            if code != 0 {
                let text = message(&error);
                let _ = writeln!(io::stderr(), "error: {text}");
                if common.json {
                    let kind = cause(&error).map_or("usage", Error::kind);
                    let _ = common.print(&serde_json::json!({ "error": text, "kind": kind }), "");
                }
            }
            ExitCode::from(code)
        }
        // The panic hook has printed the place already.
        Err(_) => ExitCode::from(3),
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let pipe_closed = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe);
    if pipe_closed {
        return 0;
    }
    match cause(error) {
        Some(Error::Interrupted) => 130,
        Some(Error::Tensor(_)) => 3,
        _ => 2,
    }
}

/// The library's error in a chain of causes.
fn cause(error: &anyhow::Error) -> Option<&Error> {
    error.chain().find_map(|cause| cause.downcast_ref::<Error>())
}

/// The causes after one another; those that an error's own text ends with are not repeated.
fn message(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.ends_with(&cause) {
            true => text,
            false if text.is_empty() => cause,
            false => format!("{text}: {cause}"),
        }
    })
}

/// One of `count` parts of a list, each without gaps and as long as the others or one longer;
/// written `index/count` with the index from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// This shard's number, below `count`.
    pub index: usize,
    /// Number of shards.
    pub count: usize,
}

impl Shard {
    /// The whole list.
    pub const ALL: Self = Self { index: 0, count: 1 };

    /// Rank and world size as set by common launchers: torchrun (`RANK`, `WORLD_SIZE`), Slurm
    /// (`SLURM_PROCID`, `SLURM_NTASKS`) and Open MPI (`OMPI_COMM_WORLD_RANK`,
    /// `OMPI_COMM_WORLD_SIZE`). [`Shard::ALL`] where none is set.
    ///
    /// # Errors
    /// When a pair is set to something that is no rank of its world.
    pub fn from_environment() -> Result<Self> {
        let pairs = [
            ("RANK", "WORLD_SIZE"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ];
        for (rank, world) in pairs {
            if let (Ok(rank), Ok(world)) = (std::env::var(rank), std::env::var(world)) {
                return format!("{rank}/{world}").parse();
            }
        }
        Ok(Self::ALL)
    }

    /// The places of this shard in a list of `items`.
    pub fn range(&self, items: usize) -> Range<usize> {
        let start = |index: usize| (items as u128 * index as u128 / self.count as u128) as usize;
        start(self.index)..start(self.index + 1)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(index, count)| {
            Some(Self { index: index.parse().ok()?, count: count.parse().ok()? })
        });
        parts.filter(|shard| shard.index < shard.count).ok_or_else(|| {
            Error::Argument(format!("shard {text:?} is not of the form i/n with i from 0 to n - 1"))
        })
    }
}

impl Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_parse_and_cover_a_list_once() {
        for bad in ["", "1", "2/2", "-1/2", "a/b", "0/0"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
        let ranges: Vec<_> = (0..3).map(|index| Shard { index, count: 3 }.range(10)).collect();
        assert_eq!(ranges, [0..3, 3..6, 6..10]);
        assert_eq!(Shard { index: 1, count: 4 }.range(2), 0..1);
        assert_eq!(Shard::ALL.range(10), 0..10);
    }

    #[test]
    fn messages_do_not_repeat_themselves() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = anyhow::Error::from(Error::io("a.wav")(source)).context("verify");
        assert_eq!(message(&error), "verify: a.wav: entity not found");
    }

    #[test]
    fn exit_codes_follow_the_cause() {
        let code = |error: anyhow::Error| exit_code(&error.context("while testing"));
        assert_eq!(code(Error::Interrupted.into()), 130);
        assert_eq!(code(Error::Argument("x".into()).into()), 2);
        assert_eq!(code(Error::Tensor(candle_core::Error::Msg("x".into())).into()), 3);
        assert_eq!(code(io::Error::from(io::ErrorKind::BrokenPipe).into()), 0);
    }
}
