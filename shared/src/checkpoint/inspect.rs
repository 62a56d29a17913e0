//! Questions about the numbers in a checkpoint: are they finite, are they the same as before.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;

use candle_core::{DType, Tensor, WithDType};
use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::element::little_endian_bytes;
use crate::{Error, Result};

/// A tensor with elements that are not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// Name of the tensor.
    pub name: String,
    /// How many elements are NaN.
    pub nan: usize,
    /// How many elements are infinite.
    pub infinite: usize,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, nan, infinite } = self;
        write!(f, "tensor {name} ({nan} NaN, {infinite} infinite)")
    }
}

/// Returns the tensors that hold a NaN or an infinity, by name.
///
/// # Errors
/// When the elements cannot be read from their device.
pub fn finite_report(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<NonFinite>> {
    let mut found = vec![];
    for (name, tensor) in tensors {
        let tensor = tensor.flatten_all()?;
        let (nan, infinite) = match tensor.dtype() {
            DType::F64 => count_non_finite::<f64>(&tensor)?,
            DType::F32 => count_non_finite::<f32>(&tensor)?,
            DType::F16 => count_non_finite::<f16>(&tensor)?,
            DType::BF16 => count_non_finite::<bf16>(&tensor)?,
            _ => (0, 0),
        };
        if nan + infinite > 0 {
            found.push(NonFinite { name: name.clone(), nan, infinite });
        }
    }
    Ok(found)
}

/// Fails when a tensor of the checkpoint at `path` holds a NaN or an infinity.
///
/// # Errors
/// [`Error::NonFinite`] that names the first such tensors and their counts.
pub fn check_finite(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
    const SHOWN: usize = 3;
    let found = finite_report(tensors)?;
    if found.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = found.iter().take(SHOWN).map(NonFinite::to_string).collect();
    let mut what = format!("{}: {}", path.display(), shown.join(", "));
    if found.len() > SHOWN {
        what += &format!(" and {} more", found.len() - SHOWN);
    }
    Err(Error::NonFinite { what })
}

/// Returns the SHA-256 of all tensors (names, dtypes, shapes, elements) in hexadecimal digits. It
/// does not depend on the file format or the order in a file.
///
/// # Errors
/// When the elements cannot be read from their device.
pub fn data_hash(tensors: &BTreeMap<String, Tensor>) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor) in tensors {
        // Each part is preceded by its length, so that no two lists of tensors read the same.
        for text in [name.as_str(), tensor.dtype().as_str()] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update((tensor.rank() as u64).to_le_bytes());
        tensor.dims().iter().for_each(|&size| hash.update((size as u64).to_le_bytes()));
        hash.update(little_endian_bytes(tensor)?);
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut digits, byte| {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    }))
}

fn count_non_finite<T: WithDType>(flat: &Tensor) -> Result<(usize, usize)> {
    let mut counts = (0, 0);
    for value in flat.to_vec1::<T>()? {
        let value = value.to_f64();
        counts.0 += usize::from(value.is_nan());
        counts.1 += usize::from(value.is_infinite());
    }
    Ok(counts)
}
