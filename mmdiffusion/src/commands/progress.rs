//! How far sampling has come: clips, steps, seconds a step, time left.

use std::time::Instant;

use shared::report::Progress;

/// The progress of a command that samples.
pub struct StepProgress {
    progress: Progress,
    clips: usize,
    /// How often each clip is sampled.
    windows: usize,
    finished: usize,
    last_step: Instant,
}

impl StepProgress {
    /// The progress of making `clips`, each sampled `windows` times.
    pub fn new(title: &str, clips: usize, windows: usize, quiet: bool) -> Self {
        let progress = Progress::new(title, "steps", None, quiet);
        Self { progress, clips, windows, finished: 0, last_step: Instant::now() }
    }

    /// A step of so many clips at once is made, of `steps` in all if that is known.
    pub fn step(&mut self, clips: usize, steps: Option<usize>) {
        if let Some(steps) = steps {
            self.progress.set_total((steps * self.windows * self.clips) as u64);
        }
        let step_s = self.last_step.elapsed().as_secs_f64();
        self.last_step = Instant::now();
        self.progress.set_message(format!(
            "clip {} of {}, {step_s:.2} s a step",
            (self.finished + 1).min(self.clips),
            self.clips
        ));
        self.progress.inc(clips as u64);
    }

    /// A clip is written.
    pub fn finished(&mut self) {
        self.finished += 1;
        // What writing took is not the next step's.
        self.last_step = Instant::now();
    }

    /// What is done so far, for the message of an error.
    pub fn so_far(&self) -> String {
        match self.finished {
            0 => "no clip is finished".to_owned(),
            done => format!("{done} of {} clips are finished (--resume keeps them)", self.clips),
        }
    }

    /// The work is done.
    pub fn end(self) {
        self.progress.finish();
    }
}
