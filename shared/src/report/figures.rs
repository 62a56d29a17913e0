//! The plots that evaluations and trainings need.

use std::path::Path;

use serde_json::{Map, Value};

use super::format::percent;
use super::{Axis, Plot};
use crate::eval::verification::{EqualErrorRate, ErrorRates};
use crate::limits::Limits;
use crate::{Error, Result, files};

/// Names in a training log that are no measurements.
const NOT_MEASURED: [&str; 2] = ["step", "time_s"];

/// Most points of a curve that are drawn one by one.
const MOST_POINTS: usize = 300;

/// One system of a DET plot.
#[derive(Clone, Copy, Debug)]
pub struct DetCurve<'a> {
    /// Name of the system.
    pub name: &'a str,
    /// Its operating points.
    pub points: &'a [ErrorRates],
    /// Where its misses and false alarms are equally frequent.
    pub equal_error_rate: EqualErrorRate,
}

/// A plot of the detection error trade-off: misses over false alarms of each system, with its equal
/// error rate marked (Martin et al., "The DET curve in assessment of detection task performance",
/// 1997).
pub fn det_plot(title: &str, systems: &[DetCurve]) -> Plot {
    let (low, high) = det_range(systems);
    // With a row of the legend for each system, the frame is a square.
    let height = 580 + 20 * systems.len().min(50) as u32;
    let axis = |label| Axis::probit(label).range(low, high);
    let plot =
        Plot::new(title, axis("false alarms, % of non-targets"), axis("misses, % of targets"))
            .size(560, height)
            .guide([(low, low), (high, high)]);
    systems.iter().fold(plot, |plot, system| {
        let rate = system.equal_error_rate.rate;
        let name = format!("{} (EER {})", system.name, percent(rate, 2));
        let curve = system.points.iter().map(|rates| (rates.false_alarm, rates.miss));
        plot.line(&name, curve).marks([(rate, rate)])
    })
}

/// The rates between which the curves are of interest: around all equal error rates, down to the
/// smallest that the trials can show.
fn det_range(systems: &[DetCurve]) -> (f64, f64) {
    let rates = systems.iter().map(|system| system.equal_error_rate.rate);
    let (best, worst) =
        rates.fold((1.0, 0.0), |(best, worst): (f64, f64), rate| (best.min(rate), worst.max(rate)));
    let shown = systems
        .iter()
        .flat_map(|system| system.points)
        .flat_map(|rates| [rates.miss, rates.false_alarm]);
    let smallest = shown.filter(|rate| *rate > 0.0).fold(1.0, f64::min);
    (smallest.max(best / 50.0).clamp(1e-5, 0.02), (4.0 * worst).clamp(0.4, 0.95))
}

/// Histograms of the scores of target and non-target trials, each as a share of its class, with
/// named thresholds.
///
/// # Errors
/// When the lengths differ or a score is not finite.
pub fn score_histogram(
    title: &str,
    scores: &[f64],
    targets: &[bool],
    thresholds: &[(f64, &str)],
) -> Result<Plot> {
    if scores.len() != targets.len() {
        let (scores, targets) = (scores.len(), targets.len());
        return Err(Error::Argument(format!("{scores} scores, but the truth of {targets} trials")));
    }
    if scores.iter().any(|score| !score.is_finite()) {
        return Err(Error::NonFinite { what: "a score".into() });
    }
    let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Equal scores need a bin, too.
    let (low, high) = if low < high { (low, high) } else { (low - 0.5, low + 0.5) };
    // The rule of Rice, within what can be told apart.
    let bins = (2.0 * (scores.len() as f64).cbrt()).ceil().clamp(10.0, 60.0);
    let histogram = |wanted: bool| {
        let mut counts = vec![0u64; bins as usize];
        let of_class = scores.iter().zip(targets).filter(|(_, target)| **target == wanted);
        for (score, _) in of_class {
            let bin = ((score - low) / (high - low) * bins).min(bins - 1.0) as usize;
            counts.get_mut(bin).into_iter().for_each(|count| *count += 1);
        }
        let all = counts.iter().sum::<u64>().max(1) as f64;
        let edge = |index: usize| low + (high - low) * index as f64 / bins;
        let bars = counts
            .iter()
            .enumerate()
            .map(|(index, count)| (edge(index), edge(index + 1), 100.0 * *count as f64 / all));
        bars.filter(|(_, _, height)| *height > 0.0).collect::<Vec<_>>()
    };
    let plot = Plot::new(title, Axis::linear("score"), Axis::linear("trials, % of their class"))
        .histogram("different speakers", histogram(false))
        .histogram("same speaker", histogram(true));
    Ok(thresholds.iter().fold(plot, |plot, (score, name)| plot.vertical(*score, name)))
}

/// Plots over the steps of a training log in JSON lines: one for each quantity, which is what
/// follows the last `/` of a number's name.
///
/// # Errors
/// When the file cannot be read or a line is not an object with a `step`.
pub fn training_curves(log: &Path, limits: &Limits) -> Result<Vec<Plot>> {
    let mut plots: Vec<(String, Vec<Curve>)> = vec![];
    for curve in read_curves(log, limits)? {
        let quantity = curve.name.rsplit('/').next().unwrap_or_default().to_string();
        match plots.iter_mut().find(|(name, _)| *name == quantity) {
            Some((_, curves)) => curves.push(curve),
            None => plots.push((quantity, vec![curve])),
        }
    }
    Ok(plots.into_iter().map(|(quantity, curves)| curve_plot(&quantity, curves)).collect())
}

/// The values of one number of a log, by step.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

fn read_curves(log: &Path, limits: &Limits) -> Result<Vec<Curve>> {
    let text = files::read_text(log, limits)?;
    let mut curves: Vec<Curve> = vec![];
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let wrong = |reason: String| Error::Parse { path: log.into(), line: index + 1, reason };
        let line: Map<String, Value> = match serde_json::from_str(line) {
            Ok(line) => line,
            // The training was killed while it wrote, or is writing now.
            Err(_) if !line.ends_with('\n') => break,
            Err(error) => return Err(wrong(format!("expected a JSON object: {error}"))),
        };
        let step = line.get("step").and_then(Value::as_f64);
        let step = step.ok_or_else(|| wrong("expected a number `step`".into()))?;
        for (name, value) in &line {
            // What was not finite is null.
            let (Some(value), false) = (value.as_f64(), NOT_MEASURED.contains(&name.as_str()))
            else {
                continue;
            };
            match curves.iter_mut().find(|curve| curve.name == *name) {
                Some(curve) => curve.points.push((step, value)),
                None => curves.push(Curve { name: name.clone(), points: vec![(step, value)] }),
            }
        }
    }
    Ok(curves)
}

fn curve_plot(quantity: &str, curves: Vec<Curve>) -> Plot {
    let mut values: Vec<f64> =
        curves.iter().flat_map(|curve| &curve.points).map(|(_, value)| *value).collect();
    values.sort_by(f64::total_cmp);
    let median = values.get(values.len() / 2).copied().unwrap_or_default();
    let (least, most) = (values.first(), values.last());
    // Evenly spread, most of the curve would lie at the bottom.
    let is_squeezed =
        least.is_some_and(|least| *least > 0.0) && most.is_some_and(|most| 30.0 * median < *most);
    let y = if is_squeezed { Axis::log("") } else { Axis::linear("") };
    let longest = curves.iter().map(|curve| curve.points.len()).max().unwrap_or_default();
    let together = longest.div_ceil(MOST_POINTS).max(1);
    let label = match together {
        1 => "step".to_string(),
        _ => format!("step (mean and range of {together} values each)"),
    };
    let plot = Plot::new(quantity, Axis::linear(&label), y);
    let is_alone = curves.len() == 1;
    curves.into_iter().fold(plot.size(720, 300), |plot, Curve { name, points }| {
        let name = if is_alone { "" } else { &name };
        if together == 1 {
            return plot.line(name, points);
        }
        let (means, ranges) = condensed(&points, together);
        plot.line(name, means).band(ranges)
    })
}

/// A place on the x axis with the lowest and the highest value there.
type Range = (f64, f64, f64);

/// Means and ranges of `together` successive points each.
fn condensed(points: &[(f64, f64)], together: usize) -> (Vec<(f64, f64)>, Vec<Range>) {
    let groups = points.chunks(together).map(|group| {
        let count = group.len() as f64;
        let x = group.iter().map(|(x, _)| x / count).sum();
        let values = || group.iter().map(|(_, y)| *y);
        let mean = values().map(|y| y / count).sum();
        let low = values().fold(f64::INFINITY, f64::min);
        let high = values().fold(f64::NEG_INFINITY, f64::max);
        ((x, mean), (x, low, high))
    });
    groups.unzip()
}

#[cfg(test)]
mod tests {
    use super::super::plot::Shape;
    use super::*;
    use crate::eval::verification::Trials;
    use crate::rng::Stream;

    /// Normally distributed scores, of which every fourth belongs to a target.
    fn trials(count: usize) -> (Vec<f64>, Vec<bool>) {
        let mut stream = Stream::new(1, "figures", 0);
        let targets: Vec<bool> = (0..count).map(|index| index % 4 == 0).collect();
        let shift = |target: &bool| if *target { 4.0 } else { 0.0 };
        let scores = targets.iter().map(|target| stream.normal() + shift(target)).collect();
        (scores, targets)
    }

    fn elements(svg: &str, class: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let has_class = |node: &roxmltree::Node| {
            node.attribute("class").is_some_and(|found| found.split(' ').any(|word| word == class))
        };
        let found = document.descendants().filter(has_class);
        found.map(|node| node.tag_name().name().to_string()).collect()
    }

    #[test]
    fn each_det_curve_has_its_mark_on_the_diagonal() {
        let (scores, targets) = trials(4000);
        let trials = Trials::new(&scores, &targets).unwrap();
        let points = trials.det_curve(0.0);
        let curve =
            |name| DetCurve { name, points: &points, equal_error_rate: trials.equal_error_rate() };
        let plot = det_plot("DET", &[curve("a"), curve("b")]);
        let svg = plot.svg();
        // Each once in the legend and once in the plot.
        assert_eq!(elements(&svg, "curve").len(), 4);
        assert_eq!(elements(&svg, "mark").len(), 4);
        assert_eq!(elements(&svg, "guide").len(), 1);
        assert!(svg.contains("a (EER 2."), "2.28 % for classes four deviations apart");
        assert!(svg.len() < 60_000, "thousands of points became {} bytes", svg.len());
    }

    #[test]
    fn systems_without_errors_have_a_plot_too() {
        let perfect = Trials::new(&[0.0, 1.0], &[false, true]).unwrap();
        let points = perfect.det_curve(0.01);
        let equal_error_rate = perfect.equal_error_rate();
        let svg = det_plot("", &[DetCurve { name: "a", points: &points, equal_error_rate }]).svg();
        roxmltree::Document::parse(&svg).unwrap();
        assert!(!svg.contains("NaN"));
        assert!(!det_plot("", &[]).svg().contains("NaN"));
    }

    #[test]
    fn histograms_show_shares_of_their_class() {
        let (scores, targets) = trials(1000);
        let plot = score_histogram("", &scores, &targets, &[(2.0, "threshold")]).unwrap();
        for series in &plot.series {
            let [Shape::Histogram(bins)] = series.shapes.as_slice() else { panic!("{series:?}") };
            let sum: f64 = bins.iter().map(|(_, _, height)| height).sum();
            assert!((sum - 100.0).abs() < 1e-9, "{sum}");
            assert!(bins.iter().all(|(from, to, _)| from < to));
        }
        let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let Shape::Histogram(bins) = &plot.series[0].shapes[0] else { panic!() };
        assert_eq!(bins[0].0, low);
    }

    #[test]
    fn scores_that_make_no_histogram() {
        assert!(matches!(score_histogram("", &[1.0], &[], &[]), Err(Error::Argument(_))));
        let nan = score_histogram("", &[f64::NAN], &[true], &[]);
        assert!(matches!(nan, Err(Error::NonFinite { .. })));
        for scores in [&[][..], &[3.0, 3.0]] {
            let plot = score_histogram("", scores, &vec![true; scores.len()], &[]).unwrap();
            assert!(!plot.svg().contains("NaN"));
        }
    }

    fn curves(log: &str) -> Result<Vec<Plot>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        std::fs::write(&path, log).unwrap();
        training_curves(&path, &Limits::default())
    }

    #[test]
    fn curves_of_one_quantity_share_a_plot() {
        let plots = curves(
            "{\"step\": 1, \"time_s\": 5.0, \"train/loss\": 3.0, \"lr\": 0.1}\n\
             {\"step\": 2, \"time_s\": 6.0, \"train/loss\": null, \"lr\": 0.2}\n\
             {\"step\": 3, \"time_s\": 7.0, \"dev/loss\": 2.0}\n\
             {\"step\": 4, \"lo",
        )
        .unwrap();
        let titles: Vec<&str> = plots.iter().map(|plot| plot.title.as_str()).collect();
        assert_eq!(titles, ["loss", "lr"]);
        let lines = |plot: &Plot| {
            let lines = plot.series.iter().map(|series| match series.shapes.as_slice() {
                [Shape::Line(points)] => (series.name.clone(), points.clone()),
                other => panic!("{other:?}"),
            });
            lines.collect::<Vec<_>>()
        };
        let expected = [
            ("train/loss".to_string(), vec![(1.0, 3.0)]),
            ("dev/loss".to_string(), vec![(3.0, 2.0)]),
        ];
        assert_eq!(lines(&plots[0]), expected);
        assert_eq!(lines(&plots[1]), [(String::new(), vec![(1.0, 0.1), (2.0, 0.2)])]);
    }

    #[test]
    fn long_curves_become_means_and_ranges() {
        let line = |step: usize| format!("{{\"step\": {step}, \"loss\": {}}}\n", step % 10);
        let plots = curves(&(0..3000).map(line).collect::<String>()).unwrap();
        let [Shape::Line(means), Shape::Band(ranges)] = plots[0].series[0].shapes.as_slice() else {
            panic!("{plots:?}")
        };
        assert_eq!((means.len(), ranges.len()), (300, 300));
        assert!((means[1].0 - 14.5).abs() < 1e-9 && (means[1].1 - 4.5).abs() < 1e-9);
        assert_eq!((ranges[1].1, ranges[1].2), (0.0, 9.0));
    }

    #[test]
    fn a_log_of_another_kind_is_refused_with_its_line() {
        for (log, wrong_line) in [("{\"step\": 1}\nx\n", 2), ("[]\n", 1), ("{\"loss\": 1}\n", 1)] {
            match curves(log) {
                Err(Error::Parse { line, .. }) => assert_eq!(line, wrong_line, "{log}"),
                other => panic!("{log}: {other:?}"),
            }
        }
        assert!(curves("").unwrap().is_empty());
    }
}
