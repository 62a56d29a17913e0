//! The one error type of the library.

use std::path::{Path, PathBuf};

/// Result with the library's [`Error`] unless said otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by cause. Every variant names the file, tensor or argument concerned, what
/// was found, what was expected and, where the user can do something about it, what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder concerned.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An output file is already there and overwriting was not asked for.
    #[error("{}: already exists; pass --force to overwrite it", path.display())]
    Exists {
        /// The existing file.
        path: PathBuf,
    },
    /// A media file that is malformed, truncated or in a form that cannot be decoded.
    #[error("{}: {reason}", path.display())]
    Media {
        /// The media file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A quantity in untrusted input above its cap, see [`crate::limits::Limits`].
    #[error("{}: {quantity} of {actual} is above the limit of {limit}", path.display())]
    Limit {
        /// The file concerned.
        path: PathBuf,
        /// What is counted, with its unit, e.g. `duration in seconds`.
        quantity: &'static str,
        /// What the file has or claims.
        actual: u64,
        /// The cap.
        limit: u64,
    },
    /// A signal shorter than the model's receptive field.
    #[error("too short: {have_samples} samples where at least {need_samples} are needed")]
    TooShort {
        /// Samples given.
        have_samples: usize,
        /// Fewest samples that can be processed.
        need_samples: usize,
    },
    /// A recording in which no speech was found.
    #[error("no speech found in {duration_s:.2} s of audio")]
    NoSpeech {
        /// Length of the recording.
        duration_s: f64,
    },
    /// A recording that is readable but cannot be used.
    #[error("{}: {source}", path.display())]
    Recording {
        /// The recording.
        path: PathBuf,
        /// Why not.
        source: Box<Error>,
    },
    /// A checkpoint file that is malformed or refused.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint whose tensors do not fit the model.
    #[error("{}: the tensors do not fit the model\n{report}", path.display())]
    Tensors {
        /// The checkpoint file.
        path: PathBuf,
        /// Missing, unexpected and misshapen tensors, a line each.
        report: String,
    },
    /// A tensor or argument of the wrong shape.
    #[error("{what}: expected shape {expected}, found {actual:?}")]
    Shape {
        /// Name of the tensor or argument.
        what: String,
        /// The shape wanted, in words or numbers, e.g. `[B, 80, T]`.
        expected: String,
        /// The shape found.
        actual: Vec<usize>,
    },
    /// A text file (list, manifest, configuration) with a line that cannot be understood.
    #[error("{}:{line}: {reason}", path.display())]
    Parse {
        /// The text file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong, and the form expected.
        reason: String,
    },
    /// An argument or setting outside its domain.
    #[error("{0}")]
    Argument(String),
    /// A NaN or an infinity where only finite numbers make sense.
    #[error("{what} is not finite")]
    NonFinite {
        /// The tensor, file or step concerned.
        what: String,
    },
    /// Trainable parameters that a training step left without a finite gradient.
    #[error("no finite gradient reached: {}", parameters.join(", "))]
    NoGradient {
        /// Full names of the parameters.
        parameters: Vec<String>,
    },
    /// The user asked the job to stop; what was done so far is saved.
    #[error("interrupted; run the same command again to go on")]
    Interrupted,
    /// An error of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// An [`Error::Io`] for `path`; for `map_err(Error::io(path))`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// The cause in one or two words, for programs that read the tools' JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Exists { .. } => "exists",
            Self::Media { .. } => "media",
            Self::Limit { .. } => "limit",
            Self::TooShort { .. } => "too_short",
            Self::NoSpeech { .. } => "no_speech",
            Self::Recording { source, .. } => source.kind(),
            Self::Checkpoint { .. } => "checkpoint",
            Self::Tensors { .. } => "tensors",
            Self::Shape { .. } => "shape",
            Self::Parse { .. } => "parse",
            Self::Argument(_) => "argument",
            Self::NonFinite { .. } => "non_finite",
            Self::NoGradient { .. } => "no_gradient",
            Self::Interrupted => "interrupted",
            Self::Tensor(_) => "internal",
        }
    }

    /// An [`Error::Media`] for `path`.
    pub fn media(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Media { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// An [`Error::Checkpoint`] for `path`.
    pub fn checkpoint(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// An [`Error::Shape`] that compares `actual` with a description of what is expected.
    pub fn shape(what: impl Into<String>, expected: impl Into<String>, actual: &[usize]) -> Self {
        Self::Shape { what: what.into(), expected: expected.into(), actual: actual.to_vec() }
    }
}
