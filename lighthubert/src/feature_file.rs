//! Features as NumPy arrays, written as they come.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use shared::files::OutputFile;
use shared::{Error, Result};

/// A NumPy file (format 1.0, `f32`) of features whose number of frames is known beforehand. It appears
/// whole or not at all.
pub struct FeatureFile {
    path: PathBuf,
    file: OutputFile,
    /// Of the array, frames first.
    dims: Vec<usize>,
    frames_written: usize,
}

impl FeatureFile {
    /// Starts a file of so many frames, each of shape `frame`: `[E]`, or `[L, E]` for several layers.
    ///
    /// # Errors
    /// [`Error::Exists`] when the file is there and `force` is not given; [`Error::Io`].
    pub fn create(path: &Path, frames: usize, frame: &[usize], force: bool) -> Result<Self> {
        let dims = [&[frames], frame].concat();
        let mut file = OutputFile::create(path, force)?;
        file.write_all(&header(&dims)).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file, dims, frames_written: 0 })
    }

    /// Writes the next frames, `[T, E]` or `[L, T, E]`.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Io`].
    pub fn append(&mut self, features: &Tensor) -> Result<()> {
        let frames_first = match features.rank() {
            3 => features.transpose(0, 1)?,
            _ => features.clone(),
        };
        let rest = self.dims.get(1..).unwrap_or_default();
        if frames_first.dims().get(1..) != Some(rest) {
            return Err(Error::shape("features", format!("[T] and {rest:?}"), frames_first.dims()));
        }
        let values: Vec<f32> = frames_first.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.frames_written += frames_first.dim(0)?;
        self.file.write_all(&bytes).map_err(Error::io(&self.path))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When frames are missing; [`Error::Exists`]; [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        let frames = self.dims.first().copied().unwrap_or(0);
        if self.frames_written != frames {
            return Err(Error::Argument(format!(
                "{}: {} frames, expected {frames}; did the recording change meanwhile?",
                self.path.display(),
                self.frames_written
            )));
        }
        self.file.finish()
    }
}

/// Magic and dictionary, filled up so that the numbers begin at a multiple of 64 bytes.
fn header(dims: &[usize]) -> Vec<u8> {
    const PREAMBLE: usize = 10;
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    let mut text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", dims.join(", "));
    let filled = (PREAMBLE + text.len() + 1).next_multiple_of(64) - PREAMBLE - 1;
    text.extend(std::iter::repeat_n(' ', filled - text.len()));
    text.push('\n');
    let length = (text.len() as u16).to_le_bytes();
    [&b"\x93NUMPY\x01\x00"[..], &length, text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn frames_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let mut file = FeatureFile::create(&path, 3, &[2, 1], false).unwrap();
        // Layer 0 counts from 0, layer 1 from 10.
        let two = Tensor::new(&[[[0.0f32], [1.0]], [[10.0], [11.0]]], &Device::Cpu).unwrap();
        let one = Tensor::new(&[[[2.0f32]], [[12.0]]], &Device::Cpu).unwrap();
        file.append(&two).unwrap();
        assert!(file.append(&Tensor::new(&[[0.0f32]], &Device::Cpu).unwrap()).is_err());
        file.append(&one).unwrap();
        file.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (header, numbers) = bytes.split_at(bytes.len() - 6 * 4);
        assert_eq!(header.len() % 64, 0);
        assert!(String::from_utf8_lossy(header).contains("'shape': (3, 2, 1,)"));
        let numbers: Vec<f32> =
            numbers.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(numbers, [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        let short = FeatureFile::create(&path, 1, &[1], true).unwrap();
        assert!(short.finish().unwrap_err().to_string().contains("0 frames, expected 1"));
    }
}
