//! Settings as published scripts spell them: lists as `1,2,4`, truth as `True` or `yes`, -1 for none.

use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::{Error, Result};

/// Settings by name, as a script or a JSON file has them.
pub type Flags = Map<String, Value>;

/// The settings in a command line such as `--num_channels 128 --cross_attention_windows 1,4,8`.
///
/// # Errors
/// When a word is neither `--name=value` nor `--name` before its value.
pub fn parse_flags(text: &str) -> Result<Flags> {
    let mut words = text.split_whitespace();
    let mut flags = Flags::new();
    while let Some(word) = words.next() {
        let expected =
            || Error::Argument(format!("flags: expected --name value or --name=value at {word:?}"));
        let flag = word.strip_prefix("--").ok_or_else(expected)?;
        let (name, value) = match flag.split_once('=') {
            Some(pair) => pair,
            None => (flag, words.next().ok_or_else(expected)?),
        };
        flags.insert(name.to_string(), Value::from(value.trim_matches(['"', '\''])));
    }
    Ok(flags)
}

/// The settings `T` among `flags`, which are taken out; those not given are the default.
///
/// # Errors
/// When one has a value that makes no sense.
pub(super) fn take<T>(flags: &mut Flags, aliases: &[&str]) -> Result<T>
where
    T: Default + Serialize + DeserializeOwned,
{
    let wrong = |error: serde_json::Error| Error::Argument(format!("configuration: {error}"));
    let Value::Object(known) = serde_json::to_value(T::default()).map_err(wrong)? else {
        return Ok(T::default());
    };
    let names = known.keys().map(String::as_str).chain(aliases.iter().copied());
    let own: Flags = names.filter_map(|name| flags.remove_entry(name)).collect();
    serde_json::from_value(Value::Object(own)).map_err(wrong)
}

/// Fails when `flags` are left over.
pub(super) fn check_none_left(flags: &Flags) -> Result<()> {
    if flags.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = flags.keys().map(String::as_str).collect();
    Err(Error::Argument(format!("configuration: unknown flags {}", names.join(", "))))
}

/// A setting in any of its spellings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Spelling {
    None,
    Truth(bool),
    Whole(i64),
    Real(f64),
    Text(String),
    List(Vec<i64>),
}

impl Spelling {
    fn whole(&self) -> Option<i64> {
        match self {
            Self::Whole(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn list(&self) -> Option<Vec<i64>> {
        match self {
            Self::Whole(number) => Some(vec![*number]),
            Self::List(list) => Some(list.clone()),
            Self::Text(text) if text.trim().is_empty() => Some(vec![]),
            Self::Text(text) => text.split(',').map(|part| part.trim().parse().ok()).collect(),
            _ => None,
        }
    }
}

/// A whole number of at least 0.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let whole = Spelling::deserialize(deserializer)?.whole();
    let count = whole.and_then(|number| usize::try_from(number).ok());
    count.ok_or_else(|| D::Error::custom("expected a whole number of at least 0"))
}

/// A whole number; none for -1 and null.
pub(super) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<usize>, D::Error> {
    let spelling = Spelling::deserialize(deserializer)?;
    match (&spelling, spelling.whole()) {
        (Spelling::None, _) | (_, Some(-1)) => Ok(None),
        (_, Some(number)) if number >= 0 => Ok(usize::try_from(number).ok()),
        _ => Err(D::Error::custom("expected a whole number, or -1 for none")),
    }
}

/// A number.
pub(super) fn real<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let number = match Spelling::deserialize(deserializer)? {
        Spelling::Whole(number) => Some(number as f64),
        Spelling::Real(number) => Some(number),
        Spelling::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| D::Error::custom("expected a number"))
}

/// True or false.
pub(super) fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let truth = match Spelling::deserialize(deserializer)? {
        Spelling::Truth(truth) => Some(truth),
        Spelling::Text(text) => match text.to_lowercase().as_str() {
            "yes" | "true" | "t" | "y" | "1" => Some(true),
            "no" | "false" | "f" | "n" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    };
    truth.ok_or_else(|| D::Error::custom("expected true or false"))
}

/// Whole numbers of at least 1; a list of -1 is empty.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    let wrong = || D::Error::custom("expected whole numbers such as 1,2,4, or -1 for none");
    match Spelling::deserialize(deserializer)?.list().ok_or_else(wrong)? {
        none if none == [-1] => Ok(vec![]),
        list => {
            let positive = |number: i64| usize::try_from(number).ok().filter(|number| *number > 0);
            list.into_iter().map(|number| positive(number).ok_or_else(wrong)).collect()
        }
    }
}

/// As many whole numbers of at least 1.
pub(super) fn sizes<'de, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<[usize; N], D::Error> {
    let sizes = list(deserializer)?;
    sizes.try_into().map_err(|_| D::Error::custom(format!("expected {N} sizes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_become_flags() {
        let flags = parse_flags("--a 1,2 --b=True\n  --c '-1'").unwrap();
        assert_eq!(flags["a"], "1,2");
        assert_eq!(flags["b"], "True");
        assert_eq!(flags["c"], "-1");
        for wrong in ["a 1", "--a", "--a 1 2"] {
            assert!(parse_flags(wrong).is_err(), "{wrong}");
        }
    }
}
