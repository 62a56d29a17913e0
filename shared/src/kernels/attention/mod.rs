//! Scaled dot-product attention.
//!
//! Scores exist in tiles of some hundred keys by some ten queries only, in the forward pass and in the
//! backward pass, which computes them again: beside results and gradients, a thread holds two tiles
//! at most, and the keys and values of one head, packed for the products. Queries, keys and values are
//! read where they lie.

mod backward;
mod forward;
mod lanes;
mod op;
mod operands;
mod place;
mod reference;
mod scores;
#[cfg(test)]
mod tests;
mod windows;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Tensor};

pub use place::TokenLayout;
pub use windows::Window;

use super::{to_compute_dtype, to_dtype};
use crate::{Error, Result};
use lanes::Positions;
use op::Attention;
use place::{Form, Sizes};
use windows::Job;

/// `softmax(scale q k^T) v` (Vaswani et al. 2017, equation 1) for each batch item and head:
/// `[B, H, Tq, Dv]` of `q [B, H, Tq, D]`, `k [B, H, Tk, D]` and `v [B, H, Tk, Dv]`.
///
/// Keys where `key_padding [B, Tk]` (`u8`) is not 0 get no weight. An item whose keys are all padding
/// attends to nothing: its result is 0, with gradients of 0.
///
/// # Errors
/// When the shapes do not fit, or `key_padding` is not `u8`.
pub fn scaled_dot_product_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    key_padding: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    let &[_, heads, _, _] = q.dims() else {
        return Err(Error::shape("queries of attention", "[B, H, Tq, D]", q.dims()));
    };
    let options =
        AttentionOptions { layout: TokenLayout::Heads, heads, scale, key_padding, windows: None };
    let all = |of| Channels { of, range: 0..Tensor::dim(of, 3).unwrap_or_default() };
    multi_head_attention(&all(q), &all(k), &all(v), &options)
}

/// Some channels of a tensor: the queries, keys or values in it.
#[derive(Clone, Debug)]
pub struct Channels<'a> {
    /// The tensor.
    pub of: &'a Tensor,
    /// The channels; those of each head where heads have a dimension of their own.
    pub range: Range<usize>,
}

/// How [`multi_head_attention`] attends.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// The dimensions of the tensors.
    pub layout: TokenLayout,
    /// Number of heads; each has as many neighbouring channels as the others.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Keys that nobody attends to, `[B, Tk]`, `u8`: those that are not 0.
    pub key_padding: Option<&'a Tensor>,
    /// Which keys each query attends to; all where there is none.
    pub windows: Option<&'a [Window]>,
}

/// `softmax(scale q k^T) v` for each head, in the layout of `q`, with as many channels as `v` has.
///
/// Nothing is copied into another layout. Queries, keys and values are best taken from the tensor
/// that a projection to all of them leaves: their gradients are then written to one tensor, too.
/// Queries without keys, because of windows or padding, have a result of 0.
///
/// # Errors
/// When shapes, layout and heads do not fit each other, `key_padding` is not `u8`, or the windows do
/// not hold each query once, in order.
pub fn multi_head_attention(
    q: &Channels,
    k: &Channels,
    v: &Channels,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let &AttentionOptions { layout, heads, scale, key_padding, windows } = options;
    let [q_form, k_form, v_form] =
        [form("queries", q, options)?, form("keys", k, options)?, form("values", v, options)?];
    let queries = q_form.sizes("queries", q.of.dims())?;
    let keys = k_form.sizes("keys", k.of.dims())?;
    let values = v_form.sizes("values", v.of.dims())?;
    let is_same_batch = keys.batch == queries.batch && keys.positions == queries.positions;
    if !is_same_batch || k_form.size != q_form.size {
        let expected = format!("{} items and heads of {} channels", queries.batch, q_form.size);
        return Err(Error::shape("keys of attention", expected, k.of.dims()));
    }
    if values != keys {
        let expected = format!("the tokens of the keys, {:?}", k.of.dims());
        return Err(Error::shape("values of attention", expected, v.of.dims()));
    }
    let Sizes { batch, positions, tokens: key_count, .. } = keys;
    if layout == TokenLayout::OverFrames && (key_padding.is_some() || windows.is_some()) {
        return Err(Error::Argument(
            "attention over frames has neither padding nor windows".into(),
        ));
    }
    let padding =
        key_padding.map(|padding| read_padding(padding, [batch, key_count])).transpose()?;
    let all = [Window { queries: 0..queries.tokens, first_key: 0, keys: key_count }];
    let windows = match windows {
        Some(windows) => windows,
        None if queries.tokens == 0 => &[],
        None => &all,
    };
    Window::check(windows, queries.tokens, key_count)?;
    let jobs = (0..batch * positions).map(|item| {
        let padding = padding.as_deref().map(|padding| &padding[item * key_count..][..key_count]);
        Job::of_windows(windows, key_count, padding)
    });

    let mut output_dims = q.of.dims().to_vec();
    let Some(axis) = layout.channel_axis(output_dims.len()) else {
        return Err(Error::shape("queries of attention", "3 or 4 dimensions", q.of.dims()));
    };
    output_dims[axis] = v.range.len();
    let op = Attention {
        forms: [q_form, k_form, v_form],
        holders: holders([q, k, v]),
        output_form: Form { layout, heads, first: 0, size: v_form.size },
        output_dims,
        queries: queries.tokens,
        keys: key_count,
        positions: Positions { items: batch, of_item: positions },
        jobs: jobs.collect(),
        scale,
        log_sums: OnceLock::new(),
    };
    let dtype = q.of.dtype();
    let compute = op.prepare(&to_compute_dtype("queries of attention", q.of)?)?;
    let convert = |x: &Tensor| -> Result<Tensor> {
        if x.id() == q.of.id() {
            Ok(compute.clone())
        } else {
            Ok(op.prepare(&to_dtype(x.clone(), compute.dtype())?)?)
        }
    };
    let keys = convert(k.of)?;
    let values = if v.of.id() == k.of.id() { keys.clone() } else { convert(v.of)? };
    to_dtype(compute.apply_op3(&keys, &values, op)?, dtype)
}

/// For each operand, the first whose gradient is in the same tensor: a part of its own of it.
fn holders(operands: [&Channels; 3]) -> [usize; 3] {
    let is_apart = |a: &Channels, b: &Channels| {
        a.of.id() == b.of.id() && (a.range.end <= b.range.start || b.range.end <= a.range.start)
    };
    let mut holders = [0, 1, 2];
    for i in 1..3 {
        let fits = |&holder: &usize| {
            let mut sharers = (0..i).filter(|&j| holders[j] == holder);
            holders[holder] == holder && sharers.all(|j| is_apart(operands[i], operands[j]))
        };
        if let Some(holder) = (0..i).find(fits) {
            holders[i] = holder;
        }
    }
    holders
}

fn form(what: &str, channels: &Channels, options: &AttentionOptions) -> Result<Form> {
    let &AttentionOptions { layout, heads, .. } = options;
    let count = channels.range.len();
    let parts = if layout == TokenLayout::Heads { 1 } else { heads };
    if heads == 0 || count == 0 || !count.is_multiple_of(parts) {
        return Err(Error::Argument(format!(
            "{what} of attention: {count} channels cannot be divided among {heads} heads"
        )));
    }
    Ok(Form { layout, heads, first: channels.range.start, size: count / parts })
}

/// Which keys of each item are padding, in row-major order.
fn read_padding(padding: &Tensor, dims: [usize; 2]) -> Result<Arc<[bool]>> {
    if padding.dims() != dims {
        let expected = format!("{dims:?}");
        return Err(Error::shape("key padding of attention", expected, padding.dims()));
    }
    if padding.dtype() != DType::U8 {
        let found = padding.dtype().as_str();
        return Err(Error::Argument(format!(
            "key padding of attention: expected u8, found {found}"
        )));
    }
    Ok(padding.flatten_all()?.to_vec1::<u8>()?.into_iter().map(|padded| padded != 0).collect())
}
