//! PyTorch's layout before 0.1.10: a tar archive of the files `storages`, `tensors` and `pickle`.

use std::collections::HashMap;
use std::path::Path;

use super::super::pickle::{Graph, Id, Node};
use super::super::{Checkpoint, Format, MAX_DIMENSIONS, MAX_TENSORS};
use super::rebuild::rebuild;
use super::storage::{Storage, StorageType, View, is_key};
use super::{Container, Outside};
use crate::limits::Limits;
use crate::{Error, Result};

/// What stands in the header of a tar archive's first file, and where.
pub(in super::super) const MAGIC: (usize, &[u8]) = (257, b"ustar");

/// Headers and contents fill blocks of this size.
const BLOCK_BYTES: usize = 512;

/// The checkpoint in a tar archive.
pub(super) fn read(bytes: &[u8], path: &Path, limits: &Limits) -> Result<Checkpoint> {
    let refuse = |reason: String| Error::checkpoint(path, format!("tar archive: {reason}"));
    let files = files(bytes).map_err(refuse)?;
    let file = |name: &str| {
        files.get(name).copied().ok_or_else(|| {
            refuse(format!("has no file {name:?}, so it is no checkpoint of PyTorch"))
        })
    };
    let storages = storages(file("storages")?, path, limits)?;
    let views = tensors(file("tensors")?, &storages, path, limits)?;
    let (graph, _) = Graph::parse(file("pickle")?, path, limits)?;
    rebuild(&graph, &Tensors { views }, Format::TorchTar, bytes.len(), path, limits)
}

/// The tensors by their keys, which are all that the values refer to.
struct Tensors<'a> {
    views: HashMap<String, View<'a>>,
}

impl<'a> Container<'a> for Tensors<'a> {
    fn find(&self, graph: &Graph<'a>, id: Id) -> Result<Outside<'a>, String> {
        // A class with its source code.
        if let Some(&class) = graph.items(id).first() {
            return Ok(Outside::Class(class));
        }
        let key = key(graph, id)?;
        let view =
            self.views.get(&key).ok_or_else(|| format!("tensor {key} is not in the file"))?;
        Ok(Outside::Tensor(view.clone()))
    }
}

/// The contents of the files in a tar archive.
fn files(mut bytes: &[u8]) -> Result<HashMap<String, &[u8]>, String> {
    let mut files = HashMap::new();
    while let Some((header, rest)) = bytes.split_at_checked(BLOCK_BYTES) {
        let field = |from: usize, to: usize| {
            let field = header.get(from..to).unwrap_or_default();
            let text = field.split(|&byte| byte == 0).next().unwrap_or_default();
            std::str::from_utf8(text).map(str::trim).map_err(|_| "a malformed header".to_string())
        };
        let name = field(0, 100)?;
        if name.is_empty() {
            break;
        }
        let size = usize::from_str_radix(field(124, 136)?, 8)
            .map_err(|_| format!("file {name:?} has no valid size"))?;
        let truncated = || format!("file {name:?} is cut off: copy or download the archive again");
        let content = rest.get(..size).ok_or_else(truncated)?;
        // Other types, such as extended headers, say nothing that is needed.
        let is_file = [Some(&b'0'), Some(&0)].contains(&header.get(156));
        if is_file && files.insert(name.trim_start_matches("./").to_string(), content).is_some() {
            return Err(format!("file {name:?} occurs twice"));
        }
        let blocks = size.checked_next_multiple_of(BLOCK_BYTES).ok_or_else(truncated)?;
        bytes = rest.get(blocks..).unwrap_or_default();
    }
    Ok(files)
}

/// The storages by their keys: for each a pickle stream `(key, location, class)`, the number of
/// elements and these; at the end those that are parts of others.
fn storages<'a>(
    bytes: &'a [u8],
    path: &Path,
    limits: &Limits,
) -> Result<HashMap<String, Storage<'a>>> {
    let refuse = |reason: String| Error::checkpoint(path, format!("storages: {reason}"));
    let mut storages = HashMap::new();
    let (count, mut rest) = count(bytes, path, limits)?;
    for _ in 0..count {
        let (graph, after) = Graph::parse(rest, path, limits)?;
        let &[key_id, _, class] = graph.items(graph.root) else {
            return Err(refuse("an entry is no tuple of three".into()));
        };
        let key = key(&graph, key_id).map_err(refuse)?;
        let element = match StorageType::of(&graph, class).map_err(refuse)? {
            StorageType::Of(element) => element,
            StorageType::Unsupported(class) => {
                return Err(refuse(format!("class {class} is not supported")));
            }
        };
        let (bytes, after) = number(after)
            .and_then(|(count, after)| after.split_at_checked(count.checked_mul(element.size())?))
            .ok_or_else(|| refuse(format!("storage {key} is cut off")))?;
        if storages.insert(key.clone(), Storage { element, bytes }).is_some() {
            return Err(refuse(format!("storage {key} occurs twice")));
        }
        rest = after;
    }
    let (parts, _) = Graph::parse(rest, path, limits)?;
    for &part in parts.items(parts.root) {
        let &[part_key, whole_key, first, length] = parts.items(part) else {
            return Err(refuse("a part is no tuple of four".into()));
        };
        let (part_key, whole_key) =
            (key(&parts, part_key).map_err(refuse)?, key(&parts, whole_key).map_err(refuse)?);
        let part = storages.get(&whole_key).zip(parts.size(first)).zip(parts.size(length));
        let part = part.and_then(|((whole, first), length)| {
            let start = first.checked_mul(whole.element.size())?;
            let end = start.checked_add(length.checked_mul(whole.element.size())?)?;
            Some(Storage { bytes: whole.bytes.get(start..end)?, ..*whole })
        });
        let part =
            part.ok_or_else(|| refuse(format!("a part is outside of storage {whole_key}")))?;
        storages.insert(part_key, part);
    }
    Ok(storages)
}

/// The tensors by their keys: for each a pickle stream `(key, storage key, class)`, then its number
/// of dimensions, shape, strides and offset.
fn tensors<'a>(
    bytes: &'a [u8],
    storages: &HashMap<String, Storage<'a>>,
    path: &Path,
    limits: &Limits,
) -> Result<HashMap<String, View<'a>>> {
    let refuse = |reason: String| Error::checkpoint(path, format!("tensors: {reason}"));
    let mut views = HashMap::new();
    let (count, mut rest) = count(bytes, path, limits)?;
    for _ in 0..count {
        let (graph, after) = Graph::parse(rest, path, limits)?;
        let &[key_id, storage_id, _] = graph.items(graph.root) else {
            return Err(refuse("an entry is no tuple of three".into()));
        };
        let key = key(&graph, key_id).map_err(refuse)?;
        let storage_key = self::key(&graph, storage_id).map_err(refuse)?;
        let storage = *storages
            .get(&storage_key)
            .ok_or_else(|| refuse(format!("storage {storage_key} is not in the file")))?;
        let (view, after) = layout(storage, after)
            .ok_or_else(|| refuse(format!("the layout of tensor {key} is malformed")))?;
        views.insert(key, view);
        rest = after;
    }
    Ok(views)
}

/// The view of `storage` whose dimensions, shape, strides and offset `bytes` starts with.
fn layout<'a, 'b>(storage: Storage<'a>, bytes: &'b [u8]) -> Option<(View<'a>, &'b [u8])> {
    // The upper half of the number of dimensions is not always written as zero.
    let (rank, mut rest) = bytes.split_first_chunk::<8>()?;
    let &[a, b, c, d, ..] = rank;
    let rank = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    if rank > MAX_DIMENSIONS {
        return None;
    }
    let mut numbers = |count: usize| {
        let mut numbers = Vec::with_capacity(count);
        for _ in 0..count {
            let (value, after) = number(rest)?;
            numbers.push(value);
            rest = after;
        }
        Some(numbers)
    };
    let (shape, strides) = (numbers(rank)?, numbers(rank)?);
    let (offset, rest) = number(rest)?;
    Some((View { storage, offset, shape, strides }, rest))
}

/// The 64-bit number that `bytes` starts with, if it is no negative one, and what follows.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (value, rest) = bytes.split_first_chunk()?;
    Some((usize::try_from(i64::from_le_bytes(*value)).ok()?, rest))
}

/// The number of entries that a file starts with, and what follows.
fn count<'a>(bytes: &'a [u8], path: &Path, limits: &Limits) -> Result<(usize, &'a [u8])> {
    let (graph, rest) = Graph::parse(bytes, path, limits)?;
    let count = graph.size(graph.root).filter(|&count| count <= MAX_TENSORS);
    let reason = "tar archive: a number of entries is malformed or too large";
    count.map(|count| (count, rest)).ok_or_else(|| Error::checkpoint(path, reason))
}

/// A key, which is a number or a text.
fn key(graph: &Graph<'_>, id: Id) -> Result<String, String> {
    match graph.node(id) {
        Node::Int(key) => Ok(key.to_string()),
        Node::Text(key) if is_key(key) => Ok((*key).to_string()),
        _ => Err("a key is neither number nor short text".into()),
    }
}
