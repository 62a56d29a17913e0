//! DPM-Solver with steps as long as the error allows (Lu et al. 2022a, appendix C).

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use super::dpm_solver::DpmSolver;
use super::exponential::Exponential;
use super::run::{Flow, Loop, Network};
use super::time::Point;
use crate::diffusion::DiffusionConfig;
use crate::state::State;

/// First step tried, in lambda.
const FIRST_STEP: f32 = 0.05;
/// Share of the step that the error would allow which is tried next.
const CAUTION: f32 = 0.9;
/// The end counts as reached when time is as near to it.
const END_TOLERANCE: f32 = 1e-5;
/// Most steps tried; many times what any smooth network needs.
const MOST_TRIALS: usize = 100_000;

/// The error that a step may make.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tolerance {
    /// Error of small values.
    pub absolute: f64,
    /// Error in relation to large values.
    pub relative: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { absolute: 0.0078, relative: 0.05 }
    }
}

impl Tolerance {
    /// Fails unless some error is tolerated.
    ///
    /// # Errors
    /// [`Error::Argument`] with both numbers.
    pub fn validate(&self) -> Result<()> {
        let Self { absolute, relative } = *self;
        if absolute > 0.0 && relative >= 0.0 && absolute.is_finite() && relative.is_finite() {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "adaptive solver: its tolerance must be above 0, not {absolute} and {relative}"
        )))
    }
}

/// Solves from `x` at the start of time to its end.
///
/// # Errors
/// Those of the network and the observer; when the error stays too large.
pub(super) fn solve<S: State>(
    run: &mut Loop<S>,
    settings: &DpmSolver,
    tolerance: Tolerance,
    config: &DiffusionConfig,
    x: S,
) -> Result<S> {
    let flow = settings.flow(config)?;
    let exponential = settings.exponential();
    let (mut s, end) = (flow.timeline.start(), flow.timeline.end());
    let mut h = FIRST_STEP;
    let mut accepted = 0;
    let (mut x, mut previous) = (x.clone(), x);
    for _ in 0..MOST_TRIALS {
        if (s.time - end.time).abs() <= END_TOLERANCE {
            break;
        }
        let t = flow.timeline.at_lambda(s.lambda + h);
        let constrained = run.network.constrained(&x, s.level())?;
        let trial = Trial { flow: &flow, exponential: &exponential, order: settings.order };
        let [lower, higher] = trial.step(&mut run.network, &constrained, &s, &t)?;
        let error = error(&lower, &higher, &previous, tolerance)?;
        if !error.is_finite() {
            higher.check_finite(|| format!("after step {} of an adaptive solver", accepted + 1))?;
            return Err(Error::NonFinite { what: "the error of an adaptive solver".to_string() });
        }
        if error <= 1.0 {
            accepted += 1;
            x = run.stepped(higher, accepted, None)?;
            previous = lower;
            s = t;
        }
        h = (CAUTION * h * error.powf(-1.0 / settings.order as f32)).min(end.lambda - s.lambda);
    }
    if (s.time - end.time).abs() > END_TOLERANCE {
        return Err(Error::Argument(format!(
            "adaptive solver: the error is still too large after {MOST_TRIALS} steps; raise its \
             tolerance or take a solver with a fixed number of steps"
        )));
    }
    if settings.denoise {
        let constrained = run.network.constrained(&x, end.level())?;
        x = flow.denoised(&mut run.network, &constrained, &end)?;
        x = run.stepped(x, accepted + 1, None)?;
    }
    Ok(x)
}

/// A step with two orders that share their values.
struct Trial<'a> {
    flow: &'a Flow,
    exponential: &'a Exponential,
    order: usize,
}

impl Trial<'_> {
    /// The states at `t` by the lower and by the higher order.
    fn step<S: State>(
        &self,
        network: &mut Network<S>,
        x: &S,
        s: &Point,
        t: &Point,
    ) -> Result<[S; 2]> {
        let Self { flow, exponential, order } = self;
        let inner = |share: f64| flow.timeline.between(s, t, share as f32);
        let [r1, r2] = if *order == 2 { [0.5, 1.0] } else { [1.0 / 3.0, 2.0 / 3.0] };
        let m = flow.value(network, x, s)?;
        let first = inner(r1);
        let x1 = exponential.inner_first(x, &m, s, &first)?;
        let m1 = flow.value(network, &x1, &first)?;
        let second = exponential.second(x, [&m, &m1], s, t, r1)?;
        if *order == 2 {
            return Ok([exponential.first(x, &m, s, t)?, second]);
        }
        let last = inner(r2);
        let x2 = exponential.inner_second(x, [&m, &m1], s, &last, [r1, r2])?;
        let m2 = flow.value(network, &x2, &last)?;
        Ok([second, exponential.third(x, [&m, &m1, &m2], s, t, [r1, r2])?])
    }
}

/// The largest error over modalities and samples, in units of what is tolerated.
fn error<S: State>(lower: &S, higher: &S, previous: &S, tolerance: Tolerance) -> Result<f32> {
    let mut largest = 0.0f32;
    S::each(|part| {
        let (lower, higher) = (part.of(lower), part.of(higher));
        let size = lower.abs()?.maximum(&part.of(previous).abs()?)?;
        let allowed = size.affine(tolerance.relative, 0.0)?.maximum(tolerance.absolute as f32)?;
        let ratio = ((higher - lower)? / allowed)?.sqr()?.flatten_from(1)?;
        for mean in ratio.mean(1)?.to_vec1::<f32>()? {
            let error = mean.sqrt();
            // `max` alone would forget a NaN.
            largest = if error.is_nan() { error } else { largest.max(error) };
        }
        Ok(ratio)
    })?;
    Ok(largest)
}
