//! Learning rate schedules: pure functions of the step number.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A learning rate for every step. Steps count from 0; past its end, a schedule stays at its last
/// value, except [`Schedule::Cyclic`], which repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Always the same.
    Constant {
        /// The rate.
        lr: f64,
    },
    /// Linearly from 0 to `peak_lr`, then half a cosine down to `final_lr`.
    WarmupCosine {
        /// Highest rate, at step `warmup_steps`.
        peak_lr: f64,
        /// Steps of the rise.
        warmup_steps: u64,
        /// Step at which `final_lr` is reached.
        total_steps: u64,
        /// Rate at the end.
        #[serde(default)]
        final_lr: f64,
    },
    /// Linearly from 0 to `peak_lr`, then linearly down to `final_lr`.
    Linear {
        /// Highest rate, at step `warmup_steps`.
        peak_lr: f64,
        /// Steps of the rise.
        #[serde(default)]
        warmup_steps: u64,
        /// Step at which `final_lr` is reached.
        total_steps: u64,
        /// Rate at the end.
        #[serde(default)]
        final_lr: f64,
    },
    /// Up and down again and again (Smith 2017), as PyTorch's `CyclicLR`.
    Cyclic {
        /// Lowest rate.
        base_lr: f64,
        /// Highest rate of the first cycle.
        peak_lr: f64,
        /// Steps of a rise.
        up_steps: u64,
        /// Steps of a fall; as many as of a rise when not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        down_steps: Option<u64>,
        /// How later cycles differ from the first.
        #[serde(default)]
        mode: CyclicMode,
    },
    /// One rise to a high rate and a long fall to a very low one (Smith and Topin 2018), as
    /// PyTorch's `OneCycleLR` with two phases.
    OneCycle {
        /// Highest rate.
        peak_lr: f64,
        /// Length of the whole schedule.
        total_steps: u64,
        /// Share of it that rises.
        #[serde(default = "rise_share")]
        rise_share: f64,
        /// The first rate is `peak_lr` over this.
        #[serde(default = "start_divisor")]
        start_divisor: f64,
        /// The last rate is the first over this.
        #[serde(default = "final_divisor")]
        final_divisor: f64,
        /// Shape of rise and fall.
        #[serde(default)]
        anneal: Anneal,
    },
    /// Linear rise, plateau, exponential fall (SpecAugment, Park et al. 2019, section 4.2).
    TriStage {
        /// The plateau.
        peak_lr: f64,
        /// Steps of the rise.
        warmup_steps: u64,
        /// Steps of the plateau.
        hold_steps: u64,
        /// Steps of the fall.
        decay_steps: u64,
        /// First rate over `peak_lr`.
        #[serde(default = "edge_share")]
        start_share: f64,
        /// Last rate over `peak_lr`.
        #[serde(default = "edge_share")]
        final_share: f64,
    },
    /// One schedule after the other, each from its own step 0; the last goes on for ever.
    Sequence {
        /// The schedules in their order, of which there must be one.
        stages: Vec<Stage>,
    },
}

/// A part of [`Schedule::Sequence`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// How many steps the part takes.
    pub steps: u64,
    /// Its learning rates.
    pub schedule: Schedule,
}

/// How the cycles of [`Schedule::Cyclic`] change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CyclicMode {
    /// All cycles are alike.
    #[default]
    Triangular,
    /// Each cycle is half as high as the one before.
    Triangular2,
}

/// The curve between two rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// Half a period of a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
}

fn rise_share() -> f64 {
    0.3
}

fn start_divisor() -> f64 {
    25.0
}

fn final_divisor() -> f64 {
    1e4
}

fn edge_share() -> f64 {
    0.01
}

impl Anneal {
    /// The rate after `share` of the way from `start` to `end`.
    fn between(self, start: f64, end: f64, share: f64) -> f64 {
        match self {
            Self::Cosine => end + (start - end) / 2.0 * ((PI * share).cos() + 1.0),
            Self::Linear => start + (end - start) * share,
        }
    }
}

impl Schedule {
    /// The learning rate of `step`, which counts from 0.
    pub fn lr(&self, step: u64) -> f64 {
        match *self {
            Self::Constant { lr } => lr,
            Self::WarmupCosine { peak_lr, warmup_steps, total_steps, final_lr } => {
                warmup(Anneal::Cosine, peak_lr, warmup_steps, total_steps, final_lr, step)
            }
            Self::Linear { peak_lr, warmup_steps, total_steps, final_lr } => {
                warmup(Anneal::Linear, peak_lr, warmup_steps, total_steps, final_lr, step)
            }
            Self::Cyclic { base_lr, peak_lr, up_steps, down_steps, mode } => {
                let (up, down) = (up_steps as f64, down_steps.unwrap_or(up_steps) as f64);
                // The operations are in PyTorch's order, so that the rates agree to the last bit.
                let length = up + down;
                let peak_at = up / length;
                let cycle = (1.0 + step as f64 / length).floor();
                let share = 1.0 + step as f64 / length - cycle;
                let height = if share <= peak_at {
                    share / peak_at
                } else {
                    (share - 1.0) / (peak_at - 1.0)
                };
                let height = (peak_lr - base_lr) * height;
                base_lr
                    + height
                        * match mode {
                            CyclicMode::Triangular => 1.0,
                            CyclicMode::Triangular2 => 1.0 / 2f64.powf(cycle - 1.0),
                        }
            }
            Self::OneCycle {
                peak_lr,
                total_steps,
                rise_share,
                start_divisor,
                final_divisor,
                anneal,
            } => {
                let start_lr = peak_lr / start_divisor;
                let final_lr = start_lr / final_divisor;
                let last = total_steps.saturating_sub(1) as f64;
                let peak_at = rise_share * total_steps as f64 - 1.0;
                let step = (step as f64).min(last);
                if step <= peak_at {
                    anneal.between(start_lr, peak_lr, step / peak_at)
                } else {
                    anneal.between(peak_lr, final_lr, (step - peak_at) / (last - peak_at))
                }
            }
            Self::TriStage {
                peak_lr,
                warmup_steps,
                hold_steps,
                decay_steps,
                start_share,
                final_share,
            } => {
                if step < warmup_steps {
                    let share = step as f64 / warmup_steps as f64;
                    return Anneal::Linear.between(start_share * peak_lr, peak_lr, share);
                }
                let decayed = (step - warmup_steps).saturating_sub(hold_steps);
                if decayed == 0 {
                    return peak_lr;
                }
                let share = decayed.min(decay_steps) as f64 / decay_steps.max(1) as f64;
                peak_lr * final_share.powf(share)
            }
            Self::Sequence { ref stages } => {
                let mut step = step;
                let mut stages = stages.iter().peekable();
                while let Some(stage) = stages.next() {
                    if step < stage.steps || stages.peek().is_none() {
                        return stage.schedule.lr(step);
                    }
                    step -= stage.steps;
                }
                0.0
            }
        }
    }

    /// Fails unless every setting is in its domain.
    ///
    /// # Errors
    /// [`Error::Argument`] with the setting's name.
    pub fn validate(&self) -> Result<()> {
        let rates: &[(&str, f64)] = match *self {
            Self::Constant { lr } => &[("lr", lr)],
            Self::WarmupCosine { peak_lr, final_lr, .. }
            | Self::Linear { peak_lr, final_lr, .. } => {
                &[("peak_lr", peak_lr), ("final_lr", final_lr)]
            }
            Self::Cyclic { base_lr, peak_lr, .. } => &[("base_lr", base_lr), ("peak_lr", peak_lr)],
            Self::OneCycle { peak_lr, .. } => &[("peak_lr", peak_lr)],
            Self::TriStage { peak_lr, .. } => &[("peak_lr", peak_lr)],
            Self::Sequence { .. } => &[],
        };
        let bad = |name: &str, range: &str| {
            Err(Error::Argument(format!("schedule: {name} must be {range}")))
        };
        for (name, rate) in rates {
            if !(*rate >= 0.0 && rate.is_finite()) {
                return bad(name, "at least 0");
            }
        }
        match *self {
            Self::Constant { .. } => {}
            Self::WarmupCosine { warmup_steps, total_steps, .. }
            | Self::Linear { warmup_steps, total_steps, .. } => {
                if warmup_steps >= total_steps {
                    return bad("warmup_steps", "less than total_steps");
                }
            }
            Self::Cyclic { up_steps, down_steps, .. } => {
                if up_steps == 0 || down_steps == Some(0) {
                    return bad("up_steps and down_steps", "at least 1");
                }
            }
            Self::OneCycle { total_steps, rise_share, start_divisor, final_divisor, .. } => {
                if !(start_divisor >= 1.0 && final_divisor >= 1.0) {
                    return bad("start_divisor and final_divisor", "at least 1");
                }
                let risen = rise_share * total_steps as f64;
                if !(risen > 1.0 && risen < total_steps as f64) {
                    return bad("rise_share", "such that more than one step rises and one falls");
                }
            }
            Self::TriStage { start_share, final_share, .. } => {
                let share = |x: f64| x > 0.0 && x <= 1.0;
                if !(share(start_share) && share(final_share)) {
                    return bad("start_share and final_share", "above 0 and at most 1");
                }
            }
            Self::Sequence { ref stages } => {
                if stages.is_empty() {
                    return bad("stages", "at least one");
                }
                stages.iter().try_for_each(|stage| stage.schedule.validate())?;
            }
        }
        Ok(())
    }
}

fn warmup(
    anneal: Anneal,
    peak_lr: f64,
    warmup_steps: u64,
    total_steps: u64,
    final_lr: f64,
    step: u64,
) -> f64 {
    if step < warmup_steps {
        return peak_lr * step as f64 / warmup_steps as f64;
    }
    if step >= total_steps {
        return final_lr;
    }
    let share = (step - warmup_steps) as f64 / (total_steps - warmup_steps) as f64;
    anneal.between(peak_lr, final_lr, share)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(json: &str) -> Schedule {
        serde_json::from_str(json).unwrap()
    }

    /// Schedules beside the rates that torch 2.15's `torch.optim.lr_scheduler` gives for them.
    #[rustfmt::skip]
    fn references() -> Vec<(Schedule, Vec<f64>)> {
        vec![
            (
                // CyclicLR(opt, 0.001, 0.1, step_size_up=3, step_size_down=5, mode="triangular")
                parse(
                    r#"{"kind": "cyclic", "base_lr": 0.001,
                        "peak_lr": 0.1, "up_steps": 3, "down_steps": 5}"#,
                ),
                vec![
                    0.001, 0.034, 0.067, 0.1, 0.08020000000000001, 0.0604, 0.040600000000000004,
                    0.020800000000000003, 0.001, 0.034, 0.067, 0.1, 0.08020000000000001, 0.0604,
                    0.040600000000000004, 0.020800000000000003, 0.001, 0.034, 0.067, 0.1,
                ],
            ),
            (
                // CyclicLR(opt, 0.001, 0.1, step_size_up=4, mode="triangular2")
                parse(
                    r#"{"kind": "cyclic", "base_lr": 0.001, "peak_lr": 0.1,
                        "up_steps": 4, "mode": "triangular2"}"#,
                ),
                vec![
                    0.001, 0.025750000000000002, 0.0505, 0.07525000000000001, 0.1,
                    0.07525000000000001, 0.0505, 0.025750000000000002, 0.001,
                    0.013375000000000001, 0.025750000000000002, 0.038125000000000006, 0.0505,
                    0.038125000000000006, 0.025750000000000002, 0.013375000000000001, 0.001,
                    0.0071875, 0.013375000000000001, 0.019562500000000003,
                ],
            ),
            (
                // CyclicLR(opt, 1e-8, 1e-3, step_size_up=10, mode="triangular2")
                parse(
                    r#"{"kind": "cyclic", "base_lr": 1e-8, "peak_lr": 1e-3,
                        "up_steps": 10, "mode": "triangular2"}"#,
                ),
                vec![
                    1e-08, 0.00010000900000000009, 0.0002000080000000002, 0.00030000699999999987,
                    0.00040000599999999995, 0.0005000050000000001, 0.0006000040000000002,
                    0.0007000030000000003, 0.000800002, 0.000900001, 0.001, 0.000900001,
                    0.000800002, 0.0007000030000000003, 0.0006000040000000002,
                    0.0005000050000000001, 0.00040000599999999995, 0.00030000699999999987,
                    0.0002000080000000002, 0.00010000900000000009, 1e-08, 5.000949999999983e-05,
                ],
            ),
            (
                // OneCycleLR(opt, max_lr=0.1, total_steps=12, pct_start=.3)
                parse(r#"{"kind": "one_cycle", "peak_lr": 0.1, "total_steps": 12}"#),
                vec![
                    0.0040000000000000036, 0.0349789654219583, 0.08792851591221287,
                    0.09944154354509119, 0.09330129698414118, 0.0811745653949763,
                    0.06473789976951033, 0.046263710266697504, 0.028306099820869922,
                    0.01334775301888306, 0.0034566987425395223, 4e-07,
                ],
            ),
        ]
    }

    #[test]
    fn cyclic_and_one_cycle_agree_with_pytorch() {
        for (schedule, expected) in references() {
            schedule.validate().unwrap();
            for (step, expected) in expected.into_iter().enumerate() {
                let got = schedule.lr(step as u64);
                assert!((got - expected).abs() <= 1e-15, "{schedule:?} {step}: {got} {expected}");
            }
        }
    }

    #[test]
    fn landmarks_of_the_other_schedules() {
        let cases = [
            (r#"{"kind": "constant", "lr": 0.5}"#, vec![(0, 0.5), (1_000_000, 0.5)]),
            (
                r#"{"kind": "warmup_cosine", "peak_lr": 1.0,
                    "warmup_steps": 10, "total_steps": 110, "final_lr": 0.2}"#,
                vec![(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.6), (110, 0.2), (10_000, 0.2)],
            ),
            (
                r#"{"kind": "linear", "peak_lr": 1.0, "warmup_steps": 4, "total_steps": 12}"#,
                vec![(0, 0.0), (1, 0.25), (4, 1.0), (6, 0.75), (12, 0.0), (13, 0.0)],
            ),
            (
                r#"{"kind": "linear", "peak_lr": 1.0, "total_steps": 10, "final_lr": 0.5}"#,
                vec![(0, 1.0), (5, 0.75), (10, 0.5)],
            ),
            (
                r#"{"kind": "tri_stage", "peak_lr": 2.0, "warmup_steps": 10, "hold_steps": 20,
                    "decay_steps": 40, "start_share": 0.1, "final_share": 0.25}"#,
                vec![(0, 0.2), (5, 1.1), (10, 2.0), (30, 2.0), (50, 1.0), (70, 0.5), (99, 0.5)],
            ),
            (
                r#"{"kind": "one_cycle", "peak_lr": 1.0, "total_steps": 12, "anneal": "linear",
                    "rise_share": 0.5, "start_divisor": 10, "final_divisor": 1}"#,
                vec![(0, 0.1), (5, 1.0), (8, 0.55), (11, 0.1), (50, 0.1)],
            ),
            (
                r#"{"kind": "sequence", "stages": [
                    {"steps": 3, "schedule": {"kind": "constant", "lr": 0.5}},
                    {"steps": 4, "schedule": {"kind": "linear", "peak_lr": 1, "total_steps": 4}},
                    {"steps": 10, "schedule": {"kind": "constant", "lr": 0.25}}]}"#,
                vec![(0, 0.5), (2, 0.5), (3, 1.0), (5, 0.5), (7, 0.25), (1000, 0.25)],
            ),
        ];
        for (json, landmarks) in cases {
            let schedule = parse(json);
            schedule.validate().unwrap();
            assert_eq!(parse(&serde_json::to_string(&schedule).unwrap()), schedule);
            for (step, expected) in landmarks {
                let got = schedule.lr(step);
                assert!((got - expected).abs() < 1e-12, "{json} {step}: {got} {expected}");
            }
        }
    }

    #[test]
    fn settings_outside_their_domain_and_unknown_settings_are_refused() {
        for json in [
            r#"{"kind": "sequence", "stages": []}"#,
            r#"{"kind": "constant", "lr": -1}"#,
            r#"{"kind": "warmup_cosine", "peak_lr": 1, "warmup_steps": 10, "total_steps": 10}"#,
            r#"{"kind": "linear", "peak_lr": 1, "total_steps": 0}"#,
            r#"{"kind": "cyclic", "base_lr": 0, "peak_lr": 1, "up_steps": 0}"#,
            r#"{"kind": "cyclic", "base_lr": 0, "peak_lr": 1, "up_steps": 1, "down_steps": 0}"#,
            r#"{"kind": "one_cycle", "peak_lr": 1, "total_steps": 3}"#,
            r#"{"kind": "one_cycle", "peak_lr": 1, "total_steps": 30, "rise_share": 1}"#,
            r#"{"kind": "one_cycle", "peak_lr": 1, "total_steps": 30, "start_divisor": 0}"#,
            r#"{"kind": "tri_stage", "peak_lr": 1, "warmup_steps": 1,
                "hold_steps": 1, "decay_steps": 1, "final_share": 0}"#,
        ] {
            assert!(parse(json).validate().is_err(), "{json}");
            let nested =
                json!({"kind": "sequence", "stages": [{"steps": 1, "schedule": parse(json)}]});
            assert!(parse(&nested.to_string()).validate().is_err(), "{nested}");
        }
        for json in
            [r#"{"kind": "constant", "lr": 1, "gamma": 2}"#, r#"{"lr": 1}"#, r#"{"kind": "step"}"#]
        {
            assert!(serde_json::from_str::<Schedule>(json).is_err(), "{json}");
        }
    }
}
