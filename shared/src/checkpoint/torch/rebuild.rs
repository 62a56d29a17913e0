//! From the graph of a pickle stream to tensors and plain values.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use candle_core::Tensor;

use super::super::element::{Element, element_count};
use super::super::pickle::{Graph, Id, Node};
use super::super::{Checkpoint, Format, MAX_TENSORS, Value, shown};
use super::Container;
use super::calls::{Calls, Made};
use super::storage::View;
use crate::limits::Limits;
use crate::{Error, Result};

/// Deepest nesting of values.
const MAX_DEPTH: usize = 100;

/// Longest dotted name of a tensor.
const MAX_NAME_BYTES: usize = 1024;

/// Bytes of tensors that a small file may describe, and how many times its own size a larger one
/// may: tensors can share a storage, and repeat its elements with strides of 0.
const MAX_EXPANSION: (u64, u64) = (64 << 20, 8);

/// Name of a tensor that was saved alone.
const LONE_TENSOR: &str = "tensor";

/// Turns the graph of a file of `file_bytes` bytes into a checkpoint.
///
/// # Errors
/// [`Error::Checkpoint`] when a tensor cannot be rebuilt or two have the same name,
/// [`Error::Limit`].
pub(super) fn rebuild<'a>(
    graph: &Graph<'a>,
    container: &dyn Container<'a>,
    format: Format,
    file_bytes: usize,
    path: &Path,
    limits: &Limits,
) -> Result<Checkpoint> {
    let (floor, times) = MAX_EXPANSION;
    let mut rebuilder = Rebuilder {
        graph,
        calls: Calls { graph, container },
        path,
        value_bytes: Budget::new("bytes of values", limits.header_bytes as u64),
        tensor_bytes: Budget::new(
            "bytes of tensors",
            limits.tensor_bytes.min(floor.max(times.saturating_mul(file_bytes as u64))),
        ),
        tensor_count: Budget::new("tensors", MAX_TENSORS as u64),
        trail: vec![],
        made: HashMap::new(),
        skipped: BTreeMap::new(),
        counted: HashSet::new(),
        notes: BTreeMap::new(),
    };
    let values = rebuilder.value(graph.root)?;
    let mut tensors = BTreeMap::new();
    rebuilder.collect(&values, &mut vec![], &mut tensors)?;
    Ok(Checkpoint { format, tensors, values, metadata: BTreeMap::new(), notes: rebuilder.notes() })
}

/// What is left of a limit.
struct Budget {
    quantity: &'static str,
    limit: u64,
    spent: u64,
}

impl Budget {
    fn new(quantity: &'static str, limit: u64) -> Self {
        Self { quantity, limit, spent: 0 }
    }

    fn spend(&mut self, amount: usize, path: &Path) -> Result<()> {
        self.spent = self.spent.saturating_add(amount as u64);
        if self.spent <= self.limit {
            return Ok(());
        }
        Err(Error::Limit {
            path: path.to_path_buf(),
            quantity: self.quantity,
            actual: self.spent,
            limit: self.limit,
        })
    }
}

/// A step from a container to what it contains.
#[derive(Clone, Copy)]
enum Step {
    Key(Id),
    Index(usize),
}

/// A part of a tensor's name.
enum Part<'v> {
    Key(&'v Value),
    Index(usize),
}

/// Objects of one kind that were left out.
struct Skipped {
    count: usize,
    /// Where the first one is.
    place: String,
    /// Tensors inside them.
    tensors: usize,
}

struct Rebuilder<'g, 'a> {
    graph: &'g Graph<'a>,
    calls: Calls<'g, 'a>,
    path: &'g Path,
    /// Values are copied wherever a shared one occurs; the budget ends exponential growth.
    value_bytes: Budget,
    tensor_bytes: Budget,
    tensor_count: Budget,
    /// How the value being rebuilt is reached from the root.
    trail: Vec<Step>,
    /// Tensors by their node, so that one saved under two names is made once.
    made: HashMap<Id, Tensor>,
    /// By class.
    skipped: BTreeMap<String, Skipped>,
    /// Nodes inside them that were looked at for tensors.
    counted: HashSet<Id>,
    /// Sentences, each with the place where it was first true.
    notes: BTreeMap<String, String>,
}

impl<'a> Rebuilder<'_, 'a> {
    fn value(&mut self, id: Id) -> Result<Value> {
        if self.trail.len() > MAX_DEPTH {
            return Err(self.fail(format!("values are nested more than {MAX_DEPTH} deep")));
        }
        self.spend_value(size_of::<Value>())?;
        let graph = self.graph;
        Ok(match graph.node(id) {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Float(value) => Value::Float(*value),
            Node::Text(text) => {
                self.spend_value(text.len())?;
                Value::Text((*text).to_string())
            }
            Node::Bytes(bytes) => {
                self.spend_value(bytes.len())?;
                Value::Bytes(bytes.to_vec())
            }
            Node::HugeInt => self.foreign("an integer of more than 128 bits", id)?,
            Node::List(items) => Value::List(self.values(items)?),
            Node::Tuple(items) => Value::Tuple(self.values(items)?),
            Node::Set(items) => Value::Set(self.values(items)?),
            Node::Dict(entries) => self.dictionary(entries)?,
            Node::Global { module, name } => self.foreign(&format!("{module}.{name}"), id)?,
            Node::Call(_) | Node::Persistent(_) => {
                match self.calls.made(id).map_err(|reason| self.fail(reason))? {
                    Made::Tensor(view) => Value::Tensor(self.tensor(id, &view)?),
                    Made::Unsupported(kind) => self.foreign(&kind, id)?,
                    Made::Other => self.object(id)?,
                }
            }
        })
    }

    fn values(&mut self, items: &[Id]) -> Result<Vec<Value>> {
        let items = items.iter().enumerate();
        items.map(|(index, &item)| self.inside(Step::Index(index), item)).collect()
    }

    fn dictionary(&mut self, entries: &[(Id, Id)]) -> Result<Value> {
        let mut names = HashSet::new();
        let mut read = vec![];
        for &(key, value) in entries {
            if let Some(name) = self.graph.text(key)
                && !names.insert(name)
            {
                return Err(self.fail(format!("the key {} occurs twice", shown(name))));
            }
            let value = self.inside(Step::Key(key), value)?;
            read.push((self.inside(Step::Key(key), key)?, value));
        }
        Ok(Value::Dict(read))
    }

    fn inside(&mut self, step: Step, id: Id) -> Result<Value> {
        self.trail.push(step);
        let value = self.value(id);
        self.trail.pop();
        value
    }

    /// The result of a call that makes no tensor: a container, or a foreign object.
    fn object(&mut self, id: Id) -> Result<Value> {
        let graph = self.graph;
        let Node::Call(call) = graph.node(id) else { return self.foreign("a class", id) };
        let Some((module, name)) = self.calls.function(call.callable) else {
            return self.foreign("an object made by an object", id);
        };
        let argument = |index: usize| graph.items(call.arguments).get(index).copied();
        match (module, name) {
            // Python 2 hands over a list of pairs. A state, `_metadata` of state dictionaries,
            // says nothing about the entries.
            ("collections", "OrderedDict") => {
                let pairs = argument(0).map(|pairs| graph.items(pairs)).unwrap_or_default();
                let pairs = pairs.iter().map(|&pair| match graph.items(pair) {
                    &[key, value] => Ok((key, value)),
                    _ => Err(self.fail("an entry of an OrderedDict is no pair")),
                });
                let mut entries = pairs.collect::<Result<Vec<_>>>()?;
                entries.extend(&call.entries);
                self.dictionary(&entries)
            }
            ("collections", "defaultdict") => self.dictionary(&call.entries),
            ("torch", "Size") => {
                Ok(Value::Tuple(self.values(argument(0).map_or(&[], |it| graph.items(it)))?))
            }
            ("builtins" | "__builtin__", "set" | "frozenset") => {
                Ok(Value::Set(self.values(argument(0).map_or(&[], |it| graph.items(it)))?))
            }
            // Bytes before protocol 3: a text whose characters are the bytes.
            ("_codecs", "encode") => {
                let text = argument(0).and_then(|text| graph.text(text)).unwrap_or_default();
                self.spend_value(text.len())?;
                match text.chars().map(|it| u8::try_from(it).ok()).collect() {
                    Some(bytes) => Ok(Value::Bytes(bytes)),
                    None => self.foreign("a text that is no bytes", id),
                }
            }
            (module, name) => self.foreign(&format!("{module}.{name}"), id),
        }
    }

    /// Makes the tensor of node `id`, once.
    fn tensor(&mut self, id: Id, view: &View<'a>) -> Result<Tensor> {
        if let Some(tensor) = self.made.get(&id) {
            return Ok(tensor.clone());
        }
        let element = view.storage.element;
        // What does not even fit a number is caught with its reason by the view below.
        let count = element_count(&view.shape).unwrap_or(0);
        self.tensor_count.spend(1, self.path)?;
        self.tensor_bytes
            .spend(count.saturating_mul(element.dtype().size_in_bytes()), self.path)?;
        let elements = view.elements().map_err(|reason| self.fail(reason))?;
        let tensor =
            element.tensor(&elements, &view.shape).map_err(|error| self.fail(error.to_string()))?;
        let widened = match element {
            Element::I8 | Element::U16 | Element::U64 | Element::F8E4M3 => {
                Some(format!("{element:?}").to_lowercase())
            }
            _ => None,
        };
        if let Some(stored) = widened {
            let note =
                format!("tensors stored as {stored} are read as {}", tensor.dtype().as_str());
            let place = self.place();
            self.notes.entry(note).or_insert(place);
        }
        self.made.insert(id, tensor.clone());
        Ok(tensor)
    }

    /// Leaves out the object `id` of `class`, and remembers that.
    fn foreign(&mut self, class: &str, id: Id) -> Result<Value> {
        self.spend_value(class.len())?;
        let tensors = self.tensors_inside(id);
        match self.skipped.get_mut(class) {
            Some(skipped) => {
                skipped.count += 1;
                skipped.tensors += tensors;
            }
            None => {
                let skipped = Skipped { count: 1, place: self.place(), tensors };
                self.skipped.insert(class.to_string(), skipped);
            }
        }
        Ok(Value::Foreign { class: class.to_string() })
    }

    /// Counts the tensors inside the object `id` that were not counted before.
    fn tensors_inside(&mut self, id: Id) -> usize {
        let mut count = 0;
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if !self.counted.insert(id) {
                continue;
            }
            if let Node::Call(call) = self.graph.node(id)
                && let Some(("torch._utils", name)) = self.calls.function(call.callable)
                && name.starts_with("_rebuild_tensor")
            {
                count += 1;
            }
            open.extend(self.graph.children(id));
        }
        count
    }

    /// Gathers the tensors in `value`, which is reached through `trail`, under their dotted names.
    fn collect<'v>(
        &self,
        value: &'v Value,
        trail: &mut Vec<Part<'v>>,
        tensors: &mut BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let mut inside = |part, value| {
            trail.push(part);
            let done = self.collect(value, trail, tensors);
            trail.pop();
            done
        };
        match value {
            Value::List(items) | Value::Tuple(items) => {
                items.iter().enumerate().try_for_each(|(at, item)| inside(Part::Index(at), item))
            }
            Value::Dict(entries) => {
                entries.iter().try_for_each(|(key, value)| inside(Part::Key(key), value))
            }
            Value::Tensor(tensor) => {
                let name = self.name(trail)?;
                if tensors.insert(name.clone(), tensor.clone()).is_some() {
                    let reason = format!("two tensors are called {}", shown(&name));
                    return Err(Error::checkpoint(self.path, reason));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The dotted name of what `trail` leads to.
    fn name(&self, trail: &[Part<'_>]) -> Result<String> {
        let mut name = String::new();
        for part in trail {
            if !name.is_empty() {
                name.push('.');
            }
            match part {
                Part::Index(index) => name += &index.to_string(),
                Part::Key(key) => name += &key.label(),
            }
            if name.len() > MAX_NAME_BYTES {
                let reason = format!("a tensor's name is longer than {MAX_NAME_BYTES} bytes");
                return Err(Error::checkpoint(self.path, reason));
            }
        }
        Ok(if name.is_empty() { LONE_TENSOR.to_string() } else { name })
    }

    fn notes(self) -> Vec<String> {
        let skipped = self.skipped.into_iter().map(|(class, Skipped { count, place, tensors })| {
            let inside =
                if tensors > 0 { format!(" (tensors inside: {tensors})") } else { String::new() };
            format!("left out {}: {count} in all, the first at {place}{inside}", shown(&class))
        });
        let notes = self.notes.into_iter().map(|(note, place)| format!("{note}, first {place}"));
        skipped.chain(notes).collect()
    }

    fn spend_value(&mut self, bytes: usize) -> Result<()> {
        self.value_bytes.spend(bytes, self.path)
    }

    /// The dotted name of the value being rebuilt.
    fn place(&self) -> String {
        if self.trail.is_empty() {
            return "the top".into();
        }
        let label = |step: &Step| match *step {
            Step::Index(index) => index.to_string(),
            Step::Key(id) => match self.graph.node(id) {
                Node::Text(text) => shown(text),
                Node::Int(value) => value.to_string(),
                _ => "?".into(),
            },
        };
        self.trail.iter().map(label).collect::<Vec<String>>().join(".")
    }

    fn fail(&self, reason: impl Into<String>) -> Error {
        Error::checkpoint(self.path, format!("{}: {}", self.place(), reason.into()))
    }
}
