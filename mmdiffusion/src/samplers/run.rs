//! What all samplers share: the loop over their steps, and what is asked and told there.

use candle_core::{Device, Tensor};
use shared::{Error, Result};

use super::time::{ModelTime, Point, Timeline};
use crate::conditioning::Condition;
use crate::diffusion::{Diffusion, DiffusionConfig, Level};
use crate::pair::Denoiser;
use crate::state::State;

/// One sampling of a batch.
pub struct Run<'a, S> {
    /// The network.
    pub denoiser: &'a dyn Denoiser<S>,
    /// The process that it was trained for.
    pub diffusion: &'a DiffusionConfig,
    /// What is known of the clips beforehand.
    pub condition: Option<&'a Condition<S>>,
    /// Draws standard normal noise of the shape of a state. A stochastic sampler asks once a step,
    /// the last included.
    pub noise: &'a mut dyn FnMut(&S) -> Result<S>,
    /// Told about every step; its error ends the run, [`Error::Interrupted`] for instance.
    pub on_step: &'a mut dyn FnMut(&Step<S>) -> Result<()>,
}

/// What a sampler tells after a step.
pub struct Step<'a, S> {
    /// Name of the sampler.
    pub sampler: &'static str,
    /// Number of the step, from 1.
    pub number: usize,
    /// Number of steps; unknown to an adaptive solver.
    pub steps: Option<usize>,
    /// Evaluations of the network so far.
    pub evaluations: usize,
    /// The state after the step.
    pub x: &'a S,
    /// The clean clips as last predicted.
    pub clean: &'a S,
}

/// The steps of a sampler.
pub(super) trait Stepper<S> {
    /// The noise before each step and after the last.
    fn levels(&self) -> &[Level];

    /// The state after step `index`, of `x` before it.
    fn step(&mut self, index: usize, x: &S, network: &mut Network<S>) -> Result<S>;
}

/// The network as samplers ask it.
pub(super) struct Network<'a, S> {
    denoiser: &'a dyn Denoiser<S>,
    condition: Option<&'a Condition<S>>,
    noise: &'a mut dyn FnMut(&S) -> Result<S>,
    sampler: &'static str,
    /// Number of the step that is made.
    step: usize,
    evaluations: usize,
    clean: Option<S>,
}

impl<'a, S: State> Network<'a, S> {
    /// The output for `x` before step `t` of `diffusion`, and the clean clips that it predicts, held
    /// within -1..1 with `clip`.
    pub fn clean(
        &mut self,
        diffusion: &Diffusion,
        x: &S,
        t: &[usize],
        clip: bool,
    ) -> Result<(S, S)> {
        let output = self.output(x, &diffusion.model_times(t)?)?;
        let clean = S::each(|part| {
            let axis = part.modality.channel_axis();
            diffusion.predicted_clean(part.of(x), part.of(&output), t, axis, clip)
        })?;
        self.predicted(&clean)?;
        Ok((output, clean))
    }

    /// The noise in `x` at `level`, where the network is given `model_time`.
    pub fn epsilon(
        &mut self,
        diffusion: &Diffusion,
        x: &S,
        level: Level,
        model_time: f64,
    ) -> Result<S> {
        let output = self.output(x, &vec![model_time; x.batch()?])?;
        S::each(|part| {
            let axis = part.modality.channel_axis();
            diffusion.epsilon(part.of(x), part.of(&output), level, axis)
        })
    }

    fn output(&mut self, x: &S, model_times: &[f64]) -> Result<S> {
        let times: Vec<f32> = model_times.iter().map(|time| *time as f32).collect();
        let device = x.tensors().first().map_or(Device::Cpu, |(_, tensor)| tensor.device().clone());
        let times = Tensor::from_vec(times, model_times.len(), &device)?;
        let output = self.denoiser.predict(x, &times, self.evaluations)?;
        self.evaluations += 1;
        // Where clean clips are held within -1..1, infinities would not be seen in the state.
        let Self { step, sampler, .. } = self;
        let place = || format!("that the network predicts in step {step} of sampler {sampler}");
        output.detached()?.check_finite(place)?;
        Ok(output)
    }

    /// `x` with what is known put in.
    pub fn constrained(&self, x: &S, level: Level) -> Result<S> {
        match self.condition {
            Some(condition) => condition.constrain(x, level),
            None => Ok(x.clone()),
        }
    }

    /// Notes the clean clips as predicted, for the user to see.
    pub fn predicted(&mut self, clean: &S) -> Result<()> {
        self.clean = Some(clean.detached()?);
        Ok(())
    }

    /// Fresh noise of the shape of `x`.
    pub fn noise(&mut self, x: &S) -> Result<S> {
        (self.noise)(x)
    }
}

/// The parts of a run while it lasts.
pub(super) struct Loop<'a, S> {
    sampler: &'static str,
    /// The network.
    pub network: Network<'a, S>,
    on_step: &'a mut dyn FnMut(&Step<S>) -> Result<()>,
}

impl<'a, S: State> Loop<'a, S> {
    pub fn new(sampler: &'static str, run: Run<'a, S>) -> Self {
        let Run { denoiser, condition, noise, on_step, diffusion: _ } = run;
        let network =
            Network { denoiser, condition, noise, sampler, step: 1, evaluations: 0, clean: None };
        Self { sampler, network, on_step }
    }

    /// Makes all steps from `x` on.
    pub fn drive(&mut self, stepper: &mut dyn Stepper<S>, x: S) -> Result<S> {
        let levels = stepper.levels().to_vec();
        let steps = levels.len().saturating_sub(1);
        let mut x = x;
        for (index, ends) in levels.windows(2).enumerate() {
            let &[from, to] = ends else { continue };
            let network = &mut self.network;
            let stepped = match network.condition {
                Some(condition) => {
                    condition.step(&x, from, to, &mut |x| stepper.step(index, x, network))?
                }
                None => stepper.step(index, &x, network)?,
            };
            x = self.stepped(stepped, index + 1, Some(steps))?;
        }
        Ok(x)
    }

    /// Checks the state after a step and tells about it.
    pub fn stepped(&mut self, x: S, number: usize, steps: Option<usize>) -> Result<S> {
        let x = x.detached()?;
        let sampler = self.sampler;
        x.check_finite(|| {
            let of = steps.map(|steps| format!(" of {steps}")).unwrap_or_default();
            format!("after step {number}{of} of sampler {sampler}")
        })?;
        self.network.step = number + 1;
        let clean = self.network.clean.as_ref().unwrap_or(&x);
        let evaluations = self.network.evaluations;
        (self.on_step)(&Step { sampler, number, steps, evaluations, x: &x, clean })?;
        Ok(x)
    }
}

/// The probability-flow equation that solvers follow: what the network says at a time.
pub(super) struct Flow {
    diffusion: Diffusion,
    /// The noise at every time.
    pub timeline: Timeline,
    /// What the network is told about time.
    pub model_time: ModelTime,
    /// Solve for the clean clip (data prediction) instead of for the noise.
    pub data: bool,
    /// Hold clean clips within the bulk of their own values.
    pub thresholding: bool,
}

impl Flow {
    pub fn new(
        config: &DiffusionConfig,
        model_time: ModelTime,
        data: bool,
        thresholding: bool,
    ) -> Result<Self> {
        if thresholding && !data {
            return Err(Error::Argument(
                "thresholding needs data prediction, that is DPM-Solver++".to_string(),
            ));
        }
        let diffusion = Diffusion::new(config, &crate::diffusion::Spacing::All)?;
        let timeline = Timeline::new(config, &diffusion.coefficients().alphas_cumprod);
        Ok(Self { diffusion, timeline, model_time, data, thresholding })
    }

    /// The noise or, with data prediction, the clean clip that the network sees in `x` at `point`.
    pub fn value<S: State>(&self, network: &mut Network<S>, x: &S, point: &Point) -> Result<S> {
        let time = self.timeline.model_time(point, self.model_time);
        let x = &network.constrained(x, point.level())?;
        let epsilon = network.epsilon(&self.diffusion, x, point.level(), time)?;
        let clean = self.clean(x, &epsilon, point)?;
        network.predicted(&clean)?;
        Ok(if self.data { clean } else { epsilon })
    }

    /// The clean clip at `x`, thresholded where that is wanted.
    pub fn denoised<S: State>(&self, network: &mut Network<S>, x: &S, point: &Point) -> Result<S> {
        let value = self.value(network, x, point)?;
        if self.data { Ok(value) } else { self.clean(x, &value, point) }
    }

    fn clean<S: State>(&self, x: &S, epsilon: &S, point: &Point) -> Result<S> {
        let Level { alpha, sigma } = point.level();
        let clean = S::combine(&[(1.0 / alpha, x), (-sigma / alpha, epsilon)])?;
        if !self.thresholding {
            return Ok(clean);
        }
        S::each(|part| super::threshold::within_bulk(part.of(&clean)))
    }
}
