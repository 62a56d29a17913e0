//! DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use super::adaptive::Tolerance;
use super::exponential::{Expansion, Exponential};
use super::run::{Flow, Network, Stepper};
use super::time::{ModelTime, Point, Skip};
use crate::diffusion::{DiffusionConfig, Level};
use crate::state::State;

/// How a solver of some order gets on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Each step evaluates the network as often as its order; the last ones are of lower order, so
    /// that the evaluations are as many as asked for.
    #[default]
    Singlestep,
    /// As many steps of the order as fit into the evaluations.
    SinglestepFixed,
    /// Each step evaluates the network once and takes up the values before.
    Multistep,
    /// Steps as long as the error, estimated with two orders, allows. All samples of a batch make
    /// the same steps.
    Adaptive(Tolerance),
}

/// Settings of DPM-Solver, and of DPM-Solver++ with [`DpmSolver::data_prediction`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpmSolver {
    /// Evaluations of the network; an adaptive solver takes as many as it needs.
    pub steps: usize,
    /// Order of the steps, 1 to 3; 2 or 3 of an adaptive solver.
    pub order: usize,
    /// How it gets on.
    pub method: Method,
    /// How times are chosen; not by an adaptive solver.
    pub skip: Skip,
    /// Solve for the clean clip (DPM-Solver++) instead of for the noise.
    pub data_prediction: bool,
    /// How derivatives enter.
    pub expansion: Expansion,
    /// Hold predicted clean clips within the bulk of their values (with data prediction).
    pub thresholding: bool,
    /// End with the clean clip predicted at the last time: an evaluation more.
    pub denoise: bool,
    /// What the network is told about times between its steps.
    pub model_time: ModelTime,
    /// Follow the published code where it departs from the mathematics: in steps of order 1 with
    /// noise prediction it moves audio by factors of data prediction, and in multistep updates of
    /// order 3 it takes half the second derivative.
    pub upstream: bool,
}

impl Default for DpmSolver {
    /// The published DPM-Solver: 20 evaluations at order 3.
    fn default() -> Self {
        Self {
            steps: 20,
            order: 3,
            method: Method::Singlestep,
            skip: Skip::LogSnr,
            data_prediction: false,
            expansion: Expansion::DpmSolver,
            thresholding: false,
            denoise: false,
            model_time: ModelTime::Whole,
            upstream: false,
        }
    }
}

impl DpmSolver {
    /// DPM-Solver++ with thresholding, multistep of order 2, in `steps` evaluations: what its
    /// authors recommend for guided sampling.
    pub fn plus_plus(steps: usize) -> Self {
        Self {
            steps,
            order: 2,
            method: Method::Multistep,
            data_prediction: true,
            thresholding: true,
            ..Self::default()
        }
    }

    /// The published DPM-Solver++: adaptive of order 2, with thresholding.
    pub fn adaptive() -> Self {
        Self { method: Method::Adaptive(Tolerance::default()), ..Self::plus_plus(20) }
    }

    /// Fails when a setting is outside its domain.
    ///
    /// # Errors
    /// [`Error::Argument`] naming it.
    pub fn validate(&self) -> Result<()> {
        let least = match self.method {
            Method::Adaptive(tolerance) => {
                tolerance.validate()?;
                2
            }
            _ => 1,
        };
        if !(least..=3).contains(&self.order) {
            return Err(Error::Argument(format!(
                "dpm solver: its order is {least} to 3, not {}",
                self.order
            )));
        }
        if self.steps < self.order && !matches!(self.method, Method::Singlestep) {
            return Err(Error::Argument(format!(
                "dpm solver: {} steps are too few for order {}",
                self.steps, self.order
            )));
        }
        Ok(())
    }

    pub(super) fn flow(&self, config: &DiffusionConfig) -> Result<Flow> {
        Flow::new(config, self.model_time, self.data_prediction, self.thresholding)
    }

    pub(super) fn exponential(&self) -> Exponential {
        Exponential {
            data: self.data_prediction,
            expansion: self.expansion,
            upstream: self.upstream,
        }
    }
}

/// The orders of singlestep steps that make `steps` evaluations, the highest first.
pub fn singlestep_orders(steps: usize, order: usize) -> Vec<usize> {
    let repeated = |count: usize, rest: &[usize]| [vec![order; count], rest.to_vec()].concat();
    let (whole, rest) = (steps / order.max(1), steps % order.max(1));
    match (order, rest) {
        // Three evaluations are better spent on two steps than on one.
        (3, 0) => repeated(whole.saturating_sub(1), if whole == 0 { &[] } else { &[2, 1] }),
        (_, 0) => repeated(whole, &[]),
        (_, rest) => repeated(whole, &[rest]),
    }
}

/// What one step does.
#[derive(Clone, Copy, Debug)]
struct Planned {
    from: Point,
    to: Point,
    order: usize,
    /// Shares of the step at which its inner points lie.
    inner: [f32; 2],
}

/// The steps of a solver on a grid of times.
pub(super) struct GridSteps<S> {
    flow: Flow,
    exponential: Exponential,
    plan: Vec<Planned>,
    levels: Vec<Level>,
    multistep: bool,
    /// Values at earlier times, the latest first.
    history: VecDeque<(Point, S)>,
}

impl<S: State> GridSteps<S> {
    pub fn new(settings: &DpmSolver, config: &DiffusionConfig) -> Result<Self> {
        let flow = settings.flow(config)?;
        let &DpmSolver { steps, order, skip, .. } = settings;
        let orders = match settings.method {
            Method::Singlestep => singlestep_orders(steps, order),
            Method::SinglestepFixed => vec![order; steps / order],
            Method::Multistep | Method::Adaptive(_) => (1..=steps).map(|i| i.min(order)).collect(),
        };
        let multistep = !matches!(settings.method, Method::Singlestep | Method::SinglestepFixed);
        let strides: Vec<usize> =
            orders.iter().map(|order| if multistep { 1 } else { *order }).collect();
        let grid = flow.timeline.grid(skip, strides.iter().sum());
        let plan = plan(&grid, &orders, &strides);
        let mut levels: Vec<Level> = plan.iter().map(|step| step.from.level()).collect();
        levels.extend(grid.last().map(Point::level));
        levels.extend(settings.denoise.then_some(Level::CLEAN));
        let exponential = settings.exponential();
        Ok(Self { flow, exponential, plan, levels, multistep, history: VecDeque::new() })
    }

    fn single_step(&self, x: &S, step: &Planned, network: &mut Network<S>) -> Result<S> {
        let Planned { from, to, order, inner: [r1, r2] } = step;
        let Self { flow, exponential, .. } = self;
        let m = flow.value(network, x, from)?;
        let inner = |share: &f32| flow.timeline.between(from, to, *share);
        let shares = [f64::from(*r1), f64::from(*r2)];
        if *order == 1 {
            return exponential.first(x, &m, from, to);
        }
        let first = inner(r1);
        let x1 = exponential.inner_first(x, &m, from, &first)?;
        let m1 = flow.value(network, &x1, &first)?;
        if *order == 2 {
            return exponential.second(x, [&m, &m1], from, to, shares[0]);
        }
        let second = inner(r2);
        let x2 = exponential.inner_second(x, [&m, &m1], from, &second, shares)?;
        let m2 = flow.value(network, &x2, &second)?;
        exponential.third(x, [&m, &m1, &m2], from, to, shares)
    }

    fn multi_step(&mut self, x: &S, step: &Planned, network: &mut Network<S>) -> Result<S> {
        let Planned { from, to, order, .. } = step;
        let m = self.flow.value(network, x, from)?;
        let h = f64::from(to.lambda) - f64::from(from.lambda);
        let share = |later: &Point, earlier: &Point| {
            (f64::from(later.lambda) - f64::from(earlier.lambda)) / h
        };
        let mut before = self.history.iter();
        let stepped = match (order, before.next(), before.next()) {
            (2, Some((time, m1)), _) => {
                self.exponential.second(x, [&m, m1], from, to, -share(from, time))
            }
            (3, Some((time1, m1)), Some((time2, m2))) => {
                let shares = [share(from, time1), share(time1, time2)];
                self.exponential.multistep_third(x, [&m, m1, m2], from, to, shares)
            }
            _ => self.exponential.first(x, &m, from, to),
        }?;
        self.history.push_front((*from, m.detached()?));
        self.history.truncate(2);
        Ok(stepped)
    }
}

impl<S: State> Stepper<S> for GridSteps<S> {
    fn levels(&self) -> &[Level] {
        &self.levels
    }

    fn step(&mut self, index: usize, x: &S, network: &mut Network<S>) -> Result<S> {
        match self.plan.get(index).copied() {
            Some(step) if self.multistep => self.multi_step(x, &step, network),
            Some(step) => self.single_step(x, &step, network),
            None => self.flow.denoised(network, x, &self.flow.timeline.end()),
        }
    }
}

/// The steps of `orders` over `grid`, each over as many of its points as `strides` says.
fn plan(grid: &[Point], orders: &[usize], strides: &[usize]) -> Vec<Planned> {
    let mut start = 0;
    orders
        .iter()
        .zip(strides)
        .filter_map(|(order, stride)| {
            let points = grid.get(start..=start + stride)?;
            start += stride;
            let (from, to) = (points.first()?, points.last()?);
            let share = |index: usize| {
                let lambda = points.get(index).map_or(to.lambda, |point| point.lambda);
                (lambda - from.lambda) / (to.lambda - from.lambda)
            };
            Some(Planned { from: *from, to: *to, order: *order, inner: [share(1), share(2)] })
        })
        .collect()
}
