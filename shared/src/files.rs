//! Opening input files safely and writing output files whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::Limits;
use crate::{Error, Result};

/// Opens a regular file for reading; returns it with its length in bytes.
///
/// # Errors
/// [`Error::Io`] when it is missing, unreadable, a folder, or a pipe or device, whose reading
/// could block for ever.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let refuse = |kind, reason| Error::io(path)(io::Error::new(kind, reason));
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if metadata.is_dir() {
        return Err(refuse(io::ErrorKind::IsADirectory, "is a folder, not a file"));
    }
    if !metadata.is_file() {
        return Err(refuse(
            io::ErrorKind::InvalidInput,
            "is a pipe or device; give a regular file",
        ));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    Ok((file, length))
}

/// The text of a regular file of at most [`Limits::text_bytes`].
///
/// # Errors
/// [`Error::Io`], also for text that is not UTF-8; [`Error::Limit`].
pub fn read_text(path: &Path, limits: &Limits) -> Result<String> {
    let (mut file, actual) = open_regular(path)?;
    if actual > limits.text_bytes {
        let (path, limit) = (path.to_path_buf(), limits.text_bytes);
        return Err(Error::Limit { path, quantity: "size in bytes", actual, limit });
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(Error::io(path))?;
    Ok(text)
}

/// Writes the file `path` whole or not at all: `write` fills a temporary file in the same folder,
/// which is synced to disk and then renamed. After an error nothing is left of it.
///
/// See [`OutputFile`] for what happens to existing files and devices, and for writers whose errors
/// are not those of the operating system.
///
/// # Errors
/// [`Error::Exists`] when the file is already there and `force` is not given, [`Error::Io`]
/// otherwise.
pub fn write_atomic(
    path: &Path,
    force: bool,
    write: impl FnOnce(&mut OutputFile) -> io::Result<()>,
) -> Result<()> {
    let mut file = OutputFile::create(path, force)?;
    write(&mut file).map_err(Error::io(path))?;
    file.finish()
}

/// A file being written that appears under its name only when [`OutputFile::finish`] succeeds;
/// dropped before, it leaves nothing behind.
///
/// Devices and pipes (`/dev/stdout`, `/dev/full`, a FIFO) have no name to appear under: they are
/// written directly and need no `force`. A symbolic link is followed, so that its target is
/// replaced and not the link.
#[derive(Debug)]
pub struct OutputFile {
    /// The path as the user gave it, for messages.
    path: PathBuf,
    writer: BufWriter<File>,
    /// `None` when writing directly to a device or pipe.
    pending: Option<Pending>,
}

/// A temporary file and the name that it is to get; removed when dropped.
#[derive(Debug)]
struct Pending {
    temporary: PathBuf,
    target: PathBuf,
    force: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        // After a rename there is nothing to remove, and no one to tell if removing fails.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl OutputFile {
    /// Starts writing the file `path`; without `force` an existing file is refused.
    ///
    /// # Errors
    /// [`Error::Exists`] or [`Error::Io`].
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        check_output(path, force)?;
        if is_written_directly(path) {
            let file = OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
            return Ok(Self {
                path: path.to_path_buf(),
                writer: BufWriter::new(file),
                pending: None,
            });
        }
        let existing = fs::metadata(path).ok();
        let target = match existing {
            Some(_) => fs::canonicalize(path).map_err(Error::io(path))?,
            None => path.to_path_buf(),
        };
        let (temporary, file) = create_beside(&target).map_err(Error::io(path))?;
        let pending = Pending { temporary, target, force };
        if let Some(found) = existing {
            file.set_permissions(found.permissions()).map_err(Error::io(path))?;
        }
        Ok(Self { path: path.to_path_buf(), writer: BufWriter::new(file), pending: Some(pending) })
    }

    /// Syncs what was written to disk and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Exists`] when another process made the file meanwhile and `force` was not given,
    /// [`Error::Io`] when the disk is full or fails.
    pub fn finish(mut self) -> Result<()> {
        self.writer.flush().map_err(Error::io(&self.path))?;
        let Some(pending) = self.pending.take() else { return Ok(()) };
        self.writer.get_ref().sync_all().map_err(Error::io(&self.path))?;
        if pending.force {
            fs::rename(&pending.temporary, &pending.target).map_err(Error::io(&self.path))?;
        } else {
            place_new(&pending).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Error::Exists { path: self.path.clone() },
                _ => Error::io(&self.path)(error),
            })?;
        }
        sync_folder(folder_of(&pending.target)).map_err(Error::io(&self.path))
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for OutputFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.writer.seek(position)
    }
}

/// Whether `path` is a device or a pipe, see [`OutputFile`]. Nothing can be put beside it.
pub fn is_written_directly(path: &Path) -> bool {
    let is_special = |found: fs::Metadata| !found.is_file() && !found.is_dir();
    is_standard_stream(path) || fs::metadata(path).is_ok_and(is_special)
}

/// Fails where [`OutputFile::create`] would because of what is or is not at `path`: for asking
/// before a long job.
///
/// # Errors
/// [`Error::Exists`] for a file when `force` is not given; [`Error::Io`] for a folder, or where
/// there is no folder to put the file in.
pub fn check_output(path: &Path, force: bool) -> Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let reason = "is a folder; give the name of a file";
            Err(Error::io(path)(io::Error::new(io::ErrorKind::IsADirectory, reason)))
        }
        Ok(_) if !force && !is_written_directly(path) => {
            Err(Error::Exists { path: path.to_path_buf() })
        }
        Ok(_) => Ok(()),
        Err(_) => fs::metadata(folder_of(path)).map(drop).map_err(Error::io(path)),
    }
}

/// Keeps other callers, also in other processes, waiting until what is returned is dropped, if they
/// ask for the same folder. For changing a file that others may be changing. `None` where the
/// system cannot lock a folder.
pub fn lock_folder(path: &Path) -> Option<File> {
    let folder = File::open(folder_of(path)).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

/// Whether `path` names a stream that the process already has open. Redirected to a file, such a
/// name looks like that file, which must not be replaced under the shell's feet.
fn is_standard_stream(path: &Path) -> bool {
    ["/dev/stdout", "/dev/stderr"].iter().any(|name| path == Path::new(name))
        || ["/dev/fd", "/proc/self/fd"].iter().any(|folder| path.starts_with(folder))
}

/// Creates a file with an unused name in the folder of `target`.
fn create_beside(target: &Path) -> io::Result<(PathBuf, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = target
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "is not the name of a file"))?;
    loop {
        let mut temporary_name = OsString::from(".");
        temporary_name.push(name);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        temporary_name.push(format!(".{}-{count}.tmp", std::process::id()));
        let temporary = folder_of(target).join(temporary_name);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            // Left by a killed process that had our number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Gives the temporary file its name unless that is taken. A hard link decides this in one step,
/// so that of two processes with the same output one fails; file systems without links fall back
/// to looking first.
fn place_new(pending: &Pending) -> io::Result<()> {
    match fs::hard_link(&pending.temporary, &pending.target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(&pending.target).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(&pending.temporary, &pending.target)
        }
        linked => linked,
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes a rename in `folder` survive a crash, where the system can.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Not every file system can sync a folder, and not every folder may be read.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput
                    | io::ErrorKind::Unsupported
                    | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn the_file_appears_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        write_atomic(&path, false, |file| {
            assert!(!path.exists());
            file.write_all(b"hallo")?;
            file.seek(SeekFrom::Start(1))?;
            file.write_all(b"e")
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(names_in(folder.path()), ["out"]);
    }

    #[test]
    fn an_existing_file_needs_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "old").unwrap();
        let refused = write_atomic(&path, false, |file| file.write_all(b"new")).unwrap_err();
        assert!(matches!(refused, Error::Exists { .. }), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write_atomic(&path, true, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names_in(folder.path()), ["out"]);
    }

    #[test]
    fn of_two_writers_without_force_the_second_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut first = OutputFile::create(&path, false).unwrap();
        let mut second = OutputFile::create(&path, false).unwrap();
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        first.finish().unwrap();
        assert!(matches!(second.finish(), Err(Error::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names_in(folder.path()), ["out"]);
    }

    #[test]
    fn a_failed_write_leaves_nothing_and_keeps_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let fail = |file: &mut OutputFile| {
            file.write_all(b"half")?;
            Err(io::Error::other("the encoder failed"))
        };
        let error = write_atomic(&path, false, fail).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: the encoder failed", path.display()));
        assert!(names_in(folder.path()).is_empty());
        fs::write(&path, "old").unwrap();
        write_atomic(&path, true, fail).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names_in(folder.path()), ["out"]);
    }

    #[test]
    fn folders_and_missing_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_path_buf(), folder.path().join("missing/out"), "".into()] {
            let error = write_atomic(&path, true, |_| Ok(())).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
        assert!(names_in(folder.path()).is_empty());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in");
        fs::write(&path, "12345").unwrap();
        assert_eq!(open_regular(&path).unwrap().1, 5);
        for (bad, kind) in [
            (folder.path().to_path_buf(), io::ErrorKind::IsADirectory),
            (folder.path().join("missing"), io::ErrorKind::NotFound),
        ] {
            match open_regular(&bad) {
                Err(Error::Io { source, .. }) => assert_eq!(source.kind(), kind),
                other => panic!("{other:?}"),
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_directly() {
        let null = Path::new("/dev/null");
        write_atomic(null, false, |file| file.write_all(b"x")).unwrap();
        assert!(!null.metadata().unwrap().is_file());
        assert!(matches!(open_regular(null), Err(Error::Io { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error() {
        let full = Path::new("/dev/full");
        let error = write_atomic(full, false, |file| file.write_all(b"x")).unwrap_err();
        match error {
            Error::Io { source, .. } => assert_eq!(source.kind(), io::ErrorKind::StorageFull),
            other => panic!("{other}"),
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_permissions_kept() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "old").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&target, &link).unwrap();
        write_atomic(&link, true, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
