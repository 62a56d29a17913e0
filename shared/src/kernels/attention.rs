//! Scaled dot-product attention.

use candle_core::{DType, Tensor};

use super::linear::matmul;
use super::softmax::{KeyPadding, masked_softmax};
use super::{to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Scores that are held at once when no gradient is needed. Queries are independent of each other,
/// so that taking them in blocks changes nothing but memory.
const BLOCK_SCORES: usize = 4 << 20;

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
    let &[batch, heads, queries, size] = q.dims() else {
        return Err(Error::shape("queries of attention", "[B, H, Tq, D]", q.dims()));
    };
    let keys = k.dims().get(2).copied().unwrap_or_default();
    if k.dims() != [batch, heads, keys, size] {
        let expected = format!("[{batch}, {heads}, Tk, {size}]");
        return Err(Error::shape("keys of attention", expected, k.dims()));
    }
    if v.rank() != 4 || v.dims()[..3] != [batch, heads, keys] {
        let expected = format!("[{batch}, {heads}, {keys}, Dv]");
        return Err(Error::shape("values of attention", expected, v.dims()));
    }
    let padding = key_padding.map(|padding| read_padding(padding, [batch, keys])).transpose()?;
    let dtype = q.dtype();
    let q = to_compute_dtype("queries of attention", q)?.affine(scale, 0.0)?;
    let keys_t = to_dtype(k.clone(), q.dtype())?.transpose(2, 3)?;
    let v = to_dtype(v.clone(), q.dtype())?;
    let attend = |q: &Tensor| {
        let scores = matmul(q, &keys_t)?;
        let padding = padding.clone().map(|padded| {
            let rows_per_item = heads * q.dims()[2];
            KeyPadding { padded, rows_per_item }
        });
        matmul(&masked_softmax(&scores, padding)?, &v)
    };
    let block = (BLOCK_SCORES / (batch * heads * keys).max(1)).max(1);
    let tracked = [&q, &keys_t, &v].into_iter().any(Tensor::track_op);
    if tracked || queries <= block {
        return to_dtype(attend(&q)?, dtype);
    }
    let blocks = (0..queries).step_by(block);
    let blocks = blocks.map(|at| attend(&q.narrow(2, at, block.min(queries - at))?));
    to_dtype(Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 2)?, dtype)
}

/// Which keys of each item are padding, in row-major order.
fn read_padding(padding: &Tensor, dims: [usize; 2]) -> Result<std::sync::Arc<[bool]>> {
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::check;

    /// Attention by f64 loops over row-major tensors.
    fn reference([q, k, v]: [&Tensor; 3], padding: Option<&[u8]>, scale: f64) -> Vec<f64> {
        let (batch, heads, queries, size) = q.dims4().unwrap();
        let (keys, values) = (k.dims()[2], v.dims()[3]);
        let [q, k, v] = [q, k, v].map(check::to_vec);
        let mut y = vec![];
        for head in 0..batch * heads {
            let is_padding =
                |key: usize| padding.is_some_and(|padding| padding[head / heads * keys + key] != 0);
            for query in 0..queries {
                let q = &q[(head * queries + query) * size..][..size];
                let weights: Vec<f64> = (0..keys)
                    .map(|key| {
                        let k = &k[(head * keys + key) * size..][..size];
                        let score = q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                        if is_padding(key) { 0.0 } else { (scale * score).exp() }
                    })
                    .collect();
                let sum = weights.iter().sum::<f64>();
                y.extend((0..values).map(|value| {
                    let products = weights
                        .iter()
                        .enumerate()
                        .map(|(key, w)| w * v[(head * keys + key) * values + value]);
                    if sum == 0.0 { 0.0 } else { products.sum::<f64>() / sum }
                }));
            }
        }
        y
    }

    #[test]
    fn values_match_loops() {
        // [B, H, Tq, Tk, D, Dv]; the last is computed in blocks of queries.
        let cases =
            [[1, 1, 1, 1, 1, 1], [3, 2, 5, 7, 4, 3], [2, 3, 9, 4, 5, 5], [2, 1, 2100, 1001, 3, 2]];
        for [batch, heads, queries, keys, size, values] in cases {
            let q = check::normal(0, &[batch, queries, heads, size]).transpose(1, 2).unwrap();
            let k = check::normal(1, &[batch, heads, keys, size]);
            let v = check::normal(2, &[batch, heads, keys, values]);
            // All keys of the last item are padding where there are several items.
            let padding: Vec<u8> = (0..batch * keys)
                .map(|i| u8::from(i % 3 == 2 || (batch > 1 && i / keys == batch - 1)))
                .collect();
            let mask = Tensor::from_slice(&padding, (batch, keys), &Device::Cpu).unwrap();
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
                let [q, k, v] = [&q, &k, &v].map(|t| t.to_dtype(dtype).unwrap());
                for (mask, padding) in [(None, None), (Some(&mask), Some(&padding[..]))] {
                    let y = scaled_dot_product_attention(&q, &k, &v, mask, 0.6).unwrap();
                    assert_eq!(y.dims(), [batch, heads, queries, values]);
                    let expected = reference([&q, &k, &v], padding, 0.6);
                    for (y, expected) in check::to_vec(&y).iter().zip(expected) {
                        assert!((y - expected).abs() < tolerance, "{dtype:?}: {y} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_match_differences_also_where_all_keys_are_padding() {
        let shapes: [&[usize]; 3] = [&[2, 2, 3, 4], &[2, 2, 5, 4], &[2, 2, 5, 3]];
        let padding = Tensor::new(&[[0u8, 1, 0, 0, 1], [1; 5]], &Device::Cpu).unwrap();
        for padding in [None, Some(&padding)] {
            check::gradients("attention", &shapes, |inputs| {
                scaled_dot_product_attention(&inputs[0], &inputs[1], &inputs[2], padding, 0.5)
            });
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let tensor = |dims: &[usize]| check::normal(0, dims);
        let (q, k) = (tensor(&[2, 3, 4, 5]), tensor(&[2, 3, 6, 5]));
        let attend = |k: &Tensor, v: &Tensor, padding: Option<&Tensor>| {
            scaled_dot_product_attention(&q, k, v, padding, 1.0)
        };
        let mask = Tensor::zeros((2, 6), DType::U8, &Device::Cpu).unwrap();
        assert!(attend(&k, &k, Some(&mask)).is_ok());
        assert!(attend(&tensor(&[2, 3, 6, 4]), &k, None).is_err());
        assert!(attend(&k, &tensor(&[2, 3, 5, 5]), None).is_err());
        assert!(attend(&k, &k, Some(&mask.t().unwrap())).is_err());
        assert!(attend(&k, &k, Some(&mask.to_dtype(DType::U32).unwrap())).is_err());
    }
}
