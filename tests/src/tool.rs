//! Running the binaries as a user does.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// The project's root folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The path of a recording that the project ships.
pub fn media(name: &str) -> String {
    root().join("samples/media").join(name).display().to_string()
}

/// The folder with the release binaries, built if they are not up to date. Those of the whole workspace
/// are built, so that they share all dependencies with the tests.
fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--release", "--workspace", "--bins", "--quiet"])
            .current_dir(root())
            .status();
        assert!(built.is_ok_and(|status| status.success()), "the binaries do not build");
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root().join("target"), |target| root().join(target));
        target.join("release")
    })
}

/// A folder for one test, in which a binary runs; removed afterwards.
pub struct Workplace {
    folder: TempDir,
    tool: PathBuf,
}

/// What a run of a binary left.
pub struct Run {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed as its result.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

impl Workplace {
    /// An empty folder to run the binary `tool` in.
    pub fn new(tool: &str) -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let tool = binaries().join(format!("{tool}{}", std::env::consts::EXE_SUFFIX));
        Self { folder, tool }
    }

    /// The path of `name` in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// The names of all files in the folder, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries =
            std::fs::read_dir(self.folder.path()).unwrap_or_else(|error| panic!("{error}"));
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        names.sort();
        names
    }

    /// The command, ready to be changed further.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.tool);
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        for launcher in ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"] {
            command.env_remove(launcher);
        }
        command
    }

    /// Runs the binary to its end.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        let output = self.command(arguments).output();
        Run::of(output.unwrap_or_else(|error| panic!("{}: {error}", self.tool.display())))
    }
}

impl Run {
    /// What `output` holds, which must be text and no report of a panic.
    pub fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let run = Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        run
    }

    /// The run itself, which must have succeeded.
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    /// The run itself, which must have ended with `code` and an error that holds all of `words`.
    pub fn failure(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        self
    }

    /// Each line of stdout as JSON.
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))
        };
        self.stdout.lines().map(parse).collect()
    }

    /// Stdout, which is one line of JSON.
    pub fn json(&self) -> Value {
        let mut lines = self.json_lines();
        assert_eq!(lines.len(), 1, "{}", self.stdout);
        lines.remove(0)
    }
}
