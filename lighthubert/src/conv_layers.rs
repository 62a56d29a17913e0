//! Reading the published way to write convolutions down: `[(512,10,5)] + [(512,3,2)] * 4`.

use shared::{Error, Result};

use crate::config::ConvLayer;

/// Most convolutions that a text may ask for.
const MOST_LAYERS: usize = 32;

/// The convolutions in `text`: lists of triples (channels, kernel, stride), joined by `+` and repeated
/// by `*`. Nothing is evaluated but these.
///
/// # Errors
/// [`Error::Argument`] that says where the text is of another form.
pub fn parse(text: &str) -> Result<Vec<ConvLayer>> {
    let mut parser = Parser { text, rest: text };
    let layers = parser.sum()?;
    match parser.rest.trim_start() {
        "" => Ok(layers),
        _ => Err(parser.error("the end")),
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Parser<'_> {
    fn sum(&mut self) -> Result<Vec<ConvLayer>> {
        let mut layers = self.product()?;
        while self.accept('+') {
            layers.extend(self.product()?);
            self.check(layers.len())?;
        }
        Ok(layers)
    }

    fn product(&mut self) -> Result<Vec<ConvLayer>> {
        let mut layers = self.list()?;
        while self.accept('*') {
            let count = self.number()?;
            self.check(layers.len().saturating_mul(count))?;
            layers = layers.repeat(count);
        }
        Ok(layers)
    }

    fn list(&mut self) -> Result<Vec<ConvLayer>> {
        self.expect('[')?;
        let mut layers = vec![];
        while !self.accept(']') {
            let close = if self.accept('(') { ')' } else { self.expect('[').map(|()| ']')? };
            let channels = self.number()?;
            self.expect(',')?;
            let kernel = self.number()?;
            self.expect(',')?;
            layers.push(ConvLayer { channels, kernel, stride: self.number()? });
            self.accept(',');
            self.expect(close)?;
            self.check(layers.len())?;
            if !self.accept(',') {
                self.expect(']')?;
                break;
            }
        }
        Ok(layers)
    }

    fn number(&mut self) -> Result<usize> {
        let rest = self.rest.trim_start();
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, rest) = rest.split_at(digits);
        let number = number.parse().map_err(|_| self.error("a number"))?;
        self.rest = rest;
        Ok(number)
    }

    fn accept(&mut self, sign: char) -> bool {
        let rest = self.rest.trim_start().strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, sign: char) -> Result<()> {
        if self.accept(sign) { Ok(()) } else { Err(self.error(&sign.to_string())) }
    }

    fn check(&self, layers: usize) -> Result<()> {
        if layers <= MOST_LAYERS { Ok(()) } else { Err(self.error("at most 32 convolutions")) }
    }

    fn error(&self, expected: &str) -> Error {
        let place = self.text.len() - self.rest.trim_start().len();
        let text: String = self.text.chars().take(100).collect();
        Error::Argument(format!("convolutions {text:?}: expected {expected} at byte {place}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_are_joined_and_repeated() {
        let triples = |text: &str| -> Vec<[usize; 3]> {
            let layers = parse(text).unwrap();
            layers.into_iter().map(|it| [it.channels, it.kernel, it.stride]).collect()
        };
        let published = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2";
        let found = triples(published);
        assert_eq!(
            (found.len(), found[0], found[4], found[6]),
            (7, [512, 10, 5], [512, 3, 2], [512, 2, 2])
        );
        assert_eq!(
            triples("[[1, 2, 3], (4,5,6,),]*2"),
            [[1, 2, 3], [4, 5, 6], [1, 2, 3], [4, 5, 6]]
        );
        assert_eq!(triples(" [ ] * 3"), [[0; 3]; 0]);
    }

    #[test]
    fn all_else_is_refused() {
        for text in [
            "",
            "[",
            "[(1,2)]",
            "[(1,2,3)",
            "[(1,2,3)] *",
            "[(1,2,3)] * 33",
            "(1,2,3)",
            "[(1,2,3)] x",
            "[(1,2,3]]",
            "[(-1,2,3)]",
            "[(1,2,3)] + __import__('os')",
            "[(1,2,99999999999999999999)]",
        ] {
            assert!(matches!(parse(text), Err(Error::Argument(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]()+*, 0-9é]{0,40}") {
            let _ = parse(&text);
        }
    }
}
