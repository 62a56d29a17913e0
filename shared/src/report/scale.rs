//! Axes: how values become places, and where the ticks are.

use crate::eval::verification::probit;

/// One axis of a [`super::Plot`].
#[derive(Clone, Debug)]
pub struct Axis {
    pub(super) label: String,
    kind: Kind,
    range: Option<(f64, f64)>,
}

#[derive(Clone, Debug)]
enum Kind {
    Linear,
    Log,
    Probit,
    Categories(Vec<String>),
}

impl Axis {
    /// An axis on which equal differences have equal lengths.
    pub fn linear(label: &str) -> Self {
        Self::new(label, Kind::Linear)
    }

    /// An axis on which equal ratios have equal lengths; values that are not positive are left out.
    pub fn log(label: &str) -> Self {
        Self::new(label, Kind::Log)
    }

    /// An axis for error rates from 0 to 1, shown in percent, on which the errors of normally
    /// distributed scores lie on a straight line (the axes of a DET plot).
    pub fn probit(label: &str) -> Self {
        Self::new(label, Kind::Probit)
    }

    /// An axis with a place for each name, for bars.
    pub fn categories<S: ToString>(label: &str, names: impl IntoIterator<Item = S>) -> Self {
        let names = names.into_iter().map(|name| name.to_string()).collect();
        Self::new(label, Kind::Categories(names))
    }

    fn new(label: &str, kind: Kind) -> Self {
        Self { label: label.to_string(), kind, range: None }
    }

    /// The same axis from `low` to `high` instead of over all that is plotted.
    pub fn range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    /// The axis for these values; `from_zero` makes 0 part of it, as bars need it.
    pub(super) fn fit(&self, values: impl Iterator<Item = f64>, from_zero: bool) -> Scale {
        if let Kind::Categories(names) = &self.kind {
            let ticks = names.iter().zip(0..).map(|(name, i)| (f64::from(i), name.clone()));
            return Scale {
                kind: self.kind.clone(),
                low: -0.5,
                high: names.len().max(1) as f64 - 0.5,
                ticks: ticks.collect(),
            };
        }
        let (low, high) = match self.range {
            Some((low, high)) => (self.kind.place(low), self.kind.place(high)),
            None => {
                let zero = from_zero.then_some(0.0);
                let places = values.chain(zero).map(|value| self.kind.place(value));
                let finite = places.filter(|place| place.is_finite());
                finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| {
                    (low.min(place), high.max(place))
                })
            }
        };
        let (low, high) = match (low, high) {
            (low, high) if !(low.is_finite() && high.is_finite()) => (0.0, 1.0),
            (low, high) if low == high => (low - 0.5, high + 0.5),
            (low, high) => (low.min(high), low.max(high)),
        };
        self.kind.scale(low, high, self.range.is_some())
    }
}

impl Kind {
    /// Where a value lies, in the units of the axis.
    fn place(&self, value: f64) -> f64 {
        match self {
            Self::Linear | Self::Categories(_) => value,
            Self::Log => {
                if value > 0.0 {
                    value.log10()
                } else {
                    f64::NAN
                }
            }
            Self::Probit => {
                if (0.0..=1.0).contains(&value) {
                    probit(value)
                } else {
                    f64::NAN
                }
            }
        }
    }

    fn scale(&self, low: f64, high: f64, exact: bool) -> Scale {
        let inside = |place: f64| {
            let slack = 1e-9 * (high - low);
            place >= low - slack && place <= high + slack
        };
        match self {
            Self::Log => {
                let (low, high) = if exact {
                    (low, high)
                } else {
                    // To the next 1, 2 or 5 times a power of ten.
                    let beyond = |place: f64| nice_step(10f64.powf(place)).log10();
                    (-beyond(-low), beyond(high))
                };
                // Few decades leave room for 2 and 5 between the powers of ten.
                let digits: &[f64] = if high - low <= 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let every = ((high - low) / 8.0).ceil().max(1.0) as usize;
                let decades = (low.floor() as i64..=high.ceil() as i64).step_by(every);
                let values = decades.flat_map(|decade| {
                    digits.iter().map(move |digit| digit * 10f64.powi(decade as i32))
                });
                let slack = 1e-9 * (high - low);
                let ticks = values
                    .filter(|value| (low - slack..=high + slack).contains(&value.log10()))
                    .map(|value| (value.log10(), short(value)))
                    .collect();
                Scale { kind: self.clone(), low, high, ticks }
            }
            Self::Probit => {
                const RATES: [f64; 17] = [
                    1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9,
                    0.95, 0.99, 0.999,
                ];
                let places = RATES.iter().map(|rate| (probit(*rate), short(100.0 * rate)));
                let ticks = places.filter(|(place, _)| inside(*place)).collect();
                Scale { kind: self.clone(), low, high, ticks }
            }
            Self::Linear | Self::Categories(_) => {
                let step = nice_step((high - low) / 7.0);
                let (low, high) = if exact {
                    (low, high)
                } else {
                    ((low / step).floor() * step, (high / step).ceil() * step)
                };
                let decimals = (-step.log10().floor()).max(0.0) as usize;
                let first = (low / step - 1e-9).ceil() as i64;
                let last = (high / step + 1e-9).floor() as i64;
                let label = |value: f64| match step {
                    // Very large and very small numbers need exponents.
                    step if !(1e-6..1e6).contains(&step) => format!("{value:e}"),
                    _ => format!("{value:.decimals$}"),
                };
                // Adding 0 turns -0 into 0.
                let values = (first..=last).map(|index| index as f64 * step + 0.0);
                let ticks = values.map(|value| (value, label(value))).collect();
                Scale { kind: self.clone(), low, high, ticks }
            }
        }
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is at least `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= step * (1.0 - 1e-9));
    digit.unwrap_or(10.0) * power
}

/// A tick's value without needless digits.
fn short(value: f64) -> String {
    if (1e-4..1e5).contains(&value) {
        // Ticks have one significant digit; this removes what is left of the arithmetic.
        ((value * 1e6).round() / 1e6).to_string()
    } else {
        format!("{value:.0e}")
    }
}

/// An axis fitted to values.
pub(super) struct Scale {
    kind: Kind,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    /// Where `value` lies from 0 at the low to 1 at the high end; beyond these outside the range
    /// but never far, so that lines to infinity leave the plot in the right direction.
    pub fn share(&self, value: f64) -> f64 {
        let share = (self.kind.place(value) - self.low) / (self.high - self.low);
        if share.is_nan() { share } else { share.clamp(-2.0, 3.0) }
    }

    /// Places from 0 to 1 and labels of the ticks.
    pub fn ticks(&self) -> impl Iterator<Item = (f64, &str)> {
        let share = |place: f64| (place - self.low) / (self.high - self.low);
        self.ticks.iter().map(move |(place, label)| (share(*place), label.as_str()))
    }

    /// Number of categories, if that is what the axis shows.
    pub fn categories(&self) -> Option<usize> {
        match &self.kind {
            Kind::Categories(names) => Some(names.len()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale) -> Vec<&str> {
        scale.ticks().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let linear = |low, high| Axis::linear("").fit([low, high].into_iter(), false);
        assert_eq!(labels(&linear(0.0, 10.0)), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(
            labels(&linear(-0.013, 0.021)),
            ["-0.015", "-0.010", "-0.005", "0.000", "0.005", "0.010", "0.015", "0.020", "0.025"]
        );
        assert_eq!(labels(&linear(7.0, 7.0)), ["6.4", "6.6", "6.8", "7.0", "7.2", "7.4", "7.6"]);
        assert_eq!(
            labels(&linear(0.0, 3e9)),
            ["0e0", "5e8", "1e9", "1.5e9", "2e9", "2.5e9", "3e9"]
        );
        let log = |low, high| Axis::log("").fit([low, high].into_iter(), false);
        assert_eq!(labels(&log(0.02, 0.7)), ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!(labels(&log(1e-8, 1.0)).len(), 9);
        let probit = Axis::probit("").range(0.001, 0.5).fit(std::iter::empty(), false);
        assert_eq!(labels(&probit), ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "40"]);
        let names = Axis::categories("", ["a", "b"]).fit(std::iter::empty(), false);
        assert_eq!(names.ticks().collect::<Vec<_>>(), [(0.25, "a"), (0.75, "b")]);
    }

    #[test]
    fn no_values_make_an_axis_too() {
        for axis in [Axis::linear(""), Axis::log(""), Axis::probit("")] {
            for values in [&[][..], &[f64::NAN], &[f64::INFINITY, -1.0]] {
                let scale = axis.fit(values.iter().copied(), false);
                assert!(scale.high > scale.low && scale.low.is_finite() && scale.high.is_finite());
            }
        }
    }

    #[test]
    fn values_beyond_the_range_stay_beyond_it() {
        let scale = Axis::probit("").range(0.001, 0.5).fit(std::iter::empty(), false);
        assert_eq!((scale.share(0.0), scale.share(1.0)), (-2.0, 3.0));
        assert!(scale.share(2.0).is_nan());
        assert!((scale.share(0.5) - 1.0).abs() < 1e-12);
        assert!(Axis::log("").fit([1.0, 10.0].into_iter(), false).share(-1.0).is_nan());
    }
}
