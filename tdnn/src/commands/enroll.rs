//! `tdnn enroll`: speakers into a speaker book.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use tdnn::book::SpeakerBook;

use super::model::ModelOptions;

#[derive(Args)]
pub struct Options {
    /// The speaker's name
    name: String,
    /// Recordings of the speaker
    #[arg(required = true)]
    recordings: Vec<PathBuf>,
    /// The speaker book, one safetensors file; made if it is not there
    #[arg(long, value_name = "FILE", default_value = "speakers.safetensors")]
    book: PathBuf,
    /// Forget earlier recordings of this speaker
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    model: ModelOptions,
}

#[derive(Serialize)]
struct Outcome {
    name: String,
    recordings: usize,
    speech_s: f64,
    speakers: usize,
    book: String,
}

pub fn run(options: &Options, common: &Common) -> anyhow::Result<()> {
    let limits = options.model.limits();
    let verifier = options.model.verifier(common)?;
    let mut book = match options.book.exists() {
        true => SpeakerBook::read(&options.book, verifier.origin(), &limits)?,
        false => SpeakerBook::new(verifier.embeddings()),
    };
    if options.replace {
        book.remove(&options.name);
    }
    let mut speech_s = 0.0;
    for path in &options.recordings {
        let voice = verifier.listen(path)?;
        voice.notes.iter().for_each(|note| common.note(note));
        speech_s += voice.speech_s;
        book.add(&options.name, &voice.embedding)?;
    }
    book.write(&options.book)?;
    let outcome = Outcome {
        name: options.name.clone(),
        recordings: book.recordings(&options.name),
        speech_s,
        speakers: book.speakers().count(),
        book: options.book.display().to_string(),
    };
    let text = format!(
        "{}: {} recordings, {:.1} s of speech added; {} speakers in {}",
        outcome.name, outcome.recordings, outcome.speech_s, outcome.speakers, outcome.book
    );
    common.print(&outcome, text)
}
