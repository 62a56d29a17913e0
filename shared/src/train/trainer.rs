//! The training loop: steps, schedules, averages, logs, checkpoints, and going on after a stop.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use candle_core::Var;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Ema, Gradients, Group, Interrupt, Logger, Optimiser, OptimiserState, Rule, Schedule, Unreached,
};
use crate::checkpoint::{StateFolder, TrainingState};
use crate::limits::Limits;
use crate::nn::{Parameter, Weights};
use crate::report::{Progress, format};
use crate::{Error, Result};

/// Settings of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerConfig {
    /// Steps of the whole run.
    pub steps: u64,
    /// How gradients change parameters.
    pub rule: Rule,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// What happens to parameters that a step does not reach.
    #[serde(default)]
    pub unreached: Unreached,
    /// Norm to which gradients are clipped; not clipped when not given.
    #[serde(default)]
    pub clip_norm: Option<f64>,
    /// Rates of the averages of the parameters.
    #[serde(default)]
    pub ema_rates: Vec<f64>,
    /// Steps between two lines of the log.
    #[serde(default = "every_step")]
    pub log_every: u64,
    /// Steps between two evaluations; the end of the run has one too.
    pub evaluate_every: u64,
    /// Steps between two checkpoints; the end of the run and an interrupt have one too.
    pub save_every: u64,
    /// Number of checkpoints that are kept.
    #[serde(default = "two")]
    pub keep: NonZeroUsize,
    /// Most steps in a row that may leave the weights as they are because the loss or a gradient is NaN
    /// or infinite; one more ends the run.
    #[serde(default)]
    pub tolerated: u64,
}

fn every_step() -> u64 {
    1
}

fn two() -> NonZeroUsize {
    NonZeroUsize::MIN.saturating_add(1)
}

impl TrainerConfig {
    /// The settings that decide on what is learned; a run resumes under the same ones only.
    fn identity(&self) -> Value {
        json!({
            "rule": self.rule,
            "schedule": self.schedule,
            "unreached": self.unreached,
            "clip_norm": self.clip_norm,
            "ema_rates": self.ema_rates,
        })
    }

    fn validate(&self) -> Result<()> {
        self.schedule.validate()?;
        let counts = [
            ("steps", self.steps),
            ("log_every", self.log_every),
            ("evaluate_every", self.evaluate_every),
            ("save_every", self.save_every),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Error::Argument(format!("training: {name} must be at least 1")));
        }
        match self.clip_norm {
            Some(norm) if !(norm > 0.0 && norm.is_finite()) => {
                Err(Error::Argument(format!("training: clip_norm must be above 0, not {norm}")))
            }
            _ => Ok(()),
        }
    }
}

/// What one step found.
#[derive(Clone, Debug, Default)]
pub struct StepOutcome {
    /// The loss.
    pub loss: f64,
    /// Further numbers for the log.
    pub metrics: Vec<(String, f64)>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What an evaluation found.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Decides on the best checkpoint: lower is better.
    pub score: Option<f64>,
    /// Numbers for the log.
    pub metrics: Vec<(String, f64)>,
}

/// What is trained. Whatever else than the weights changes from step to step (random streams, the
/// loader's position) is part of the state, or follows from the step number.
pub trait Task {
    /// Computes the loss of step `step`, counted from 0, and adds its gradients with
    /// [`Gradients::add`]. A step in parts adds one after the other, so that only one graph is in
    /// memory, and then calls [`Gradients::average`] where their mean is meant and not their sum.
    ///
    /// # Errors
    /// Whatever stops the training.
    fn step(&mut self, step: u64, gradients: &mut Gradients) -> Result<StepOutcome>;

    /// Whether step `step`, just computed, was to reach this parameter. A step that gives one of
    /// those no finite gradient fails.
    fn uses(&self, _step: u64, _parameter: &Parameter) -> bool {
        true
    }

    /// Evaluates the model after `steps` steps; [`Ema::with_average`] lends it averaged weights.
    ///
    /// # Errors
    /// Whatever stops the training.
    fn evaluate(&mut self, _steps: u64, _ema: &Ema) -> Result<Evaluation> {
        Ok(Evaluation::default())
    }

    /// What [`Task::restore`] needs beside the weights to go on exactly.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// When it is not one of this task.
    fn restore(&mut self, _state: &Value) -> Result<()> {
        Ok(())
    }
}

/// Trains weights in a folder that holds all that it needs to go on: killed at any moment and
/// started again, it ends with the same bytes, given the same number of threads.
pub struct Trainer {
    config: TrainerConfig,
    weights: Weights,
    parameters: Vec<Parameter>,
    optimiser: Optimiser,
    ema: Ema,
    states: StateFolder,
    logger: Logger,
    steps_done: u64,
    /// Steps in a row, up to now, that left the weights as they were.
    skipped: u64,
    interrupt: Interrupt,
    quiet: bool,
    limits: Limits,
}

impl Trainer {
    /// A trainer of `weights` in `folder`, each parameter in the group that `group` says. When the
    /// folder holds checkpoints, weights, optimiser and `task` continue from the latest.
    ///
    /// # Errors
    /// When a setting is outside its domain, or the folder holds a run with other settings or
    /// another model.
    pub fn open(
        folder: &Path,
        config: TrainerConfig,
        weights: &Weights,
        group: impl Fn(&Parameter) -> Group,
        task: &mut impl Task,
    ) -> Result<Self> {
        config.validate()?;
        let parameters = weights.variables();
        if parameters.is_empty() {
            return Err(Error::Argument("the model has no trainable parameters".into()));
        }
        let mut optimiser = Optimiser::new(&parameters, config.rule)?
            .with_groups(group)
            .with_unreached(config.unreached);
        let mut ema = Ema::new(&parameters, &config.ema_rates)?;
        let states = StateFolder::open(folder, config.keep)?;
        let limits = Limits::default();
        let (steps_done, skipped) = match states.resume(&limits)? {
            Some(state) => {
                let skipped = state.values.get("skipped").and_then(Value::as_u64);
                let steps =
                    restore(folder, state, &config, weights, &mut optimiser, &mut ema, task)?;
                (steps, skipped.unwrap_or_default())
            }
            None => (0, 0),
        };
        Ok(Self {
            logger: Logger::open(folder, steps_done)?,
            config,
            weights: weights.clone(),
            parameters,
            optimiser,
            ema,
            states,
            steps_done,
            skipped,
            interrupt: Interrupt::default(),
            quiet: true,
            limits,
        })
    }

    /// The same trainer, which stops on `interrupt`.
    pub fn with_interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// The same trainer, which shows its progress on stderr.
    pub fn with_progress(mut self) -> Self {
        self.quiet = false;
        self
    }

    /// Steps done so far, in this process and before.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// The averages of the parameters.
    pub fn ema(&self) -> &Ema {
        &self.ema
    }

    /// Where the best state is, if an evaluation gave a score.
    pub fn best_path(&self) -> std::path::PathBuf {
        self.states.best_path()
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after a requested stop, with everything saved; [`Error::NoGradient`]
    /// and [`Error::NonFinite`] when training went wrong, with the last checkpoint as it was.
    pub fn run(&mut self, task: &mut impl Task) -> Result<()> {
        let progress = Progress::new("train", "steps", Some(self.config.steps), self.quiet);
        progress.resume_from(self.steps_done);
        while self.steps_done < self.config.steps {
            self.step(task, &progress)?;
            let last = self.steps_done == self.config.steps;
            let due = |every: u64| self.steps_done.is_multiple_of(every) || last;
            let (evaluate, save) = (due(self.config.evaluate_every), due(self.config.save_every));
            if evaluate {
                self.evaluate(task, &progress)?;
            }
            let interrupted = self.interrupt.requested() && !last;
            if save || interrupted {
                self.states.save(&self.state(task)?)?;
            }
            if interrupted {
                return Err(Error::Interrupted);
            }
        }
        progress.finish();
        Ok(())
    }

    fn step(&mut self, task: &mut impl Task, progress: &Progress) -> Result<()> {
        let step = self.steps_done;
        let mut gradients = Gradients::new(&self.parameters);
        let outcome = task.step(step, &mut gradients)?;
        outcome.notes.iter().for_each(|note| progress.note(note));
        let norm = match outcome.loss.is_finite() {
            true => {
                gradients.require(|parameter| task.uses(step, parameter))?;
                self.clip(&mut gradients)
            }
            false => Err(Error::NonFinite { what: format!("the loss of step {step}") }),
        };
        let norm = match norm {
            Err(error @ (Error::NonFinite { .. } | Error::NoGradient { .. }))
                if self.skipped < self.config.tolerated =>
            {
                self.skipped += 1;
                self.steps_done += 1;
                progress.note(format!("step {step} changes nothing: {error}"));
                progress.inc(1);
                let skipped = [("skipped".to_string(), self.skipped as f64)];
                return self.logger.record(self.steps_done, &skipped);
            }
            norm => norm?,
        };
        self.skipped = 0;
        let lr = self.config.schedule.lr(step);
        self.optimiser.step(lr, &gradients)?;
        self.ema.update()?;
        self.steps_done += 1;
        progress.set_message(format!("loss {}", format::significant(outcome.loss, 4)));
        progress.inc(1);
        if self.steps_done.is_multiple_of(self.config.log_every) {
            let mut numbers = vec![
                ("loss".to_string(), outcome.loss),
                ("lr".to_string(), lr),
                ("gradient_norm".to_string(), norm),
            ];
            numbers.extend(outcome.metrics);
            self.logger.record(self.steps_done, &numbers)?;
        }
        Ok(())
    }

    /// Clips where that is asked for; the norm of the gradients before.
    fn clip(&self, gradients: &mut Gradients) -> Result<f64> {
        match self.config.clip_norm {
            Some(max_norm) => gradients.clip(max_norm),
            None => gradients.norm(),
        }
    }

    fn evaluate(&mut self, task: &mut impl Task, progress: &Progress) -> Result<()> {
        let Evaluation { score, metrics } = task.evaluate(self.steps_done, &self.ema)?;
        if !metrics.is_empty() {
            self.logger.record(self.steps_done, &metrics)?;
            let shown: Vec<String> = metrics
                .iter()
                .map(|(name, value)| format!("{name} {}", format::significant(*value, 4)))
                .collect();
            progress.note(format!("step {}: {}", self.steps_done, shown.join(", ")));
        }
        if let Some(score) = score {
            self.states.save_best(&self.state(task)?, score, &self.limits)?;
        }
        Ok(())
    }

    fn state(&self, task: &impl Task) -> Result<TrainingState> {
        let optimiser = self.optimiser.state()?;
        let parts = [
            (MODEL, self.weights.state()),
            (OPTIMISER, optimiser.tensors),
            (EMA, self.ema.state()?),
        ];
        let tensors = parts.into_iter().flat_map(|(part, tensors)| {
            tensors.into_iter().map(move |(name, tensor)| (format!("{part}.{name}"), tensor))
        });
        Ok(TrainingState {
            step: self.steps_done,
            epoch: 0,
            tensors: tensors.collect(),
            values: json!({
                "settings": self.config.identity(),
                "updates": optimiser.steps,
                "skipped": self.skipped,
                "task": task.state(),
            }),
        })
    }
}

/// Prefixes of the tensors in a checkpoint.
const MODEL: &str = "model";
const OPTIMISER: &str = "optimiser";
const EMA: &str = "ema";

/// Fails unless the settings of the run that `folder` holds are those of `now`.
///
/// # Errors
/// [`Error::Checkpoint`] with both.
pub fn check_settings(folder: &Path, there: &Value, now: &Value) -> Result<()> {
    if there == now {
        return Ok(());
    }
    Err(Error::checkpoint(
        folder,
        format!(
            "holds a run with other settings; choose another folder or the same settings\n  \
             there: {there}\n  now:   {now}"
        ),
    ))
}

/// Continues from `state`; returns the number of steps done.
fn restore(
    folder: &Path,
    state: TrainingState,
    config: &TrainerConfig,
    weights: &Weights,
    optimiser: &mut Optimiser,
    ema: &mut Ema,
    task: &mut impl Task,
) -> Result<u64> {
    let foreign = |reason: String| Error::checkpoint(folder, reason);
    let value = |name: &str| state.values.get(name).cloned().unwrap_or_default();
    check_settings(folder, &value("settings"), &config.identity())?;
    let mut parts =
        [(MODEL, BTreeMap::new()), (OPTIMISER, BTreeMap::new()), (EMA, BTreeMap::new())];
    for (name, tensor) in state.tensors {
        let part = parts.iter_mut().find_map(|(part, tensors)| {
            let name = name.strip_prefix(*part)?.strip_prefix('.')?.to_string();
            Some((tensors, name))
        });
        match part {
            Some((tensors, name)) => tensors.insert(name, tensor),
            None => return Err(foreign(format!("holds an unknown tensor {name}"))),
        };
    }
    let [(_, mut model), (_, moments), (_, averages)] = parts;
    for (name, tensor) in weights.state() {
        let saved = model
            .remove(&name)
            .ok_or_else(|| foreign(format!("holds another model: {name} is missing")))?;
        if saved.shape() != tensor.shape() {
            return Err(Error::shape(name, format!("{:?}", tensor.dims()), saved.dims()));
        }
        let saved = saved.to_device(tensor.device())?.to_dtype(tensor.dtype())?;
        // Parameters and buffers are variables: this is the same storage.
        Var::from_tensor(&tensor)?.set(&saved)?;
    }
    if let Some((name, _)) = model.first_key_value() {
        return Err(foreign(format!("holds another model: {name} is not part of this one")));
    }
    let steps = serde_json::from_value(value("updates"))
        .map_err(|error| foreign(format!("has a malformed count of updates: {error}")))?;
    optimiser.restore(&OptimiserState { tensors: moments, steps })?;
    ema.restore(&averages)?;
    task.restore(&value("task"))?;
    Ok(state.step)
}

#[cfg(test)]
mod tests;
