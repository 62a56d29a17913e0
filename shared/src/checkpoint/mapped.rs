//! The bytes of an input file, mapped into memory where the system can.
#![allow(unsafe_code)]

use std::io::Read;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::limits::Limits;
use crate::{Error, Result, files};

/// A whole file as bytes.
pub(super) enum FileBytes {
    /// Pages that the system reads when they are first touched.
    Mapped(Mmap),
    /// A copy, for empty files and for file systems that cannot map.
    Copied(Vec<u8>),
}

impl FileBytes {
    /// The bytes of the regular file `path`.
    ///
    /// # Errors
    /// When it cannot be read, or is larger than the limits on header and tensors together allow.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let (mut file, length) = files::open_regular(path)?;
        let limit = limits.tensor_bytes.saturating_add(limits.header_bytes as u64);
        if length > limit {
            return Err(Error::Limit {
                path: path.to_path_buf(),
                quantity: "file size in bytes",
                actual: length,
                limit,
            });
        }
        // SAFETY: the map is read-only and private to this value. What no process can rule out is
        // that another one changes the file meanwhile: checkpoints are replaced by renaming (ours
        // always are), which leaves the mapped file as it was; whoever cuts a checkpoint short
        // in place while it is read ends this process with a bus error, and whoever overwrites it
        // in place gives it other numbers.
        if length > 0
            && let Ok(map) = unsafe { Mmap::map(&file) }
        {
            return Ok(Self::Mapped(map));
        }
        let mut bytes = vec![];
        file.by_ref().take(length).read_to_end(&mut bytes).map_err(Error::io(path))?;
        Ok(Self::Copied(bytes))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Copied(bytes) => bytes,
        }
    }
}
