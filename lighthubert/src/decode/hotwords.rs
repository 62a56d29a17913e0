//! Words and phrases that are expected more than a language model would.

use std::collections::{HashMap, VecDeque};

use shared::{Error, Result};

/// Phrases with a gain for each time that one occurs, found in one pass (Aho and Corasick 1975).
///
/// A phrase that has begun is given a share of its gain in advance, so that it is not lost from the beam
/// before it is whole, and loses it if something else follows.
#[derive(Clone, Debug)]
pub struct Hotwords {
    nodes: Vec<Node>,
    children: HashMap<(u32, char), u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// The node of the longest end of this one's text that begins a phrase.
    suffix: u32,
    /// Gains of all phrases that end here.
    complete: f64,
    /// What is given in advance.
    advance: f64,
}

const ROOT: u32 = 0;

impl Hotwords {
    /// The `phrases` with their gains, as natural logarithms; negative ones make a phrase rarer.
    ///
    /// # Errors
    /// [`Error::Argument`] for a phrase without a word, or a gain that is no number.
    pub fn new<'a>(phrases: impl IntoIterator<Item = (&'a str, f64)>) -> Result<Self> {
        let mut hotwords = Self { nodes: vec![Node::default()], children: HashMap::new() };
        for (phrase, gain) in phrases {
            let words: Vec<&str> = phrase.split_whitespace().collect();
            if words.is_empty() || !gain.is_finite() {
                let reason =
                    format!("hotword `{phrase}` with gain {gain}: expected a word and number");
                return Err(Error::Argument(reason));
            }
            hotwords.add(&format!(" {} ", words.join(" ")), gain);
        }
        hotwords.link();
        Ok(hotwords)
    }

    fn add(&mut self, text: &str, gain: f64) {
        let length = text.chars().count() - 1;
        let mut node = ROOT;
        for (place, character) in text.chars().enumerate() {
            let next = self.nodes.len() as u32;
            node = *self.children.entry((node, character)).or_insert(next);
            if node == next {
                self.nodes.push(Node::default());
            }
            // None for the space before, and at the end it is complete.
            let share = if place < length { place as f64 / length as f64 } else { 0.0 };
            if let Some(node) = self.nodes.get_mut(node as usize) {
                node.advance = node.advance.max(share * gain);
                node.complete += if place == length { gain } else { 0.0 };
            }
        }
    }

    /// Links each node with its longest end, shorter ones first.
    fn link(&mut self) {
        let mut children: HashMap<u32, Vec<(char, u32)>> = HashMap::new();
        for ((parent, character), child) in &self.children {
            children.entry(*parent).or_default().push((*character, *child));
        }
        let mut queue = VecDeque::from([ROOT]);
        while let Some(parent) = queue.pop_front() {
            for (character, child) in children.remove(&parent).unwrap_or_default() {
                let suffix = match parent {
                    ROOT => ROOT,
                    _ => self.next(self.node(parent).suffix, character),
                };
                let end = self.node(suffix);
                if let Some(node) = self.nodes.get_mut(child as usize) {
                    node.suffix = suffix;
                    node.complete += end.complete;
                    node.advance = node.advance.max(end.advance);
                }
                queue.push_back(child);
            }
        }
    }

    fn node(&self, node: u32) -> Node {
        self.nodes.get(node as usize).copied().unwrap_or_default()
    }

    fn next(&self, mut node: u32, character: char) -> u32 {
        loop {
            match self.children.get(&(node, character)) {
                Some(child) => return *child,
                None if node == ROOT => return ROOT,
                None => node = self.node(node).suffix,
            }
        }
    }

    /// The state before the first word.
    pub(super) fn start(&self) -> u32 {
        self.next(ROOT, ' ')
    }

    /// The state after `character`, and what is gained.
    pub(super) fn step(&self, state: u32, character: char) -> (u32, f64) {
        let next = self.next(state, character);
        let (before, after) = (self.node(state), self.node(next));
        (next, after.complete + after.advance - before.advance)
    }

    /// What is gained when nothing follows; in advance given was all that is lost.
    pub(super) fn finish(&self, state: u32, is_in_word: bool) -> f64 {
        let (state, gain) = if is_in_word { self.step(state, ' ') } else { (state, 0.0) };
        gain - self.node(state).advance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a whole text gains.
    fn gain(hotwords: &Hotwords, text: &str) -> f64 {
        let (state, gain) =
            text.chars().fold((hotwords.start(), 0.0), |(state, sum), character| {
                let (state, gain) = hotwords.step(state, character);
                (state, sum + gain)
            });
        gain + hotwords.finish(state, !text.is_empty() && !text.ends_with(' '))
    }

    #[test]
    fn whole_phrases_count_wherever_they_stand() {
        let phrases = [("NEW YORK", 5.0), ("YORK", 2.0), ("NEW", -1.0), ("YORK CITY", 1.0)];
        let hotwords = Hotwords::new(phrases).unwrap();
        for (text, expected) in [
            ("", 0.0),
            ("OLD", 0.0),
            ("YORK", 2.0),
            ("NEW YORK", 6.0),
            ("NEW NEW YORK", 5.0),
            ("NEW YORK CITY", 7.0),
            ("NEW YORKS", -1.0),
            ("RENEW YORK ", 2.0),
            ("YORK YORK", 4.0),
            ("NEW YOR", -1.0),
        ] {
            let found = gain(&hotwords, text);
            assert!((found - expected).abs() < 1e-12, "{text}: {found} instead of {expected}");
        }
    }

    #[test]
    fn what_has_begun_is_given_a_share() {
        let hotwords = Hotwords::new([("ABC", 4.0)]).unwrap();
        let (state, gain) = hotwords.step(hotwords.start(), 'A');
        assert_eq!(gain, 1.0);
        assert_eq!(hotwords.step(state, 'B').1, 1.0);
        assert_eq!(hotwords.step(state, 'X').1, -1.0);
        assert!(Hotwords::new([(" ", 1.0)]).is_err() && Hotwords::new([("A", f64::NAN)]).is_err());
    }
}
