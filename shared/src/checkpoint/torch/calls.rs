//! The calls in a pickle stream that make tensors. All others make nothing.

use super::super::pickle::{Graph, Id, Node};
use super::super::{MAX_DIMENSIONS, shown};
use super::storage::{Storage, View, element_of_dtype};
use super::{Container, Outside};

/// Most calls around a tensor, such as that which makes it a parameter.
const MAX_WRAPPERS: usize = 3;

/// What a node stands for, if it is a tensor.
pub(super) enum Made<'a> {
    /// A tensor.
    Tensor(View<'a>),
    /// A tensor of a kind that is not supported: which.
    Unsupported(String),
    /// Something else.
    Other,
}

/// Reads the calls in a graph whose storages are in a container.
pub(super) struct Calls<'g, 'a> {
    pub graph: &'g Graph<'a>,
    pub container: &'g dyn Container<'a>,
}

impl<'a> Calls<'_, 'a> {
    /// The tensor that the node `id` stands for.
    ///
    /// # Errors
    /// When it is a tensor, but malformed.
    pub fn made(&self, id: Id) -> Result<Made<'a>, String> {
        self.unwrapped(id, 0)
    }

    /// The names of the module and of the class or function that the node `id` stands for.
    pub fn function(&self, id: Id) -> Option<(&'a str, &'a str)> {
        let class = match self.graph.node(id) {
            Node::Persistent(outside) => match self.container.find(self.graph, *outside) {
                Ok(Outside::Class(class)) => class,
                _ => return None,
            },
            _ => id,
        };
        match self.graph.node(class) {
            Node::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// As [`Self::made`], inside of so many `wrappers`.
    fn unwrapped(&self, id: Id, wrappers: usize) -> Result<Made<'a>, String> {
        match self.graph.node(id) {
            Node::Call(call) => {
                self.returned(call.callable, self.graph.items(call.arguments), wrappers)
            }
            Node::Persistent(outside) => Ok(match self.container.find(self.graph, *outside)? {
                Outside::Tensor(view) => Made::Tensor(view),
                Outside::Unsupported(kind) => Made::Unsupported(kind),
                Outside::Class(_) => Made::Other,
            }),
            _ => Ok(Made::Other),
        }
    }

    /// The tensor that calling `callable` with `arguments` would return.
    fn returned(
        &self,
        callable: Id,
        arguments: &[Id],
        wrappers: usize,
    ) -> Result<Made<'a>, String> {
        let Some(function) = self.function(callable) else { return Ok(Made::Other) };
        let argument = |index: usize| {
            let missing = || format!("{}.{} lacks an argument", function.0, function.1);
            arguments.get(index).copied().ok_or_else(missing)
        };
        if wrappers > MAX_WRAPPERS {
            return Err("a tensor is wrapped too often".into());
        }
        match function {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                self.view(arguments, None, arguments.get(6))
            }
            ("torch._utils", "_rebuild_tensor_v3") => {
                self.view(arguments, Some(argument(6)?), arguments.get(7))
            }
            // A parameter is its data. The classes themselves were called before 0.4.
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
            | ("torch.nn.parameter", "Parameter" | "Buffer")
            | ("torch.autograd.variable", "Variable") => {
                match self.unwrapped(argument(0)?, wrappers + 1)? {
                    Made::Other => Err("a parameter without a tensor".into()),
                    made => Ok(made),
                }
            }
            // A tensor with attributes: the function that makes it, its class, the arguments.
            ("torch._tensor", "_rebuild_from_type_v2") => {
                self.returned(argument(0)?, self.graph.items(argument(2)?), wrappers + 1)
            }
            ("torch._utils", name) if name.starts_with("_rebuild_") => {
                Ok(Made::Unsupported(format!("torch._utils.{}", shown(name))))
            }
            _ => Ok(Made::Other),
        }
    }

    /// The view that `arguments` (storage, offset, shape, strides, ..) describe; its elements are
    /// of the node `dtype`, or as the storage says. With `metadata` they would have to be negated
    /// or conjugated first.
    fn view(
        &self,
        arguments: &[Id],
        dtype: Option<Id>,
        metadata: Option<&Id>,
    ) -> Result<Made<'a>, String> {
        let graph = self.graph;
        match metadata.map(|&id| graph.node(id)) {
            None | Some(Node::None) => {}
            Some(Node::Dict(entries)) if entries.is_empty() => {}
            Some(_) => return Ok(Made::Unsupported("a tensor with metadata".into())),
        }
        let &[storage, offset, shape, strides, ..] = arguments else {
            return Err("a tensor lacks its storage, offset, shape or strides".into());
        };
        let mut storage = match self.storage(storage)? {
            Ok(storage) => storage,
            Err(unsupported) => return Ok(Made::Unsupported(unsupported)),
        };
        if let Some(dtype) = dtype {
            let Some(("torch", name)) = self.function(dtype) else {
                return Err("a tensor without a dtype".into());
            };
            match element_of_dtype(name) {
                Some(element) => storage.element = element,
                None => return Ok(Made::Unsupported(format!("torch.{}", shown(name)))),
            }
        }
        let offset = graph.size(offset).ok_or("a tensor's offset is no size")?;
        let shape = self.sizes(shape).ok_or("a tensor's shape is no tuple of sizes")?;
        let strides = self.sizes(strides).ok_or("a tensor's strides are no tuple of sizes")?;
        let (dimensions, stride_count) = (shape.len(), strides.len());
        if dimensions != stride_count || dimensions > MAX_DIMENSIONS {
            return Err(format!("a tensor of {dimensions} dimensions with {stride_count} strides"));
        }
        Ok(Made::Tensor(View { storage, offset, shape, strides }))
    }

    /// The storage that the node `id` stands for, or which unsupported kind it is of.
    fn storage(&self, id: Id) -> Result<Result<Storage<'a>, String>, String> {
        match self.graph.node(id) {
            Node::Persistent(outside) => match self.container.find(self.graph, *outside)? {
                Outside::Tensor(view) => Ok(Ok(view.storage)),
                Outside::Unsupported(kind) => Ok(Err(kind)),
                Outside::Class(_) => Err("a class instead of a storage".into()),
            },
            // The one case in which an unknown call would decide on a tensor's elements.
            Node::Call(call) => {
                let (module, name) = self.function(call.callable).unwrap_or(("an", "object"));
                let maker = shown(&format!("{module}.{name}"));
                Err(format!("a tensor's storage is made by {maker}, which is refused"))
            }
            _ => Err("a tensor without a storage".into()),
        }
    }

    /// The sizes in a tuple or list, or in the `torch.Size` of one.
    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        let graph = self.graph;
        let items = match graph.node(id) {
            Node::Tuple(items) | Node::List(items) => items,
            Node::Call(call) if self.function(call.callable) == Some(("torch", "Size")) => {
                graph.items(*graph.items(call.arguments).first()?)
            }
            _ => return None,
        };
        items.iter().map(|&item| graph.size(item)).collect()
    }
}
