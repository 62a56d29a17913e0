//! Any checkpoint to safetensors.

use std::collections::BTreeMap;
use std::path::Path;

use super::inspect::finite_report;
use super::{Checkpoint, Value, read, safetensors};
use crate::Result;
use crate::limits::Limits;

/// Writes the checkpoint `input` as the safetensors file `output` and returns what was read. Its
/// notes say what of the input is not in the output, and which tensors are not finite.
///
/// Numbers, texts, lists and dictionaries beside the tensors become metadata under their dotted
/// names: texts as they are, all else as JSON.
///
/// # Errors
/// As [`read`] and [`safetensors::write`].
pub fn convert(input: &Path, output: &Path, force: bool, limits: &Limits) -> Result<Checkpoint> {
    let mut checkpoint = read(input, limits)?;
    let mut metadata = checkpoint.metadata.clone();
    add_metadata(&checkpoint.values, "", &mut metadata);
    safetensors::write(output, &checkpoint.tensors, &metadata, force)?;
    let broken = finite_report(&checkpoint.tensors)?;
    checkpoint.notes.extend(broken.iter().map(|tensor| format!("{tensor} is not finite")));
    Ok(checkpoint)
}

/// Adds `value`, which is called `name`, to `metadata`: whole, or by its parts when tensors are
/// among them.
fn add_metadata(value: &Value, name: &str, metadata: &mut BTreeMap<String, String>) {
    let join = |part: String| if name.is_empty() { part } else { format!("{name}.{part}") };
    match value {
        Value::Tensor(_) | Value::Foreign { .. } => {}
        Value::Dict(entries) if name.is_empty() || value.has_tensors() => {
            entries
                .iter()
                .for_each(|(key, value)| add_metadata(value, &join(key.label()), metadata));
        }
        Value::List(items) | Value::Tuple(items) if name.is_empty() || value.has_tensors() => {
            for (index, item) in items.iter().enumerate() {
                add_metadata(item, &join(index.to_string()), metadata);
            }
        }
        Value::Text(text) => {
            metadata.insert(name.to_string(), text.clone());
        }
        other => {
            metadata.insert(name.to_string(), other.to_json().to_string());
        }
    }
}
