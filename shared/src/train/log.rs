//! What training measured: JSON lines for programs, TensorBoard events for people.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::tensorboard::EventFile;
use crate::{Error, Result, files};

/// Name of the JSON lines file in its folder.
const FILE_NAME: &str = "log.jsonl";

/// Writes named numbers by step into `log.jsonl` and a TensorBoard event file of one folder.
pub struct Logger {
    path: PathBuf,
    file: File,
    events: EventFile,
}

impl Logger {
    /// Logs into `folder`, made if needed, going on after `step`: lines about later steps, which a
    /// killed process may have left, are removed.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let path = folder.join(FILE_NAME);
        if path.exists() {
            forget_after(&path, step)?;
        }
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        Ok(Self { path, file, events: EventFile::create(folder, now_s(), step)? })
    }

    /// Records numbers measured after `step` steps. In the JSON line one that is not finite is
    /// `null`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn record(&mut self, step: u64, numbers: &[(String, f64)]) -> Result<()> {
        let time_s = now_s();
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.insert("time_s".into(), time_s.into());
        line.extend(numbers.iter().map(|(name, number)| (name.clone(), (*number).into())));
        let line = format!("{}\n", Value::Object(line));
        // In one call, so that a line is rarely torn.
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path))?;
        self.events.scalars(time_s, step, numbers)
    }
}

/// Seconds since 1970.
fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Keeps the lines about steps up to `step`.
fn forget_after(path: &Path, step: u64) -> Result<()> {
    let text = fs::read(path).map_err(Error::io(path))?;
    let text = String::from_utf8_lossy(&text);
    let known = |line: &&str| {
        let line: Option<Value> = serde_json::from_str(line).ok();
        line.and_then(|line| line.get("step")?.as_u64()).is_some_and(|known| known <= step)
    };
    let kept: String = text.lines().filter(known).map(|line| format!("{line}\n")).collect();
    if kept == text {
        return Ok(());
    }
    files::write_atomic(path, true, |file| file.write_all(kept.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(loss: f64) -> Vec<(String, f64)> {
        vec![("loss".into(), loss), ("lr".into(), 0.1)]
    }

    #[test]
    fn a_resumed_log_goes_on_where_the_checkpoint_was() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        let path = folder.join(FILE_NAME);
        let mut logger = Logger::open(&folder, 0).unwrap();
        for step in 1..=5 {
            logger.record(step, &numbers(10.0 / step as f64)).unwrap();
        }
        drop(logger);
        // A line torn by a kill.
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\": 6, \"lo");
        fs::write(&path, text).unwrap();
        let mut logger = Logger::open(&folder, 3).unwrap();
        logger.record(4, &numbers(f64::NAN)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert_eq!(lines[1]["loss"], 5.0);
        assert!(lines[3]["loss"].is_null() && lines[3]["time_s"].as_f64().unwrap() > 1e9);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
    }
}
