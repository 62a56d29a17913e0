//! Decoders kept at arm's length: one that panics or never returns becomes an error.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::media::audio::reader::{AudioInfo, Decoder};
use crate::{Error, Result};

/// Blocks that wait between the decoder's thread and ours.
const QUEUED_BLOCKS: usize = 4;
/// Waiting is counted in these, so that time in which the whole process sleeps counts as one.
const TICK: Duration = Duration::from_secs(1);
/// Ticks without a sign of life after which a decoder is given up.
const PATIENCE_TICKS: usize = 60;

/// What the decoder's thread reports.
enum Report {
    Opened(AudioInfo),
    Block(Vec<f32>),
    Finished(Vec<String>),
    Failed(Error),
}

/// A decoder that runs in a thread of its own.
///
/// A thread cannot be stopped from outside: one in an endless loop is left behind, with what it
/// holds, until the process ends.
pub(super) struct Guarded {
    path: PathBuf,
    reports: Receiver<Report>,
    thread: Option<JoinHandle<()>>,
    patience_ticks: usize,
    info: AudioInfo,
    notes: Vec<String>,
}

impl Guarded {
    /// Opens a decoder in a new thread.
    ///
    /// # Errors
    /// Those of `open`, and [`Error::Media`] when it panics or takes for ever.
    pub(super) fn open(
        path: &Path,
        open: impl FnOnce() -> Result<Box<dyn Decoder>> + Send + 'static,
    ) -> Result<Self> {
        Self::open_with_patience(path, PATIENCE_TICKS, open)
    }

    fn open_with_patience(
        path: &Path,
        patience_ticks: usize,
        open: impl FnOnce() -> Result<Box<dyn Decoder>> + Send + 'static,
    ) -> Result<Self> {
        let (sender, reports) = sync_channel(QUEUED_BLOCKS);
        let thread = std::thread::Builder::new()
            .name("audio decoder".into())
            .spawn(move || {
                if let Err(error) = run(open, &sender) {
                    // Nobody listens any more when this fails.
                    let _ = sender.send(Report::Failed(error));
                }
            })
            .map_err(Error::io(path))?;
        let mut guarded = Self {
            path: path.to_path_buf(),
            reports,
            thread: Some(thread),
            patience_ticks,
            info: AudioInfo::default(),
            notes: vec![],
        };
        loop {
            match guarded.receive()? {
                Report::Opened(info) => {
                    guarded.info = info;
                    return Ok(guarded);
                }
                Report::Failed(error) => return Err(error),
                Report::Block(_) | Report::Finished(_) => {}
            }
        }
    }

    fn receive(&mut self) -> Result<Report> {
        for _ in 0..self.patience_ticks {
            match self.reports.recv_timeout(TICK) {
                Ok(report) => return Ok(report),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let reason = match self.thread.take().map(JoinHandle::join) {
                        Some(Err(panic)) => panic_message(&*panic),
                        _ => "it ended without a result".into(),
                    };
                    return Err(Error::media(
                        &self.path,
                        format!("the decoder failed on this file, which may be damaged: {reason}"),
                    ));
                }
            }
        }
        Err(Error::media(
            &self.path,
            format!(
                "the decoder made no progress for {} s; the file may be damaged",
                self.patience_ticks as u64 * TICK.as_secs()
            ),
        ))
    }
}

impl Decoder for Guarded {
    fn info(&self) -> &AudioInfo {
        &self.info
    }

    fn next_block(&mut self, block: &mut Vec<f32>) -> Result<bool> {
        match self.receive()? {
            Report::Block(samples) => {
                *block = samples;
                Ok(true)
            }
            Report::Finished(notes) => {
                self.notes = notes;
                Ok(false)
            }
            Report::Failed(error) => Err(error),
            Report::Opened(_) => Ok(true),
        }
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

/// The decoder's thread; it ends early when nobody listens any more.
fn run(open: impl FnOnce() -> Result<Box<dyn Decoder>>, sender: &SyncSender<Report>) -> Result<()> {
    let mut decoder = open()?;
    let mut opened = false;
    loop {
        let mut block = vec![];
        let more = decoder.next_block(&mut block)?;
        // What is known of the sound is complete with the first samples, or without any.
        if !opened && (!more || !block.is_empty()) {
            opened = true;
            if sender.send(Report::Opened(decoder.info().clone())).is_err() {
                return Ok(());
            }
        }
        let report = if more { Report::Block(block) } else { Report::Finished(decoder.notes()) };
        if sender.send(report).is_err() || !more {
            return Ok(());
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives `blocks` blocks of one sample, then does something else.
    struct Scripted {
        info: AudioInfo,
        blocks: usize,
        then: fn() -> Result<bool>,
    }

    impl Scripted {
        fn guarded(blocks: usize, then: fn() -> Result<bool>) -> Result<Guarded> {
            Guarded::open_with_patience(Path::new("x"), 1, move || {
                Ok(Box::new(Self { info: AudioInfo::default(), blocks, then }))
            })
        }
    }

    impl Decoder for Scripted {
        fn info(&self) -> &AudioInfo {
            &self.info
        }

        fn next_block(&mut self, block: &mut Vec<f32>) -> Result<bool> {
            if self.blocks == 0 {
                return (self.then)();
            }
            self.blocks -= 1;
            block.push(0.5);
            Ok(true)
        }

        fn notes(&mut self) -> Vec<String> {
            vec!["a note".into()]
        }
    }

    fn read_all(mut guarded: Guarded) -> (usize, Result<bool>, Vec<String>) {
        let mut samples = 0;
        loop {
            let mut block = vec![];
            match guarded.next_block(&mut block) {
                Ok(true) => samples += block.len(),
                ended => return (samples, ended, guarded.notes()),
            }
        }
    }

    #[test]
    fn blocks_and_notes_pass_through() {
        for blocks in [0, 1, 20] {
            let (samples, ended, notes) =
                read_all(Scripted::guarded(blocks, || Ok(false)).unwrap());
            assert_eq!(samples, blocks);
            assert!(!ended.unwrap());
            assert_eq!(notes, ["a note"]);
        }
    }

    #[test]
    fn errors_pass_through() {
        let fail = || Err(Error::NoSpeech { duration_s: 1.0 });
        assert!(matches!(Scripted::guarded(0, fail), Err(Error::NoSpeech { .. })));
        let (samples, ended, _) = read_all(Scripted::guarded(3, fail).unwrap());
        assert_eq!(samples, 3);
        assert!(matches!(ended, Err(Error::NoSpeech { .. })));
    }

    #[test]
    fn a_panic_becomes_an_error() {
        // Without the message of the default hook on stderr.
        let panic = || std::panic::resume_unwind(Box::new("index out of bounds"));
        let (samples, ended, _) = read_all(Scripted::guarded(3, panic).unwrap());
        assert_eq!(samples, 3);
        assert!(ended.unwrap_err().to_string().contains("damaged: index out of bounds"));
        assert!(matches!(Scripted::guarded(0, panic), Err(Error::Media { .. })));
    }

    #[test]
    fn an_endless_loop_becomes_an_error() {
        let hang = || {
            std::thread::sleep(Duration::from_secs(3600));
            Ok(false)
        };
        let (samples, ended, _) = read_all(Scripted::guarded(3, hang).unwrap());
        assert_eq!(samples, 3);
        assert!(ended.unwrap_err().to_string().contains("no progress for 1 s"));
    }

    #[test]
    fn a_decoder_nobody_reads_ends() {
        let mut guarded = Scripted::guarded(usize::MAX, || Ok(false)).unwrap();
        let thread = guarded.thread.take().unwrap();
        drop(guarded);
        thread.join().unwrap();
    }
}
