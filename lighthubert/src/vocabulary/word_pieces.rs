//! Pieces of words, by byte-pair encoding (Sennrich, Haddow and Birch 2016).

use shared::{Error, Result};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Tokenizer};

/// What a piece begins with where a word begins.
const WORD_START: char = '\u{2581}';
/// The symbols of no text in vocabularies that are made here; the first is the blank.
const SPECIAL: [&str; 2] = ["<blank>", "<unk>"];
/// Most symbols that a vocabulary may have.
pub(super) const MAX_SYMBOLS: usize = 1 << 20;

/// Makes the most frequent pieces of the words of `texts`, `symbols` in all.
pub(super) fn train<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    symbols: usize,
) -> Result<Tokenizer> {
    let texts: Vec<&str> = texts.into_iter().collect();
    if texts.iter().any(|text| text.contains(WORD_START)) {
        let reason = format!("a text holds `{WORD_START}`, which begins words in vocabularies");
        return Err(Error::Argument(reason));
    }
    let [_, unknown] = SPECIAL;
    let model = BPE::builder().unk_token(unknown.to_owned()).build().map_err(refuse)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(WORD_START, PrependScheme::Always, true)));
    let special = SPECIAL.map(|symbol| AddedToken::from(symbol, true));
    let trainer = BpeTrainer::builder()
        .vocab_size(symbols.min(MAX_SYMBOLS))
        .special_tokens(special.to_vec())
        .show_progress(false)
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts.into_iter()).map_err(refuse)?;
    Ok(tokenizer)
}

/// Reads a tokenizer in the JSON form of the `tokenizers` library.
pub(super) fn parse(json: &str) -> Result<Tokenizer> {
    Tokenizer::from_bytes(json).map_err(refuse)
}

/// A tokenizer in the JSON form of the `tokenizers` library.
pub(super) fn to_json(tokenizer: &Tokenizer) -> Result<String> {
    tokenizer.to_string(false).map_err(refuse)
}

/// The symbols of a tokenizer by class.
///
/// # Errors
/// When classes are left out, or words do not begin with `▁`, as in SentencePiece.
pub(super) fn symbols(tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let mut numbered: Vec<(u32, String)> =
        tokenizer.get_vocab(true).into_iter().map(|(symbol, class)| (class, symbol)).collect();
    numbered.sort_unstable();
    let is_whole = (0..).zip(&numbered).all(|(expected, (class, _))| *class == expected);
    if !is_whole || numbered.len() > MAX_SYMBOLS {
        let reason = "the classes of a tokenizer must be numbered from 0 without gaps".to_owned();
        return Err(Error::Argument(reason));
    }
    let symbols: Vec<String> = numbered.into_iter().map(|(_, symbol)| symbol).collect();
    let misplaced = |symbol: &&String| symbol.chars().skip(1).any(|it| it == WORD_START);
    if let Some(symbol) = symbols.iter().find(misplaced) {
        let reason = format!("piece `{symbol}` of a tokenizer is of more than one word");
        return Err(Error::Argument(reason));
    }
    match symbols.iter().any(|symbol| symbol.starts_with(WORD_START)) {
        true => Ok(symbols),
        false => Err(Error::Argument(format!(
            "no piece of the tokenizer begins with `{WORD_START}`, which marks where words begin; \
             tokenizers of bytes or words are not understood"
        ))),
    }
}

/// What a symbol adds to a text.
pub(super) fn piece(symbol: &str) -> String {
    symbol.replace(WORD_START, " ")
}

/// The classes of a text.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode(text, false).map_err(refuse)?.get_ids().to_vec())
}

fn refuse(error: tokenizers::Error) -> Error {
    Error::Argument(format!("tokenizer: {error}"))
}
