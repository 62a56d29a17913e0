//! Training checkpoints: all that a run needs to go on exactly where it stopped.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::safetensors;
use crate::limits::Limits;
use crate::{Error, Result};

/// Metadata entry that tells a training checkpoint from a model.
const KIND: (&str, &str) = ("kind", "training-state");

/// The state of a training run, stored as one safetensors file.
#[derive(Clone, Debug)]
pub struct TrainingState {
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs begun before the current one.
    pub epoch: u64,
    /// Model, optimiser moments and averages, by names that the trainer chooses.
    pub tensors: BTreeMap<String, Tensor>,
    /// All else: schedule, random streams, loader position. Finite numbers come back exactly; JSON
    /// has no NaN and no infinity.
    pub values: serde_json::Value,
}

impl TrainingState {
    /// Writes the state to `path`; the file appears whole or not at all.
    ///
    /// # Errors
    /// As [`safetensors::write`].
    pub fn write(&self, path: &Path, force: bool) -> Result<()> {
        self.write_with(path, force, BTreeMap::new())
    }

    fn write_with(
        &self,
        path: &Path,
        force: bool,
        mut metadata: BTreeMap<String, String>,
    ) -> Result<()> {
        metadata.insert(KIND.0.into(), KIND.1.into());
        metadata.insert("step".into(), self.step.to_string());
        metadata.insert("epoch".into(), self.epoch.to_string());
        metadata.insert("values".into(), self.values.to_string());
        safetensors::write(path, &self.tensors, &metadata, force)
    }

    /// Reads the state that [`TrainingState::write`] stored.
    ///
    /// # Errors
    /// As [`safetensors::read`], and [`Error::Checkpoint`] when the file is no training checkpoint.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        let checkpoint = safetensors::read(path, limits)?;
        let entry = |name: &str| checkpoint.metadata.get(name).map(String::as_str);
        if entry(KIND.0) != Some(KIND.1) {
            let reason = "is not a training checkpoint; give one that training wrote";
            return Err(Error::checkpoint(path, reason));
        }
        let malformed =
            |name| Error::checkpoint(path, format!("metadata entry {name:?} is malformed"));
        let count = |name| entry(name).and_then(|text| text.parse().ok()).ok_or(malformed(name));
        let values = entry("values").and_then(|text| serde_json::from_str(text).ok());
        Ok(Self {
            step: count("step")?,
            epoch: count("epoch")?,
            values: values.ok_or(malformed("values"))?,
            tensors: checkpoint.tensors,
        })
    }
}

/// A folder of training checkpoints, `step-00001000.safetensors` and so on: the last few, and the
/// best as `best.safetensors`.
#[derive(Clone, Debug)]
pub struct StateFolder {
    folder: PathBuf,
    keep: NonZeroUsize,
}

impl StateFolder {
    /// The folder `folder`, made if needed, in which [`StateFolder::save`] keeps the last `keep`
    /// states.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made.
    pub fn open(folder: impl Into<PathBuf>, keep: NonZeroUsize) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        Ok(Self { folder, keep })
    }

    /// Writes `state` under its step, replacing one of the same step, and removes the oldest ones
    /// beyond those to keep. Returns the file.
    ///
    /// # Errors
    /// [`Error::Argument`] when the folder holds a state of a later step, which [`Self::resume`]
    /// would take for the latest of this run; else as [`TrainingState::write`].
    pub fn save(&self, state: &TrainingState) -> Result<PathBuf> {
        let mut steps = self.steps()?;
        if let Some((last, _)) = steps.last_key_value()
            && *last > state.step
        {
            return Err(Error::Argument(format!(
                "{}: holds the state of step {last}, later than step {}; resume from the latest, \
                 remove later ones or choose another folder",
                self.folder.display(),
                state.step
            )));
        }
        let path = self.folder.join(format!("step-{:08}.safetensors", state.step));
        state.write(&path, true)?;
        steps.insert(state.step, path.clone());
        for old in steps.values().take(steps.len().saturating_sub(self.keep.get())) {
            fs::remove_file(old).map_err(Error::io(old))?;
        }
        Ok(path)
    }

    /// Writes `state` as the best if `score`, of which lower is better, is below that of the best
    /// so far. Returns whether it was. A NaN is never best.
    ///
    /// # Errors
    /// As [`TrainingState::write`] and [`safetensors::read_metadata`].
    pub fn save_best(&self, state: &TrainingState, score: f64, limits: &Limits) -> Result<bool> {
        let better = match self.best_score(limits)? {
            Some(best) => score < best,
            None => !score.is_nan(),
        };
        if better {
            let metadata = BTreeMap::from([("score".to_string(), score.to_string())]);
            state.write_with(&self.best_path(), true, metadata)?;
        }
        Ok(better)
    }

    /// The score of the best state so far.
    ///
    /// # Errors
    /// As [`safetensors::read_metadata`].
    pub fn best_score(&self, limits: &Limits) -> Result<Option<f64>> {
        let path = self.best_path();
        if !path.exists() {
            return Ok(None);
        }
        let metadata = safetensors::read_metadata(&path, limits)?;
        let score = metadata.get("score").and_then(|score| score.parse().ok());
        score.map(Some).ok_or_else(|| Error::checkpoint(&path, "metadata lacks the score"))
    }

    /// Where the best state is, if one was saved.
    pub fn best_path(&self) -> PathBuf {
        self.folder.join("best.safetensors")
    }

    /// The file of the latest step, if there is any.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be read.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        Ok(self.steps()?.into_values().next_back())
    }

    /// The state of the latest step, if there is any.
    ///
    /// # Errors
    /// As [`TrainingState::read`]. An older state is never taken silently instead.
    pub fn resume(&self, limits: &Limits) -> Result<Option<TrainingState>> {
        self.latest()?.map(|path| TrainingState::read(&path, limits)).transpose()
    }

    /// The files in the folder by step.
    fn steps(&self) -> Result<BTreeMap<u64, PathBuf>> {
        let mut steps = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let path = entry.map_err(Error::io(&self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let step = name.and_then(|name| {
                name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
            });
            if let Some(step) = step {
                steps.insert(step, path);
            }
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use serde_json::json;

    use super::*;
    use crate::rng::Stream;

    fn state(step: u64) -> TrainingState {
        let mut stream = Stream::new(step, "state", 0);
        let values: Vec<f32> = (0..6).map(|_| stream.normal() as f32).collect();
        let weight = Tensor::from_vec(values, (2, 3), &Device::Cpu).unwrap();
        TrainingState {
            step,
            epoch: step / 10,
            tensors: BTreeMap::from([
                ("model.weight".to_string(), weight.clone()),
                ("model.batches".to_string(), Tensor::new(i64::MAX, &Device::Cpu).unwrap()),
                ("adam.weight.second".to_string(), weight.to_dtype(DType::F64).unwrap()),
            ]),
            values: json!({"rng": stream.state(), "rate": 0.1 + 0.2, "seed": u64::MAX}),
        }
    }

    fn folder(keep: usize) -> (tempfile::TempDir, StateFolder) {
        let folder = tempfile::tempdir().unwrap();
        let states =
            StateFolder::open(folder.path().join("run"), NonZeroUsize::new(keep).unwrap()).unwrap();
        (folder, states)
    }

    fn steps(states: &StateFolder) -> Vec<u64> {
        states.steps().unwrap().into_keys().collect()
    }

    #[test]
    fn a_state_comes_back_exactly() {
        let (_folder, states) = folder(2);
        assert!(states.resume(&Limits::default()).unwrap().is_none());
        let saved = state(12);
        states.save(&saved).unwrap();
        let resumed = states.resume(&Limits::default()).unwrap().unwrap();
        assert_eq!((resumed.step, resumed.epoch), (12, 1));
        assert_eq!(resumed.values, saved.values);
        let hash = |state: &TrainingState| super::super::data_hash(&state.tensors).unwrap();
        assert_eq!(hash(&resumed), hash(&saved));
    }

    #[test]
    fn random_numbers_in_values_come_back_exactly() {
        let (_folder, states) = folder(1);
        let mut stream = Stream::new(1, "values", 0);
        let mut saved = state(0);
        let draws =
            (0..10_000).map(|_| stream.normal() * 10f64.powf(stream.uniform_in(-300.0, 300.0)));
        saved.values = json!(draws.collect::<Vec<f64>>());
        states.save(&saved).unwrap();
        assert_eq!(states.resume(&Limits::default()).unwrap().unwrap().values, saved.values);
    }

    #[test]
    fn the_last_few_are_kept() {
        let (_folder, states) = folder(2);
        for step in [9, 10, 100, 100_000_000] {
            states.save(&state(step)).unwrap();
        }
        assert_eq!(steps(&states), [100, 100_000_000]);
        assert!(states.latest().unwrap().unwrap().ends_with("step-100000000.safetensors"));
    }

    #[test]
    fn a_state_is_not_saved_beside_later_ones() {
        let (_folder, states) = folder(3);
        for step in [10, 20, 20] {
            states.save(&state(step)).unwrap();
        }
        assert!(matches!(states.save(&state(15)), Err(Error::Argument(_))));
        assert_eq!(steps(&states), [10, 20]);
    }

    #[test]
    fn the_lowest_score_is_best() {
        let (_folder, states) = folder(1);
        let limits = Limits::default();
        let scores = [(f64::NAN, false), (0.3, true), (0.3, false), (0.1, true), (0.2, false)];
        for (step, (score, better)) in scores.into_iter().enumerate() {
            let saved = states.save_best(&state(step as u64), score, &limits).unwrap();
            assert_eq!(saved, better, "{score}");
        }
        assert_eq!(states.best_score(&limits).unwrap(), Some(0.1));
        assert_eq!(TrainingState::read(&states.best_path(), &limits).unwrap().step, 3);
    }

    #[test]
    fn a_model_is_no_training_state() {
        let (folder, _) = folder(1);
        let path = folder.path().join("model.safetensors");
        safetensors::write(&path, &state(1).tensors, &BTreeMap::new(), false).unwrap();
        let error = TrainingState::read(&path, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains("is not a training checkpoint"), "{error}");
    }
}
