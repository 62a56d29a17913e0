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
        let buffer = self.buffer.get_mut(..bytes as usize).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::media::audio::{AudioReader, Waveform};

    /// The parts of a WAV file; by default stereo, 16-bit, of three frames.
    struct Parts {
        riff: [u8; 4],
        format: Vec<u8>,
        before_data: Vec<u8>,
        stated_bytes: u32,
        data: Vec<u8>,
        after_data: Vec<u8>,
    }

    impl Default for Parts {
        fn default() -> Self {
            Self {
                riff: *b"RIFF",
                format: format_chunk(1, 2, 8000, 16),
                before_data: vec![],
                stated_bytes: 12,
                data: (0..12).collect(),
                after_data: vec![],
            }
        }
    }

    impl Parts {
        fn bytes(&self) -> Vec<u8> {
            let mut bytes = self.riff.to_vec();
            bytes.extend([0xff; 4]);
            bytes.extend(b"WAVEfmt ");
            bytes.extend((self.format.len() as u32).to_le_bytes());
            bytes.extend(&self.format);
            bytes.extend(&self.before_data);
            bytes.extend(b"data");
            bytes.extend(self.stated_bytes.to_le_bytes());
            bytes.extend(&self.data);
            bytes.extend(&self.after_data);
            bytes
        }

        fn read(&self) -> Result<(Waveform, Vec<String>)> {
            read(&self.bytes())
        }
    }

    fn read(bytes: &[u8]) -> Result<(Waveform, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, bytes).unwrap();
        AudioReader::open(&path, &Limits::default())?.into_waveform()
    }

    fn format_chunk(tag: u16, channels: u16, rate_hz: u32, bits: u16) -> Vec<u8> {
        let frame_bytes = channels * bits / 8;
        let mut chunk = tag.to_le_bytes().to_vec();
        chunk.extend(channels.to_le_bytes());
        chunk.extend(rate_hz.to_le_bytes());
        chunk.extend((rate_hz * u32::from(frame_bytes)).to_le_bytes());
        chunk.extend(frame_bytes.to_le_bytes());
        chunk.extend(bits.to_le_bytes());
        chunk
    }

    fn extensible_chunk(tag: u16, channels: u16, bits: u16, valid_bits: u16) -> Vec<u8> {
        let mut chunk = format_chunk(0xfffe, channels, 48_000, bits);
        chunk.extend(22u16.to_le_bytes());
        chunk.extend(valid_bits.to_le_bytes());
        chunk.extend([0x3f, 0, 0, 0]);
        chunk.extend(tag.to_le_bytes());
        chunk.extend([0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
        chunk
    }

    fn expected() -> Vec<f32> {
        (0..6).map(|i| f32::from(i16::from_le_bytes([2 * i, 2 * i + 1])) / 32768.0).collect()
    }

    #[test]
    fn every_encoding_reaches_full_scale_and_zero() {
        let cases: &[(u16, u16, &[u8], &[f32])] = &[
            (1, 8, &[0, 128, 192, 255], &[-1.0, 0.0, 0.5, 127.0 / 128.0]),
            (1, 16, &[0, 0x80, 0, 0, 0, 0x40], &[-1.0, 0.0, 0.5]),
            (1, 24, &[0, 0, 0x80, 0, 0, 0, 1, 0, 0x40], &[-1.0, 0.0, 0.5 + 1.0 / 8_388_608.0]),
            (1, 32, &[0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x40], &[-1.0, 0.0, 0.5]),
            (3, 32, &[0, 0, 0x80, 0xbf, 0, 0, 0, 0, 0, 0, 0x20, 0x40], &[-1.0, 0.0, 2.5]),
            (3, 64, &[0, 0, 0, 0, 0, 0, 0xf0, 0xbf, 0, 0, 0, 0, 0, 0, 0, 0], &[-1.0, 0.0]),
            // ITU-T G.711, tables 1 and 2: the extreme and the smallest values of both signs.
            (6, 8, &[0xaa, 0x2a, 0xd5, 0x55], &[4032.0, -4032.0, 1.0, -1.0].map(|x| x / 4096.0)),
            (7, 8, &[0x80, 0x00, 0xff, 0x7f], &[8031.0, -8031.0, 0.0, 0.0].map(|x| x / 8192.0)),
        ];
        for &(tag, bits, data, expected) in cases {
            for format in [format_chunk(tag, 1, 48_000, bits), extensible_chunk(tag, 1, bits, bits)]
            {
                let stated_bytes = data.len() as u32;
                let parts = Parts { format, data: data.to_vec(), stated_bytes, ..Parts::default() };
                let (waveform, notes) = parts.read().unwrap();
                assert_eq!(waveform.samples, expected, "format {tag}, {bits} bits");
                assert_eq!((waveform.rate_hz, waveform.channels), (48_000, 1));
                assert!(notes.is_empty(), "{notes:?}");
            }
        }
    }

    #[test]
    fn fewer_valid_bits_are_in_the_upper_part() {
        let format = extensible_chunk(1, 2, 32, 24);
        let data = [0, 0, 0, 0x40, 0, 0, 0, 0xc0].to_vec();
        let parts = Parts { format, data, stated_bytes: 8, ..Parts::default() };
        assert_eq!(parts.read().unwrap().0.samples, [0.5, -0.5]);
    }

    #[test]
    fn other_chunks_are_skipped() {
        let parts = Parts {
            before_data: b"LIST\x05\0\0\0INFOx\0junk\0\0\0\0".to_vec(),
            after_data: b"LIST\x04\0\0\0INFO".to_vec(),
            ..Parts::default()
        };
        let (waveform, notes) = parts.read().unwrap();
        assert_eq!(waveform.samples, expected());
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn wrong_lengths_give_what_is_there_and_a_note() {
        for stated_bytes in [0, u32::MAX, 0x7fff_f000, 13] {
            let (waveform, notes) = Parts { stated_bytes, ..Parts::default() }.read().unwrap();
            assert_eq!(waveform.samples, expected(), "{stated_bytes}");
            assert!(notes[0].contains("length; the 12 bytes after it were read"), "{notes:?}");
        }
    }

    #[test]
    fn a_cut_off_frame_is_dropped() {
        let parts = Parts { data: (0..11).collect(), ..Parts::default() };
        let (waveform, notes) = parts.read().unwrap();
        assert_eq!(waveform.samples, &expected()[..4]);
        assert!(notes[1].contains("its 3 bytes were dropped"), "{notes:?}");
    }

    #[test]
    fn no_samples_are_no_error() {
        for after_data in [&b""[..], b"LIST\x04\0\0\0INFO"] {
            let after_data = after_data.to_vec();
            let parts = Parts { data: vec![], stated_bytes: 0, after_data, ..Parts::default() };
            let (waveform, notes) = parts.read().unwrap();
            assert_eq!((waveform.frames(), waveform.channels, notes.len()), (0, 2, 0));
        }
    }

    #[test]
    fn long_forms_take_the_length_from_their_own_chunk() {
        for riff in [*b"RF64", *b"BW64"] {
            let mut before_data = b"ds64\x1c\0\0\0".to_vec();
            before_data.extend(100u64.to_le_bytes());
            before_data.extend(8u64.to_le_bytes());
            before_data.extend(2u64.to_le_bytes());
            before_data.extend([0; 4]);
            let stated_bytes = u32::MAX;
            let after_data = b"LIST\x04\0\0\0INFO".to_vec();
            let data = (0..8).collect();
            let parts =
                Parts { riff, before_data, stated_bytes, data, after_data, ..Parts::default() };
            let (waveform, notes) = parts.read().unwrap();
            assert_eq!(waveform.samples, &expected()[..4]);
            assert!(notes.is_empty(), "{notes:?}");
        }
    }

    #[test]
    fn a_tag_before_the_file_is_skipped() {
        let mut bytes = b"ID3\x04\0\0\0\0\x01\x03".to_vec();
        bytes.extend([7; 131]);
        bytes.extend(Parts::default().bytes());
        assert_eq!(read(&bytes).unwrap().0.samples, expected());
    }

    #[test]
    fn malformed_headers_are_errors() {
        let with_format = |format| Parts { format, ..Parts::default() };
        let cases = [
            ("no channels", with_format(format_chunk(1, 0, 8000, 16)).bytes()),
            ("rate of 0", with_format(format_chunk(1, 1, 0, 16)).bytes()),
            ("without a valid format chunk", with_format(vec![1, 0, 1, 0]).bytes()),
            ("without a data chunk", Parts::default().bytes()[..36].to_vec()),
            ("without a data chunk", Parts::default().bytes()[..12].to_vec()),
            ("too many chunks", {
                let before_data = b"junk\0\0\0\0".repeat(MOST_CHUNKS);
                Parts { before_data, ..Parts::default() }.bytes()
            }),
        ];
        for (expected, bytes) in cases {
            let error = read(&bytes).unwrap_err();
            assert!(matches!(error, Error::Media { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}, expected: {expected}");
        }
    }
}
