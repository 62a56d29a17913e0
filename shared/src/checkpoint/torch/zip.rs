//! PyTorch's zip layout: the values in `data.pkl`, and a file `data/<key>` for each storage.

use std::path::Path;

use super::super::pickle::{Graph, Id};
use super::super::{Checkpoint, Format};
use super::archive::Archive;
use super::rebuild::rebuild;
use super::storage::{Storage, StorageId, StorageType};
use super::{Container, Outside};
use crate::limits::Limits;
use crate::{Error, Result};

/// The checkpoint in a zip archive.
pub(super) fn read(bytes: &[u8], path: &Path, limits: &Limits) -> Result<Checkpoint> {
    let refuse = |reason: &str| Error::checkpoint(path, reason);
    let archive = Archive::open(bytes, path, limits)?;
    if archive.file("constants.pkl").is_some() {
        return Err(refuse(
            "is a TorchScript program, not a checkpoint; save its state_dict() with torch.save",
        ));
    }
    if archive.file("byteorder").is_some_and(|order| order != b"little") {
        return Err(refuse("its numbers are not little-endian, which is not supported"));
    }
    let stream = archive.file("data.pkl").ok_or_else(|| {
        refuse("is a zip archive without data.pkl, so torch.save did not write it")
    })?;
    let (graph, rest) = Graph::parse(stream, path, limits)?;
    if !rest.is_empty() {
        return Err(refuse("data.pkl goes on after its end"));
    }
    rebuild(&graph, &archive, Format::TorchZip, bytes.len(), path, limits)
}

impl<'a> Container<'a> for Archive<'a> {
    fn find(&self, graph: &Graph<'a>, id: Id) -> Result<Outside<'a>, String> {
        let StorageId { kind, key, count, .. } = StorageId::of(graph, id)?;
        let element = match kind {
            StorageType::Of(element) => element,
            StorageType::Unsupported(class) => return Ok(Outside::Unsupported(class)),
        };
        let data = self
            .file(&format!("data/{key}"))
            .ok_or_else(|| format!("storage {key:?} is not in the archive"))?;
        let bytes = count.checked_mul(element.size()).and_then(|size| data.get(..size));
        let bytes = bytes.ok_or_else(|| {
            format!("storage {key:?} claims {count} elements, its {} bytes hold fewer", data.len())
        })?;
        Ok(Outside::Tensor(Storage { element, bytes }.flat()))
    }
}
