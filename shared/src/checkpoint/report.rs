//! What came of matching a checkpoint with a model.

use std::fmt;

use serde::Serialize;

/// The tensors of a checkpoint against those that a model asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Found with the right shape.
    pub loaded: Vec<String>,
    /// Asked for by the model, not in the checkpoint.
    pub missing: Vec<String>,
    /// In the checkpoint, not asked for.
    pub unexpected: Vec<String>,
    /// Name, shape that the model expects, shape found.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl LoadReport {
    /// Whether the model can be used: nothing unexpected, nothing misshapen and, unless
    /// `allow_missing`, nothing missing.
    pub fn fits(&self, allow_missing: bool) -> bool {
        self.misshapen.is_empty()
            && self.unexpected.is_empty()
            && (allow_missing || self.missing.is_empty())
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tensors loaded, {} missing, {} unexpected, {} of another shape",
            self.loaded.len(),
            self.missing.len(),
            self.unexpected.len(),
            self.misshapen.len()
        )?;
        for name in &self.missing {
            write!(f, "\n  missing: {name}")?;
        }
        for name in &self.unexpected {
            write!(f, "\n  unexpected: {name}")?;
        }
        for (name, expected, found) in &self.misshapen {
            write!(f, "\n  {name}: expected shape {expected:?}, found {found:?}")?;
        }
        Ok(())
    }
}
