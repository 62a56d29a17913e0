//! TensorBoard event files: a sequence of framed protocol buffers, of which this writes scalars.
//!
//! Formats: TensorFlow's `tfrecord` framing, `event.proto` and `summary.proto`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// An event file being written.
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new event file in `folder`. TensorBoard shows all files of a folder as one run, ordered by
    /// name; this one goes on after `step`: what earlier files say about later steps is forgotten.
    pub fn create(folder: &Path, wall_time_s: f64, step: u64) -> Result<Self> {
        let seconds = wall_time_s as u64;
        let process = std::process::id();
        let mut number = 0;
        let (path, file) = loop {
            let name = format!("events.out.tfevents.{seconds:010}.{process}.{number}");
            let path = folder.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(Error::io(&path)(error)),
            }
        };
        let mut events = Self { path, file };
        events.write(&Event::Version, wall_time_s, 0)?;
        if step > 0 {
            // Forgets this step and later ones.
            events.write(&Event::Restart, wall_time_s, step + 1)?;
        }
        Ok(events)
    }

    /// Records scalars of `step`.
    pub fn scalars(
        &mut self,
        wall_time_s: f64,
        step: u64,
        scalars: &[(String, f64)],
    ) -> Result<()> {
        self.write(&Event::Scalars(scalars), wall_time_s, step)
    }

    fn write(&mut self, event: &Event, wall_time_s: f64, step: u64) -> Result<()> {
        let record = frame(&event.encode(wall_time_s, step));
        self.file.write_all(&record).map_err(Error::io(&self.path))
    }
}

/// What an event says.
enum Event<'a> {
    /// The first of a file.
    Version,
    /// A new process goes on from an earlier step.
    Restart,
    Scalars(&'a [(String, f64)]),
}

impl Event<'_> {
    /// The `Event` message.
    fn encode(&self, wall_time_s: f64, step: u64) -> Vec<u8> {
        let mut message = vec![];
        // wall_time = 1: double
        message.push(0x09);
        message.extend(wall_time_s.to_le_bytes());
        // step = 2: int64, left out when 0
        if step > 0 {
            message.push(0x10);
            varint(&mut message, step);
        }
        match self {
            // file_version = 3: string
            Self::Version => bytes(&mut message, 3, b"brain.Event:2"),
            // session_log = 7: SessionLog { status = 1: START = 1 }
            Self::Restart => bytes(&mut message, 7, &[0x08, 0x01]),
            // summary = 5: Summary { repeated value = 1 }
            Self::Scalars(scalars) => {
                let mut summary = vec![];
                for (tag, value) in *scalars {
                    // Value { tag = 1: string, simple_value = 2: float }
                    let mut entry = vec![];
                    bytes(&mut entry, 1, tag.as_bytes());
                    entry.push(0x15);
                    entry.extend((*value as f32).to_le_bytes());
                    bytes(&mut summary, 1, &entry);
                }
                bytes(&mut message, 5, &summary);
            }
        }
        message
    }
}

/// A length-delimited field.
fn bytes(message: &mut Vec<u8>, field: u8, content: &[u8]) {
    message.push(field << 3 | 2);
    varint(message, content.len() as u64);
    message.extend(content);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// A TFRecord: length, its checksum, data, their checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_checksum(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_checksum(data).to_le_bytes());
    record
}

fn masked_checksum(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit-reversed polynomial 0x82f63b78.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_agree_with_their_specification() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_are_those_that_tensorboard_writes() {
        // tensorboard 2.21: RecordWriter.write(Event(...).SerializeToString()).
        let expected = "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a3233\
                        8d2fe9100000000000000095fbfe180900001040fc54d94110ac023a0208016b3b88f1\
                        2600000000000000734fe3000900006040fc54d94110ad022a180a0b0a046c6f737315\
                        000020400a090a026c72156f12833a1dfb8368";
        let scalars = [("loss".to_string(), 2.5), ("lr".to_string(), 0.001)];
        let records = [
            frame(&Event::Version.encode(1_700_000_000.25, 0)),
            frame(&Event::Restart.encode(1_700_000_000.25, 300)),
            frame(&Event::Scalars(&scalars).encode(1_700_000_001.5, 301)),
        ];
        let hex: String = records.concat().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn every_process_gets_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let mut events = EventFile::create(folder.path(), 1.7e9, 0).unwrap();
            events.scalars(1.7e9, 1, &[("loss".into(), 1.0)]).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
