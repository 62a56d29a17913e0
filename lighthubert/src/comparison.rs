//! Error rates of several recognisers against what they cost.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shared::data::lines::Lines;
use shared::limits::Limits;
use shared::report::{Axis, Page, Plot, Table};
use shared::{Error, Result};

use crate::score_report::Figure;

/// What a recogniser's evaluation said: a line of `lighthubert evaluate --json`, of which the rest is
/// passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// Which recogniser.
    pub model: String,
    /// Which recordings.
    pub recordings: String,
    /// How the texts were found.
    pub decoder: String,
    /// Word error rate.
    pub wer: Figure,
    /// Parameters of the recogniser.
    pub parameters: u64,
    /// Multiply-accumulates of the encoder for 10 s of audio.
    pub macs_10s: u64,
    /// Computing time over audio time.
    pub real_time_factor: f64,
}

/// A way to count what a recogniser costs.
struct Cost {
    /// What is lowest for the best.
    name: &'static str,
    label: &'static str,
    of: fn(&Evaluated) -> f64,
}

const COSTS: [Cost; 3] = [
    Cost { name: "size", label: "million parameters", of: |it| 1e-6 * it.parameters as f64 },
    Cost {
        name: "operations",
        label: "GMAC for 10 s of audio",
        of: |it| 1e-9 * it.macs_10s as f64,
    },
    Cost { name: "time", label: "real-time factor", of: |it| it.real_time_factor },
];

/// Recognisers that were evaluated on the same recordings in the same way.
pub struct Comparison {
    /// Recordings and decoder.
    pub title: String,
    /// The recognisers, by the number of their parameters.
    pub rows: Vec<Evaluated>,
}

impl Comparison {
    /// The comparisons that can be made of what stands in files, one for each kind of recordings and
    /// decoder.
    ///
    /// # Errors
    /// When a line is no evaluation; when there is none at all.
    pub fn read<P: AsRef<Path>>(paths: &[P], limits: &Limits) -> Result<Vec<Self>> {
        let mut groups: BTreeMap<(String, String), Vec<Evaluated>> = BTreeMap::new();
        for path in paths {
            let mut lines = Lines::open(path.as_ref(), limits)?;
            while let Some(line) = lines.next()? {
                let row: Evaluated = serde_json::from_str(line.text).map_err(|error| {
                    line.error(format!(
                        "expected what `lighthubert evaluate --json` prints: {error}"
                    ))
                })?;
                let figures = [row.wer.value, row.wer.interval.low, row.wer.interval.high];
                if !(figures.iter().all(|it| it.is_finite()) && row.real_time_factor > 0.0) {
                    return Err(line.error("the error rate or the real-time factor is no number"));
                }
                groups.entry((row.recordings.clone(), row.decoder.clone())).or_default().push(row);
            }
        }
        if groups.is_empty() {
            return Err(Error::Argument("there are no evaluations in the files".into()));
        }
        let comparison = |((recordings, decoder), mut rows): (_, Vec<Evaluated>)| {
            rows.sort_by(|a, b| (a.parameters, &a.model).cmp(&(b.parameters, &b.model)));
            Self { title: format!("{recordings}, {decoder}"), rows }
        };
        Ok(groups.into_iter().map(comparison).collect())
    }

    /// The recognisers that none beats in error rate at the same or a lower cost, by cost.
    fn front(&self, cost: &Cost) -> Vec<&Evaluated> {
        let mut rows: Vec<&Evaluated> = self.rows.iter().collect();
        rows.sort_by(|a, b| {
            (cost.of)(a).total_cmp(&(cost.of)(b)).then(a.wer.value.total_cmp(&b.wer.value))
        });
        let mut least = f64::INFINITY;
        rows.retain(|row| {
            let is_better = row.wer.value < least;
            least = least.min(row.wer.value);
            is_better
        });
        rows
    }

    /// A row for each recogniser; the last column says for which costs none is better.
    pub fn table(&self) -> Table {
        let fronts = COSTS.each_ref().map(|cost| (cost.name, self.front(cost)));
        let mut table = Table::new([
            "model",
            "parameters M",
            "GMAC for 10 s",
            "real-time factor",
            "WER % (95 % interval)",
            "best for its",
        ]);
        for row in &self.rows {
            let best: Vec<&str> = fronts
                .iter()
                .filter(|(_, front)| front.iter().any(|it| std::ptr::eq(*it, row)))
                .map(|(name, _)| *name)
                .collect();
            table.row([
                row.model.clone(),
                format!("{:.3}", 1e-6 * row.parameters as f64),
                format!("{:.3}", 1e-9 * row.macs_10s as f64),
                format!("{:.4}", row.real_time_factor),
                row.wer.percent(),
                best.join(", "),
            ]);
        }
        table
    }

    /// Error rates over each cost, with the Pareto front: those that none beats at the same cost.
    pub fn plots(&self) -> Vec<Plot> {
        let plot = |cost: &Cost| {
            let point = |row: &Evaluated| ((cost.of)(row), 100.0 * row.wer.value);
            let title = format!("Word error rate by {}: {}", cost.name, self.title);
            let front = self.front(cost).into_iter().map(point);
            Plot::new(&title, Axis::linear(cost.label), Axis::linear("WER %"))
                .line("Pareto front", front)
                .points("recognisers", self.rows.iter().map(point))
        };
        COSTS.iter().map(plot).collect()
    }

    /// Writes `comparison.html` and the plots to a folder.
    ///
    /// # Errors
    /// When files exist and `force` is not given, or cannot be written.
    pub fn write(comparisons: &[Self], folder: &Path, force: bool) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut page = Page::new("Recognisers compared");
        page.paragraph(
            "Error rates in per cent with 95 % intervals. \"Best for its size\": no other recogniser of \
             the same size or a smaller one has a lower error rate, and so for the other columns; these \
             are on the Pareto front. Operations are the encoder's multiply-accumulates.",
        );
        for comparison in comparisons {
            page.heading(&comparison.title);
            page.table(&comparison.table());
            let name = comparison.title.replace(|c: char| !c.is_alphanumeric(), "-");
            for (plot, cost) in comparison.plots().iter().zip(&COSTS) {
                page.plot(plot, "");
                plot.write(&folder.join(format!("{name}-{}.svg", cost.name)), force)?;
            }
        }
        page.write(&folder.join("comparison.html"), force)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"
{"model":"large","recordings":"dev","decoder":"greedy","wer":{"value":0.2,"interval":{"low":0.1,"high":0.3}},"parameters":3000000,"macs_10s":9000000000,"real_time_factor":0.1,"more":1}
{"model":"small","recordings":"dev","decoder":"greedy","wer":{"value":0.4,"interval":{"low":0.3,"high":0.5}},"parameters":1000000,"macs_10s":3000000000,"real_time_factor":0.2}
{"model":"bad","recordings":"dev","decoder":"greedy","wer":{"value":0.5,"interval":{"low":0.3,"high":0.7}},"parameters":2000000,"macs_10s":5000000000,"real_time_factor":0.05}
{"model":"small","recordings":"eval","decoder":"greedy","wer":{"value":0.4,"interval":{"low":0.3,"high":0.5}},"parameters":1000000,"macs_10s":3000000000,"real_time_factor":0.2}
"#;

    #[test]
    fn recognisers_that_none_beats_are_on_the_front() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("found.jsonl");
        fs::write(&path, LINES).unwrap();
        let found = Comparison::read(&[&path], &Limits::default()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].title, "dev, greedy");
        let names = |cost: &Cost| -> Vec<&str> {
            found[0].front(cost).iter().map(|row| row.model.as_str()).collect()
        };
        assert_eq!(names(&COSTS[0]), ["small", "large"]);
        assert_eq!(names(&COSTS[1]), ["small", "large"]);
        assert_eq!(names(&COSTS[2]), ["bad", "large"]);
        let table = found[0].table().to_string();
        assert!(table.contains("40.00 % (30.00 to 50.00)"), "{table}");
        assert!(found[1].table().to_string().contains("size, operations, time"));
        Comparison::write(&found, folder.path(), false).unwrap();
        assert!(folder.path().join("dev--greedy-size.svg").is_file());
        assert!(Comparison::write(&found, folder.path(), false).is_err());
    }

    #[test]
    fn lines_that_are_no_evaluations_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("found.jsonl");
        for (text, message) in [
            ("", "no evaluations"),
            ("{}", "found.jsonl:1"),
            ("x", "found.jsonl:1"),
            (&LINES.trim().replace("0.05}", "0}"), "found.jsonl:3"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Comparison::read(&[&path], &Limits::default()).err().unwrap();
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
