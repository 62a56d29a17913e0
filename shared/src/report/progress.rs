//! How far a long job has come, on stderr.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::format::{count, duration, one_line, significant};

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one job: a bar where stderr is a terminal, else a plain line every ten seconds;
/// a line with totals at the end. Dropped before [`Progress::finish`] (the job failed), it goes
/// silently. Threads may share it.
pub struct Progress {
    title: String,
    unit: String,
    /// Keeps count and measures the rate, drawn or not.
    bar: ProgressBar,
    output: Output,
    started: Instant,
    done_before: AtomicU64,
}

enum Output {
    Quiet,
    Terminal,
    Lines(Lines),
}

/// Plain lines now and then.
struct Lines {
    sink: Mutex<Box<dyn Write + Send>>,
    interval: Duration,
    /// Milliseconds after the start when the next line is due.
    due_ms: AtomicU64,
}

impl Progress {
    /// Progress of a job that handles `total` things, `None` where their number is not known.
    /// `title` says what is done (`"score"`), `unit` what is counted, in the plural (`"trials"`).
    /// `quiet` prints nothing at all.
    pub fn new(title: &str, unit: &str, total: Option<u64>, quiet: bool) -> Self {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(total, target);
        let output = match (quiet, bar.is_hidden()) {
            (true, _) => Output::Quiet,
            (false, false) => Output::Terminal,
            (false, true) => Output::Lines(Lines::new(Box::new(io::stderr()), LINE_INTERVAL)),
        };
        Self::with_output(title, unit, bar, output)
    }

    fn with_output(title: &str, unit: &str, bar: ProgressBar, output: Output) -> Self {
        let (title, unit) = (one_line(title), one_line(unit));
        if let Output::Terminal = output {
            bar.set_style(bar_style(&unit, bar.length().is_some()));
            bar.set_prefix(title.clone());
            // Keeps times and rate alive during long steps.
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        let done_before = AtomicU64::new(0);
        Self { title, unit, bar, output, started: Instant::now(), done_before }
    }

    /// Sets how many things there are, for a job that finds it out only when it has begun.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
        if let Output::Terminal = self.output {
            self.bar.set_style(bar_style(&self.unit, true));
        }
    }

    /// Sets how many things an earlier run did, for a job that goes on where that left. They count
    /// as done but not in the rate.
    pub fn resume_from(&self, done: u64) {
        self.done_before.store(done, Ordering::Relaxed);
        self.bar.set_position(done);
        // The estimator must see the new position before it starts afresh.
        self.bar.tick();
        self.bar.reset_eta();
    }

    /// Counts `delta` more things as done.
    pub fn inc(&self, delta: u64) {
        self.bar.inc(delta);
        if let Output::Lines(lines) = &self.output {
            lines.print_if_due(self.started, || format!("{}: {}", self.title, self.status()));
        }
    }

    /// Sets the text behind the numbers, such as the loss.
    pub fn set_message(&self, message: impl Display) {
        self.bar.set_message(one_line(&message.to_string()));
    }

    /// Prints a line without disturbing the bar.
    pub fn note(&self, text: impl Display) {
        match &self.output {
            Output::Quiet => {}
            Output::Terminal => self.bar.suspend(|| print(&mut io::stderr(), &text)),
            Output::Lines(lines) => lines.print(&text),
        }
    }

    /// Ends the job: removes the bar and prints what was done, in what time and at what rate.
    pub fn finish(self) {
        let summary = format!("{}: {}", self.title, self.summary());
        self.bar.finish_and_clear();
        match &self.output {
            Output::Quiet => {}
            Output::Terminal => print(&mut io::stderr(), &summary),
            Output::Lines(lines) => lines.print(&summary),
        }
    }

    fn status(&self) -> Status<'_> {
        Status {
            done: self.bar.position(),
            total: self.bar.length(),
            unit: &self.unit,
            per_second: self.bar.per_sec(),
            elapsed_s: None,
            message: self.bar.message().into(),
        }
    }

    fn summary(&self) -> Status<'_> {
        let elapsed_s = self.started.elapsed().as_secs_f64();
        let status = self.status();
        let done_now = status.done.saturating_sub(self.done_before.load(Ordering::Relaxed));
        let per_second = done_now as f64 / elapsed_s;
        Status { elapsed_s: Some(elapsed_s), per_second, ..status }
    }
}

impl Lines {
    fn new(sink: Box<dyn Write + Send>, interval: Duration) -> Self {
        let due_ms = AtomicU64::new(interval.as_millis() as u64);
        Self { sink: Mutex::new(sink), interval, due_ms }
    }

    /// Prints `line` when it is time to; of several threads one does.
    fn print_if_due(&self, started: Instant, line: impl FnOnce() -> String) {
        let now_ms = started.elapsed().as_millis() as u64;
        let due_ms = self.due_ms.load(Ordering::Relaxed);
        let next_ms = now_ms + self.interval.as_millis() as u64;
        if now_ms >= due_ms
            && self
                .due_ms
                .compare_exchange(due_ms, next_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.print(line());
        }
    }

    fn print(&self, line: impl Display) {
        if let Ok(mut sink) = self.sink.lock() {
            print(sink.as_mut(), line);
        }
    }
}

/// Prints a line. Nobody is left to tell when stderr is closed.
fn print(sink: &mut dyn Write, line: impl Display) {
    let _ = writeln!(sink, "{line}");
}

/// What the bar's line consists of.
fn bar_template(total_known: bool) -> &'static str {
    if total_known {
        "{prefix} {bar:20.cyan/dim} {numbers}  {wide_msg}"
    } else {
        "{prefix} {spinner:.cyan} {numbers}  {wide_msg}"
    }
}

/// What the bar shows, and how.
fn bar_style(unit: &str, total_known: bool) -> ProgressStyle {
    let unit = unit.to_string();
    let numbers = move |state: &ProgressState, out: &mut dyn fmt::Write| {
        let status = Status {
            done: state.pos(),
            total: state.len(),
            unit: &unit,
            per_second: state.per_sec(),
            elapsed_s: None,
            message: "".into(),
        };
        // Writing into the bar's own text cannot fail.
        let _ = write!(out, "{status}");
    };
    ProgressStyle::with_template(bar_template(total_known))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("numbers", numbers)
        .progress_chars("━╸━")
}

/// The numbers of a job at one moment.
struct Status<'a> {
    done: u64,
    total: Option<u64>,
    unit: &'a str,
    per_second: f64,
    /// The whole time, once the job has ended.
    elapsed_s: Option<f64>,
    message: Cow<'a, str>,
}

impl Display for Status<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", count(self.done))?;
        if let Some(total) =
            self.total.filter(|total| self.elapsed_s.is_none() || *total != self.done)
        {
            write!(f, "/{}", count(total))?;
        }
        write!(f, " {}", self.unit)?;
        if let (Some(total @ 1..), None) = (self.total, self.elapsed_s) {
            // Rounded down: 100 % is for what is done.
            let percent = (u128::from(self.done) * 100 / u128::from(total)).min(100);
            write!(f, " ({percent} %)")?;
        }
        if let Some(elapsed_s) = self.elapsed_s {
            write!(f, " in {}", duration(elapsed_s))?;
        }
        if self.per_second.is_finite() && self.per_second > 0.0 {
            if self.per_second >= 1.0 {
                write!(f, ", {}/s", significant(self.per_second, 3))?;
            } else {
                write!(f, ", {} each", duration(self.per_second.recip()))?;
            }
            let left = self.total.map_or(0, |total| total.saturating_sub(self.done));
            if left > 0 && self.elapsed_s.is_none() {
                write!(f, ", {} left", whole_seconds(left as f64 / self.per_second))?;
            }
        }
        if !self.message.is_empty() {
            write!(f, ", {}", self.message)?;
        }
        Ok(())
    }
}

/// A time span that is only an estimate.
fn whole_seconds(seconds: f64) -> String {
    if seconds < 59.5 { format!("{seconds:.0} s") } else { duration(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn status(done: u64, total: Option<u64>, per_second: f64) -> Status<'static> {
        Status { done, total, unit: "trials", per_second, elapsed_s: None, message: "".into() }
    }

    #[test]
    fn lines_say_what_is_known() {
        for (status, line) in [
            (status(0, Some(200), 0.0), "0/200 trials (0 %)"),
            (status(0, Some(0), f64::NAN), "0/0 trials"),
            (status(1234, None, 56.78), "1,234 trials, 56.8/s"),
            (status(1999, Some(2000), 0.25), "1,999/2,000 trials (99 %), 4.00 s each, 4 s left"),
            (status(50, Some(20_050), 100.0), "50/20,050 trials (0 %), 100/s, 3 min 20 s left"),
            (status(3, Some(2), f64::INFINITY), "3/2 trials (100 %)"),
            (
                Status { message: "loss 0.5".into(), ..status(20, Some(20), 10.0) },
                "20/20 trials (100 %), 10.0/s, loss 0.5",
            ),
            (
                Status { elapsed_s: Some(75.0), ..status(150, Some(150), 2.0) },
                "150 trials in 1 min 15 s, 2.00/s",
            ),
            (
                Status { elapsed_s: Some(10.0), ..status(150, Some(300), 15.0) },
                "150/300 trials in 10.0 s, 15.0/s",
            ),
        ] {
            assert_eq!(status.to_string(), line);
        }
    }

    /// What several threads can write to and a test can read.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines_every(interval: Duration, total: u64) -> (Progress, Shared) {
        let sink = Shared::default();
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let output = Output::Lines(Lines::new(Box::new(sink.clone()), interval));
        (Progress::with_output("score", "trials", bar, output), sink)
    }

    fn text(sink: &Shared) -> String {
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn before_the_interval_only_the_end_is_told() {
        let (progress, sink) = lines_every(Duration::from_secs(3600), 1000);
        progress.resume_from(200);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| progress.inc(1)));
            }
        });
        progress.set_message("EER 5 %\nand\tmore");
        assert_eq!(text(&sink), "");
        progress.finish();
        let line = text(&sink);
        assert!(line.starts_with("score: 1,000 trials in "), "{line}");
        assert!(line.ends_with("/s, EER 5 % and more\n"), "{line}");
    }

    #[test]
    fn every_interval_brings_one_line() {
        let (progress, sink) = lines_every(Duration::ZERO, 3);
        progress.inc(1);
        progress.note("a.wav: no speech");
        progress.inc(1);
        drop(progress);
        let text = text(&sink);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("score: 1/3 trials (33 %)"), "{text}");
        assert_eq!(lines[1], "a.wav: no speech");
        assert!(lines[2].starts_with("score: 2/3 trials (66 %)"), "{text}");
    }

    #[test]
    fn quiet_counts_all_the_same() {
        let progress = Progress::new("score", "trials", None, true);
        progress.inc(7);
        progress.note("unseen");
        assert!(matches!(progress.output, Output::Quiet));
        assert_eq!(progress.status().done, 7);
        progress.finish();
    }

    #[test]
    fn the_bar_templates_are_understood() {
        for total_known in [true, false] {
            assert!(ProgressStyle::with_template(bar_template(total_known)).is_ok());
        }
    }
}
