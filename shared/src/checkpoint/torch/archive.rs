//! The zip archives that PyTorch writes: files stored as they are, and a directory at the end.
//!
//! Only this part of the format is read, and all of it must agree: zip readers for any archive
//! look for a directory where none should be and choose between what contradicts itself, so that
//! two of them can see different files in one archive.

use std::collections::HashMap;
use std::path::Path;

use super::super::MAX_TENSORS;
use crate::limits::Limits;
use crate::{Error, Result};

/// First bytes of an archive: those of a file's header.
pub(in super::super) const MAGIC: &[u8] = b"PK\x03\x04";

const DIRECTORY_ENTRY: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const END64_LOCATOR: &[u8] = b"PK\x06\x07";

/// Lengths of the records at the end, in bytes.
const END_BYTES: usize = 22;
const END64_BYTES: usize = 56;
const END64_LOCATOR_BYTES: usize = 20;

/// Extra field with the sizes and offset that do not fit 32 bits.
const WIDE_SIZES: u16 = 1;

/// Flag bits: encrypted; sizes follow the content instead of standing before it.
const ENCRYPTED: u16 = 1;
const SIZES_FOLLOW: u16 = 1 << 3;

/// The files in an archive, by their names inside its only folder.
pub(super) struct Archive<'a> {
    files: HashMap<&'a str, &'a [u8]>,
}

impl<'a> Archive<'a> {
    /// Lists the archive `bytes`. Every file is a part of it: nothing is unpacked.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the archive is cut off, contradicts itself, is compressed or
    /// encrypted, has names that could leave its folder, or more than one folder;
    /// [`Error::Limit`].
    pub fn open(bytes: &'a [u8], path: &Path, limits: &Limits) -> Result<Self> {
        let refuse = |reason: String| Error::checkpoint(path, format!("zip archive: {reason}"));
        let above = |quantity, actual, limit| Error::Limit {
            path: path.to_path_buf(),
            quantity,
            actual,
            limit,
        };
        let directory = Directory::find(bytes).ok_or_else(|| {
            let reason = "its directory is not at the end: the file is truncated, or something is \
                          appended; copy or download it again";
            refuse(reason.into())
        })?;
        if directory.count > MAX_TENSORS as u64 {
            return Err(above("files in the archive", directory.count, MAX_TENSORS as u64));
        }
        if directory.bytes.len() > limits.header_bytes {
            let (actual, limit) = (directory.bytes.len() as u64, limits.header_bytes as u64);
            return Err(above("archive directory in bytes", actual, limit));
        }
        let mut fields = Fields(directory.bytes);
        let mut entries = vec![];
        for index in 0..directory.count {
            let entry = Entry::read(&mut fields)
                .ok_or_else(|| refuse(format!("entry {index} of its directory is malformed")))?;
            entries.push(entry);
        }
        if !fields.0.is_empty() {
            return Err(refuse("its directory has more entries than it says".into()));
        }
        entries.sort_by_key(|entry| entry.start);
        let ends = entries.iter().skip(1).map(|next| next.start).chain([directory.start]);
        let mut folder = None;
        let mut files = HashMap::new();
        for (entry, end) in entries.iter().zip(ends) {
            let refuse = |reason: &str| refuse(format!("file {:?} {reason}", entry.name));
            let (top, inside) = safe_name(entry.name).map_err(refuse)?;
            if *folder.get_or_insert(top) != top {
                return Err(refuse("is in another folder than the others"));
            }
            let content = entry.content(bytes, end).map_err(refuse)?;
            if files.insert(inside, content).is_some() {
                return Err(refuse("occurs twice"));
            }
        }
        Ok(Self { files })
    }

    /// The content of the file `name` in the folder.
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        self.files.get(name).copied()
    }
}

/// The folder and the rest of a file's name, or why it is refused.
fn safe_name(name: &str) -> Result<(&str, &str), &'static str> {
    if name.split('/').any(|part| ["", ".", ".."].contains(&part))
        || name.contains(['\\', ':', '\0'])
    {
        return Err("has an unsafe name");
    }
    name.split_once('/').ok_or("is in no folder")
}

/// The directory at the end of an archive.
struct Directory<'a> {
    count: u64,
    start: u64,
    bytes: &'a [u8],
}

impl<'a> Directory<'a> {
    /// `None` unless the archive ends with its directory and the records that close it.
    fn find(archive: &'a [u8]) -> Option<Self> {
        let (rest, end) = archive.split_at_checked(archive.len().checked_sub(END_BYTES)?)?;
        let mut end = Fields(end);
        end.expect(END)?;
        let disks = [end.u16()?, end.u16()?];
        let counts = [end.u16()?, end.u16()?];
        let (size, start, comment) = (end.u32()?, end.u32()?, end.u16()?);
        if disks != [0, 0] || counts[0] != counts[1] || comment != 0 {
            return None;
        }
        let narrow = Extent { count: counts[0].into(), size: size.into(), start: start.into() };
        let (rest, extent) = match Extent::find_wide(rest) {
            Some((rest, wide)) => {
                let agree = |narrow: u64, wide: u64, most: u64| narrow == wide || narrow == most;
                let all = agree(narrow.count, wide.count, u16::MAX.into())
                    && agree(narrow.size, wide.size, u32::MAX.into())
                    && agree(narrow.start, wide.start, u32::MAX.into());
                (rest, all.then_some(wide)?)
            }
            None => (rest, narrow),
        };
        let Extent { count, size, start } = extent;
        let bytes = rest.get(usize::try_from(start).ok()?..)?;
        (bytes.len() as u64 == size).then_some(Self { count, start, bytes })
    }
}

/// What the records at the end of an archive say about its directory.
struct Extent {
    count: u64,
    size: u64,
    start: u64,
}

impl Extent {
    /// The archive up to the records that large archives have besides, and what these say.
    fn find_wide(archive: &[u8]) -> Option<(&[u8], Self)> {
        let place = archive.len().checked_sub(END64_LOCATOR_BYTES)?;
        let (archive, locator) = archive.split_at_checked(place)?;
        let mut locator = Fields(locator);
        locator.expect(END64_LOCATOR)?;
        let (disk, record_start, disks) = (locator.u32()?, locator.u64()?, locator.u32()?);
        let (archive, record) = archive.split_at_checked(usize::try_from(record_start).ok()?)?;
        let mut fields = Fields(record);
        fields.expect(END64)?;
        let length = fields.u64()?;
        let _versions = fields.u32()?;
        let record_disks = [fields.u32()?, fields.u32()?];
        let counts = [fields.u64()?, fields.u64()?];
        let (size, start) = (fields.u64()?, fields.u64()?);
        let plain = record.len() == END64_BYTES
            && length == END64_BYTES as u64 - 12
            && (disk, disks, record_disks) == (0, 1, [0, 0])
            && counts[0] == counts[1];
        plain.then_some((archive, Self { count: counts[0], size, start }))
    }
}

/// A file as the directory describes it.
struct Entry<'a> {
    name: &'a str,
    flags: u16,
    method: u16,
    packed_size: u64,
    size: u64,
    start: u64,
}

impl<'a> Entry<'a> {
    /// The next entry of a directory.
    fn read(fields: &mut Fields<'a>) -> Option<Self> {
        fields.expect(DIRECTORY_ENTRY)?;
        let _versions = fields.u32()?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        let (_time, _checksum) = (fields.u32()?, fields.u32()?);
        let (packed_size, size) = (fields.u32()?, fields.u32()?);
        let (name, extra, comment) = (fields.u16()?, fields.u16()?, fields.u16()?);
        let (_disk, _attributes) = (fields.u16()?, (fields.u16()?, fields.u32()?));
        let start = fields.u32()?;
        let name = std::str::from_utf8(fields.take(name.into())?).ok()?;
        let mut wide = wide_sizes(fields.take(extra.into())?)?;
        fields.take(comment.into())?;
        let mut widen = |narrow: u32| match narrow {
            u32::MAX => wide.u64(),
            narrow => Some(narrow.into()),
        };
        let (size, packed_size, start) = (widen(size)?, widen(packed_size)?, widen(start)?);
        Some(Self { name, flags, method, packed_size, size, start })
    }

    /// The content in `archive`, where the next file or the directory starts at `end`.
    fn content(&self, archive: &'a [u8], end: u64) -> Result<&'a [u8], &'static str> {
        if self.flags & ENCRYPTED != 0 {
            return Err("is encrypted");
        }
        if self.method != 0 || self.packed_size != self.size {
            return Err("is compressed, which PyTorch never does; save it again with torch.save");
        }
        let range = usize::try_from(self.start).ok().zip(usize::try_from(end).ok());
        let bytes = range.and_then(|(start, end)| archive.get(start..end));
        let mut fields = Fields(bytes.ok_or("overlaps another or lies outside the file")?);
        self.content_after_header(&mut fields).ok_or("is not as the directory says")
    }

    /// The content behind the file's own header, which must agree with the directory.
    fn content_after_header(&self, fields: &mut Fields<'a>) -> Option<&'a [u8]> {
        fields.expect(MAGIC)?;
        let _version = fields.u16()?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        let (_time, _checksum) = (fields.u32()?, fields.u32()?);
        let sizes = [fields.u32()?, fields.u32()?];
        let (name, extra) = (fields.u16()?, fields.u16()?);
        let name = fields.take(name.into())?;
        fields.take(extra.into())?;
        let sizes_agree = flags & SIZES_FOLLOW != 0
            || sizes.iter().all(|&size| size == u32::MAX || u64::from(size) == self.size);
        if name != self.name.as_bytes()
            || (flags, method) != (self.flags, self.method)
            || !sizes_agree
        {
            return None;
        }
        fields.take(usize::try_from(self.size).ok()?)
    }
}

/// The values of the extra field for wide sizes, if there is one.
fn wide_sizes(extra: &[u8]) -> Option<Fields<'_>> {
    let mut fields = Fields(extra);
    while !fields.0.is_empty() {
        let (kind, length) = (fields.u16()?, fields.u16()?);
        let content = fields.take(length.into())?;
        if kind == WIDE_SIZES {
            return Some(Fields(content));
        }
    }
    Some(fields)
}

/// Reads little-endian numbers one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn expect(&mut self, signature: &[u8]) -> Option<()> {
        (self.take(signature.len())? == signature).then_some(())
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}
