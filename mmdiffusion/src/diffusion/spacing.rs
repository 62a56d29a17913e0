//! Processes that make only some of the steps.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

/// Which steps of a process are made. Written as text: `""` for all, `"ddim25"` for 25 at an even
/// stride, `"10,15,20"` for so many in each of three equal sections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Spacing {
    /// All steps.
    #[default]
    All,
    /// So many steps from 0 on at the smallest whole stride that gives exactly them.
    Stride(usize),
    /// So many steps, evenly spread, in each of as many sections of equal size.
    Sections(Vec<usize>),
}

impl Spacing {
    /// The steps made of a process of `steps`, in rising order.
    ///
    /// # Errors
    /// When there are none such.
    pub fn kept(&self, steps: usize) -> Result<Vec<usize>> {
        match self {
            Self::All => Ok((0..steps).collect()),
            Self::Stride(count) => (1..steps)
                .find(|stride| steps.div_ceil(*stride) == *count)
                .map(|stride| (0..steps).step_by(stride).collect())
                .ok_or_else(|| {
                    self.impossible(steps, &format!("no whole stride gives exactly {count} steps"))
                }),
            Self::Sections(counts) => {
                let sections = counts.len().max(1);
                let mut kept = BTreeSet::new();
                let mut start = 0;
                for (section, count) in counts.iter().enumerate() {
                    let size = steps / sections + usize::from(section < steps % sections);
                    if size < *count {
                        let reason = format!("{count} steps do not fit a section of {size}");
                        return Err(self.impossible(steps, &reason));
                    }
                    let stride =
                        if *count > 1 { (size - 1) as f64 / (count - 1) as f64 } else { 1.0 };
                    // Added up, for the rounding of halves depends on it.
                    let mut place = 0.0f64;
                    for _ in 0..*count {
                        kept.insert(start + place.round_ties_even() as usize);
                        place += stride;
                    }
                    start += size;
                }
                if kept.is_empty() {
                    return Err(self.impossible(steps, "it keeps no step"));
                }
                Ok(kept.into_iter().collect())
            }
        }
    }

    fn impossible(&self, steps: usize, reason: &str) -> Error {
        Error::Argument(format!("spacing {self:?} of a process of {steps} steps: {reason}"))
    }
}

impl FromStr for Spacing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::Argument(format!(
                "spacing {text:?}: expected nothing for all steps, ddimN such as ddim25, or counts \
                 for sections such as 10,15,20"
            ))
        };
        if text.is_empty() {
            return Ok(Self::All);
        }
        if let Some(count) = text.strip_prefix("ddim") {
            return count.parse().map(Self::Stride).map_err(|_| wrong());
        }
        let counts = text.split(',').map(|count| count.trim().parse()).collect::<Result<_, _>>();
        counts.map(Self::Sections).map_err(|_| wrong())
    }
}

impl TryFrom<String> for Spacing {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Spacing> for String {
    fn from(spacing: Spacing) -> Self {
        spacing.to_string()
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Stride(count) => write!(f, "ddim{count}"),
            Self::Sections(counts) => {
                let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
                f.write_str(&counts.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_written() {
        for text in ["", "ddim25", "10", "10,15,20"] {
            assert_eq!(text.parse::<Spacing>().unwrap().to_string(), text);
        }
        for bad in ["ddim", "ddim-1", "x", "10,", "1.5", "-3"] {
            assert!(bad.parse::<Spacing>().is_err(), "{bad}");
        }
    }

    #[test]
    fn impossible_spacings_are_refused() {
        for (text, steps) in [("ddim7", 10), ("20", 10), ("0", 10), ("ddim0", 10), ("ddim1", 10)] {
            let spacing: Spacing = text.parse().unwrap();
            assert!(spacing.kept(steps).is_err(), "{text} of {steps}");
        }
    }
}
