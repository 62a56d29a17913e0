//! Tests of the figures against independent references.

use proptest::prelude::*;

use super::*;
use crate::Error;

/// 60 trials with tied scores, every third a target.
fn sample() -> (Vec<f64>, Vec<bool>) {
    (0..60)
        .map(|i| {
            let target = i % 3 == 0;
            let score = (i * 37 + 11) % 23 + if target { 6 } else { 0 };
            (f64::from(score) / 4.0 - 2.0, target)
        })
        .unzip()
}

fn close(got: f64, expected: f64, tolerance: f64) -> bool {
    (got - expected).abs() <= tolerance
}

#[test]
fn the_figures_agree_with_scipy() {
    // scipy 1.17: brentq on the interpolated ROC, numpy means at every threshold, logaddexp,
    // isotonic_regression.
    let (scores, targets) = sample();
    let trials = Trials::new(&scores, &targets).unwrap();
    assert!(close(trials.equal_error_rate().rate, 0.38333333333333336, 1e-12));
    for (prior, expected) in [(0.01, 0.75), (0.3, 0.75), (0.9, 0.725)] {
        let cost = trials.min_dcf(CostModel::prior(prior)).unwrap().cost;
        assert!(close(cost, expected, 1e-12), "{prior}: {cost}");
    }
    assert!(close(trials.cllr(), 1.20126570296216, 1e-12), "{}", trials.cllr());
    assert!(close(trials.min_cllr(), 0.7373081377778741, 1e-12), "{}", trials.min_cllr());
}

#[test]
fn corner_cases_of_the_equal_error_rate_and_the_minimum_cost() {
    // Scores and targets; EER and its threshold; minimum cost at 0.01 and 0.5.
    type Case<'a> = (&'a str, &'a [f64], &'a [u8], (f64, f64), [f64; 2]);
    let cases: [Case; 6] = [
        ("two apart", &[0.1, 0.9], &[0, 1], (0.0, 0.5), [0.0, 0.0]),
        ("two inverted", &[0.9, 0.1], &[0, 1], (1.0, 0.5), [1.0, 1.0]),
        ("two tied", &[0.5, 0.5], &[0, 1], (0.5, 0.5), [1.0, 1.0]),
        ("all tied", &[1.0; 5], &[1, 0, 1, 0, 0], (0.5, 1.0), [1.0, 1.0]),
        ("by turns", &[0.0, 1.0, 2.0, 3.0], &[0, 1, 0, 1], (0.5, 1.5), [0.5, 0.5]),
        ("tied across", &[0.0, 1.0, 1.0, 2.0], &[0, 0, 1, 1], (0.25, 1.0), [0.5, 0.5]),
    ];
    for (name, scores, targets, (eer, threshold), costs) in cases {
        let targets: Vec<bool> = targets.iter().map(|target| *target == 1).collect();
        let trials = Trials::new(scores, &targets).unwrap();
        let got = trials.equal_error_rate();
        assert!(close(got.rate, eer, 1e-12) && close(got.threshold, threshold, 1e-12), "{name}");
        for (prior, cost) in [0.01, 0.5].into_iter().zip(costs) {
            let got = trials.min_dcf(CostModel::prior(prior)).unwrap();
            assert!(close(got.cost, cost, 1e-12), "{name} {prior}: {got:?}");
        }
    }
}

#[test]
fn the_threshold_of_the_equal_error_rate_has_equal_errors() {
    // 3 of 10 targets are below 0.45, 3 of 10 non-targets above.
    let scores: Vec<f64> =
        (0..20).map(|i| f64::from(i % 10) / 10.0 + 0.2 * f64::from(i / 10)).collect();
    let targets: Vec<bool> = (0..20).map(|i| i >= 10).collect();
    let trials = Trials::new(&scores, &targets).unwrap();
    let EqualErrorRate { rate, threshold } = trials.equal_error_rate();
    let rates = trials.error_rates(threshold);
    assert!(close(rate, 0.4, 1e-12), "{rate}");
    assert!(close(rates.miss, rate, 1e-12) && close(rates.false_alarm, rate, 1e-12), "{rates:?}");
}

#[test]
fn the_actual_cost_is_that_of_the_decisions() {
    let (scores, targets) = sample();
    let trials = Trials::new(&scores, &targets).unwrap();
    let model = CostModel { target_prior: 0.2, miss: 5.0, false_alarm: 2.0 };
    let least = trials.min_dcf(model).unwrap();
    assert!(scores.contains(&least.threshold));
    assert!(close(trials.actual_dcf(model, least.threshold).unwrap(), least.cost, 1e-12));
    // Rejecting all costs 5 * 0.2 = 1, accepting all 2 * 0.8 = 1.6: the norm is 1.
    assert!(close(trials.actual_dcf(model, f64::INFINITY).unwrap(), 1.0, 1e-12));
    assert!(close(trials.actual_dcf(model, f64::NEG_INFINITY).unwrap(), 1.6, 1e-12));
    assert!(close(model.bayes_threshold(), 1.6f64.ln(), 1e-12));
}

#[test]
fn probit_agrees_with_scipy() {
    // scipy.stats.norm.ppf
    for (probability, expected) in [
        (1e-9, -5.9978070150076865),
        (1e-3, -3.090232306167813),
        (0.02, -2.053748910631823),
        (0.5, 0.0),
        (0.9, 1.2815515655446004),
        (0.999, 3.090232306167813),
    ] {
        assert!(close(probit(probability), expected, 1e-8), "{probability}");
    }
    assert_eq!((probit(0.0), probit(1.0)), (f64::NEG_INFINITY, f64::INFINITY));
}

#[test]
fn the_det_curve_keeps_its_ends_and_drops_what_cannot_be_seen() {
    let scores: Vec<f64> = (0..20_000).map(|i| f64::from((i * 7919) % 20_011)).collect();
    let targets: Vec<bool> = (0..20_000).map(|i| i % 2 == 0).collect();
    let trials = Trials::new(&scores, &targets).unwrap();
    let all = trials.det_curve(0.0);
    let thin = trials.det_curve(0.01);
    assert!(all.len() > 19_000 && thin.len() < 2_000, "{} {}", all.len(), thin.len());
    assert_eq!((all.first(), all.last()), (thin.first(), thin.last()));
    assert!(thin.windows(2).all(|pair| pair[0].threshold < pair[1].threshold));
}

#[test]
fn calibration_agrees_with_a_general_minimiser() {
    // scipy.optimize.minimize(method="Nelder-Mead", xatol=1e-13) on the same loss.
    let (scores, targets) = sample();
    let trials = Trials::new(&scores, &targets).unwrap();
    for (prior, slope, offset) in [
        (0.5, 0.5182383818733266, -0.7907764971972016),
        (0.05, 0.5855386642536728, -0.9216842701930346),
    ] {
        let got = Calibration::fit(&trials, prior).unwrap();
        assert!(close(got.slope, slope, 1e-6) && close(got.offset, offset, 1e-6), "{got:?}");
        // At the threshold of the prior 0.5 the ratio is 1.
        assert!(close(got.llr(got.threshold(CostModel::prior(0.5))), 0.0, 1e-12));
    }
}

#[test]
fn calibration_restores_shifted_and_scaled_ratios() {
    let (scores, targets) = sample();
    let fitted = Calibration::fit(&Trials::new(&scores, &targets).unwrap(), 0.5).unwrap();
    let moved: Vec<f64> = scores.iter().map(|score| 1000.0 - 0.001 * (3.0 - score)).collect();
    let refitted = Calibration::fit(&Trials::new(&moved, &targets).unwrap(), 0.5).unwrap();
    for (score, moved) in scores.iter().zip(&moved) {
        assert!(close(fitted.llr(*score), refitted.llr(*moved), 1e-6));
    }
    let ratios: Vec<f64> = scores.iter().map(|score| fitted.llr(*score)).collect();
    let calibrated = Trials::new(&ratios, &targets).unwrap();
    let raw = Trials::new(&scores, &targets).unwrap();
    assert!(calibrated.cllr() < raw.cllr() && calibrated.cllr() >= calibrated.min_cllr());
}

#[test]
fn what_cannot_be_calibrated_is_refused() {
    let (scores, targets) = sample();
    let trials = Trials::new(&scores, &targets).unwrap();
    assert!(
        Calibration::fit(&trials, 0.0).is_err() && Calibration::fit(&trials, f64::NAN).is_err()
    );
    let inverted: Vec<f64> = scores.iter().map(|score| -score).collect();
    assert!(Calibration::fit(&Trials::new(&inverted, &targets).unwrap(), 0.5).is_err());
    for separable in [[0.0, 1.0, 2.0], [0.0, 1.0, 1.0], [5.0, 1.0, 0.0], [1.0, 1.0, 1.0]] {
        let trials = Trials::new(&separable, &[false, false, true]).unwrap();
        assert!(Calibration::fit(&trials, 0.5).is_err(), "{separable:?}");
    }
}

#[test]
fn impossible_trials_are_refused() {
    let refused = |scores: &[f64], targets: &[bool]| {
        let with_trials = Trials::new(scores, targets).is_err();
        let by_sample = min_dcf_sample_by_sample(scores, targets, CostModel::prior(0.5)).is_err();
        let resampled = Bootstrap::default()
            .intervals(scores, targets, Unit::Trials, |trials| [trials.cllr()])
            .is_err();
        with_trials && by_sample && resampled
    };
    assert!(refused(&[], &[]));
    assert!(refused(&[0.0, 1.0], &[true, true]));
    assert!(refused(&[0.0, 1.0], &[false, false]));
    assert!(refused(&[0.0, 1.0, 2.0], &[false, true]));
    for bad in [f64::NAN, f64::INFINITY] {
        assert!(refused(&[0.0, bad], &[false, true]));
    }
    let trials = Trials::new(&[0.0, 1.0], &[false, true]).unwrap();
    for prior in [0.0, 1.0, -0.1, f64::NAN] {
        assert!(trials.min_dcf(CostModel::prior(prior)).is_err(), "{prior}");
    }
    let free = CostModel { miss: 0.0, ..CostModel::prior(0.5) };
    assert!(trials.actual_dcf(free, 0.0).is_err());
}

/// 400 targets and 600 non-targets of 20 speakers, whose level shifts all of their target scores.
fn by_speaker() -> (Vec<f64>, Vec<bool>, Vec<(String, String)>) {
    let mut stream = crate::rng::Stream::new(5, "bootstrap test", 0);
    let levels: Vec<f64> = (0..20).map(|_| stream.normal()).collect();
    let (mut scores, mut targets, mut speakers) = (vec![], vec![], vec![]);
    for i in 0..1000 {
        let target = i % 5 < 2;
        let a = stream.below(20);
        let b = if target { a } else { (a + 1 + stream.below(19)) % 20 };
        scores.push(0.5 * stream.normal() + if target { 2.0 + levels[a] } else { 0.0 });
        targets.push(target);
        speakers.push((format!("s{a}"), format!("s{b}")));
    }
    (scores, targets, speakers)
}

#[test]
fn intervals_of_a_share_agree_with_the_binomial_law() {
    let (scores, targets, speakers) = by_speaker();
    let trials = Trials::new(&scores, &targets).unwrap();
    let rates = |trials: &Trials| {
        let rates = trials.error_rates(1.0);
        [rates.miss, rates.false_alarm]
    };
    let bootstrap = Bootstrap { resamples: 4000, confidence: 0.95, seed: 1 };
    let intervals = bootstrap.intervals(&scores, &targets, Unit::Trials, rates).unwrap();
    let counts = [trials.targets(), trials.nontargets()];
    for ((interval, share), count) in intervals.iter().zip(rates(&trials)).zip(counts) {
        let half_width = 1.96 * (share * (1.0 - share) / count).sqrt();
        let got = 0.5 * (interval.high - interval.low);
        assert!(close(got, half_width, 0.08 * half_width), "{got} {half_width}");
        assert!(interval.low < share && share < interval.high);
    }
    // Speakers differ in level, so that trials are not independent: drawing speakers shows it.
    let speakers: Vec<(&str, &str)> =
        speakers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let wider = bootstrap.intervals(&scores, &targets, Unit::Speakers(&speakers), rates).unwrap();
    let width = |interval: &Interval| interval.high - interval.low;
    assert!(width(&wider[0]) > 2.0 * width(&intervals[0]), "{wider:?} {intervals:?}");
}

#[test]
fn intervals_depend_on_the_seed_alone() {
    let (scores, targets, _) = sample_with_speakers();
    let bootstrap = |seed| Bootstrap { resamples: 50, seed, ..Bootstrap::default() };
    let intervals = |seed, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let figures = |trials: &Trials| [trials.equal_error_rate().rate, trials.min_cllr()];
        pool.install(|| bootstrap(seed).intervals(&scores, &targets, Unit::Trials, figures))
            .unwrap()
    };
    assert_eq!(intervals(1, 1), intervals(1, 3));
    assert_ne!(intervals(1, 1), intervals(2, 1));
}

fn sample_with_speakers() -> (Vec<f64>, Vec<bool>, Vec<(&'static str, &'static str)>) {
    let (scores, targets) = sample();
    let names = ["a", "b", "c", "d"];
    let speakers =
        (0..60).map(|i| (names[i % 4], names[if i % 3 == 0 { i % 4 } else { (i + 1) % 4 }]));
    (scores, targets, speakers.collect())
}

#[test]
fn resampling_that_cannot_work_is_refused() {
    let (scores, targets, speakers) = sample_with_speakers();
    let figures = |trials: &Trials| [trials.cllr()];
    let bootstrap = Bootstrap { resamples: 10, ..Bootstrap::default() };
    bootstrap.intervals(&scores, &targets, Unit::Speakers(&speakers), figures).unwrap();
    let short = Unit::Speakers(&speakers[1..]);
    assert!(bootstrap.intervals(&scores, &targets, short, figures).is_err());
    for (resamples, confidence) in [(0, 0.9), (10, 0.0), (10, 1.0), (10, f64::NAN)] {
        let bootstrap = Bootstrap { resamples, confidence, seed: 0 };
        assert!(bootstrap.intervals(&scores, &targets, Unit::Trials, figures).is_err());
    }
    let infinite = bootstrap.intervals(&scores, &targets, Unit::Trials, |_| [f64::INFINITY]);
    assert!(matches!(infinite, Err(Error::NonFinite { .. })));
}

/// All figures of small trial lists by counting at every threshold.
mod naive {
    use super::*;

    pub fn rates(scores: &[f64], targets: &[bool]) -> Vec<(f64, f64)> {
        let mut thresholds = scores.to_vec();
        thresholds.push(f64::NEG_INFINITY);
        thresholds.sort_by(f64::total_cmp);
        let share = |kind: bool, accepted: &dyn Fn(f64) -> bool| {
            let of_kind: Vec<f64> =
                scores.iter().zip(targets).filter(|(_, t)| **t == kind).map(|(s, _)| *s).collect();
            of_kind.iter().filter(|score| accepted(**score)).count() as f64 / of_kind.len() as f64
        };
        let rates = thresholds.iter().map(|threshold| {
            (share(true, &|score| score <= *threshold), share(false, &|score| score > *threshold))
        });
        rates.collect()
    }

    pub fn min_dcf(rates: &[(f64, f64)], model: CostModel) -> f64 {
        let (miss, false_alarm) =
            (model.miss * model.target_prior, model.false_alarm * (1.0 - model.target_prior));
        let costs = rates.iter().map(|(m, f)| (miss * m + false_alarm * f) / miss.min(false_alarm));
        costs.fold(f64::INFINITY, f64::min)
    }

    /// By bisection for the false alarm rate at which the interpolated miss rate equals it.
    pub fn equal_error_rate(rates: &[(f64, f64)]) -> f64 {
        let miss_at = |false_alarm: f64| {
            // The lowest line through neighbouring points above `false_alarm`.
            rates
                .windows(2)
                .filter(|pair| pair[1].1 <= false_alarm && false_alarm <= pair[0].1)
                .map(|pair| {
                    let ((m0, f0), (m1, f1)) = (pair[0], pair[1]);
                    if f0 == f1 {
                        m0.min(m1)
                    } else {
                        m1 + (m0 - m1) * (false_alarm - f1) / (f0 - f1)
                    }
                })
                .fold(f64::INFINITY, f64::min)
        };
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if miss_at(middle) > middle { low = middle } else { high = middle }
        }
        high
    }
}

fn some_trials() -> impl Strategy<Value = (Vec<f64>, Vec<bool>)> {
    // Few distinct scores, so that ties are common.
    prop::collection::vec((-8i32..8, any::<bool>()), 2..40)
        .prop_map(|trials| trials.into_iter().map(|(s, t)| (f64::from(s) / 4.0, t)).unzip())
        .prop_filter("both classes", |(_, targets): &(Vec<f64>, Vec<bool>)| {
            targets.contains(&true) && targets.contains(&false)
        })
}

proptest! {
    #[test]
    fn figures_agree_with_counting_at_every_threshold(
        (scores, targets) in some_trials(), prior in 0.001f64..0.999, miss in 0.1f64..10.0
    ) {
        let trials = Trials::new(&scores, &targets).unwrap();
        let rates = naive::rates(&scores, &targets);
        let eer = trials.equal_error_rate().rate;
        prop_assert!(close(eer, naive::equal_error_rate(&rates), 1e-9));
        let model = CostModel { target_prior: prior, miss, false_alarm: 1.0 };
        let cost = trials.min_dcf(model).unwrap();
        prop_assert!(close(cost.cost, naive::min_dcf(&rates, model), 1e-9));
        prop_assert!(cost.cost <= 1.0 + 1e-12);
    }

    #[test]
    fn rising_changes_of_the_scores_change_nothing((scores, targets) in some_trials()) {
        let figures = |change: fn(f64) -> f64| {
            let changed: Vec<f64> = scores.iter().map(|score| change(*score)).collect();
            let trials = Trials::new(&changed, &targets).unwrap();
            let cost = trials.min_dcf(CostModel::prior(0.1)).unwrap().cost;
            [trials.equal_error_rate().rate, cost, trials.min_cllr()]
        };
        let plain = figures(|score| score);
        prop_assert_eq!(plain, figures(|score| 3.0 * score - 100.0));
        prop_assert_eq!(plain, figures(f64::exp));
    }

    #[test]
    fn swapping_the_classes_and_the_sign_changes_nothing((scores, targets) in some_trials()) {
        let trials = Trials::new(&scores, &targets).unwrap();
        let negated: Vec<f64> = scores.iter().map(|score| -score).collect();
        let swapped: Vec<bool> = targets.iter().map(|target| !target).collect();
        let mirror = Trials::new(&negated, &swapped).unwrap();
        prop_assert!(close(trials.equal_error_rate().rate, mirror.equal_error_rate().rate, 1e-12));
        prop_assert!(close(trials.cllr(), mirror.cllr(), 1e-12));
        prop_assert!(close(trials.min_cllr(), mirror.min_cllr(), 1e-12));
    }

    #[test]
    fn no_rising_change_of_the_scores_beats_min_cllr((scores, targets) in some_trials()) {
        let trials = Trials::new(&scores, &targets).unwrap();
        let least = trials.min_cllr();
        prop_assert!((-1e-12..=1.0 + 1e-12).contains(&least));
        for (slope, offset) in [(0.0, 0.0), (1.0, 0.0), (3.0, 1.0), (0.3, -1.0), (100.0, 0.0)] {
            let changed: Vec<f64> = scores.iter().map(|score| slope * score + offset).collect();
            prop_assert!(Trials::new(&changed, &targets).unwrap().cllr() >= least - 1e-12);
        }
    }

    #[test]
    fn without_ties_the_count_by_sample_is_the_same((scores, targets) in some_trials()) {
        let distinct: Vec<f64> =
            scores.iter().zip(0..).map(|(score, index)| score + 1e-6 * f64::from(index)).collect();
        let model = CostModel::prior(0.05);
        let grouped = Trials::new(&distinct, &targets).unwrap().min_dcf(model).unwrap().cost;
        let by_sample = min_dcf_sample_by_sample(&distinct, &targets, model).unwrap().cost;
        prop_assert!(close(grouped, by_sample, 1e-12));
    }
}
