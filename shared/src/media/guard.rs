//! Decoders kept at arm's length: one that panics or never returns becomes an error.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{Error, Result};

/// Items that wait between the worker's thread and ours.
const QUEUED_ITEMS: usize = 4;
/// Waiting is counted in these, so that time in which the whole process sleeps counts as one.
const TICK: Duration = Duration::from_secs(1);
/// Ticks without a sign of life after which a worker is given up.
pub(super) const PATIENCE_TICKS: usize = 60;

/// Work on a file in a thread of its own, which gives items until it ends.
///
/// A thread cannot be stopped from outside: one in an endless loop is left behind, with what it
/// holds, until the process ends.
pub(super) struct Worker<T> {
    path: PathBuf,
    items: Receiver<Result<T>>,
    thread: Option<JoinHandle<()>>,
    patience_ticks: usize,
}

/// Where the work puts its items.
pub(super) struct Outlet<T>(SyncSender<Result<T>>);

impl<T> Outlet<T> {
    /// Hands an item over; false when nobody listens any more, so that the work may end.
    pub(super) fn send(&self, item: T) -> bool {
        self.0.send(Ok(item)).is_ok()
    }
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `work` on the file `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when the system has no thread to give.
    pub(super) fn start(
        path: &Path,
        patience_ticks: usize,
        work: impl FnOnce(&Outlet<T>) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (sender, items) = sync_channel(QUEUED_ITEMS);
        let outlet = Outlet(sender);
        let thread = std::thread::Builder::new()
            .name("decoder".into())
            .spawn(move || {
                if let Err(error) = work(&outlet) {
                    // Nobody listens any more when this fails.
                    let _ = outlet.0.send(Err(error));
                }
            })
            .map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), items, thread: Some(thread), patience_ticks })
    }

    /// The next item; `None` once the work has ended.
    ///
    /// # Errors
    /// Those of the work, and [`Error::Media`] when it panics or makes no progress.
    pub(super) fn next(&mut self) -> Result<Option<T>> {
        for _ in 0..self.patience_ticks {
            match self.items.recv_timeout(TICK) {
                Ok(item) => return item.map(Some),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return match self.thread.take().map(JoinHandle::join) {
                        Some(Err(panic)) => Err(self.failed(&panic_message(&*panic))),
                        _ => Ok(None),
                    };
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

    /// The error of a decoder that broke down.
    pub(super) fn failed(&self, reason: &str) -> Error {
        Error::media(
            &self.path,
            format!("the decoder failed on this file, which may be damaged: {reason}"),
        )
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that gives `items` zeros, then does something else.
    fn worker(items: usize, then: fn() -> Result<()>) -> Worker<usize> {
        let work = move |outlet: &Outlet<usize>| {
            if (0..items).all(|_| outlet.send(0)) { then() } else { Ok(()) }
        };
        Worker::start(Path::new("x"), 1, work).unwrap()
    }

    fn drain(mut worker: Worker<usize>) -> (usize, Result<()>) {
        let mut items = 0;
        loop {
            match worker.next() {
                Ok(Some(_)) => items += 1,
                Ok(None) => return (items, Ok(())),
                Err(error) => return (items, Err(error)),
            }
        }
    }

    #[test]
    fn items_and_errors_pass_through() {
        for items in [0, 1, 20] {
            let (received, ended) = drain(worker(items, || Ok(())));
            assert_eq!(received, items);
            ended.unwrap();
        }
        let (received, ended) = drain(worker(3, || Err(Error::NoSpeech { duration_s: 1.0 })));
        assert_eq!(received, 3);
        assert!(matches!(ended, Err(Error::NoSpeech { .. })));
    }

    #[test]
    fn a_panic_becomes_an_error() {
        // Without the message of the default hook on stderr.
        let panic = || std::panic::resume_unwind(Box::new("index out of bounds"));
        for items in [0, 3] {
            let (received, ended) = drain(worker(items, panic));
            assert_eq!(received, items);
            assert!(ended.unwrap_err().to_string().contains("damaged: index out of bounds"));
        }
    }

    #[test]
    fn an_endless_loop_becomes_an_error() {
        let hang = || {
            std::thread::sleep(Duration::from_secs(3600));
            Ok(())
        };
        let (received, ended) = drain(worker(3, hang));
        assert_eq!(received, 3);
        assert!(ended.unwrap_err().to_string().contains("no progress for 1 s"));
    }

    #[test]
    fn a_worker_nobody_listens_to_ends() {
        let mut worker = worker(usize::MAX, || Ok(()));
        let thread = worker.thread.take().unwrap();
        drop(worker);
        thread.join().unwrap();
    }
}
