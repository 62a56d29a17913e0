//! A machine for Python's pickle streams, protocols 2 to 5, that calls nothing.
//!
//! A pickle is a program: it names functions and has them called to rebuild objects. This machine
//! builds a graph in which such a call is only a node that says what would have been called with
//! what. Its readers know the few calls that make tensors and containers; no other is ever given a
//! meaning.

use std::collections::HashMap;
use std::path::Path;

use crate::limits::Limits;
use crate::{Error, Result};

/// Most instructions in a stream. A tensor takes about 30, so this is enough for the largest
/// checkpoints; it keeps the graph below 300 MB whatever the stream says.
const MAX_INSTRUCTIONS: usize = 1 << 22;

/// Place of a node in its [`Graph`].
pub(super) type Id = u32;

/// A value as the stream describes it.
#[derive(Debug)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i128),
    /// An integer of more than 128 bits.
    HugeInt,
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by name.
    Global {
        module: &'a str,
        name: &'a str,
    },
    /// What a function or class would return.
    Call(Box<Call>),
    /// An object that lies outside the stream, under this identifier.
    Persistent(Id),
}

/// A call that the stream asks for, and what it then does with the result.
#[derive(Debug)]
pub(super) struct Call {
    pub callable: Id,
    pub arguments: Id,
    /// Items appended to the result.
    pub items: Vec<Id>,
    /// Entries set in the result.
    pub entries: Vec<(Id, Id)>,
    /// State handed to the result.
    pub state: Option<Id>,
}

/// The values of a pickle stream. Nodes may be shared, and may contain themselves.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    pub root: Id,
}

impl<'a> Graph<'a> {
    /// Runs the stream at the start of `bytes`. Returns the graph and the bytes that follow.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the stream is malformed or needs more than a pickle of protocol 2
    /// to 5 may, [`Error::Limit`] when it is too long.
    pub fn parse(bytes: &'a [u8], path: &Path, limits: &Limits) -> Result<(Self, &'a [u8])> {
        let (stream, beyond) = bytes.split_at(bytes.len().min(limits.header_bytes));
        let above = |quantity, actual: usize, limit: usize| Error::Limit {
            path: path.to_path_buf(),
            quantity,
            actual: actual as u64,
            limit: limit as u64,
        };
        let mut machine = Machine { bytes: stream, ..Machine::default() };
        for _ in 0..MAX_INSTRUCTIONS {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => {
                    let rest = bytes.get(machine.at..).unwrap_or_default();
                    return Ok((Self { nodes: machine.nodes, root }, rest));
                }
                Err(_) if machine.ran_out && !beyond.is_empty() => {
                    return Err(above("pickle stream in bytes", bytes.len(), limits.header_bytes));
                }
                Err(reason) => {
                    let reason = format!("pickle stream, byte {at}: {reason}");
                    return Err(Error::checkpoint(path, reason));
                }
            }
        }
        Err(above("number of pickle instructions", MAX_INSTRUCTIONS + 1, MAX_INSTRUCTIONS))
    }

    /// The node `id`.
    pub fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }

    /// The nodes that `id` refers to directly.
    pub fn children(&self, id: Id) -> Vec<Id> {
        let pairs = |entries: &[(Id, Id)]| entries.iter().flat_map(|&(k, v)| [k, v]).collect();
        match self.node(id) {
            Node::List(items) | Node::Tuple(items) | Node::Set(items) => items.clone(),
            Node::Dict(entries) => pairs(entries),
            Node::Persistent(id) => vec![*id],
            Node::Call(call) => {
                let mut children: Vec<Id> = pairs(&call.entries);
                children.extend([call.callable, call.arguments]);
                children.extend(&call.items);
                children.extend(call.state);
                children
            }
            _ => vec![],
        }
    }

    /// The items of a tuple or list; none for other nodes.
    pub fn items(&self, id: Id) -> &[Id] {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => items,
            _ => &[],
        }
    }

    /// The text of the node `id`, if it is one.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer of the node `id`, if it is one that can be a size.
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.node(id) {
            Node::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// Why an instruction cannot be carried out.
type Reason = String;

/// State of the machine: pickle's stack with its marks, and its memo.
#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether an instruction needed bytes behind the end.
    ran_out: bool,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which marks lie.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Carries out one instruction; the root when it was the last. Names are those of Python's
    /// `pickletools`.
    fn step(&mut self) -> Result<Option<Id>, Reason> {
        let start = self.at == 0;
        let [instruction] = self.array()?;
        if start && instruction != 0x80 {
            return Err("is not the start of a pickle of protocol 2 or later".into());
        }
        match instruction {
            // PROTO, FRAME, STOP
            0x80 => match self.array()? {
                [2..=5] => {}
                [version] => {
                    return Err(format!("protocol {version} is not supported, only 2 to 5"));
                }
            },
            0x95 => {
                let length = self.length8()?;
                if length > self.bytes.len() - self.at {
                    return Err(format!("a frame of {length} bytes runs past the end"));
                }
            }
            b'.' => {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err("values are left over at the end".into());
                }
                return Ok(Some(root));
            }

            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),

            // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()));
            }
            b'K' => {
                let [value] = self.array()?;
                self.push(Node::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()));
            }
            0x8a => {
                let length = self.length1()?;
                self.push_int(length)?;
            }
            0x8b => {
                let length = self.length4()?;
                self.push_int(length)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(value));
            }

            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8; SHORT_BINSTRING, BINSTRING
            0x8c | b'U' => {
                let length = self.length1()?;
                self.push_text(length)?;
            }
            b'X' | b'T' => {
                let length = self.length4()?;
                self.push_text(length)?;
            }
            0x8d => {
                let length = self.length8()?;
                self.push_text(length)?;
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => {
                let length = self.length1()?;
                self.push_bytes(length)?;
            }
            b'B' => {
                let length = self.length4()?;
                self.push_bytes(length)?;
            }
            0x8e | 0x96 => {
                let length = self.length8()?;
                self.push_bytes(length)?;
            }

            // EMPTY_LIST, APPEND, APPENDS
            b']' => self.push(Node::List(vec![])),
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.push(Node::Tuple(vec![])),
            0x85..=0x87 => {
                let count = usize::from(instruction - 0x84);
                let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push(Node::Tuple(items));
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items));
            }
            // EMPTY_DICT, SETITEM, SETITEMS
            b'}' => self.push(Node::Dict(vec![])),
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            // EMPTY_SET, ADDITEMS, FROZENSET
            0x8f => self.push(Node::Set(vec![])),
            0x90 => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::Set(items));
            }

            // MARK, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_to_mark()?;
            }
            b'2' => self.stack.push(self.top()?),

            // BINGET, LONG_BINGET, BINPUT, LONG_BINPUT, MEMOIZE
            b'h' => {
                let [slot] = self.array()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.array()?);
                self.recall(slot)?;
            }
            b'q' => {
                let [slot] = self.array()?;
                self.memo.insert(slot.into(), self.top()?);
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.array()?);
                self.memo.insert(slot, self.top()?);
            }
            0x94 => {
                self.memo.insert(self.memo.len() as u32, self.top()?);
            }

            // GLOBAL, STACK_GLOBAL, BINPERSID
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push(Node::Global { module, name });
            }
            0x93 => {
                let name = self.pop_text()?;
                let module = self.pop_text()?;
                self.push(Node::Global { module, name });
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            // REDUCE and NEWOBJ differ in how they call; NEWOBJ_EX has named arguments besides,
            // which no known call takes.
            b'R' | 0x81 => self.call()?,
            0x92 => {
                self.pop()?;
                self.call()?;
            }
            // BUILD
            b'b' => {
                let state = self.pop()?;
                match self.top_node()? {
                    Node::Call(call) => call.state = Some(state),
                    _ => return Err("state is set on a plain value".into()),
                }
            }

            0x82..=0x84 => return Err("extension codes are not supported".into()),
            0x97 | 0x98 => return Err("buffers outside the stream are not supported".into()),
            other => return Err(format!("unknown instruction {other:#04x}")),
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Reason> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..length).ok_or_else(|| {
            self.ran_out = true;
            format!(
                "{length} bytes are needed, {} are left: truncated, copy or download it again",
                rest.len()
            )
        })?;
        self.at += length;
        Ok(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], Reason> {
        let taken = self.take(LENGTH)?;
        taken.try_into().map_err(|_| "truncated".into())
    }

    fn length1(&mut self) -> Result<usize, Reason> {
        self.array().map(|[length]| length.into())
    }

    fn length4(&mut self) -> Result<usize, Reason> {
        let length = u32::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| format!("a length of {length} is too large"))
    }

    fn length8(&mut self) -> Result<usize, Reason> {
        let length = u64::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| format!("a length of {length} is too large"))
    }

    fn line(&mut self) -> Result<&'a str, Reason> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            self.ran_out = true;
            return Err("a name without an end".into());
        };
        let line = self.take(length)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| "a name that is not UTF-8".into())
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    fn push_int(&mut self, length: usize) -> Result<(), Reason> {
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        match wide.get_mut(..length) {
            Some(low) => {
                low.copy_from_slice(bytes);
                self.push(Node::Int(i128::from_le_bytes(wide)));
            }
            None => self.push(Node::HugeInt),
        }
        Ok(())
    }

    fn push_text(&mut self, length: usize) -> Result<(), Reason> {
        let bytes = self.take(length)?;
        self.push(std::str::from_utf8(bytes).map_or(Node::Bytes(bytes), Node::Text));
        Ok(())
    }

    fn push_bytes(&mut self, length: usize) -> Result<(), Reason> {
        let bytes = self.take(length)?;
        self.push(Node::Bytes(bytes));
        Ok(())
    }

    fn top(&self) -> Result<Id, Reason> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err("a value is needed where there is none".into()),
        }
    }

    fn top_node(&mut self) -> Result<&mut Node<'a>, Reason> {
        let id = self.top()?;
        self.nodes.get_mut(id as usize).ok_or_else(|| "no such value".into())
    }

    fn pop(&mut self) -> Result<Id, Reason> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_text(&mut self) -> Result<&'a str, Reason> {
        let id = self.pop()?;
        match self.nodes.get(id as usize) {
            Some(Node::Text(text)) => Ok(text),
            _ => Err("the name of a class or function is no text".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Reason> {
        let mark = self.marks.pop().ok_or("a mark is needed where there is none")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn recall(&mut self, slot: u32) -> Result<(), Reason> {
        let id = self.memo.get(&slot).ok_or_else(|| format!("memo slot {slot} is empty"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn call(&mut self) -> Result<(), Reason> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let (items, entries) = (vec![], vec![]);
        self.push(Node::Call(Box::new(Call { callable, arguments, items, entries, state: None })));
        Ok(())
    }

    fn append(&mut self, new: &[Id]) -> Result<(), Reason> {
        match self.top_node()? {
            Node::List(items) | Node::Set(items) => items.extend(new),
            Node::Call(call) => call.items.extend(new),
            _ => return Err("items are added to what is no list or set".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, new: &[Id]) -> Result<(), Reason> {
        let (pairs, rest) = new.as_chunks();
        if !rest.is_empty() {
            return Err("a key without a value".into());
        }
        let pairs = pairs.iter().map(|&[key, value]| (key, value));
        match self.top_node()? {
            Node::Dict(entries) => entries.extend(pairs),
            Node::Call(call) => call.entries.extend(pairs),
            _ => return Err("entries are set in what is no dictionary".into()),
        }
        Ok(())
    }
}
