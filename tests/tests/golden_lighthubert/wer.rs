//! Error rates.

use anyhow::{Context, Result};
use shared::eval::wer::{Counts, Normaliser, Tally, Transcript, Utterance};
use tests::golden::Table;

/// Distances and counts of pairs of texts, and the error rates of all together.
pub fn examples(table: &mut Table) -> Result<()> {
    let value = table.value.clone();
    let mut corpus = Tally::default();
    for pair in value["pairs"].as_array().context("pairs")? {
        let text = |key: &str| pair[key].as_str().with_context(|| key.to_string());
        let reference = Transcript { text: text("ref")?.to_string(), ..Transcript::default() };
        let found = Utterance::new(&reference, text("hyp")?, Normaliser::None);
        let (words, characters) = (found.words, found.characters);
        let stated = |key: &str| pair["word"][key].as_u64().with_context(|| key.to_string());
        let expected = [stated("dist")?, stated("sub")?, stated("del")?, stated("ins")?];
        let counts = [words.errors(), words.substitutions, words.deletions, words.insertions];
        table.check_that(counts == expected, || format!("{pair}: words {words:?}"));
        for (key, number) in [
            ("n_words", words.reference()),
            ("char_dist", characters.errors()),
            ("n_chars", characters.reference()),
        ] {
            table.check_that(pair[key] == number, || format!("{pair}: {key} is {number}"));
        }
        corpus.words += words;
        corpus.characters += characters;
    }
    for (key, counts) in [("corpus_wer", corpus.words), ("corpus_cer", corpus.characters)] {
        let found = Counts::error_rate(&counts);
        let expected = value[key].as_f64().context(key)?;
        table.check_that((found - expected).abs() < 1e-12, || format!("{key}: {found}"));
    }
    Ok(())
}
