//! Checkpoints that `torch.save` wrote, in its three layouts: a zip archive since 1.6, one stream
//! from 0.1.10 on, a tar archive before.

mod archive;
mod rebuild;
mod storage;
mod stream;
mod tar;
mod zip;

use std::path::Path;

use super::pickle::{Graph, Id};
use super::{Checkpoint, Format};
use crate::limits::Limits;
use crate::{Error, Result};
use storage::View;

pub(super) use archive::MAGIC as ZIP_MAGIC;
pub(super) use tar::MAGIC as TAR_MAGIC;

/// What an object outside the pickle stream is.
enum Outside<'a> {
    /// A tensor, or a whole storage as one.
    Tensor(View<'a>),
    /// A class, for whose source code the stream refers to the outside.
    Class(Id),
    /// A storage whose elements are not supported: their name.
    Unsupported(String),
}

/// Finds the objects that a pickle stream of some layout refers to.
trait Container<'a> {
    /// The object under the identifier `id`, or the reason why there is none.
    fn find(&self, graph: &Graph<'a>, id: Id) -> Result<Outside<'a>, String>;
}

/// The checkpoint in a file's `bytes`, which are in the PyTorch layout `format`.
pub(super) fn read(
    bytes: &[u8],
    format: Format,
    path: &Path,
    limits: &Limits,
) -> Result<Checkpoint> {
    match format {
        Format::TorchZip => zip::read(bytes, path, limits),
        Format::TorchTar => tar::read(bytes, path, limits),
        _ => stream::read(bytes, path, limits),
    }
}

/// The graph of the pickle stream at the start of `bytes`, and what follows it.
fn parse<'a>(bytes: &'a [u8], path: &Path, limits: &Limits) -> Result<(Graph<'a>, &'a [u8])> {
    let (stream, _) = bytes.split_at(bytes.len().min(limits.header_bytes));
    match Graph::parse(stream, path) {
        Ok((graph, length)) => Ok((graph, bytes.get(length..).unwrap_or_default())),
        Err(Error::Checkpoint { .. }) if stream.len() < bytes.len() => Err(Error::Limit {
            path: path.to_path_buf(),
            quantity: "pickle stream in bytes",
            actual: bytes.len() as u64,
            limit: limits.header_bytes as u64,
        }),
        Err(error) => Err(error),
    }
}
