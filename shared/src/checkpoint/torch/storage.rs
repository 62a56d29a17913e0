//! Storages, and tensors as views of them.

use std::borrow::Cow;

use super::super::element::{Element, element_count};
use super::super::pickle::{Graph, Id, Node};
use super::super::shown;

/// A flat run of elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub element: Element,
    pub bytes: &'a [u8],
}

/// A tensor whose elements lie in a storage. Offset and strides count elements.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    pub storage: Storage<'a>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What a storage's class says about its elements.
pub(super) enum StorageType {
    /// They are these; bytes for a storage whose tensors say what they are.
    Of(Element),
    /// They are not supported: the class.
    Unsupported(String),
}

/// The identifier by which a pickle stream refers to a storage outside it:
/// `("storage", class, key, location, elements)` and, in some layouts, a part of the storage.
pub(super) struct StorageId<'a> {
    pub kind: StorageType,
    pub key: &'a str,
    /// Number of elements.
    pub count: usize,
    /// Node that says which part of the storage is meant.
    pub part: Option<Id>,
}

impl<'a> Storage<'a> {
    /// The whole storage as a tensor of one dimension.
    pub fn flat(self) -> View<'a> {
        let count = self.bytes.len() / self.element.size();
        View { storage: self, offset: 0, shape: vec![count], strides: vec![1] }
    }
}

impl<'a> View<'a> {
    /// The elements in row-major order; borrowed where they lie so in the storage.
    ///
    /// # Errors
    /// When an element lies outside the storage.
    pub fn elements(&self) -> Result<Cow<'a, [u8]>, String> {
        let size = self.storage.element.size();
        let count = element_count(&self.shape).ok_or_else(|| self.complain("is too large"))?;
        if count == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        let mut last = self.offset;
        for (&length, &stride) in self.shape.iter().zip(&self.strides) {
            last = (length - 1)
                .checked_mul(stride)
                .and_then(|distance| last.checked_add(distance))
                .ok_or_else(|| self.complain("reaches too far"))?;
        }
        let end = last.checked_add(1).and_then(|end| end.checked_mul(size));
        if end.is_none_or(|end| end > self.storage.bytes.len()) {
            return Err(self.complain("reaches outside"));
        }
        if self.is_row_major() {
            let start = self.offset * size;
            let bytes = self.storage.bytes.get(start..start + count * size);
            return bytes.map(Cow::Borrowed).ok_or_else(|| self.complain("reaches outside"));
        }
        // Runs of neighbours are copied at once. Dimensions of length 1 have meaningless strides.
        let mut dimensions: Vec<(usize, usize)> =
            self.shape.iter().copied().zip(self.strides.iter().copied()).collect();
        dimensions.retain(|&(length, _)| length != 1);
        let run = dimensions.pop_if(|&mut (_, stride)| stride == 1).map_or(1, |(length, _)| length);
        let mut gathered = Vec::with_capacity(count * size);
        let mut index = vec![0; dimensions.len()];
        let mut at = self.offset;
        for _ in 0..count / run {
            let bytes = self.storage.bytes.get(at * size..(at + run) * size);
            gathered.extend(bytes.ok_or_else(|| self.complain("reaches outside"))?);
            for (place, &(length, stride)) in index.iter_mut().zip(&dimensions).rev() {
                *place += 1;
                at += stride;
                if *place < length {
                    break;
                }
                *place = 0;
                at -= length * stride;
            }
        }
        Ok(Cow::Owned(gathered))
    }

    /// Whether the elements lie in row-major order without gaps.
    fn is_row_major(&self) -> bool {
        let mut dense = 1;
        for (&length, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if length != 1 && stride != dense {
                return false;
            }
            dense *= length;
        }
        true
    }

    fn complain(&self, what: &str) -> String {
        let elements = self.storage.bytes.len() / self.storage.element.size();
        format!(
            "a tensor of shape {:?}, strides {:?} and offset {} {what} (its storage has {elements} \
             elements)",
            self.shape, self.strides, self.offset
        )
    }
}

impl StorageType {
    /// The type that the storage class in node `id` stands for, e.g. `torch.FloatStorage`.
    ///
    /// # Errors
    /// When the node is no storage class of PyTorch.
    pub fn of(graph: &Graph<'_>, id: Id) -> Result<Self, String> {
        let Node::Global { module, name } = graph.node(id) else {
            return Err("a storage without a class".into());
        };
        if !["torch", "torch.cuda", "torch.storage"].contains(module) {
            let class = shown(&format!("{module}.{name}"));
            return Err(format!("a storage of class {class}, which is not PyTorch's"));
        }
        Ok(Self::Of(match *name {
            "DoubleStorage" => Element::F64,
            "FloatStorage" => Element::F32,
            "HalfStorage" => Element::F16,
            "BFloat16Storage" => Element::Bf16,
            "LongStorage" => Element::I64,
            "IntStorage" => Element::I32,
            "ShortStorage" => Element::I16,
            "CharStorage" => Element::I8,
            "ByteStorage" | "UntypedStorage" | "_UntypedStorage" => Element::U8,
            "BoolStorage" => Element::Bool,
            other => return Ok(Self::Unsupported(format!("{module}.{}", shown(other)))),
        }))
    }
}

impl<'a> StorageId<'a> {
    /// The identifier in node `id`.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn of(graph: &Graph<'a>, id: Id) -> Result<Self, String> {
        let &[kind, class, key, _, count, ref rest @ ..] = graph.items(id) else {
            return Err("a storage's identifier has too few parts".into());
        };
        if graph.text(kind) != Some("storage") {
            return Err("an object outside the stream that is no storage".into());
        }
        Ok(Self {
            kind: StorageType::of(graph, class)?,
            key: graph.text(key).filter(is_key).ok_or("a storage's key is no short text")?,
            count: graph.size(count).ok_or("a storage's number of elements is no size")?,
            part: rest.first().copied(),
        })
    }
}

/// Whether a text can be the key of a storage: PyTorch writes numbers.
pub(super) fn is_key(key: &&str) -> bool {
    key.len() <= 40 && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The element type that `torch.<name>` stands for, e.g. `float32`.
pub(super) fn element_of_dtype(name: &str) -> Option<Element> {
    Some(match name {
        "float64" => Element::F64,
        "float32" => Element::F32,
        "float16" => Element::F16,
        "bfloat16" => Element::Bf16,
        "float8_e4m3fn" => Element::F8E4M3,
        "int64" => Element::I64,
        "int32" => Element::I32,
        "int16" => Element::I16,
        "int8" => Element::I8,
        "uint64" => Element::U64,
        "uint32" => Element::U32,
        "uint16" => Element::U16,
        "uint8" => Element::U8,
        "bool" => Element::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// The elements by their definition: element `i, j, ..` lies at offset + i * stride 0 + ...
    fn gathered(view: &View<'_>) -> Vec<u8> {
        let count: usize = view.shape.iter().product();
        let element = |flat: usize| {
            let mut rest = flat;
            let mut at = view.offset;
            for (length, stride) in view.shape.iter().zip(&view.strides).rev() {
                at += rest % length * stride;
                rest /= length;
            }
            &view.storage.bytes[2 * at..2 * at + 2]
        };
        (0..count).flat_map(element).copied().collect()
    }

    #[test]
    fn views_follow_their_strides() {
        let bytes: Vec<u8> = (0..2000).map(|i| (i % 251) as u8).collect();
        let storage = Storage { element: Element::I16, bytes: &bytes };
        let mut stream = Stream::new(1, "views", 0);
        let (mut inside, mut borrowed) = (0, 0);
        for _ in 0..20_000 {
            let rank = stream.below(5);
            let shape: Vec<usize> = (0..rank).map(|_| 1 + stream.below(5)).collect();
            let mut strides = vec![1; rank];
            if stream.below(3) == 0 {
                strides.fill_with(|| stream.below(60));
            } else {
                for i in (1..rank).rev() {
                    strides[i - 1] = strides[i] * shape[i] + stream.below(3) / 2;
                }
            }
            let view = View { storage, offset: stream.below(900), shape, strides };
            let span = view.shape.iter().zip(&view.strides).map(|(n, s)| (n - 1) * s);
            let last = view.offset + span.sum::<usize>();
            match view.elements() {
                Ok(elements) => {
                    assert_eq!(*elements, gathered(&view), "{view:?}");
                    inside += 1;
                    borrowed += usize::from(matches!(elements, Cow::Borrowed(_)));
                }
                Err(reason) => assert!(last >= 1000 && reason.contains("outside"), "{reason}"),
            }
        }
        assert!(inside > 10_000 && borrowed > 1000 && borrowed < inside, "{inside} {borrowed}");
    }
}
