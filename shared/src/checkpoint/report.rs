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

/// Most tensors of a kind that a printed report names.
const SHOWN: usize = 20;

impl fmt::Display for LoadReport {
    /// The counts, then a line for each tensor that does not fit, at most 20 of a kind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tensors loaded, {} missing, {} unexpected, {} of another shape",
            self.loaded.len(),
            self.missing.len(),
            self.unexpected.len(),
            self.misshapen.len()
        )?;
        write_lines(f, "missing", &self.missing, |name| name.escape_debug().to_string())?;
        write_lines(f, "unexpected", &self.unexpected, |name| name.escape_debug().to_string())?;
        write_lines(f, "of another shape", &self.misshapen, |(name, expected, found)| {
            format!("{}: expected {expected:?}, found {found:?}", name.escape_debug())
        })
    }
}

fn write_lines<T>(
    f: &mut fmt::Formatter<'_>,
    kind: &str,
    tensors: &[T],
    line: impl Fn(&T) -> String,
) -> fmt::Result {
    for tensor in tensors.iter().take(SHOWN) {
        write!(f, "\n  {kind}: {}", line(tensor))?;
    }
    match tensors.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(f, "\n  {kind}: and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reports_are_cut() {
        let names = |count: usize| (0..count).map(|i| format!("w{i}\n")).collect();
        let misshapen = vec![("b".to_string(), vec![2, 3], vec![6])];
        let report =
            LoadReport { loaded: names(7), missing: names(2), unexpected: names(23), misshapen };
        let text = report.to_string();
        assert!(
            text.starts_with("7 tensors loaded, 2 missing, 23 unexpected, 1 of another shape\n")
        );
        assert!(text.contains("\n  missing: w1\\n\n"), "{text}");
        assert!(text.contains("\n  unexpected: and 3 more\n"), "{text}");
        assert!(text.ends_with("\n  of another shape: b: expected [2, 3], found [6]"), "{text}");
        assert_eq!(text.lines().count(), 1 + 2 + 21 + 1);
    }

    #[test]
    fn only_missing_tensors_can_be_allowed() {
        let name = || vec!["a".to_string()];
        let missing = LoadReport { missing: name(), ..LoadReport::default() };
        assert!(missing.fits(true) && !missing.fits(false));
        let unexpected = LoadReport { unexpected: name(), ..LoadReport::default() };
        assert!(!unexpected.fits(true));
        let misshapen = vec![("a".to_string(), vec![1], vec![2])];
        assert!(!LoadReport { misshapen, ..LoadReport::default() }.fits(true));
        assert!(LoadReport { loaded: name(), ..LoadReport::default() }.fits(false));
    }
}
