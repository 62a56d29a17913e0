//! The ARPA format: an n-gram a line, with logarithms to base 10.

use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use shared::data::lines::{Line, Lines};
use shared::files::OutputFile;
use shared::limits::Limits;
use shared::{Error, Result};

use super::ngram::{Builder, Ngram, NgramModel};

/// Highest order that is read.
const MAX_ORDER: usize = 16;
/// Least logarithm that is written; stands for a probability of 0.
const LEAST: f32 = -99.0;

/// Reads a model in the ARPA format, compressed with gzip or not.
///
/// # Errors
/// [`Error::Parse`] with the line at fault; [`Error::Io`]; [`Error::Limit`].
pub fn read_arpa(path: &Path, limits: &Limits) -> Result<NgramModel> {
    parse_arpa(Lines::open(path, limits)?)
}

/// The model in the lines of a file in the ARPA format.
///
/// # Errors
/// As [`read_arpa`].
pub fn parse_arpa(mut lines: Lines) -> Result<NgramModel> {
    loop {
        match lines.next()? {
            Some(line) if line.text.trim() == "\\data\\" => break,
            Some(_) => {}
            None => return Err(lines.error("no line `\\data\\`; expected a model in ARPA format")),
        }
    }
    let mut announced = Vec::new();
    let mut section = loop {
        let Some(line) = lines.next()? else {
            return Err(lines.error("the file ends before `\\1-grams:`"));
        };
        match line.text.trim().strip_prefix("ngram ") {
            Some(count) => announced.push(announced_count(line, count, announced.len() + 1)?),
            None => break line.text.trim().to_owned(),
        }
    };
    let order = announced.len();
    if order == 0 || order > MAX_ORDER {
        return Err(lines.error(format!("{order} orders of n-grams: expected 1 to {MAX_ORDER}")));
    }
    let mut words: Vec<String> = Vec::new();
    let mut builder: Option<Builder> = None;
    for (length, announced) in (1..).zip(announced) {
        if section != format!("\\{length}-grams:") {
            return Err(lines.error(format!("expected `\\{length}-grams:`, found `{section}`")));
        }
        let mut ngrams: Vec<Ngram> = Vec::new();
        section = loop {
            let Some(line) = lines.next()? else {
                return Err(lines.error("the file ends before `\\end\\`"));
            };
            if line.text.starts_with('\\') {
                break line.text.trim().to_owned();
            }
            let mut number = |word: &str| match &builder {
                None => {
                    words.push(word.to_owned());
                    Ok(words.len() as u32 - 1)
                }
                Some(builder) => builder
                    .word(word)
                    .ok_or_else(|| line.error(format!("word `{word}` is not among the 1-grams"))),
            };
            ngrams.push(ngram(line, length, &mut number)?);
        };
        if ngrams.len() != announced {
            let found = ngrams.len();
            return Err(
                lines.error(format!("{found} {length}-grams where the head announces {announced}"))
            );
        }
        let mut own = match builder.take() {
            Some(builder) => builder,
            None => Builder::new(std::mem::take(&mut words)).map_err(|it| lines.error(it))?,
        };
        own.add(ngrams).map_err(|reason| lines.error(reason))?;
        builder = Some(own);
    }
    if section != "\\end\\" {
        return Err(lines.error(format!("expected `\\end\\`, found `{section}`")));
    }
    match builder {
        Some(builder) => builder.finish().map_err(|error| lines.error(error.to_string())),
        None => Err(lines.error("there are no n-grams")),
    }
}

/// The count in a line `ngram order=count`.
fn announced_count(line: Line<'_>, text: &str, expected: usize) -> Result<usize> {
    let (order, count) = text.split_once('=').unwrap_or((text, ""));
    match (order.trim().parse(), count.trim().parse()) {
        (Ok::<usize, _>(order), Ok(count)) if order == expected => Ok(count),
        _ => Err(line.error(format!("expected `ngram {expected}=count`"))),
    }
}

/// Reads a line `logarithm words [back-off]`.
fn ngram(
    line: Line<'_>,
    length: usize,
    number: &mut impl FnMut(&str) -> Result<u32>,
) -> Result<Ngram> {
    let expected = || {
        line.error(format!("expected a logarithm, {length} words and perhaps a back-off weight"))
    };
    let logarithm = |field: Option<&str>| {
        let value: f32 = field.and_then(|field| field.parse().ok()).unwrap_or(f32::NAN);
        if value.is_finite() { Ok(value) } else { Err(expected()) }
    };
    let mut fields = line.text.split_whitespace();
    let log10 = logarithm(fields.next())?;
    let words: Vec<u32> = fields.by_ref().take(length).map(number).collect::<Result<_>>()?;
    let backoff = fields.next().map(|field| logarithm(Some(field))).transpose()?.unwrap_or(0.0);
    if words.len() != length || fields.next().is_some() || log10 > 0.0 {
        return Err(expected());
    }
    Ok(Ngram { words, log10, backoff })
}

/// Writes a model in the ARPA format, compressed with gzip where the name ends with `.gz`.
///
/// # Errors
/// [`Error::Exists`] without `force`; [`Error::Io`].
pub fn write_arpa(model: &NgramModel, path: &Path, force: bool) -> Result<()> {
    let mut file = OutputFile::create(path, force)?;
    if path.extension().is_some_and(|ending| ending == "gz") {
        let mut encoder = GzEncoder::new(&mut file, Compression::default());
        write(model, &mut encoder, path)?;
        encoder.finish().map_err(Error::io(path))?;
    } else {
        write(model, &mut file, path)?;
    }
    file.finish()
}

fn write(model: &NgramModel, out: &mut impl Write, path: &Path) -> Result<()> {
    let io = |result: io::Result<()>| result.map_err(Error::io(path));
    io(writeln!(out, "\\data\\"))?;
    for (order, count) in (1..).zip(model.counts()) {
        io(writeln!(out, "ngram {order}={count}"))?;
    }
    for order in 1..=model.order() {
        io(writeln!(out, "\n\\{order}-grams:"))?;
        model.for_each(order, |words, log10, backoff| {
            let names: Vec<&str> = words
                .iter()
                .filter_map(|word| model.words().get(*word as usize))
                .map(String::as_str)
                .collect();
            io(write!(out, "{}\t{}", log10.max(LEAST), names.join(" ")))?;
            // The longest n-grams have nothing to back off from.
            if order < model.order() {
                io(write!(out, "\t{backoff}"))?;
            }
            io(writeln!(out))
        })?;
    }
    io(writeln!(out, "\n\\end\\"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MODEL: &str = "some words first\n\\data\\\nngram 1=5\nngram 2=3\nngram 3=1\n\n\\1-grams:\n\
        -1.5\t<unk>\n-99\t<s>\t-0.4\n-0.7 </s>\n-0.5\ta\t-0.3\n-0.6\tb\t-0.2\n\n\
        \\2-grams:\n-0.2\t<s> a\t-0.1\n-0.25\ta b\t-0.15\n-0.35\tb </s>\n\n\
        \\3-grams:\n-0.05\t<s> a b\n\n\\end\\\n";

    fn read(content: &str) -> Result<NgramModel> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.arpa");
        fs::write(&path, content).unwrap();
        read_arpa(&path, &Limits::default())
    }

    /// Logarithms of the words of a sentence and its end, and the orders they came from.
    fn steps(model: &NgramModel, sentence: &str) -> Vec<(f32, usize)> {
        let mut state = model.start();
        let mut found = Vec::new();
        for word in sentence.split_whitespace().chain(["</s>"]) {
            let step = model.step(state, model.id(word));
            found.push((step.log10, step.order));
            state = step.state;
        }
        found
    }

    fn assert_close(found: &[(f32, usize)], expected: &[(f32, usize)]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a.0 - b.0).abs() < 1e-6 && a.1 == b.1, "{found:?} instead of {expected:?}");
        }
    }

    #[test]
    fn probabilities_back_off_as_defined() {
        let model = read(MODEL).unwrap();
        assert_eq!((model.order(), model.counts()), (3, [5, 3, 1].as_slice()));
        // <s> a, <s> a b, b </s> after backing off from (a b).
        assert_close(&steps(&model, "a b"), &[(-0.2, 2), (-0.05, 3), (-0.15 - 0.35, 2)]);
        // b after backing off from (<s>), a after (b), a after (b a) which is not there, then (a).
        let expected = [(-0.4 - 0.6, 1), (-0.2 - 0.5, 1), (-0.3 - 0.5, 1), (-0.3 - 0.7, 1)];
        assert_close(&steps(&model, "b a a"), &expected);
        // Unknown words forget what was before.
        assert_close(
            &steps(&model, "a zebra b"),
            &[(-0.2, 2), (-0.1 - 0.3 - 1.5, 1), (-0.6, 1), (-0.35, 2)],
        );
        assert!((model.sentence(["a", "b"]) + 0.75).abs() < 1e-6);
        assert_eq!(model.words().len(), 5);
    }

    #[test]
    fn models_are_written_and_read_back() {
        let model = read(MODEL).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["model.arpa", "model.arpa.gz"] {
            let path = folder.path().join(name);
            write_arpa(&model, &path, false).unwrap();
            assert!(matches!(write_arpa(&model, &path, false), Err(Error::Exists { .. })));
            let again = read_arpa(&path, &Limits::default()).unwrap();
            for sentence in ["a b", "b a a", "", "a zebra b"] {
                assert_eq!(steps(&again, sentence), steps(&model, sentence));
            }
        }
        let compressed = fs::read(folder.path().join("model.arpa.gz")).unwrap();
        assert!(compressed.starts_with(&[0x1f, 0x8b]));
    }

    #[test]
    fn faults_are_named_with_the_line() {
        for (from, to, reason) in [
            ("\\data\\", "data", "no line `\\data\\`"),
            ("ngram 2=3", "ngram 2=x", ":4: expected `ngram 2=count`"),
            ("ngram 2=3", "ngram 3=3", ":4: expected `ngram 2=count`"),
            (
                "ngram 2=3",
                "ngram 2=18446744073709551615",
                "3 2-grams where the head announces 1844",
            ),
            ("\\2-grams:", "\\4-grams:", "expected `\\2-grams:`, found `\\4-grams:`"),
            ("-0.25\ta b", "-0.25\ta c", ":16: word `c` is not among the 1-grams"),
            ("-0.25\ta b", "0.25\ta b", ":16: expected a logarithm, 2 words"),
            ("-0.25\ta b", "nan\ta b", ":16: expected a logarithm, 2 words"),
            ("-0.25\ta b", "-0.25\ta", ":16: word `-0.15` is not among the 1-grams"),
            ("-0.25\ta b\t", "-0.25\ta b a b\t", ":16: expected a logarithm, 2 words"),
            ("-0.25\ta b", "-0.25\t<s> a", "the n-gram `<s> a` is there twice"),
            ("-0.6\tb", "-0.6\ta", "word `a` is there twice"),
            ("<s> a b", "b a b", "the n-gram `b a b` is there, but not its beginning"),
            ("\\end\\", "", "the file ends before `\\end\\`"),
            ("\\end\\", "\\4-grams:", "expected `\\end\\`"),
        ] {
            let content = MODEL.replace(from, to);
            assert_ne!(content, MODEL);
            let error = read(&content).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} / {reason}");
        }
        for end in (0..MODEL.len() - 2).step_by(7) {
            assert!(read(&MODEL[..end]).is_err(), "{end}");
        }
    }
}
