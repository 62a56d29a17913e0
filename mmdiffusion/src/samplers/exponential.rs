//! Updates of exponential integrators (Lu et al., DPM-Solver, 2022; DPM-Solver++, 2022).
//!
//! In lambda = log(alpha / sigma), the probability-flow equation is linear but for the network's
//! value m. Over a step of h it moves
//!
//! - with noise prediction, `x_t = alpha_t/alpha_s x - sigma_t I(h)`,
//! - with data prediction, `x_t = sigma_t/sigma_s x - alpha_t I(-h)`,
//!
//! where I(g) is the integral of `e^u m` over u from 0 to g; expanding m about s makes it
//! `phi_1(g) m + phi_2(g) m' + phi_3(g) m''`
//! with the derivatives per h. One formula serves both.

use serde::{Deserialize, Serialize};
use shared::Result;

use super::time::Point;
use crate::state::{Modality, State, weighted_sum};

/// How derivatives of the network's value enter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expansion {
    /// As the authors recommend: at order 2, half the factor of order 1.
    #[default]
    DpmSolver,
    /// As in a Taylor series.
    Taylor,
}

/// e^g - 1.
pub(super) fn phi_1(g: f64) -> f64 {
    g.exp_m1()
}

/// (e^g - 1 - g) / g.
pub(super) fn phi_2(g: f64) -> f64 {
    phi_1(g) / g - 1.0
}

/// (e^g - 1 - g - g^2 / 2) / g^2.
pub(super) fn phi_3(g: f64) -> f64 {
    phi_2(g) / g - 0.5
}

/// The updates for one kind of prediction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exponential {
    /// Data prediction.
    pub data: bool,
    /// How derivatives enter.
    pub expansion: Expansion,
    /// Follow the published code where it departs from this, see [`super::DpmSolver::upstream`].
    pub upstream: bool,
}

/// The factors of a step from one point to another.
pub(super) struct Factors {
    /// Factor of x.
    pub keep: f64,
    /// Factor of the integral.
    pub scale: f64,
    /// Its upper end: h, or -h with data prediction.
    pub g: f64,
}

impl Exponential {
    /// The factors of the step from `s` to `t`.
    pub fn factors(&self, s: &Point, t: &Point) -> Factors {
        let h = f64::from(t.lambda) - f64::from(s.lambda);
        if self.data {
            Factors {
                keep: f64::from(t.sigma) / f64::from(s.sigma),
                scale: -f64::from(t.alpha),
                g: -h,
            }
        } else {
            let keep = (f64::from(t.log_alpha) - f64::from(s.log_alpha)).exp();
            Factors { keep, scale: -f64::from(t.sigma), g: h }
        }
    }

    /// A step of order 1 with the value `m` at `s`.
    pub fn first<S: State>(&self, x: &S, m: &S, s: &Point, t: &Point) -> Result<S> {
        let Factors { keep, scale, g } = self.factors(s, t);
        S::each(|part| {
            let as_data = self.upstream && !self.data && part.modality == Modality::Audio;
            let (keep, scale) = if as_data {
                (f64::from(t.sigma) / f64::from(s.sigma), -f64::from(t.alpha))
            } else {
                (keep, scale)
            };
            weighted_sum([(keep, part.of(x)), (scale * phi_1(g), part.of(m))])
        })
    }

    /// The first inner point of a singlestep update: at `inner`, which lies the share `r` of the
    /// step's h after `s`.
    pub fn inner_first<S: State>(&self, x: &S, m: &S, s: &Point, inner: &Point) -> Result<S> {
        let Factors { keep, scale, g } = self.factors(s, inner);
        S::combine(&[(keep, x), (scale * phi_1(g), m)])
    }

    /// The second inner point, at the share `r2` of h, with the value `m1` at the share `r1`.
    pub fn inner_second<S: State>(
        &self,
        x: &S,
        [m, m1]: [&S; 2],
        s: &Point,
        inner: &Point,
        [r1, r2]: [f64; 2],
    ) -> Result<S> {
        let Factors { keep, scale, g } = self.factors(s, inner);
        let slope = scale * phi_2(g) * r2 / r1;
        S::combine(&[(keep, x), (scale * phi_1(g) - slope, m), (slope, m1)])
    }

    /// An update of order 2 with the values `m` at `s` and `m1` at the share `r1` of h: within the
    /// step, or negative and before it.
    pub fn second<S: State>(
        &self,
        x: &S,
        [m, m1]: [&S; 2],
        s: &Point,
        t: &Point,
        r1: f64,
    ) -> Result<S> {
        let Factors { keep, scale, g } = self.factors(s, t);
        let slope = scale * self.slope(g) / r1;
        S::combine(&[(keep, x), (scale * phi_1(g) - slope, m), (slope, m1)])
    }

    /// A singlestep update of order 3 with the values `m` at `s`, `m1` and `m2` at the shares `r1`
    /// and `r2` of h.
    pub fn third<S: State>(
        &self,
        x: &S,
        [m, m1, m2]: [&S; 3],
        s: &Point,
        t: &Point,
        [r1, r2]: [f64; 2],
    ) -> Result<S> {
        let Factors { keep, scale, g } = self.factors(s, t);
        match self.expansion {
            Expansion::DpmSolver => {
                let slope = scale * phi_2(g) / r2;
                S::combine(&[(keep, x), (scale * phi_1(g) - slope, m), (slope, m2)])
            }
            Expansion::Taylor => {
                let (slope, curve) = (scale * phi_2(g), scale * phi_3(g));
                // First and second differences of the values, as factors of them.
                let by_m1 = (slope * r2 - 2.0 * curve) / (r1 * (r2 - r1));
                let by_m2 = (2.0 * curve - slope * r1) / (r2 * (r2 - r1));
                let by_m = scale * phi_1(g) - by_m1 - by_m2;
                S::combine(&[(keep, x), (by_m, m), (by_m1, m1), (by_m2, m2)])
            }
        }
    }

    /// A multistep update of order 3 with the values `m0` at `s`, `m1` at the share `-r0` of h, and
    /// `m2` another `r1` before.
    pub fn multistep_third<S: State>(
        &self,
        x: &S,
        [m0, m1, m2]: [&S; 3],
        s: &Point,
        t: &Point,
        [r0, r1]: [f64; 2],
    ) -> Result<S> {
        let Factors { keep, scale, g } = self.factors(s, t);
        let half = if self.upstream { 0.5 } else { 1.0 };
        let (slope, curve) = (scale * phi_2(g), half * scale * phi_3(g));
        // D0 = (m0 - m1) / r0, D1 = (m1 - m2) / r1: the first derivative is D0 + r0 / (r0 + r1)
        // (D0 - D1), the second 2 (D0 - D1) / (r0 + r1).
        let difference = (slope * r0 + 2.0 * curve) / (r0 + r1);
        let (by_d0, by_d1) = ((slope + difference) / r0, -difference / r1);
        S::combine(&[(keep, x), (scale * phi_1(g) + by_d0, m0), (by_d1 - by_d0, m1), (-by_d1, m2)])
    }

    /// The factor of the first derivative at order 2.
    fn slope(&self, g: f64) -> f64 {
        match self.expansion {
            Expansion::DpmSolver => 0.5 * phi_1(g),
            Expansion::Taylor => phi_2(g),
        }
    }
}
