//! An evaluation to look at.

use std::path::Path;

use shared::report::format::{percent, significant};
use shared::report::{Axis, Page, Plot, Table};

use super::alignment::TOLERANCE_S;
use super::compare::{Evaluation, Metric};
use super::memorisation::Nearest;

/// Bins of a histogram.
const BINS: usize = 40;
/// Delays beyond this are not shown.
const LONGEST_DELAY_S: f64 = 0.5;
/// Pairs of generated clips and the training clips nearest to them that are listed.
const LISTED_PAIRS: usize = 10;

/// The numbers of an evaluation with their intervals.
pub fn table(evaluation: &Evaluation) -> Table {
    let mut table = Table::new(["measure", "clips", "value", "95 % interval"]);
    for metric in &evaluation.metrics {
        let interval = metric.interval.map_or_else(
            || "-".to_owned(),
            |interval| format!("{} to {}", number(interval.low), number(interval.high)),
        );
        table.row([&metric.name, &metric.of, &number(metric.value), &interval]);
    }
    table
}

/// How each number is computed, once each: names and definitions.
pub fn definitions(evaluation: &Evaluation) -> Vec<(&str, &str)> {
    let mut found: Vec<(&str, &str)> = vec![];
    for Metric { name, definition, .. } in &evaluation.metrics {
        // The same measure of another set may say something else, such as other numbers of clips.
        if !found.contains(&(name, definition)) {
            found.push((name, definition));
        }
    }
    found
}

fn number(value: f64) -> String {
    significant(value, 4)
}

/// The figures of an evaluation: file names without their ending, and what they show.
pub fn plots(evaluation: &Evaluation) -> Vec<(&'static str, Plot, String)> {
    let [real_s, fake_s] = &evaluation.delays_s;
    let mut plots = vec![
        (
            "synchrony",
            synchrony(evaluation),
            "How well sound and picture go together, of the clips themselves and with sounds that \
             cannot go with them"
                .to_owned(),
        ),
        (
            "delays",
            delays(evaluation),
            format!(
                "Seconds from each impact seen to the nearest onset heard; {} of real and {} of \
                 generated impacts are heard within {TOLERANCE_S} s",
                within(real_s),
                within(fake_s)
            ),
        ),
    ];
    if let Some(nearest) = &evaluation.nearest {
        let pairs = [
            ("nearest-pictures", "picture", &nearest.real_pictures, &nearest.fake_pictures),
            ("nearest-sounds", "sound", &nearest.real_sounds, &nearest.fake_sounds),
        ];
        for (file, what, real, fake) in pairs {
            let caption = format!(
                "Distances of the {what} to the nearest training clip; copies lie far to the left of \
                 real clips"
            );
            let distances = |nearest: &[Nearest]| nearest.iter().map(|it| it.distance).collect();
            let label = format!("distance of {what}");
            let (real, fake): (Vec<f64>, Vec<f64>) = (distances(real), distances(fake));
            let most = real.iter().chain(&fake).copied().fold(0.0, f64::max);
            plots.push((file, histograms(&label, &real, &fake, (0.0, most)), caption));
        }
    }
    plots
}

fn synchrony(evaluation: &Evaluation) -> Plot {
    let is_shown =
        |metric: &&Metric| metric.name.starts_with("AV-Align") || metric.name.starts_with("impact");
    let shown: Vec<&Metric> = evaluation.metrics.iter().filter(is_shown).collect();
    let unique = |of: fn(&Metric) -> &str| {
        shown.iter().map(|metric| of(metric)).fold(vec![], |mut found, name| {
            if !found.contains(&name) {
                found.push(name);
            }
            found
        })
    };
    let names = unique(|metric| &metric.name);
    let sets = unique(|metric| &metric.of);
    let axis = Axis::categories("", &names);
    let plot = Plot::new("Synchrony", axis, Axis::linear("share").range(0.0, 1.0)).size(720, 480);
    sets.iter().fold(plot, |plot, set| {
        let value = |name: &&str| {
            let found = shown.iter().find(|metric| metric.name == **name && metric.of == *set);
            found.map_or(f64::NAN, |metric| metric.value)
        };
        plot.bars(set, names.iter().map(value))
    })
}

fn delays(evaluation: &Evaluation) -> Plot {
    let [real, fake] = &evaluation.delays_s;
    let range = (-LONGEST_DELAY_S, LONGEST_DELAY_S);
    histograms("sound after the impact, seconds", real, fake, range)
        .vertical(-TOLERANCE_S, "")
        .vertical(TOLERANCE_S, "")
}

fn within(delays_s: &[f64]) -> String {
    let near = delays_s.iter().filter(|delay| delay.abs() <= TOLERANCE_S).count();
    match delays_s.len() {
        0 => "none".to_owned(),
        all => percent(near as f64 / all as f64, 0),
    }
}

/// Shares of real and generated clips in bins between the ends of `range`.
fn histograms(label: &str, real: &[f64], fake: &[f64], (low, high): (f64, f64)) -> Plot {
    let high = if high > low { high } else { low + 1.0 };
    let edge = |bin: usize| low + (high - low) * bin as f64 / BINS as f64;
    let bins = |values: &[f64]| {
        let mut counts = vec![0usize; BINS];
        for value in values.iter().filter(|value| (low..=high).contains(*value)) {
            let bin = ((value - low) / (high - low) * BINS as f64) as usize;
            counts.get_mut(bin.min(BINS - 1)).into_iter().for_each(|count| *count += 1);
        }
        let all = values.len().max(1) as f64;
        let bars = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        bars.map(|(bin, count)| (edge(bin), edge(bin + 1), 100.0 * count as f64 / all))
            .collect::<Vec<_>>()
    };
    Plot::new(label, Axis::linear(label).range(low, high), Axis::linear("% of the set"))
        .size(720, 320)
        .histogram("real", bins(real))
        .histogram("fake", bins(fake))
}

/// One page with everything. `facts` tell what was compared, `left_out` which files were not.
pub fn page(evaluation: &Evaluation, facts: &[(&str, String)], left_out: &[String]) -> Page {
    let mut page = Page::new("Evaluation of generated clips");
    page.facts(facts.iter().map(|(name, value)| (*name, value.clone())));
    page.table(&table(evaluation));
    page.paragraph(&format!(
        "Intervals: 95 % by {} bootstrap resamples of the clips, percentiles moved so that the \
         resamples' mean lies at the value.",
        evaluation.resamples
    ));
    for (_, plot, caption) in plots(evaluation) {
        page.plot(&plot, &caption);
    }
    if let Some(nearest) = &evaluation.nearest {
        page.heading("Generated clips nearest to training clips");
        page.table(&pairs("picture", &nearest.fake_pictures));
        page.table(&pairs("sound", &nearest.fake_sounds));
    }
    page.heading("Definitions");
    page.facts(definitions(evaluation).into_iter().map(|(name, text)| (name, text.to_owned())));
    if !left_out.is_empty() {
        page.heading("Files left out");
        left_out.iter().for_each(|reason| page.paragraph(reason));
    }
    page
}

fn pairs(what: &str, nearest: &[Nearest]) -> Table {
    let mut sorted: Vec<&Nearest> = nearest.iter().collect();
    sorted.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    let mut table = Table::new(["clip", "training clip", &format!("distance of {what}")]);
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for Nearest { clip, training, distance } in sorted.into_iter().take(LISTED_PAIRS) {
        table.row([name(clip), name(training), number(*distance)]);
    }
    table
}
