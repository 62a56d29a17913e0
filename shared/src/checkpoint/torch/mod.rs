//! Checkpoints that `torch.save` wrote, in its three layouts: a zip archive since 1.6, one stream
//! from 0.1.10 on, a tar archive before.

mod archive;
mod calls;
mod rebuild;
mod storage;
mod stream;
mod tar;
mod zip;

use std::path::Path;

use super::pickle::{Graph, Id};
use super::{Checkpoint, Format};
use crate::Result;
use crate::limits::Limits;
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
