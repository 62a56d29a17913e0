//! Decoders that run at arm's length, see [`Worker`].

use std::path::Path;

use crate::Result;
use crate::media::audio::reader::{AudioInfo, Decoder};
use crate::media::guard::{Outlet, PATIENCE_TICKS, Worker};

/// What the decoder's thread reports.
enum Report {
    Opened(AudioInfo),
    Block(Vec<f32>),
    Finished(Vec<String>),
}

/// A decoder that runs in a thread of its own.
pub(super) struct Guarded {
    worker: Worker<Report>,
    info: AudioInfo,
    notes: Vec<String>,
}

impl Guarded {
    /// Opens a decoder in a new thread.
    ///
    /// # Errors
    /// Those of `open`, and [`crate::Error::Media`] when it panics or takes for ever.
    pub(super) fn open(
        path: &Path,
        open: impl FnOnce() -> Result<Box<dyn Decoder>> + Send + 'static,
    ) -> Result<Self> {
        let mut worker = Worker::start(path, PATIENCE_TICKS, move |outlet| run(open, outlet))?;
        loop {
            match worker.next()? {
                Some(Report::Opened(info)) => return Ok(Self { worker, info, notes: vec![] }),
                Some(Report::Block(_) | Report::Finished(_)) => {}
                None => return Err(worker.failed("it ended without a result")),
            }
        }
    }
}

impl Decoder for Guarded {
    fn info(&self) -> &AudioInfo {
        &self.info
    }

    fn next_block(&mut self, block: &mut Vec<f32>) -> Result<bool> {
        match self.worker.next()? {
            Some(Report::Block(samples)) => {
                *block = samples;
                Ok(true)
            }
            Some(Report::Finished(notes)) => {
                self.notes = notes;
                Ok(false)
            }
            Some(Report::Opened(_)) => Ok(true),
            None => Err(self.worker.failed("it ended without a result")),
        }
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

/// The decoder's thread; it ends early when nobody listens any more.
fn run(open: impl FnOnce() -> Result<Box<dyn Decoder>>, outlet: &Outlet<Report>) -> Result<()> {
    let mut decoder = open()?;
    let mut opened = false;
    loop {
        let mut block = vec![];
        let more = decoder.next_block(&mut block)?;
        // What is known of the sound is complete with the first samples, or without any.
        if !opened && (!more || !block.is_empty()) {
            opened = true;
            if !outlet.send(Report::Opened(decoder.info().clone())) {
                return Ok(());
            }
        }
        let report = if more { Report::Block(block) } else { Report::Finished(decoder.notes()) };
        if !outlet.send(report) || !more {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// Gives `blocks` blocks of one sample, then does something else.
    struct Scripted {
        info: AudioInfo,
        blocks: usize,
        then: fn() -> Result<bool>,
    }

    impl Scripted {
        fn guarded(blocks: usize, then: fn() -> Result<bool>) -> Result<Guarded> {
            Guarded::open(Path::new("x"), move || {
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
}
