//! PyTorch's layout before 1.6: five pickle streams (a magic number, a version, facts about the
//! machine, the values, the keys of the storages), then the storages in the order of the keys.

use std::collections::HashMap;
use std::path::Path;

use super::super::pickle::{Graph, Id, Node};
use super::super::{Checkpoint, Format};
use super::rebuild::rebuild;
use super::storage::{Storage, StorageId, StorageType};
use super::{Container, Outside};
use crate::limits::Limits;
use crate::{Error, Result};

/// The first value of a file.
const MAGIC: i128 = 0x1950a86a20f9469cfc6c;

/// The second.
const VERSION: i128 = 1001;

/// The checkpoint in a stream.
pub(super) fn read(bytes: &[u8], path: &Path, limits: &Limits) -> Result<Checkpoint> {
    let refuse = |reason: String| Error::checkpoint(path, reason);
    let (magic, rest) = Graph::parse(bytes, path, limits)?;
    if !matches!(magic.node(magic.root), Node::Int(MAGIC)) {
        let reason = "is a Python pickle that torch.save did not write; load it in Python and save \
                      its state_dict with torch.save";
        return Err(refuse(reason.into()));
    }
    let (version, rest) = Graph::parse(rest, path, limits)?;
    if !matches!(version.node(version.root), Node::Int(VERSION)) {
        return Err(refuse(format!("the version of the layout is not {VERSION}")));
    }
    let (machine, rest) = Graph::parse(rest, path, limits)?;
    if !is_little_endian(&machine) {
        return Err(refuse("its numbers are not known to be little-endian".into()));
    }
    let (graph, rest) = Graph::parse(rest, path, limits)?;
    let (keys, rest) = Graph::parse(rest, path, limits)?;
    let (storages, rest) = storages(&graph, &keys, rest).map_err(refuse)?;
    let stream = Stream { storages };
    let mut checkpoint = rebuild(&graph, &stream, Format::TorchStream, bytes.len(), path, limits)?;
    if !rest.is_empty() {
        checkpoint.notes.push(format!("{} bytes after the last tensor were not read", rest.len()));
    }
    Ok(checkpoint)
}

/// The storages by their keys.
struct Stream<'a> {
    storages: HashMap<&'a str, Storage<'a>>,
}

fn is_little_endian(machine: &Graph<'_>) -> bool {
    match machine.node(machine.root) {
        Node::Dict(entries) => entries.iter().any(|&(key, value)| {
            machine.text(key) == Some("little_endian")
                && matches!(machine.node(value), Node::Bool(true))
        }),
        _ => false,
    }
}

/// The storages that `graph` refers to: those of `keys`, one behind the other in `rest`, each
/// after its number of elements. Also what follows them.
fn storages<'a>(
    graph: &Graph<'a>,
    keys: &Graph<'a>,
    mut rest: &'a [u8],
) -> Result<(HashMap<&'a str, Storage<'a>>, &'a [u8]), String> {
    let mut types = HashMap::new();
    for node in graph.nodes() {
        if let Node::Persistent(id) = node
            && class_of_module(graph, *id).is_none()
        {
            let StorageId { kind, key, .. } = StorageId::of(graph, *id)?;
            types.entry(key).or_insert(kind);
        }
    }
    let mut storages = HashMap::new();
    for &key in keys.items(keys.root) {
        let key = keys.text(key).ok_or("a storage's key is no text")?;
        let element = match types.remove(key) {
            Some(StorageType::Of(element)) => element,
            Some(StorageType::Unsupported(class)) => {
                return Err(format!("a storage of class {class} is not supported"));
            }
            None => return Err(format!("storage {key:?} belongs to no tensor or occurs twice")),
        };
        let (count, after) =
            rest.split_first_chunk().ok_or("the storages are cut off: the file is truncated")?;
        let count = i64::from_le_bytes(*count);
        let size = usize::try_from(count).ok().and_then(|count| count.checked_mul(element.size()));
        let (bytes, after) =
            size.and_then(|size| after.split_at_checked(size)).ok_or_else(|| {
                format!(
                    "storage {key:?} claims {count} elements, {} bytes follow: the file is \
                     truncated; copy or download it again",
                    after.len()
                )
            })?;
        storages.insert(key, Storage { element, bytes });
        rest = after;
    }
    Ok((storages, rest))
}

/// The class in an identifier `("module", class, ..)`, by which a stream hands over its source.
fn class_of_module(graph: &Graph<'_>, id: Id) -> Option<Id> {
    match graph.items(id) {
        &[kind, class, ..] if graph.text(kind) == Some("module") => Some(class),
        _ => None,
    }
}

impl<'a> Container<'a> for Stream<'a> {
    fn find(&self, graph: &Graph<'a>, id: Id) -> Result<Outside<'a>, String> {
        if let Some(class) = class_of_module(graph, id) {
            return Ok(Outside::Class(class));
        }
        let StorageId { key, count, part, .. } = StorageId::of(graph, id)?;
        let mut storage =
            *self.storages.get(key).ok_or_else(|| format!("storage {key:?} is not in the file"))?;
        if storage.bytes.len() / storage.element.size() != count {
            return Err(format!("storage {key:?} has not the {count} elements that it claims"));
        }
        // A part is named by its own key, then its first element and its length.
        if let Some(part) = part
            && !matches!(graph.node(part), Node::None)
        {
            let sizes = match graph.items(part) {
                &[_, first, length] => graph.size(first).zip(graph.size(length)),
                _ => None,
            };
            let size = storage.element.size();
            storage.bytes = sizes
                .and_then(|(first, length)| {
                    let start = first.checked_mul(size)?;
                    storage.bytes.get(start..start.checked_add(length.checked_mul(size)?)?)
                })
                .ok_or_else(|| format!("a part reaches outside of storage {key:?}"))?;
        }
        Ok(Outside::Tensor(storage.flat()))
    }
}
