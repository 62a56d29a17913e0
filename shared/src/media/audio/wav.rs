//! WAV files with plain samples: RIFF, RF64 and BW64, also as programs write them that cannot know
//! or cannot store the length.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::media::audio::reader::{AudioInfo, Decoder};
use crate::{Error, Result};

/// Bytes of samples read at a time.
const BLOCK_BYTES: usize = 1 << 16;
/// Chunks that are looked at before a file is given up.
const MOST_CHUNKS: usize = 4096;
/// The length that stands for "unknown" (a stream) or "see the ds64 chunk" (RF64).
const UNKNOWN_LENGTH: u32 = u32::MAX;

/// The data type of stored samples, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Unsigned8,
    Signed16,
    Signed24,
    Signed32,
    Float32,
    Float64,
    ALaw,
    MuLaw,
}

impl Encoding {
    /// The encoding for a format tag and the bytes a sample takes; `None` if it is not plain
    /// samples.
    fn new(format_tag: u16, sample_bytes: usize) -> Option<Self> {
        match (format_tag, sample_bytes) {
            (1, 1) => Some(Self::Unsigned8),
            (1, 2) => Some(Self::Signed16),
            (1, 3) => Some(Self::Signed24),
            (1, 4) => Some(Self::Signed32),
            (3, 4) => Some(Self::Float32),
            (3, 8) => Some(Self::Float64),
            (6, 1) => Some(Self::ALaw),
            (7, 1) => Some(Self::MuLaw),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Unsigned8 | Self::ALaw | Self::MuLaw => 1,
            Self::Signed16 => 2,
            Self::Signed24 => 3,
            Self::Signed32 | Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unsigned8 => "8-bit",
            Self::Signed16 => "16-bit",
            Self::Signed24 => "24-bit",
            Self::Signed32 => "32-bit",
            Self::Float32 => "32-bit float",
            Self::Float64 => "64-bit float",
            Self::ALaw => "A-law",
            Self::MuLaw => "mu-law",
        }
    }

    /// Appends the samples that `bytes` hold.
    fn decode(self, bytes: &[u8], samples: &mut Vec<f32>) {
        match self {
            Self::Unsigned8 => {
                samples.extend(bytes.iter().map(|&byte| (f32::from(byte) - 128.0) / 128.0));
            }
            Self::Signed16 => {
                extend(samples, bytes, |b| f32::from(i16::from_le_bytes(b)) / 32768.0)
            }
            Self::Signed24 => extend(samples, bytes, |[low, middle, high]| {
                i32::from_le_bytes([0, low, middle, high]) as f32 / 2_147_483_648.0
            }),
            Self::Signed32 => {
                extend(samples, bytes, |b| i32::from_le_bytes(b) as f32 / 2_147_483_648.0);
            }
            Self::Float32 => extend(samples, bytes, f32::from_le_bytes),
            Self::Float64 => extend(samples, bytes, |b| f64::from_le_bytes(b) as f32),
            Self::ALaw => samples.extend(bytes.iter().map(|&byte| a_law(byte))),
            Self::MuLaw => samples.extend(bytes.iter().map(|&byte| mu_law(byte))),
        }
    }
}

fn extend<const N: usize>(samples: &mut Vec<f32>, bytes: &[u8], convert: impl Fn([u8; N]) -> f32) {
    samples.extend(bytes.as_chunks::<N>().0.iter().map(|&chunk| convert(chunk)));
}

/// A sample of ITU-T G.711 A-law: sign, 3 bits of exponent, 4 bits of mantissa, even bits flipped.
fn a_law(byte: u8) -> f32 {
    let code = byte ^ 0x55;
    let (exponent, mantissa) = ((code >> 4) & 7, i32::from(code & 15));
    let magnitude = match exponent {
        0 => 2 * mantissa + 1,
        _ => (2 * mantissa + 33) << (exponent - 1),
    };
    let signed = if code & 0x80 == 0 { -magnitude } else { magnitude };
    signed as f32 / 4096.0
}

/// A sample of ITU-T G.711 mu-law: sign, 3 bits of exponent, 4 bits of mantissa, all bits flipped.
fn mu_law(byte: u8) -> f32 {
    let code = !byte;
    let (exponent, mantissa) = ((code >> 4) & 7, i32::from(code & 15));
    let magnitude = ((2 * mantissa + 33) << exponent) - 33;
    let signed = if code & 0x80 == 0 { magnitude } else { -magnitude };
    signed as f32 / 8192.0
}

/// The chunks of a WAV file that matter here.
#[derive(Debug)]
struct Layout {
    encoding: Encoding,
    rate_hz: u32,
    channels: usize,
    data_start: u64,
    data_bytes: u64,
    notes: Vec<String>,
}

/// Whether `head`, the first bytes of a file, is that of a WAV file.
pub(super) fn is_wav(head: &[u8]) -> bool {
    matches!(head.get(..4), Some(b"RIFF" | b"RF64" | b"BW64"))
        && head.get(8..12) == Some(b"WAVE".as_slice())
}

/// A decoder of plain samples.
pub(super) struct WavDecoder {
    path: PathBuf,
    reader: BufReader<File>,
    info: AudioInfo,
    encoding: Encoding,
    bytes_left: u64,
    buffer: Vec<u8>,
    notes: Vec<String>,
}

impl WavDecoder {
    /// A decoder for the WAV file that starts at `start` in `file`; `None` if it holds other than
    /// plain samples.
    pub(super) fn open(path: &Path, file: &File, start: u64) -> Result<Option<Self>> {
        let file = file.try_clone().map_err(Error::io(path))?;
        let file_bytes = file.metadata().map_err(Error::io(path))?.len();
        let mut reader = BufReader::with_capacity(BLOCK_BYTES, file);
        let Some(layout) = Layout::read(path, &mut reader, start, file_bytes)? else {
            return Ok(None);
        };
        reader.seek(SeekFrom::Start(layout.data_start)).map_err(Error::io(path))?;
        let frame_bytes = layout.channels * layout.encoding.bytes();
        Ok(Some(Self {
            path: path.to_path_buf(),
            reader,
            info: AudioInfo {
                rate_hz: layout.rate_hz,
                channels: layout.channels,
                frames: Some(layout.data_bytes / frame_bytes as u64),
                format: format!("WAV, {}", layout.encoding.name()),
            },
            encoding: layout.encoding,
            bytes_left: layout.data_bytes - layout.data_bytes % frame_bytes as u64,
            buffer: vec![0; BLOCK_BYTES.div_ceil(frame_bytes) * frame_bytes],
            notes: layout.notes,
        }))
    }
}

impl Decoder for WavDecoder {
    fn info(&self) -> &AudioInfo {
        &self.info
    }

    fn next_block(&mut self, block: &mut Vec<f32>) -> Result<bool> {
        let bytes = self.bytes_left.min(self.buffer.len() as u64);
        let buffer = &mut self.buffer[..bytes as usize];
        self.reader.read_exact(buffer).map_err(Error::io(&self.path))?;
        self.bytes_left -= bytes;
        self.encoding.decode(buffer, block);
        Ok(bytes > 0)
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

/// Sample format, rate and channels.
struct Format {
    tag: u16,
    channels: u16,
    rate_hz: u32,
    sample_bytes: usize,
}

impl Format {
    fn parse(chunk: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_le_bytes(chunk.get(at..at + 2)?.try_into().ok()?));
        let mut tag = word(0)?;
        let channels = word(2)?;
        let rate_hz = u32::from_le_bytes(chunk.get(4..8)?.try_into().ok()?);
        let bits = word(14)?;
        const EXTENSIBLE: u16 = 0xfffe;
        // The rest of the identifiers whose first bytes are a classic format tag.
        const TAG_IDENTIFIER: [u8; 14] =
            [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];
        if tag == EXTENSIBLE && chunk.get(26..40) == Some(&TAG_IDENTIFIER) {
            tag = word(24)?;
        }
        // A sample of fewer bits than its bytes hold is stored in their upper part.
        Some(Self { tag, channels, rate_hz, sample_bytes: bits.div_ceil(8).into() })
    }
}

impl Layout {
    fn read(
        path: &Path,
        reader: &mut BufReader<File>,
        start: u64,
        file_bytes: u64,
    ) -> Result<Option<Self>> {
        let malformed = |reason: &str| Err(Error::media(path, format!("WAV file {reason}")));
        let mut format = None;
        let mut long_data_bytes = None;
        let mut position = start + 12;
        for _ in 0..MOST_CHUNKS {
            let Some((id, length)) = chunk_header(reader, position).map_err(Error::io(path))?
            else {
                return malformed("without a data chunk: it is cut off or empty");
            };
            let body = position + 8;
            let wanted = match &id {
                b"fmt " => 40,
                b"ds64" => 16,
                _ => 0,
            };
            let mut chunk = vec![];
            reader
                .take(wanted.min(length.into()))
                .read_to_end(&mut chunk)
                .map_err(Error::io(path))?;
            match &id {
                b"fmt " => format = Format::parse(&chunk),
                b"ds64" => {
                    long_data_bytes =
                        chunk.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
                }
                b"data" => {
                    let Some(format) = format else {
                        return malformed("without a valid format chunk before its data");
                    };
                    if format.channels == 0 || format.rate_hz == 0 {
                        return malformed("with no channels or a sampling rate of 0");
                    }
                    let Some(encoding) = Encoding::new(format.tag, format.sample_bytes) else {
                        return Ok(None);
                    };
                    let stated = match long_data_bytes {
                        Some(long) if length == UNKNOWN_LENGTH => Some(long),
                        _ => Some(u64::from(length)).filter(|_| length != UNKNOWN_LENGTH),
                    };
                    let mut layout = Self {
                        encoding,
                        rate_hz: format.rate_hz,
                        channels: format.channels.into(),
                        data_start: body,
                        data_bytes: 0,
                        notes: vec![],
                    };
                    layout.find_data_end(reader, stated, file_bytes).map_err(Error::io(path))?;
                    return Ok(Some(layout));
                }
                _ => {}
            }
            position = body + u64::from(length) + u64::from(length % 2);
        }
        malformed("with too many chunks before its data")
    }

    /// Sets the length of the data from what the header states and what is there.
    fn find_data_end(
        &mut self,
        reader: &mut BufReader<File>,
        stated: Option<u64>,
        file_bytes: u64,
    ) -> io::Result<()> {
        let there = file_bytes.saturating_sub(self.data_start);
        self.data_bytes = match stated {
            // Streams state the greatest length there is, or 0; files of 4 GiB and more state what
            // is left of their length in 32 bits. The last two can also be right, and chunks follow.
            Some(stated)
                if stated <= there
                    && ((stated > 0 && there <= UNKNOWN_LENGTH.into())
                        || chunks_follow(
                            reader,
                            self.data_start + stated + stated % 2,
                            file_bytes,
                        )?) =>
            {
                stated
            }
            stated => {
                let stated = stated.map_or("no".into(), |bytes| format!("another ({bytes} bytes)"));
                self.notes.push(format!(
                    "the header states {stated} length; the {there} bytes after it were read"
                ));
                there
            }
        };
        let frame_bytes = (self.channels * self.encoding.bytes()) as u64;
        let excess = self.data_bytes % frame_bytes;
        if excess > 0 {
            self.notes.push(format!("the last frame is cut off; its {excess} bytes were dropped"));
        }
        Ok(())
    }
}

/// Whether from `position` on there are chunks that end where the file does.
fn chunks_follow(
    reader: &mut BufReader<File>,
    mut position: u64,
    file_bytes: u64,
) -> io::Result<bool> {
    for _ in 0..MOST_CHUNKS {
        if position >= file_bytes {
            break;
        }
        match chunk_header(reader, position)? {
            Some((id, length)) if id.iter().all(|byte| matches!(byte, b' '..=b'~')) => {
                position += 8 + u64::from(length) + u64::from(length % 2);
            }
            _ => return Ok(false),
        }
    }
    // The last chunk may lack the byte that fills it up to an even length.
    Ok(position == file_bytes || position == file_bytes + 1)
}

/// The name and length of the chunk at `position`; `None` at the end of the file.
fn chunk_header(reader: &mut BufReader<File>, position: u64) -> io::Result<Option<([u8; 4], u32)>> {
    // Unlike `seek`, this keeps what is buffered.
    let offset = position as i64 - reader.stream_position()? as i64;
    reader.seek_relative(offset)?;
    let mut header = [0; 8];
    match reader.read_exact(&mut header) {
        Ok(()) => {
            let [a, b, c, d, length @ ..] = header;
            Ok(Some(([a, b, c, d], u32::from_le_bytes(length))))
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}
