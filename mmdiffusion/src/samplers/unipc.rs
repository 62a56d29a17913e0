//! UniPC (Zhao et al., UniPC, 2023): a predictor and a corrector of any order from the values that a
//! multistep solver has anyway; with data prediction.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use super::exponential::{Expansion, Exponential, Factors, phi_1, phi_2};
use super::run::{Flow, Network, Stepper};
use super::time::{ModelTime, Point, Skip};
use crate::diffusion::{DiffusionConfig, Level};
use crate::state::State;

/// The function B(h) that scales the corrections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BasisScale {
    /// h.
    H,
    /// e^h - 1.
    #[default]
    Exponential,
}

/// Settings of UniPC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UniPc {
    /// Evaluations of the network, one a step.
    pub steps: usize,
    /// Order of the predictor, 1 to 3; the corrector adds one.
    pub order: usize,
    /// How times are chosen.
    pub skip: Skip,
    /// B(h).
    pub scale: BasisScale,
    /// Hold predicted clean clips within the bulk of their values.
    pub thresholding: bool,
    /// What the network is told about times between its steps.
    pub model_time: ModelTime,
}

impl Default for UniPc {
    fn default() -> Self {
        Self {
            steps: 20,
            order: 2,
            skip: Skip::LogSnr,
            scale: BasisScale::Exponential,
            thresholding: true,
            model_time: ModelTime::Whole,
        }
    }
}

impl UniPc {
    /// Fails when a setting is outside its domain.
    ///
    /// # Errors
    /// [`Error::Argument`] naming it.
    pub fn validate(&self) -> Result<()> {
        if (1..=3).contains(&self.order) {
            return Ok(());
        }
        Err(Error::Argument(format!("unipc: its order is 1 to 3, not {}", self.order)))
    }
}

/// The steps of UniPC on a grid of times. Step n evaluates the network at the state predicted for
/// its start, corrects that state with the value, and predicts the next one.
pub(super) struct UniPcSteps<S> {
    settings: UniPc,
    flow: Flow,
    grid: Vec<Point>,
    levels: Vec<Level>,
    /// Values at earlier times, the latest first.
    history: VecDeque<(Point, S)>,
}

impl<S: State> UniPcSteps<S> {
    pub fn new(settings: &UniPc, config: &DiffusionConfig) -> Result<Self> {
        let flow = Flow::new(config, settings.model_time, true, settings.thresholding)?;
        let grid = flow.timeline.grid(settings.skip, settings.steps);
        let levels = grid.iter().map(Point::level).collect();
        Ok(Self { settings: settings.clone(), flow, grid, levels, history: VecDeque::new() })
    }

    /// The order of the prediction made in step `index`: the values at hand allow no more at first,
    /// and the last steps gain nothing from more.
    fn order(&self, index: usize) -> usize {
        self.settings.order.min(index + 1).min(self.settings.steps.saturating_sub(index))
    }

    /// The change of the state at `t` by the differences of earlier values from the one at `s`, as
    /// predicted at `order` and, with the value `m_t` at `t`, as corrected.
    fn differences(
        &self,
        s: &Point,
        t: &Point,
        order: usize,
        m_t: Option<&S>,
    ) -> Result<Option<S>> {
        let Some((_, m)) = self.history.front() else { return Ok(None) };
        let h = f64::from(t.lambda) - f64::from(s.lambda);
        let earlier: Vec<(f64, &S)> = (self.history.iter().skip(1).take(order - 1))
            .map(|(time, value)| ((f64::from(time.lambda) - f64::from(s.lambda)) / h, value))
            .collect();
        let values: Vec<(f64, &S)> = earlier.into_iter().chain(m_t.map(|m_t| (1.0, m_t))).collect();
        let Factors { scale, g, .. } = exponential().factors(s, t);
        let basis = match self.settings.scale {
            BasisScale::H => g,
            BasisScale::Exponential => phi_1(g),
        };
        let shares: Vec<f64> = values.iter().map(|(share, _)| *share).collect();
        let mut terms = vec![];
        let mut of_m = 0.0;
        for (weight, (share, value)) in weights(&shares, g, basis).into_iter().zip(values) {
            let factor = scale * basis * weight / share;
            of_m -= factor;
            terms.push((factor, value));
        }
        if terms.is_empty() {
            return Ok(None);
        }
        terms.push((of_m, m));
        S::combine(&terms).map(Some)
    }
}

impl<S: State> Stepper<S> for UniPcSteps<S> {
    fn levels(&self) -> &[Level] {
        &self.levels
    }

    fn step(&mut self, index: usize, x: &S, network: &mut Network<S>) -> Result<S> {
        let (Some(s), Some(t)) = (self.grid.get(index), self.grid.get(index + 1)) else {
            return Ok(x.clone());
        };
        let m = self.flow.value(network, x, s)?;
        let mut x = x.clone();
        if let Some((before, _)) = self.history.front() {
            let order = self.order(index - 1);
            // The difference of the two keeps what guidance did to the state since.
            if let Some(predicted) = self.differences(before, s, order, None)? {
                x = S::combine(&[(1.0, &x), (-1.0, &predicted)])?;
            }
            if let Some(corrected) = self.differences(before, s, order, Some(&m))? {
                x = S::combine(&[(1.0, &x), (1.0, &corrected)])?;
            }
        }
        let first = exponential().first(&x, &m, s, t)?;
        self.history.push_front((*s, m));
        let stepped = match self.differences(s, t, self.order(index), None)? {
            Some(change) => S::combine(&[(1.0, &first), (1.0, &change)])?,
            None => first,
        };
        for (_, value) in &mut self.history {
            *value = value.detached()?;
        }
        self.history.truncate(self.settings.order);
        Ok(stepped)
    }
}

fn exponential() -> Exponential {
    Exponential { data: true, expansion: Expansion::DpmSolver, upstream: false }
}

/// The weights a of differences at the `shares` r of a step (equation 9): for k = 1, 2, ...,
/// `sum_i a_i r_i^(k-1) = k! phi_{k+1}(g) / B`, where `phi_{k+1}` is the integral of a monomial.
/// A single weight may be 1/2, whatever the step.
fn weights(shares: &[f64], g: f64, basis: f64) -> Vec<f64> {
    if shares.len() == 1 {
        return vec![0.5];
    }
    let mut phi = phi_2(g);
    let mut factorial = 1.0;
    let mut rows = vec![];
    for k in 0..shares.len() {
        let mut row: Vec<f64> = shares.iter().map(|share| share.powi(k as i32)).collect();
        row.push(factorial * phi / basis);
        rows.push(row);
        factorial *= (k + 2) as f64;
        phi = phi / g - 1.0 / factorial;
    }
    solved(rows)
}

/// The solution of linear equations whose last column is the right-hand side, by elimination with
/// row exchange; they must have one.
fn solved(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let count = rows.len();
    for column in 0..count {
        let pivot = (column..count)
            .max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))
            .unwrap_or(column);
        rows.swap(column, pivot);
        let pivot = rows[column].clone();
        for (index, row) in rows.iter_mut().enumerate() {
            if index != column {
                let factor = row[column] / pivot[column];
                row.iter_mut().zip(&pivot).for_each(|(value, above)| *value -= factor * above);
            }
        }
    }
    (0..count).map(|i| rows[i][count] / rows[i][i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_are_solved() {
        let rows =
            vec![vec![0.0, 2.0, 1.0, 5.0], vec![1.0, 1.0, 1.0, 4.0], vec![2.0, 0.0, -1.0, 1.0]];
        let solution = solved(rows);
        for (value, expected) in solution.iter().zip([1.0, 2.0, 1.0]) {
            assert!((value - expected).abs() < 1e-12, "{solution:?}");
        }
    }
}
