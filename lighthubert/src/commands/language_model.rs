//! `lighthubert language-model`: n-gram models from texts.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lighthubert::language_model::{estimate, write_arpa};
use serde::Serialize;
use shared::Error;
use shared::cli::Common;
use shared::data::Filter;
use shared::eval::wer::{Normaliser, Transcripts};
use shared::files::{check_output, read_text};
use shared::limits::Limits;
use shared::report::format::count;

#[derive(Args)]
pub struct Options {
    /// Texts, a sentence a line; may be given several times
    #[arg(long, value_name = "FILE", required_unless_present = "transcripts")]
    text: Vec<PathBuf>,
    /// Transcripts in a form that `lighthubert score` takes; may be given several times
    #[arg(long, value_name = "LIST")]
    transcripts: Vec<PathBuf>,
    /// Only transcripts whose column has the value, `column=value`; may be given several times
    #[arg(long = "where", value_name = "FILTER", requires = "transcripts")]
    filters: Vec<Filter>,
    /// What is done to the texts first: `none`, `basic` or `librispeech`
    #[arg(long, value_name = "NAME", default_value_t = Normaliser::None)]
    normaliser: Normaliser,
    /// What the model predicts; characters have `|` between words
    #[arg(long, value_name = "UNIT", default_value = "words")]
    unit: Unit,
    /// Longest n-grams [default: 3 of words, 6 of characters]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    order: Option<u8>,
    /// Where the model goes, in the ARPA format; compressed if the name ends with .gz
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the model
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Unit {
    Words,
    Characters,
}

#[derive(Serialize)]
struct Outcome {
    out: String,
    sentences: usize,
    /// Number of n-grams of each order, from 1.
    ngrams: Vec<usize>,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    check_output(&options.out, options.force)?;
    let sentences = sentences(options)?;
    let order = options.order.unwrap_or(if options.unit == Unit::Words { 3 } else { 6 });
    let model = estimate(sentences.iter().map(String::as_str), order.into())?;
    write_arpa(&model, &options.out, options.force)?;
    let outcome = Outcome {
        out: options.out.display().to_string(),
        sentences: sentences.len(),
        ngrams: model.counts().to_vec(),
    };
    let counts: Vec<String> = outcome.ngrams.iter().map(|number| count(*number as u64)).collect();
    let text = format!(
        "{} n-grams of orders 1 to {order} from {} sentences in {}",
        counts.join(" + "),
        count(outcome.sentences as u64),
        outcome.out
    );
    common.print(&outcome, text)
}

/// The texts that are not empty, normalised and in units with spaces between.
fn sentences(options: &Options) -> shared::Result<Vec<String>> {
    let limits = Limits::default();
    let mut texts = Vec::new();
    for path in &options.text {
        texts.extend(read_text(path, &limits)?.lines().map(str::to_owned));
    }
    for path in &options.transcripts {
        let transcripts = Transcripts::read(path, false, &options.filters, &limits)?;
        texts.extend(transcripts.entries.into_iter().map(|transcript| transcript.text));
    }
    texts.iter_mut().for_each(|text| *text = options.normaliser.apply(text));
    texts.retain(|text| !text.is_empty());
    if options.unit == Unit::Words {
        return Ok(texts);
    }
    if let Some(text) = texts.iter().find(|text| text.contains('|')) {
        let reason = format!("`{text}` holds `|`, which stands between words");
        return Err(Error::Argument(reason));
    }
    let spelled = |text: &String| {
        let text = text.split_whitespace().collect::<Vec<_>>().join("|");
        text.chars().map(String::from).collect::<Vec<_>>().join(" ")
    };
    Ok(texts.iter().map(spelled).collect())
}
