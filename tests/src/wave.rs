//! WAV files as all kinds of programs write them, right and wrong.

/// How samples are stored.
#[derive(Clone, Copy, Debug)]
pub enum Stored {
    /// Integers of 1 byte, with 128 for zero.
    U8,
    /// Integers of 2 bytes.
    S16,
    /// Integers of 3 bytes.
    S24,
    /// Integers of 4 bytes.
    S32,
    /// Floating-point numbers of 4 bytes.
    F32,
    /// Floating-point numbers of 8 bytes.
    F64,
}

/// Which header a file has.
#[derive(Clone, Copy, Debug)]
pub enum Header {
    /// The classic one.
    Plain,
    /// WAVE_FORMAT_EXTENSIBLE.
    Extensible,
    /// RF64 (EBU Tech 3306): the lengths are in a chunk of their own.
    Rf64,
}

impl Stored {
    fn bytes(self, sample: f32) -> Vec<u8> {
        let scaled = |full: f64| (f64::from(sample) * full).round().clamp(-full, full - 1.0) as i64;
        let lowest = |value: i64, count: usize| value.to_le_bytes()[..count].to_vec();
        match self {
            Self::U8 => lowest(scaled(128.0) + 128, 1),
            Self::S16 => lowest(scaled(32_768.0), 2),
            Self::S24 => lowest(scaled(8_388_608.0), 3),
            Self::S32 => lowest(scaled(2_147_483_648.0), 4),
            Self::F32 => sample.to_le_bytes().to_vec(),
            Self::F64 => f64::from(sample).to_le_bytes().to_vec(),
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

/// A WAV file of one channel, whose header states `stated_bytes` of samples where that is given,
/// and else their length.
pub fn wave(
    samples: &[f32],
    rate_hz: u32,
    stored: Stored,
    header: Header,
    stated_bytes: Option<u32>,
) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| stored.bytes(*sample)).collect();
    let sample_bytes = stored.bytes(0.0).len() as u16;
    let tag: u16 = if stored.is_float() { 3 } else { 1 };
    let mut format = match header {
        Header::Extensible => 0xfffe,
        _ => tag,
    }
    .to_le_bytes()
    .to_vec();
    format.extend(1u16.to_le_bytes());
    format.extend(rate_hz.to_le_bytes());
    format.extend((rate_hz * u32::from(sample_bytes)).to_le_bytes());
    format.extend(sample_bytes.to_le_bytes());
    format.extend((8 * sample_bytes).to_le_bytes());
    if let Header::Extensible = header {
        format.extend(22u16.to_le_bytes());
        format.extend((8 * sample_bytes).to_le_bytes());
        format.extend(4u32.to_le_bytes());
        format.extend(tag.to_le_bytes());
        format.extend([0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
    }
    let mut body = b"WAVE".to_vec();
    let length = data.len() as u32;
    if let Header::Rf64 = header {
        let format_chunk = 8 + format.len() as u64;
        let riff_bytes = 4 + (8 + 28) + format_chunk + 8 + data.len() as u64;
        body.extend(b"ds64\x1c\0\0\0");
        body.extend(riff_bytes.to_le_bytes());
        body.extend((data.len() as u64).to_le_bytes());
        body.extend((samples.len() as u64).to_le_bytes());
        body.extend(0u32.to_le_bytes());
    }
    body.extend(b"fmt ");
    body.extend((format.len() as u32).to_le_bytes());
    body.extend(format);
    body.extend(b"data");
    let (mark, length) = match header {
        Header::Rf64 => (b"RF64", u32::MAX),
        _ => (b"RIFF", length),
    };
    body.extend(stated_bytes.unwrap_or(length).to_le_bytes());
    body.extend(data);
    let riff_bytes = match header {
        Header::Rf64 => u32::MAX,
        _ => body.len() as u32,
    };
    [mark.as_slice(), &riff_bytes.to_le_bytes(), &body].concat()
}
