//! Probabilities of words after other words.

use std::collections::HashMap;

use shared::{Error, Result};

/// Name of the word before a sentence.
pub(super) const SENTENCE_START: &str = "<s>";
/// Name of the word after a sentence.
pub(super) const SENTENCE_END: &str = "</s>";
/// Name of all words that the model does not know.
pub(super) const UNKNOWN: &str = "<unk>";
/// Logarithm, to base 10, of the probability of an unknown word in models without `<unk>`.
const UNKNOWN_WITHOUT_NAME: f32 = -100.0;
/// The node of no words.
const ROOT: u32 = 0;

/// What came before, as far as a model remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State(u32);

/// What [`NgramModel::step`] returns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Logarithm, to base 10, of the probability of the word.
    pub log10: f32,
    /// Words of the n-gram that it came from; 0 for an unknown word.
    pub order: usize,
    /// The state after the word.
    pub state: State,
}

/// An n-gram model with back-off (Katz 1987): `p(w | h)` is that of the n-gram `h w` where the model has
/// it, else the back-off weight of `h` times `p(w | h without its first word)`.
///
/// The n-grams are a tree, each node's children next to each other and sorted by word.
#[derive(Clone, Debug)]
pub struct NgramModel {
    words: Vec<String>,
    ids: HashMap<String, u32>,
    /// Number of n-grams of each order.
    counts: Vec<usize>,
    /// Of each node its last word, its probability, and its weight for backing off.
    nodes: Vec<Node>,
    /// Where each node's children begin; one more at the end.
    children: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    word: u32,
    log10: f32,
    backoff: f32,
    /// The node without the first word, or the longest end of it that there is.
    suffix: u32,
}

/// An n-gram to build a model of, its words by their numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ngram {
    pub words: Vec<u32>,
    pub log10: f32,
    pub backoff: f32,
}

impl NgramModel {
    /// Most words of an n-gram.
    pub fn order(&self) -> usize {
        self.counts.len()
    }

    /// Number of n-grams of each order, from 1.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// All words, `<s>`, `</s>` and `<unk>` included, as far as the model has them.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The number of a word, if the model knows it.
    pub fn id(&self, word: &str) -> Option<u32> {
        self.ids.get(word).copied()
    }

    /// The state at the beginning of a sentence.
    pub fn start(&self) -> State {
        let start = self.id(SENTENCE_START).and_then(|word| self.child(ROOT, word));
        State(start.unwrap_or(ROOT))
    }

    /// The probability of `word` after `state`, `None` being a word that the model does not know.
    pub fn step(&self, state: State, word: Option<u32>) -> Step {
        let word = word.or_else(|| self.id(UNKNOWN));
        let mut node = state.0;
        let mut log10 = 0.0;
        loop {
            if let Some(child) = word.and_then(|word| self.child(node, word)) {
                let found = self.node(child);
                let order = self.order_of(child);
                let is_longest = order == self.order();
                let state = State(if is_longest { found.suffix } else { child });
                return Step { log10: log10 + found.log10, order, state };
            }
            let here = self.node(node);
            log10 += here.backoff;
            if node == ROOT {
                let log10 = log10 + UNKNOWN_WITHOUT_NAME;
                return Step { log10, order: 0, state: State(ROOT) };
            }
            node = here.suffix;
        }
    }

    /// The probability of the end of the sentence after `state`.
    pub fn end(&self, state: State) -> f32 {
        match self.id(SENTENCE_END) {
            Some(end) => self.step(state, Some(end)).log10,
            None => 0.0,
        }
    }

    /// Logarithm, to base 10, of the probability of a whole sentence, its end included.
    pub fn sentence<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> f64 {
        let mut state = self.start();
        let mut log10 = 0.0;
        for word in words {
            let step = self.step(state, self.id(word));
            log10 += f64::from(step.log10);
            state = step.state;
        }
        log10 + f64::from(self.end(state))
    }

    /// Calls `visit` with all n-grams of an order, their words, probabilities and back-off weights.
    pub(super) fn for_each(
        &self,
        order: usize,
        mut visit: impl FnMut(&[u32], f32, f32) -> Result<()>,
    ) -> Result<()> {
        self.visit(ROOT, order, &mut vec![], &mut visit)
    }

    fn visit(
        &self,
        node: u32,
        order: usize,
        words: &mut Vec<u32>,
        visit: &mut impl FnMut(&[u32], f32, f32) -> Result<()>,
    ) -> Result<()> {
        if words.len() == order {
            let Node { log10, backoff, .. } = self.node(node);
            return visit(words, log10, backoff);
        }
        for child in self.children_of(node) {
            words.push(self.node(child).word);
            self.visit(child, order, words, visit)?;
            words.pop();
        }
        Ok(())
    }

    fn node(&self, node: u32) -> Node {
        let none = Node { word: 0, log10: 0.0, backoff: 0.0, suffix: ROOT };
        self.nodes.get(node as usize).copied().unwrap_or(none)
    }

    fn children_of(&self, node: u32) -> std::ops::Range<u32> {
        let bound = |node: usize| self.children.get(node).copied();
        match (bound(node as usize), bound(node as usize + 1)) {
            (Some(start), Some(end)) => start..end,
            _ => 0..0,
        }
    }

    fn child(&self, node: u32, word: u32) -> Option<u32> {
        let range = self.children_of(node);
        let children = self.nodes.get(range.start as usize..range.end as usize)?;
        let place = children.binary_search_by_key(&word, |child| child.word).ok()?;
        Some(range.start + place as u32)
    }

    /// Number of words of a node. Nodes lie in the order of their lengths.
    fn order_of(&self, node: u32) -> usize {
        let mut before = 1;
        for (order, count) in (1..).zip(&self.counts) {
            before += count;
            if (node as usize) < before {
                return order;
            }
        }
        self.order()
    }

    /// The longest end of the node `parent` followed by `word`, shorter than that, that is in the model.
    fn suffix(&self, parent: u32, word: u32) -> u32 {
        let mut node = parent;
        while node != ROOT {
            node = self.node(node).suffix;
            if let Some(child) = self.child(node, word) {
                return child;
            }
        }
        ROOT
    }

    fn names(&self, words: &[u32]) -> String {
        let name = |word: &u32| self.words.get(*word as usize).map_or("?", String::as_str);
        words.iter().map(name).collect::<Vec<_>>().join(" ")
    }
}

/// Builds a model.
pub(super) struct Builder {
    model: NgramModel,
    /// The nodes whose children come next.
    previous: Vec<u32>,
}

impl Builder {
    /// Begins a model with n-grams of `words`, which are added order by order from 1.
    ///
    /// # Errors
    /// With a word that is there twice.
    pub fn new(words: Vec<String>) -> Result<Self, String> {
        let mut ids = HashMap::with_capacity(words.len());
        for (word, number) in words.iter().zip(0..) {
            if ids.insert(word.clone(), number).is_some() {
                return Err(format!("word `{word}` is there twice"));
            }
        }
        let root = Node { word: 0, log10: 0.0, backoff: 0.0, suffix: ROOT };
        let (counts, nodes, children) = (vec![], vec![root], vec![1]);
        let model = NgramModel { words, ids, counts, nodes, children };
        Ok(Self { model, previous: vec![ROOT] })
    }

    /// The number of a word that n-grams may be made of.
    pub fn word(&self, word: &str) -> Option<u32> {
        self.model.id(word)
    }

    /// Adds all n-grams of the next order.
    ///
    /// # Errors
    /// With the words of an n-gram that is there twice, or whose beginning is not in the model.
    pub fn add(&mut self, ngrams: Vec<Ngram>) -> Result<(), String> {
        let model = &mut self.model;
        let mut placed = Vec::with_capacity(ngrams.len());
        for ngram in ngrams {
            let Some((word, context)) = ngram.words.split_last() else { continue };
            let mut parent = Some(ROOT);
            for word in context {
                parent = parent.and_then(|node| model.child(node, *word));
            }
            let Some(parent) = parent else {
                let names = model.names(&ngram.words);
                return Err(format!("the n-gram `{names}` is there, but not its beginning"));
            };
            placed.push((parent, *word, ngram));
        }
        placed.sort_unstable_by_key(|(parent, word, _)| (*parent, *word));
        let repeated = placed.windows(2).find_map(|pair| match pair {
            [(a, b, ngram), (c, d, _)] if (a, b) == (c, d) => Some(ngram),
            _ => None,
        });
        if let Some(ngram) = repeated {
            let names = model.names(&ngram.words);
            return Err(format!("the n-gram `{names}` is there twice"));
        }
        let mut rest = placed.as_slice();
        let first = model.nodes.len() as u32;
        for node in &self.previous {
            let own = rest.partition_point(|(parent, ..)| parent <= node);
            rest = rest.get(own..).unwrap_or_default();
            model.children.push(first + (placed.len() - rest.len()) as u32);
        }
        for (parent, word, ngram) in &placed {
            let suffix = model.suffix(*parent, *word);
            let Ngram { log10, backoff, .. } = *ngram;
            model.nodes.push(Node { word: *word, log10, backoff, suffix });
        }
        self.previous = (first..model.nodes.len() as u32).collect();
        model.counts.push(placed.len());
        Ok(())
    }

    /// The model.
    ///
    /// # Errors
    /// When no n-gram was added.
    pub fn finish(mut self) -> Result<NgramModel> {
        if self.model.nodes.len() < 2 {
            return Err(Error::Argument("a language model needs at least one word".into()));
        }
        let end = self.model.nodes.len() as u32;
        self.model.children.resize(self.model.nodes.len() + 1, end);
        Ok(self.model)
    }
}
