//! Stopping a job at a point where nothing is lost.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::{Error, Result};

/// A request to stop soon. A job asks [`Interrupt::requested`] where it can stop; clones share the
/// request.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// The interrupt that Ctrl-C, SIGTERM and SIGHUP request. The first signal lets the job finish
    /// its step; the second ends the process at once with exit code 130.
    ///
    /// # Errors
    /// When the system refuses a signal handler.
    pub fn on_signals() -> Result<Self> {
        static INSTALLED: OnceLock<Interrupt> = OnceLock::new();
        if let Some(interrupt) = INSTALLED.get() {
            return Ok(interrupt.clone());
        }
        let interrupt = Self::default();
        let in_handler = interrupt.clone();
        ctrlc::set_handler(move || {
            if in_handler.request() {
                std::process::exit(130);
            }
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(io::stderr(), "stopping after this step; once more to stop at once");
        })
        .map_err(|error| Error::Argument(format!("cannot listen for Ctrl-C: {error}")))?;
        Ok(INSTALLED.get_or_init(|| interrupt).clone())
    }

    /// Requests a stop; returns whether one was requested before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether the job should stop.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_request_and_the_second_is_told_apart() {
        let interrupt = Interrupt::default();
        let job = interrupt.clone();
        assert!(!job.requested());
        assert!(!interrupt.request());
        assert!(job.requested());
        assert!(interrupt.request());
        assert!(!Interrupt::default().requested());
    }
}
