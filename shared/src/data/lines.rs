//! Text files line by line, with errors that name the line.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::limits::Limits;
use crate::{Error, Result, files};

/// First bytes of a gzip file.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Reader of the lines of a UTF-8 text file, gzip-compressed or not. Line ends may be LF or CRLF, a
/// byte order mark at the start is passed over, and so are blank lines.
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    bytes_left: u64,
    bytes_limit: u64,
    number: usize,
    buffer: Vec<u8>,
}

/// A line of a text file.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    path: &'a Path,
    /// Line number, from 1.
    pub number: usize,
    /// The text without surrounding white space, except that leading and trailing tabs stay:
    /// they delimit empty fields.
    pub text: &'a str,
}

impl Lines {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let (file, _) = files::open_regular(path)?;
        Self::of_reader(BufReader::new(file), path, limits)
    }

    /// The lines of a file's content; `name` is for messages.
    ///
    /// # Errors
    /// As [`Lines::open`].
    pub fn of_bytes(bytes: &'static [u8], name: &Path, limits: &Limits) -> Result<Self> {
        Self::of_reader(bytes, name, limits)
    }

    fn of_reader(mut reader: impl BufRead + 'static, path: &Path, limits: &Limits) -> Result<Self> {
        let compressed = reader.fill_buf().map_err(Error::io(path))?.starts_with(GZIP_MAGIC);
        if compressed {
            Ok(Self::new(BufReader::new(MultiGzDecoder::new(reader)), path, limits))
        } else {
            Ok(Self::new(reader, path, limits))
        }
    }

    /// Reads lines from `reader`; `path` is for messages.
    pub fn new(reader: impl BufRead + 'static, path: &Path, limits: &Limits) -> Self {
        Self {
            path: path.to_path_buf(),
            reader: Box::new(reader),
            bytes_left: limits.text_bytes,
            bytes_limit: limits.text_bytes,
            number: 0,
            buffer: Vec::new(),
        }
    }

    /// The next line that is not blank; `None` at the end of the file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Limit`]; [`Error::Parse`] for a line that is not UTF-8.
    // Not an iterator: the line is lent until the next one is read.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Line<'_>>> {
        loop {
            self.buffer.clear();
            // One byte more than allowed tells a file at the limit from one above.
            let read = (&mut self.reader)
                .take(self.bytes_left.saturating_add(1))
                .read_until(b'\n', &mut self.buffer)
                .map_err(Error::io(&self.path))? as u64;
            if read == 0 {
                return Ok(None);
            }
            self.bytes_left = self.bytes_left.checked_sub(read).ok_or_else(|| Error::Limit {
                path: self.path.clone(),
                quantity: "text in bytes",
                actual: self.bytes_limit.saturating_add(1),
                limit: self.bytes_limit,
            })?;
            self.number += 1;
            if self.number == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
                self.buffer.drain(..BYTE_ORDER_MARK.len());
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        let (path, number) = (self.path.as_path(), self.number);
        let text = std::str::from_utf8(&self.buffer).map_err(|error| {
            Line { path, number, text: "" }.error(format!("is not UTF-8: {error}"))
        })?;
        let text = text.trim_matches([' ', '\r', '\n']);
        Ok(Some(Line { path, number, text }))
    }

    /// An [`Error::Parse`] about the file as a whole.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::Parse { path: self.path.clone(), line: self.number.max(1), reason: reason.into() }
    }
}

impl<'a> Line<'a> {
    /// An [`Error::Parse`] about this line.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::Parse { path: self.path.to_path_buf(), line: self.number, reason: reason.into() }
    }

    /// The fields: between tabs where the line has any, else between runs of white space.
    pub fn fields(&self) -> Vec<&'a str> {
        if self.text.contains('\t') {
            self.text.split('\t').map(str::trim).collect()
        } else {
            self.text.split_whitespace().collect()
        }
    }

    /// The first word and the rest of the line, which may be empty.
    pub fn key_and_rest(&self) -> (&'a str, &'a str) {
        let text = self.text.trim();
        text.split_once(char::is_whitespace).map_or((text, ""), |(key, rest)| (key, rest.trim()))
    }

    /// `field` as a number of seconds: finite and not negative.
    ///
    /// # Errors
    /// [`Error::Parse`] with `what`.
    pub fn seconds(&self, field: &str, what: impl Display) -> Result<f64> {
        let value: f64 = field.parse().unwrap_or(f64::NAN);
        if value.is_finite() && value >= 0.0 {
            Ok(value)
        } else {
            Err(self.error(format!("{what} `{field}`: expected a number of seconds from 0 up")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8], limits: &Limits) -> Result<Vec<(usize, String)>> {
        let mut lines = Lines::new(Cursor::new(bytes.to_vec()), Path::new("list"), limits);
        let mut found = Vec::new();
        while let Some(line) = lines.next()? {
            found.push((line.number, line.text.to_owned()));
        }
        Ok(found)
    }

    #[test]
    fn line_ends_marks_and_blank_lines() {
        type Case<'a> = (&'a [u8], &'a [(usize, &'a str)]);
        let cases: [Case<'_>; 6] = [
            (b"", &[]),
            (b"a\nb", &[(1, "a"), (2, "b")]),
            (b"a \r\n\r\n  \t\n b\r\n", &[(1, "a"), (4, "b")]),
            (b"\xef\xbb\xbfa\n", &[(1, "a")]),
            (b"\xef\xbb\xbf\na\n", &[(2, "a")]),
            (b"a\t\t\r\n\tb\n", &[(1, "a\t\t"), (2, "\tb")]),
        ];
        for (bytes, want) in cases {
            let want: Vec<_> = want.iter().map(|&(n, text)| (n, text.to_owned())).collect();
            assert_eq!(read(bytes, &Limits::default()).unwrap(), want);
        }
    }

    #[test]
    fn errors_name_the_line() {
        let error = read(b"a\n\xff\n", &Limits::default()).unwrap_err();
        assert!(matches!(error, Error::Parse { line: 2, .. }), "{error}");
        let limits = Limits { text_bytes: 4, ..Limits::default() };
        assert_eq!(read(b"a\nb\n", &limits).unwrap().len(), 2);
        assert!(matches!(read(b"a\nb\nc", &limits), Err(Error::Limit { limit: 4, .. })));
    }

    #[test]
    fn gzip_is_recognised_by_content_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        let file = std::fs::File::create(&path).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
        encoder.write_all(&vec![b'x'; 1 << 20]).unwrap();
        encoder.finish().unwrap();
        let mut lines = Lines::open(&path, &Limits::default()).unwrap();
        assert_eq!(lines.next().unwrap().unwrap().text.len(), 1 << 20);
        let limits = Limits { text_bytes: 1000, ..Limits::default() };
        assert!(matches!(
            Lines::open(&path, &limits).unwrap().next().err(),
            Some(Error::Limit { .. })
        ));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let mut lines = Lines::open(&path, &Limits::default()).unwrap();
        assert!(matches!(lines.next().err(), Some(Error::Io { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(lines) = read(&bytes, &Limits::default()) {
                prop_assert!(lines.iter().all(|(_, text)| !text.trim().is_empty()));
            }
        }
    }
}
