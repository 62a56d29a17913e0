//! `tdnn enroll`: speakers into a speaker book.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shared::cli::Common;
use shared::files::lock_folder;
use tdnn::Voice;
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
    let read_book = || match options.book.exists() {
        true => SpeakerBook::read(&options.book, verifier.origin(), &limits),
        false => Ok(SpeakerBook::new(verifier.embeddings())),
    };
    // A book of another kind is better refused before listening.
    read_book()?;
    let voices: Vec<Voice> =
        options.recordings.iter().map(|path| verifier.listen(path)).collect::<Result<_, _>>()?;
    voices.iter().flat_map(|voice| &voice.notes).for_each(|note| common.note(note));
    // Nobody else may add a speaker between reading and writing.
    let lock = lock_folder(&options.book);
    let mut book = read_book()?;
    if options.replace {
        book.remove(&options.name);
    }
    for voice in &voices {
        book.add(&options.name, &voice.embedding)?;
    }
    book.write(&options.book)?;
    drop(lock);
    let outcome = Outcome {
        name: options.name.clone(),
        recordings: book.recordings(&options.name),
        speech_s: voices.iter().map(|voice| voice.speech_s).sum(),
        speakers: book.speakers().count(),
        book: options.book.display().to_string(),
    };
    let text = format!(
        "{}: {} recordings, {:.1} s of speech added; {} speakers in {}",
        outcome.name, outcome.recordings, outcome.speech_s, outcome.speakers, outcome.book
    );
    common.print(&outcome, text)
}
