//! What an evaluation of transcripts comes to: figures, tables, an HTML page, an aligned listing.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shared::eval::wer::{Confusion, Counts, Evaluation, Normaliser, Step, Tally, Unit, Utterance};
use shared::eval::{Bootstrap, Interval};
use shared::files::write_atomic;
use shared::report::format::{count, duration, percent, percent_with_interval};
use shared::report::{Axis, Page, Plot, Table};
use shared::{Error, Result};

/// Where the classes of length begin, in seconds.
const DURATION_EDGES: [f64; 5] = [2.0, 5.0, 10.0, 15.0, 20.0];
/// Errors of each kind in tables and figures.
const LISTED_CONFUSIONS: usize = 20;
/// Speakers in the page's table.
const LISTED_SPEAKERS: usize = 25;
/// Utterances that the page shows aligned.
const SHOWN_UTTERANCES: usize = 200;

/// A share from 0 to 1 (error rates may be above) with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The share.
    pub value: f64,
    /// Its interval.
    pub interval: Interval,
}

impl Figure {
    /// In per cent, with the interval.
    pub fn percent(&self) -> String {
        percent_with_interval(self.value, self.interval.low, self.interval.high, 2)
    }
}

/// The figures of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// What the references are.
    pub references: String,
    /// What the hypotheses are.
    pub hypotheses: String,
    /// What was done to both.
    pub normaliser: Normaliser,
    /// Word error rate: errors of all utterances over words of all references.
    pub wer: Figure,
    /// Character error rate, spaces counted.
    pub cer: Figure,
    /// Share of utterances with an error.
    pub sentence_error_rate: Figure,
    /// Match error rate.
    pub mer: f64,
    /// Word information lost.
    pub wil: f64,
    /// What was resampled for the intervals.
    pub resampled: Unit,
    /// How often.
    pub resamples: usize,
    /// References without a hypothesis, which count as empty ones.
    pub missing: usize,
    /// Hypotheses without a reference, which do not count.
    pub unused: usize,
    /// The sums behind the figures.
    #[serde(flatten)]
    pub total: Tally,
    /// Speakers, the worst first.
    pub speakers: Vec<Group>,
    /// Classes of length.
    pub durations: Vec<Group>,
    /// The most frequent substitutions.
    pub substitutions: Vec<Confusion>,
    /// The most frequent deletions.
    pub deletions: Vec<Confusion>,
    /// The most frequent insertions.
    pub insertions: Vec<Confusion>,
}

/// Figures of some of the utterances.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// Word error rate.
    pub wer: f64,
    /// Character error rate.
    pub cer: f64,
    /// The sums behind.
    #[serde(flatten)]
    pub tally: Tally,
}

impl Group {
    fn new(name: String, tally: Tally) -> Self {
        let (wer, cer) = (tally.words.error_rate(), tally.characters.error_rate());
        Self { name, wer, cer, tally }
    }
}

/// An evaluation and its figures.
#[derive(Clone, Debug)]
pub struct ScoreReport {
    evaluation: Evaluation,
    metrics: Metrics,
}

impl ScoreReport {
    /// Computes the figures of an evaluation of `hypotheses` against `references`, with intervals over
    /// `unit`; by default over speakers where those of all utterances are known.
    ///
    /// # Errors
    /// Those of [`Evaluation::intervals`].
    pub fn new(
        evaluation: Evaluation,
        [references, hypotheses]: [&str; 2],
        bootstrap: &Bootstrap,
        unit: Option<Unit>,
    ) -> Result<Self> {
        let speakers_known = evaluation.utterances.iter().all(|it| it.speaker.is_some());
        let default = if speakers_known { Unit::Speakers } else { Unit::Utterances };
        let resampled = unit.unwrap_or(default);
        let intervals = evaluation.intervals(bootstrap, resampled)?;
        let total = evaluation.total();
        let mut speakers: Vec<Group> = evaluation
            .by_speaker()
            .into_iter()
            .map(|(speaker, tally)| Group::new(speaker.to_owned(), tally))
            .collect();
        speakers.sort_by(|a, b| b.wer.total_cmp(&a.wer));
        let durations = evaluation.by_duration(&DURATION_EDGES).into_iter().zip(duration_names());
        let durations = durations.filter(|(tally, _)| tally.utterances > 0);
        let confusions = evaluation.confusions();
        let most = |is_kind: fn(&Confusion) -> bool| {
            let of_kind = confusions.iter().filter(|confusion| is_kind(confusion));
            of_kind.take(LISTED_CONFUSIONS).cloned().collect()
        };
        let metrics = Metrics {
            references: references.to_owned(),
            hypotheses: hypotheses.to_owned(),
            normaliser: evaluation.normaliser,
            wer: Figure { value: total.words.error_rate(), interval: intervals.word_error_rate },
            cer: Figure {
                value: total.characters.error_rate(),
                interval: intervals.character_error_rate,
            },
            sentence_error_rate: Figure {
                value: total.sentence_error_rate(),
                interval: intervals.sentence_error_rate,
            },
            mer: total.words.match_error_rate(),
            wil: total.words.information_lost(),
            resampled,
            resamples: bootstrap.resamples,
            missing: evaluation.missing,
            unused: evaluation.unused,
            total,
            speakers,
            durations: durations.map(|(tally, name)| Group::new(name, tally)).collect(),
            substitutions: most(|it| it.reference.is_some() && it.hypothesis.is_some()),
            deletions: most(|it| it.hypothesis.is_none()),
            insertions: most(|it| it.reference.is_none()),
        };
        Ok(Self { evaluation, metrics })
    }

    /// The figures.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The figures as a table for a terminal.
    pub fn table(&self) -> Table {
        let Metrics { wer, cer, sentence_error_rate, total, .. } = &self.metrics;
        let mut table = Table::new(["figure", "value (95 % interval)"]);
        table.row(["word error rate".to_owned(), wer.percent()]);
        table.row(["character error rate".to_owned(), cer.percent()]);
        table.row(["sentence error rate".to_owned(), sentence_error_rate.percent()]);
        table.row(["words".to_owned(), count(total.words.reference())]);
        for (name, number) in kinds(&total.words) {
            table.row([name.to_owned(), with_share(number, total.words.reference())]);
        }
        table.row(["utterances".to_owned(), count(total.utterances)]);
        table.row(["normaliser".to_owned(), self.metrics.normaliser.to_string()]);
        table
    }

    /// Writes `report.html`, `metrics.json` and `alignment.txt` into the folder `out`, which is made if
    /// need be.
    ///
    /// # Errors
    /// When one of them exists and `force` is not given, or cannot be written.
    pub fn write(&self, out: &Path, force: bool) -> Result<()> {
        fs::create_dir_all(out).map_err(Error::io(out))?;
        let json = serde_json::to_string_pretty(&self.metrics)
            .map_err(|error| Error::Argument(format!("the figures as JSON: {error}")))?;
        write_atomic(&out.join("metrics.json"), force, |file| file.write_all(json.as_bytes()))?;
        write_atomic(&out.join("alignment.txt"), force, |file| {
            self.evaluation
                .utterances
                .iter()
                .try_for_each(|it| file.write_all(listing(it).as_bytes()))
        })?;
        self.page().write(&out.join("report.html"), force)
    }

    /// The report as a page.
    pub fn page(&self) -> Page {
        let Metrics { total, wer, cer, sentence_error_rate, mer, wil, .. } = &self.metrics;
        let mut page = Page::new("Speech recognition");
        page.facts([
            ("references", self.metrics.references.clone()),
            ("hypotheses", self.metrics.hypotheses.clone()),
            ("normaliser", {
                let normaliser = self.metrics.normaliser;
                format!("{normaliser}: {}", normaliser.description())
            }),
            ("utterances", count(total.utterances)),
            ("words", count(total.words.reference())),
            (
                "audio",
                match total.duration_s > 0.0 {
                    true => duration(total.duration_s),
                    false => "of unknown length".to_owned(),
                },
            ),
            ("without hypothesis", count(self.metrics.missing as u64)),
            ("hypotheses not used", count(self.metrics.unused as u64)),
        ]);
        page.heading("Error rates");
        let mut rates = Table::new(["figure", "value (95 % interval)", "definition"]);
        let rows = [
            ("WER", wer.percent(), "word errors of all utterances over words of all references"),
            ("CER", cer.percent(), "the same of characters, spaces between words counted"),
            ("SER", sentence_error_rate.percent(), "utterances with a wrong word over all"),
            ("MER", percent(*mer, 2), "word errors over hits and errors"),
            ("WIL", percent(*wil, 2), "word information lost: 1 - hits^2 / (words of both sides)"),
        ];
        rows.into_iter().for_each(|(name, value, text)| rates.row([name, &value, text]));
        page.table(&rates);
        page.paragraph(&format!(
            "Intervals: percentiles of {} bootstrap samples of {}.",
            count(self.metrics.resamples as u64),
            match self.metrics.resampled {
                Unit::Speakers => "speakers, with all of their utterances",
                Unit::Utterances => {
                    "utterances; those of one speaker are alike, so that the true uncertainty is larger"
                }
            }
        ));
        self.breakdown(&mut page);
        self.groups(&mut page);
        self.confusions(&mut page);
        self.alignments(&mut page);
        page
    }

    fn breakdown(&self, page: &mut Page) {
        let words = &self.metrics.total.words;
        page.heading("Kinds of errors");
        let share = |number: u64| 100.0 * number as f64 / words.reference().max(1) as f64;
        let names = kinds(words).map(|(name, _)| name);
        let plot = Plot::new(
            "Kinds of errors",
            Axis::categories("", names),
            Axis::linear("% of reference words"),
        );
        let bars = plot.bars("", kinds(words).map(|(_, number)| share(number))).size(560, 300);
        page.plot(&bars, "");
        let mut table = Table::new(["", "hits", "substitutions", "deletions", "insertions"]);
        for (name, counts) in [("words", words), ("characters", &self.metrics.total.characters)] {
            let numbers =
                [counts.hits, counts.substitutions, counts.deletions, counts.insertions].map(count);
            table.row([name.to_owned()].into_iter().chain(numbers));
        }
        page.table(&table);
    }

    fn groups(&self, page: &mut Page) {
        let Metrics { durations, speakers, .. } = &self.metrics;
        if !durations.is_empty() {
            page.heading("By length");
            let plot = Plot::new(
                "Word error rate by length",
                Axis::categories("length of the recording", durations.iter().map(|it| &it.name)),
                Axis::linear("word error rate (%)"),
            );
            page.plot(&plot.bars("", durations.iter().map(|it| 100.0 * it.wer)).size(560, 300), "");
            page.table(&group_table("length", durations));
        }
        if !speakers.is_empty() {
            page.heading("By speaker");
            if speakers.len() > LISTED_SPEAKERS {
                page.paragraph(&format!(
                    "The {LISTED_SPEAKERS} with the highest rates of {}; metrics.json has all.",
                    count(speakers.len() as u64)
                ));
            }
            page.table(&group_table("speaker", &speakers[..speakers.len().min(LISTED_SPEAKERS)]));
        }
    }

    fn confusions(&self, page: &mut Page) {
        let Metrics { substitutions, deletions, insertions, .. } = &self.metrics;
        page.heading("Most frequent errors");
        let word = |word: &Option<String>| word.clone().unwrap_or_default();
        let header = ["substituted", "by", "times", "deleted", "times", "inserted", "times"];
        let mut table = Table::new(header);
        for place in 0..substitutions.len().max(deletions.len()).max(insertions.len()) {
            let cells = |list: &[Confusion]| match list.get(place) {
                Some(it) => [word(&it.reference), word(&it.hypothesis), count(it.count)],
                None => <[String; 3]>::default(),
            };
            let [deleted, _, deletions] = cells(deletions);
            let [_, inserted, insertions] = cells(insertions);
            let others = [deleted, deletions, inserted, insertions];
            table.row(cells(substitutions).into_iter().chain(others));
        }
        page.table(&table);
    }

    fn alignments(&self, page: &mut Page) {
        let mut wrong: Vec<&Utterance> =
            self.evaluation.utterances.iter().filter(|it| it.words.errors() > 0).collect();
        wrong.sort_by_key(|utterance| std::cmp::Reverse(utterance.words.errors()));
        page.heading("Alignments");
        let shown = wrong.len().min(SHOWN_UTTERANCES);
        page.paragraph(&format!(
            "Reference above, hypothesis below, of {} of the {} utterances with errors, those with most \
             errors first; alignment.txt has all.",
            count(shown as u64),
            count(wrong.len() as u64)
        ));
        page.alignment_legend();
        for utterance in &wrong[..shown] {
            let words = &utterance.words;
            let title = format!(
                "{}: {} errors in {} words",
                utterance.id,
                count(words.errors()),
                count(words.reference())
            );
            page.alignment(&title, utterance.aligned());
        }
    }
}

fn kinds(words: &Counts) -> [(&'static str, u64); 3] {
    [
        ("substitutions", words.substitutions),
        ("deletions", words.deletions),
        ("insertions", words.insertions),
    ]
}

fn with_share(number: u64, of: u64) -> String {
    format!("{} ({})", count(number), percent(number as f64 / of.max(1) as f64, 2))
}

/// The classes of length by name.
fn duration_names() -> Vec<String> {
    let between = DURATION_EDGES.windows(2).map(|pair| match pair {
        [from, to] => format!("{from} to {to} s"),
        _ => String::new(),
    });
    let first = DURATION_EDGES.first().map(|edge| format!("below {edge} s"));
    let last = DURATION_EDGES.last().map(|edge| format!("from {edge} s"));
    first.into_iter().chain(between).chain(last).collect()
}

fn group_table(title: &str, groups: &[Group]) -> Table {
    let mut table = Table::new([
        title,
        "utterances",
        "words",
        "WER %",
        "CER %",
        "SER %",
        "subst.",
        "deleted",
        "inserted",
    ]);
    for Group { name, wer, cer, tally } in groups {
        let rate = |share: f64| format!("{:.2}", 100.0 * share);
        let words = &tally.words;
        let numbers = [words.substitutions, words.deletions, words.insertions].map(count);
        let rates = [rate(*wer), rate(*cer), rate(tally.sentence_error_rate())];
        let sizes = [name.clone(), count(tally.utterances), count(words.reference())];
        table.row(sizes.into_iter().chain(rates).chain(numbers));
    }
    table
}

/// An utterance as sclite lists it: words of reference and hypothesis under each other, a letter below
/// each error.
fn listing(utterance: &Utterance) -> String {
    let mut lines = ["REF: ", "HYP: ", "     "].map(str::to_owned);
    for (step, reference, hypothesis) in utterance.aligned() {
        let width = |word: Option<&str>| word.map_or(0, |word| word.chars().count());
        let width = width(reference).max(width(hypothesis)).max(1);
        let letter = match step {
            Step::Hit => "",
            Step::Substitution => "S",
            Step::Deletion => "D",
            Step::Insertion => "I",
        };
        let missing = "*".repeat(width);
        let cells = [reference.unwrap_or(&missing), hypothesis.unwrap_or(&missing), letter];
        for (line, cell) in lines.iter_mut().zip(cells) {
            line.push_str(&format!("{cell:width$} "));
        }
    }
    let Counts { hits, substitutions, deletions, insertions } = utterance.words;
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    format!(
        "id: {}\nhits {hits} substitutions {substitutions} deletions {deletions} insertions \
         {insertions}\n{}\n\n",
        utterance.id,
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use shared::eval::wer::{Missing, Transcript, Transcripts};

    use super::*;

    fn report() -> ScoreReport {
        let texts = [
            ("u1", "THE CAT <SAT>", "THE BAT <SAT> DOWN", "ann", 1.5),
            ("u2", "YES", "YES", "bob", 4.0),
            ("u3", "NO WAY", "WAY", "bob", 25.0),
        ];
        let transcripts = |is_reference: bool| Transcripts {
            source: "list".into(),
            entries: texts
                .map(|(id, reference, hypothesis, speaker, duration_s)| Transcript {
                    id: id.to_owned(),
                    text: if is_reference { reference } else { hypothesis }.to_owned(),
                    speaker: Some(speaker.to_owned()),
                    duration_s: Some(duration_s),
                })
                .to_vec(),
        };
        let (references, hypotheses) = (transcripts(true), transcripts(false));
        let evaluation =
            Evaluation::new(&references, &hypotheses, Normaliser::None, Missing::Refused).unwrap();
        let bootstrap = Bootstrap { resamples: 20, ..Bootstrap::default() };
        ScoreReport::new(evaluation, ["references", "hypotheses"], &bootstrap, None).unwrap()
    }

    #[test]
    fn figures_are_those_of_the_evaluation() {
        let report = report();
        let metrics = report.metrics();
        assert_eq!((metrics.wer.value, metrics.resampled), (0.5, Unit::Speakers));
        assert_eq!(metrics.sentence_error_rate.value, 2.0 / 3.0);
        let speakers: Vec<_> =
            metrics.speakers.iter().map(|it| (it.name.as_str(), it.wer)).collect();
        assert_eq!(speakers, [("ann", 2.0 / 3.0), ("bob", 1.0 / 3.0)]);
        let durations: Vec<_> = metrics.durations.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(durations, ["below 2 s", "2 to 5 s", "from 20 s"]);
        assert_eq!(metrics.insertions[0].hypothesis.as_deref(), Some("DOWN"));
        let json = serde_json::to_value(metrics).unwrap();
        assert_eq!((&json["words"]["hits"], &json["resampled"]), (&4.into(), &"speakers".into()));
        let text = report.table().to_string();
        assert!(text.contains("50.00 % (") && text.contains("1 (16.67 %)"), "{text}");
    }

    #[test]
    fn the_folder_has_page_figures_and_listing() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/report");
        report().write(&out, false).unwrap();
        assert!(matches!(report().write(&out, false), Err(Error::Exists { .. })));
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        assert!(
            read("report.html").contains("&lt;SAT&gt;") && !read("report.html").contains("<SAT")
        );
        assert_eq!(
            read("alignment.txt").lines().take(5).collect::<Vec<_>>(),
            [
                "id: u1",
                "hits 2 substitutions 1 deletions 0 insertions 1",
                "REF: THE CAT <SAT> ****",
                "HYP: THE BAT <SAT> DOWN",
                "         S         I",
            ]
        );
        assert!(read("metrics.json").contains("\"wer\""));
    }
}
