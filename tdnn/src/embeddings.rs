//! Sets of named embeddings, in memory and in files.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use shared::checkpoint::safetensors;
use shared::files::write_atomic;
use shared::limits::Limits;
use shared::{Error, Result};

const TENSOR: &str = "embeddings";
const NAMES: &str = "names";
const ORIGIN: &str = "origin";

/// Embeddings of length 1 by name, all from one model used in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// What made them: embeddings of different origins cannot be compared.
    origin: String,
    dimension: usize,
    names: Vec<String>,
    places: HashMap<String, usize>,
    /// `[N, dimension]`, row by row.
    values: Vec<f32>,
}

impl Embeddings {
    /// An empty set of embeddings of `dimension` numbers; `origin` tells what makes them.
    pub fn new(origin: impl Into<String>, dimension: usize) -> Self {
        Self {
            origin: origin.into(),
            dimension,
            names: vec![],
            places: HashMap::new(),
            values: vec![],
        }
    }

    /// What made the embeddings.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Numbers in each embedding.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The names in the order in which they were added.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of embeddings.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The embedding of `name`.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        let place = *self.places.get(name)?;
        self.values.get(place * self.dimension..(place + 1) * self.dimension)
    }

    /// All embeddings in the order of [`Embeddings::names`].
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimension.max(1))
    }

    /// Adds an embedding, in place of one that has the name already.
    ///
    /// # Errors
    /// When it has another dimension or is not finite.
    pub fn insert(&mut self, name: &str, embedding: &[f32]) -> Result<()> {
        if embedding.len() != self.dimension {
            let expected = format!("[{}]", self.dimension);
            return Err(Error::shape(format!("embedding {name}"), expected, &[embedding.len()]));
        }
        if !embedding.iter().all(|value| value.is_finite()) {
            return Err(Error::NonFinite { what: format!("embedding {name}") });
        }
        match self.places.get(name) {
            Some(place) => {
                let range = place * self.dimension..(place + 1) * self.dimension;
                if let Some(row) = self.values.get_mut(range) {
                    row.copy_from_slice(embedding);
                }
            }
            None => {
                self.places.insert(name.to_owned(), self.names.len());
                self.names.push(name.to_owned());
                self.values.extend_from_slice(embedding);
            }
        }
        Ok(())
    }

    /// Adds all embeddings of `other`.
    ///
    /// # Errors
    /// When they were made by something else.
    pub fn extend(&mut self, other: &Self) -> Result<()> {
        other.check_origin(&self.origin, Path::new("the other embeddings"))?;
        for (name, row) in other.names.iter().zip(other.rows()) {
            self.insert(name, row)?;
        }
        Ok(())
    }

    /// Embeddings `[N, D]` that have no names but their numbers.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NonFinite`].
    pub fn of_tensor(origin: &str, rows: &Tensor) -> Result<Self> {
        let &[_, dimension] = rows.dims() else {
            return Err(Error::shape("embeddings", "[N, D]", rows.dims()));
        };
        let mut embeddings = Self::new(origin, dimension);
        let values: Vec<f32> = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        for (number, row) in values.chunks_exact(dimension.max(1)).enumerate() {
            embeddings.insert(&number.to_string(), row)?;
        }
        Ok(embeddings)
    }

    /// All embeddings `[N, D]`.
    ///
    /// # Errors
    /// Only when the tensor library fails.
    pub fn to_tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.values, (self.len(), self.dimension), &Device::Cpu)?)
    }

    /// Reads what [`Embeddings::write`] wrote as safetensors.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the file is something else or damaged.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        let wrong = |reason: String| Error::checkpoint(path, reason);
        let mut file = safetensors::read(path, limits)?;
        let tensor = file.tensors.remove(TENSOR).ok_or_else(|| {
            wrong(format!("holds no embeddings: the tensor {TENSOR:?} is missing"))
        })?;
        let names: Vec<String> = file
            .metadata
            .get(NAMES)
            .and_then(|names| serde_json::from_str(names).ok())
            .ok_or_else(|| wrong(format!("the metadata entry {NAMES:?} is missing or no list")))?;
        let origin = file.metadata.remove(ORIGIN).unwrap_or_default();
        let &[count, dimension] = tensor.dims() else {
            return Err(Error::shape(
                format!("{}: {TENSOR}", path.display()),
                "[N, D]",
                tensor.dims(),
            ));
        };
        if count != names.len() {
            return Err(wrong(format!("{count} embeddings for {} names", names.len())));
        }
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mut embeddings = Self::new(origin, dimension);
        for (name, row) in names.iter().zip(values.chunks_exact(dimension.max(1))) {
            embeddings.insert(name, row).map_err(|error| wrong(error.to_string()))?;
        }
        match embeddings.len() == count {
            true => Ok(embeddings),
            false => Err(wrong("a name comes twice".into())),
        }
    }

    /// Fails unless the embeddings, read from `path`, were made by `origin`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`].
    pub fn check_origin(&self, origin: &str, path: &Path) -> Result<()> {
        if self.origin == origin {
            return Ok(());
        }
        Err(Error::checkpoint(
            path,
            format!(
                "embeddings made by {:?} cannot be compared with those of {origin:?}; make them \
                 again with the same model and the same speech detection",
                self.origin
            ),
        ))
    }

    /// Writes all embeddings to `path` in `format`, whole or not at all. For [`Format::Npy`] the
    /// names go, a line each, to a second file: `path` with `.names` appended.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Io`].
    pub fn write(&self, path: &Path, format: Format, force: bool) -> Result<()> {
        match format {
            Format::Safetensors => self.write_safetensors(path, force),
            Format::Npy => {
                let names = names_path(path);
                if names.exists() && !force {
                    return Err(Error::Exists { path: names });
                }
                write_atomic(path, force, |file| self.npy(file))?;
                write_atomic(&names, true, |file| {
                    self.names.iter().try_for_each(|name| writeln!(file, "{name}"))
                })
            }
            Format::Ark => write_atomic(path, force, |file| self.ark(file)),
        }
    }

    fn write_safetensors(&self, path: &Path, force: bool) -> Result<()> {
        let tensor = self.to_tensor()?;
        let names = serde_json::to_string(&self.names)
            .map_err(|error| Error::Argument(format!("names of embeddings: {error}")))?;
        let metadata =
            BTreeMap::from([(NAMES.to_owned(), names), (ORIGIN.to_owned(), self.origin.clone())]);
        safetensors::write(path, &BTreeMap::from([(TENSOR.to_owned(), tensor)]), &metadata, force)
    }

    /// NumPy's format, version 1.0: magic, header padded to 64 bytes, values.
    fn npy(&self, out: &mut impl Write) -> io::Result<()> {
        let mut header = format!(
            "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}",
            self.len(),
            self.dimension
        );
        let preamble = 10;
        let padding = 64 - (preamble + header.len() + 1) % 64;
        header.extend(std::iter::repeat_n(' ', padding % 64));
        header.push('\n');
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&(header.len() as u16).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        self.values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
    }

    /// Kaldi's text archive: `name  [ 0.1 0.2 ]`.
    fn ark(&self, out: &mut impl Write) -> io::Result<()> {
        for (name, row) in self.names.iter().zip(self.rows()) {
            write!(out, "{name}  [")?;
            row.iter().try_for_each(|value| write!(out, " {value}"))?;
            writeln!(out, " ]")?;
        }
        Ok(())
    }
}

/// Where the names of a NumPy file go.
fn names_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".names");
    name.into()
}

/// File formats for embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One matrix with the names in the metadata; the one format that is read back.
    Safetensors,
    /// NumPy's array file, with the names in a file beside it.
    Npy,
    /// Kaldi's text archive of vectors.
    Ark,
}

impl Format {
    /// The format that the ending of `path` names; safetensors where it names none.
    pub fn of(path: &Path) -> Self {
        path.extension()
            .and_then(|ending| ending.to_str())
            .and_then(|ending| ending.parse().ok())
            .unwrap_or(Self::Safetensors)
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "safetensors" => Ok(Self::Safetensors),
            "npy" => Ok(Self::Npy),
            "ark" => Ok(Self::Ark),
            _ => Err(Error::Argument(format!(
                "unknown format {name:?}; use safetensors, npy or ark"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Embeddings {
        let mut embeddings = Embeddings::new("model", 2);
        embeddings.insert("a", &[1.0, 0.0]).unwrap();
        embeddings.insert("b/ü.wav", &[0.0, 1.0]).unwrap();
        embeddings.insert("c", &[0.6, 0.8]).unwrap();
        embeddings
    }

    #[test]
    fn safetensors_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        three().write(&path, Format::of(&path), false).unwrap();
        assert_eq!(Embeddings::read(&path, &Limits::default()).unwrap(), three());
        assert!(three().write(&path, Format::Safetensors, false).is_err());
    }

    #[test]
    fn numpy_files_have_a_header_of_whole_lines_of_64_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        three().write(&path, Format::of(&path), false).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let header = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        assert_eq!((10 + header) % 64, 0);
        assert_eq!(bytes[9 + header], b'\n');
        assert_eq!(bytes.len(), 10 + header + 6 * 4);
        assert_eq!(bytes[10 + header + 16..][..4], 0.6f32.to_le_bytes());
        let names = std::fs::read_to_string(folder.path().join("x.npy.names")).unwrap();
        assert_eq!(names, "a\nb/ü.wav\nc\n");
    }

    #[test]
    fn archives_are_text() {
        let mut text = vec![];
        three().ark(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap().lines().nth(2).unwrap(), "c  [ 0.6 0.8 ]");
    }

    #[test]
    fn only_like_embeddings_mix() {
        let mut embeddings = three();
        embeddings.insert("a", &[0.0, -1.0]).unwrap();
        assert_eq!((embeddings.len(), embeddings.get("a").unwrap()), (3, &[0.0, -1.0][..]));
        assert!(embeddings.insert("d", &[1.0]).is_err());
        assert!(embeddings.insert("d", &[f32::NAN, 1.0]).is_err());
        assert!(embeddings.extend(&Embeddings::new("another model", 2)).is_err());
    }
}
