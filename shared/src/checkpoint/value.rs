//! What a checkpoint holds besides and around its tensors.

use candle_core::Tensor;
use serde_json::json;

/// A plain value of a checkpoint: Python's built-in types, tensors, and a mark for all else.
#[derive(Clone, Debug)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i128),
    /// A floating-point number.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes, and texts that are not valid UTF-8.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A tuple, also `torch.Size`.
    Tuple(Vec<Value>),
    /// A set.
    Set(Vec<Value>),
    /// A dictionary in its order.
    Dict(Vec<(Value, Value)>),
    /// A tensor.
    Tensor(Tensor),
    /// An object of a class that is not read; nothing of it is kept.
    Foreign {
        /// Full name of the class or function that made it, e.g. `argparse.Namespace`.
        class: String,
    },
}

impl Value {
    /// The entry of a dictionary under the text `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Self::Dict(entries) = self else { return None };
        entries.iter().find(|(k, _)| k.as_text() == Some(key)).map(|(_, value)| value)
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one that fits.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(value) => i64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The number, if it is one; integers are converted.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// The items of a list or tuple.
    pub fn as_items(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The value as JSON: tuples and sets become arrays; numbers that JSON lacks and keys that are
    /// no text become strings; bytes, tensors and foreign objects become null.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::None | Self::Bytes(_) | Self::Tensor(_) | Self::Foreign { .. } => json!(null),
            Self::Bool(value) => json!(value),
            Self::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => json!(value),
                (_, Ok(value)) => json!(value),
                _ => json!(value.to_string()),
            },
            Self::Float(value) if value.is_finite() => json!(value),
            Self::Float(value) => json!(value.to_string()),
            Self::Text(text) => json!(text),
            Self::List(items) | Self::Tuple(items) | Self::Set(items) => {
                items.iter().map(Self::to_json).collect()
            }
            Self::Dict(entries) => serde_json::Value::Object(
                entries.iter().map(|(key, value)| (key.label(), value.to_json())).collect(),
            ),
        }
    }

    /// Whether a tensor is somewhere in it.
    pub fn has_tensors(&self) -> bool {
        match self {
            Self::Tensor(_) => true,
            Self::List(items) | Self::Tuple(items) | Self::Set(items) => {
                items.iter().any(Self::has_tensors)
            }
            Self::Dict(entries) => entries.iter().any(|(_, value)| value.has_tensors()),
            _ => false,
        }
    }

    /// The value as a part of a dotted name: texts as they are, others as JSON.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            other => other.to_json().to_string(),
        }
    }
}
