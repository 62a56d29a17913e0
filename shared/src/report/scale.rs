//! Axes: how values become places, and where the ticks are.

use super::format::count;
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

    /// The axis for these values, with about `ticks` ticks. `margin` is the share of the range that
    /// stays free at either end, except at 0.
    pub(super) fn fit(
        &self,
        values: impl Iterator<Item = f64>,
        margin: f64,
        ticks: usize,
    ) -> Scale {
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
            Some((low, high)) => self.kind.reach([low, high].into_iter()),
            None => self.kind.with_margin(self.kind.reach(values), margin),
        };
        let (low, high) = self.kind.usable(low, high);
        Scale { kind: self.kind.clone(), low, high, ticks: self.kind.ticks(low, high, ticks) }
    }
}

impl Kind {
    /// Where a value lies, in the units of the axis.
    fn place(&self, value: f64) -> f64 {
        match self {
            Self::Linear | Self::Categories(_) => value,
            Self::Log if value > 0.0 => value.log10(),
            Self::Probit if (0.0..=1.0).contains(&value) => probit(value),
            Self::Log | Self::Probit => f64::NAN,
        }
    }

    /// The least and the largest of the places that can be shown; (inf, -inf) if there is none.
    fn reach(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let places = values.map(|value| self.place(value)).filter(|place| place.is_finite());
        places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| {
            (low.min(place), high.max(place))
        })
    }

    fn with_margin(&self, (low, high): (f64, f64), margin: f64) -> (f64, f64) {
        let space = margin * (high - low);
        let is_zero = |edge: f64| matches!(self, Self::Linear) && edge == 0.0;
        (
            if is_zero(low) { low } else { low - space },
            if is_zero(high) { high } else { high + space },
        )
    }

    /// The edges, or others where they are none, too near for ticks between them or too far for
    /// arithmetic.
    fn usable(&self, low: f64, high: f64) -> (f64, f64) {
        if low.is_nan() || high.is_nan() || low > high {
            return match self {
                Self::Probit => (probit(0.001), probit(0.5)),
                _ => (0.0, 1.0),
            };
        }
        let farthest = if matches!(self, Self::Log) { 300.0 } else { 1e300 };
        let (low, high) = (low.clamp(-farthest, farthest), high.clamp(-farthest, farthest));
        let size = low.abs().max(high.abs());
        if high - low > 1e-9 * size && high - low > 1e-290 {
            return (low, high);
        }
        match self {
            Self::Linear if size > 1e-280 => (low - 0.1 * size, high + 0.1 * size),
            _ => (low - 0.5, high + 0.5),
        }
    }

    /// Round values between two places, with their labels.
    fn ticks(&self, low: f64, high: f64, most: usize) -> Vec<(f64, String)> {
        // With fewer, round steps could leave a single tick.
        let most = most.max(5);
        let (ticks, from, to, unit) = match self {
            Self::Linear | Self::Categories(_) => return linear_ticks(low, high, most),
            Self::Log => (log_ticks(low, high, most), 10f64.powf(low), 10f64.powf(high), 1.0),
            Self::Probit => {
                let percent = |place| 100.0 * normal_probability(place);
                (probit_ticks(low, high, most), percent(low), percent(high), 0.01)
            }
        };
        if ticks.len() >= 3 {
            return ticks;
        }
        // Between neighbours of an axis's own ticks, even steps serve.
        let even = linear_ticks(from, to, most).into_iter();
        let even = even.map(|(value, label)| (self.place(unit * value), label));
        even.filter(|(place, _)| place.is_finite()).collect()
    }
}

/// The inverse of [`probit`], by halving.
fn normal_probability(place: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if probit(middle) < place { low = middle } else { high = middle }
    }
    low
}

/// Multiples of 1, 2 or 5 times a power of ten, up to `most` steps.
fn linear_ticks(low: f64, high: f64, most: usize) -> Vec<(f64, String)> {
    if low >= high {
        return vec![];
    }
    let wanted = (high - low) / most as f64;
    let mut exponent = wanted.log10().floor() as i32;
    let power = 10f64.powi(exponent);
    let factors = [1.0, 2.0, 5.0];
    let factor = factors.into_iter().find(|factor| factor * power >= wanted).unwrap_or_else(|| {
        exponent += 1;
        1.0
    });
    // Round multiples of a small step come out exact only by division.
    let multiple = |index: f64| match 10f64.powi(exponent.abs()) {
        power if exponent < 0 => index * factor / power,
        power => index * factor * power,
    };
    let step = multiple(1.0);
    // Rounding must not lose a tick on the edge.
    let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
    let largest = low.abs().max(high.abs());
    let count = (last - first).clamp(0.0, most as f64) as usize;
    (0..=count)
        .map(|index| multiple(first + index as f64))
        .map(|value| (value, label(value, exponent, largest)))
        .collect()
}

/// A value in whole steps of 10^`exponent`; with an exponent of its own where numbers of the size
/// of `largest` would be too long.
fn label(value: f64, exponent: i32, largest: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if exponent < -5 || largest >= 1e7 {
        let digits = (value.abs().log10().floor() as i32 - exponent).clamp(0, 15) as usize;
        let text = format!("{value:.digits$e}");
        return match text.split_once('e') {
            Some((digits, power)) if digits.contains('.') => {
                format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
            }
            _ => text,
        };
    }
    let decimals = (-exponent).max(0) as usize;
    if decimals > 0 || value.abs() < 1e4 {
        return format!("{value:.decimals$}");
    }
    let sign = if value < 0.0 { "-" } else { "" };
    sign.to_string() + &count(value.abs().round() as u64)
}

/// Powers of ten, and 2 and 5 (or 3) times them where there is room.
fn log_ticks(low: f64, high: f64, most: usize) -> Vec<(f64, String)> {
    let decades = high - low;
    let factors: &[u32] = match most as f64 / decades {
        room if room >= 3.0 => &[1, 2, 5],
        room if room >= 1.5 => &[1, 3],
        _ => &[1],
    };
    let wanted = decades / most as f64;
    let every = [1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80, 100]
        .into_iter()
        .find(|every| f64::from(*every) >= wanted)
        .unwrap_or(120);
    let mut ticks = vec![];
    for exponent in (low.floor() as i32..=high.ceil() as i32).filter(|e| e.rem_euclid(every) == 0) {
        for factor in factors {
            let place = f64::from(*factor).log10() + f64::from(exponent);
            if (low - 1e-9..=high + 1e-9).contains(&place) {
                let label = match exponent {
                    -4..0 => format!("0.{}{factor}", "0".repeat(-exponent as usize - 1)),
                    0..7 => count(u64::from(*factor) * 10u64.pow(exponent as u32)),
                    _ => format!("{factor}e{exponent}"),
                };
                ticks.push((place, label));
            }
        }
    }
    ticks
}

/// Customary percentages below 50; those above mirror them.
const PERCENTAGES: [&[f64]; 3] = [
    &[
        1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
        20.0, 40.0,
    ],
    &[1e-4, 1e-3, 0.01, 0.1, 0.5, 2.0, 5.0, 10.0, 20.0, 40.0],
    &[1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 50.0],
];

/// Customary percentages, as many as have room.
fn probit_ticks(low: f64, high: f64, most: usize) -> Vec<(f64, String)> {
    let room = (high - low) / most as f64;
    let sets = PERCENTAGES.into_iter().map(|set| {
        let mut percentages: Vec<f64> = set.to_vec();
        percentages.extend(set.iter().rev().filter(|p| **p < 50.0).map(|p| 100.0 - p));
        percentages.retain(|p| (low - 1e-9..=high + 1e-9).contains(&probit(p / 100.0)));
        percentages
    });
    let is_roomy = |set: &Vec<f64>| {
        set.windows(2).all(|pair| match pair {
            [a, b] => probit(b / 100.0) - probit(a / 100.0) >= 0.5 * room,
            _ => true,
        })
    };
    let sets: Vec<Vec<f64>> = sets.collect();
    let chosen = sets.iter().find(|set| is_roomy(set)).or(sets.last());
    let ticks = chosen.into_iter().flatten().map(|percent| {
        // To ten digits, without those that 100 - 0.1 leaves behind.
        let label = (percent * 1e10).round() / 1e10;
        (probit(percent / 100.0), label.to_string())
    });
    ticks.collect()
}

/// An axis fitted to values.
#[derive(Debug)]
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
    use proptest::prelude::*;

    fn labels(scale: &Scale) -> Vec<&str> {
        scale.ticks().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let cases: [(Axis, [f64; 2], &[&str]); 17] = [
            (Axis::linear(""), [0.0, 1.0], &["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (Axis::linear(""), [-3.0, 9.0], &["-2", "0", "2", "4", "6", "8"]),
            (Axis::linear(""), [0.0, 150_300.0], &["0", "50,000", "100,000", "150,000"]),
            (Axis::linear(""), [-2e8, 1e8], &["-2e8", "-1.5e8", "-1e8", "-5e7", "0", "5e7", "1e8"]),
            (Axis::linear(""), [1e-7, 3e-7], &["1e-7", "1.5e-7", "2e-7", "2.5e-7", "3e-7"]),
            (
                Axis::linear(""),
                [0.001, 0.001],
                &["0.00090", "0.00095", "0.00100", "0.00105", "0.00110"],
            ),
            (Axis::linear(""), [0.0, 0.0], &["-0.4", "-0.2", "0", "0.2", "0.4"]),
            (
                Axis::linear("").range(1000.0, 999.8),
                [0.0; 2],
                &["999.80", "999.85", "999.90", "999.95", "1000.00"],
            ),
            (Axis::log(""), [1e-6, 1.0], &["1e-6", "1e-5", "0.0001", "0.001", "0.01", "0.1", "1"]),
            (Axis::log(""), [0.01, 1.0], &["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
            (Axis::log(""), [1e-3, 1.0], &["0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1"]),
            (Axis::log(""), [2.0, 3.0], &["2.0", "2.2", "2.4", "2.6", "2.8", "3.0"]),
            (
                Axis::log(""),
                [1e-30, 1e30],
                &["1e-30", "1e-20", "1e-10", "1", "1e10", "1e20", "1e30"],
            ),
            (Axis::log(""), [7.0, 7.0], &["5", "10", "20"]),
            (Axis::probit(""), [0.0005, 0.4], &["0.1", "0.5", "2", "5", "10", "20", "40"]),
            (Axis::probit(""), [0.001, 0.999], &["0.1", "1", "10", "50", "90", "99", "99.9"]),
            (Axis::probit(""), [0.03, 0.04], &["3.0", "3.2", "3.4", "3.6", "3.8", "4.0"]),
        ];
        let mut wrong = vec![];
        for (axis, values, expected) in cases {
            let scale = axis.fit(values.into_iter(), 0.0, 7);
            if labels(&scale) != expected {
                wrong.push(format!("{axis:?} {values:?}: {:?}", labels(&scale)));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn categories_have_equal_room() {
        let names = Axis::categories("", ["a", "b"]).fit(std::iter::empty(), 0.1, 5);
        assert_eq!(names.ticks().collect::<Vec<_>>(), [(0.25, "a"), (0.75, "b")]);
    }

    #[test]
    fn a_margin_is_left_except_at_zero() {
        let share = |values: [f64; 2]| {
            let scale = Axis::linear("").fit(values.into_iter(), 0.1, 5);
            values.map(|value| (scale.share(value) * 12.0).round() / 12.0)
        };
        assert_eq!(share([1.0, 2.0]), [1.0 / 12.0, 11.0 / 12.0]);
        assert_eq!(share([0.0, 2.0])[0], 0.0);
        assert_eq!(share([-1.0, 0.0])[1], 1.0);
    }

    #[test]
    fn positions_follow_the_scale() {
        for (axis, low, middle, high) in [
            (Axis::linear(""), -1.0, 0.5, 2.0),
            (Axis::log(""), 0.01, 0.1, 1.0),
            (Axis::probit(""), 0.01, 0.5, 0.99),
        ] {
            let scale = axis.range(low, high).fit(std::iter::empty(), 0.1, 5);
            for (value, share) in [(low, 0.0), (middle, 0.5), (high, 1.0)] {
                assert!((scale.share(value) - share).abs() < 1e-9, "{scale:?} {value}");
            }
        }
    }

    #[test]
    fn no_values_make_an_axis_too() {
        for axis in [Axis::linear(""), Axis::log(""), Axis::probit("")] {
            for values in [&[][..], &[f64::NAN], &[f64::INFINITY, f64::NAN]] {
                let scale = axis.fit(values.iter().copied(), 0.04, 5);
                assert!(scale.high > scale.low && scale.low.is_finite() && scale.high.is_finite());
                let cut = axis.clone().range(f64::NAN, 1.0).fit(values.iter().copied(), 0.0, 5);
                assert!(cut.high > cut.low);
            }
        }
    }

    #[test]
    fn values_beyond_the_range_stay_beyond_it() {
        let scale = Axis::probit("").range(0.001, 0.5).fit(std::iter::empty(), 0.0, 5);
        assert_eq!((scale.share(0.0), scale.share(1.0)), (-2.0, 3.0));
        assert!(scale.share(2.0).is_nan());
        assert!(Axis::log("").fit([1.0, 10.0].into_iter(), 0.0, 5).share(-1.0).is_nan());
    }

    fn power_of_ten() -> impl Strategy<Value = f64> {
        (-280f64..280.0).prop_map(|exponent| 10f64.powf(exponent))
    }

    proptest! {
        #[test]
        fn any_range_is_covered_with_ticks(
            (axis, a, b) in prop_oneof![
                (Just(Axis::linear("")), any::<f64>(), any::<f64>()),
                (Just(Axis::linear("")), -1e3f64..1e3, -1e3f64..1e3),
                (Just(Axis::log("")), power_of_ten(), power_of_ten()),
                (Just(Axis::log("")), 0.1f64..1e4, 0.1f64..1e4),
                (Just(Axis::probit("")), 0.0f64..=1.0, 0.0f64..=1.0),
            ],
            most in 3usize..12,
        ) {
            let scale = axis.fit([a, b].into_iter(), 0.04, most);
            if a.abs().max(b.abs()) < 1e290 {
                for value in [a, b].into_iter().filter(|value| axis.kind.place(*value).is_finite()) {
                    prop_assert!((0.0..=1.0).contains(&scale.share(value)), "{:?}", scale);
                }
            }
            let ticks: Vec<(f64, &str)> = scale.ticks().collect();
            prop_assert!((2..=3 * most.max(5) + 1).contains(&ticks.len()), "{:?}", scale);
            for (share, label) in &ticks {
                prop_assert!((-1e-6..=1.0 + 1e-6).contains(share), "{:?}", scale);
                prop_assert!(!label.contains("NaN") && !label.contains("inf"), "{:?}", scale);
            }
            for pair in ticks.windows(2) {
                prop_assert!(pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1, "{:?}", scale);
            }
        }
    }
}
