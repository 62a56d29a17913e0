//! Attention against plain loops and differences.

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
    // [B, H, Tq, Tk, D, Dv]; the last has several blocks of queries and tiles of keys.
    let cases = [
        [1, 1, 1, 1, 1, 1],
        [3, 2, 5, 7, 4, 3],
        [2, 3, 9, 4, 5, 5],
        [2, 1, 33, 17, 32, 64],
        [2, 1, 200, 1001, 3, 2],
    ];
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
                let scale = (size as f64).powf(-0.5);
                let y = scaled_dot_product_attention(&q, &k, &v, mask, scale).unwrap();
                assert_eq!(y.dims(), [batch, heads, queries, values]);
                let expected = reference([&q, &k, &v], padding, scale);
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

    let x = tensor(&[2, 12, 7]);
    let layout = TokenLayout::ChannelsFirst;
    let attend = |heads, ranges: [std::ops::Range<usize>; 3]| {
        let [q, k, v] = ranges.map(|range| Channels { of: &x, range });
        let options =
            AttentionOptions { layout, heads, scale: 1.0, key_padding: None, windows: None };
        multi_head_attention(&q, &k, &v, &options)
    };
    assert!(attend(2, [0..4, 4..8, 8..12]).is_ok());
    assert!(attend(3, [0..4, 4..8, 8..12]).is_err());
    assert!(attend(2, [0..2, 4..8, 8..12]).is_err());
    assert!(attend(2, [0..4, 4..8, 10..14]).is_err());
    assert!(attend(0, [0..4, 4..8, 8..12]).is_err());
    assert!(attend(1, [0..0, 0..0, 8..12]).is_err());
}

/// A projection to queries, keys and values, `[B, H, T, 3 D]`, in another layout.
fn projection(heads: &Tensor, layout: TokenLayout, frames: usize) -> Tensor {
    let (batch, count, tokens, size) = heads.dims4().unwrap();
    let size = size / 3;
    let parts = heads.reshape((batch, count, tokens, 3, size)).unwrap();
    match layout {
        TokenLayout::Heads => heads.clone(),
        TokenLayout::TokensFirst => parts
            .permute((0, 2, 3, 1, 4))
            .and_then(|x| x.contiguous()?.reshape((batch, tokens, 3 * count * size)))
            .unwrap(),
        TokenLayout::OverFrames => unreachable!(),
        TokenLayout::ChannelsFirst => parts
            .reshape(&[batch, count, frames, tokens / frames, 3, size][..])
            .and_then(|x| x.permute([0, 2, 4, 1, 5, 3]))
            .and_then(|x| {
                x.contiguous()?.reshape((batch, frames, 3 * count * size, tokens / frames))
            })
            .unwrap(),
    }
}

/// Queries, keys and values of a projection with `channels` channels each.
fn thirds(of: &Tensor, channels: usize) -> [Channels<'_>; 3] {
    [0, 1, 2].map(|i| Channels { of, range: i * channels..(i + 1) * channels })
}

#[test]
fn every_layout_gives_the_same() {
    let (batch, heads, frames, tokens, size) = (2, 3, 4, 76, 5);
    let stored = check::normal(0, &[batch, heads, tokens, 3 * size]);
    let windows = Window::of_frames(frames, tokens, tokens, 2, 3).unwrap();
    let padding: Vec<u8> = (0..batch * tokens).map(|i| u8::from(i % 5 == 0)).collect();
    let padding = Tensor::from_vec(padding, (batch, tokens), &Device::Cpu).unwrap();
    for (windows, key_padding) in
        [(None, None), (None, Some(&padding)), (Some(&windows[..]), Some(&padding))]
    {
        let [mut expected_output, mut expected_gradient] = [vec![], vec![]];
        let layouts = [
            (TokenLayout::Heads, 1),
            (TokenLayout::TokensFirst, 1),
            (TokenLayout::ChannelsFirst, 1),
            (TokenLayout::ChannelsFirst, frames),
        ];
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            for (layout, frames) in layouts {
                let name = format!("{layout:?} {frames} {dtype:?}");
                let x = candle_core::Var::from_tensor(&stored.to_dtype(dtype).unwrap()).unwrap();
                let qkv = projection(&x, layout, frames);
                let channels = if layout == TokenLayout::Heads { size } else { heads * size };
                let [q, k, v] = thirds(&qkv, channels);
                let options = AttentionOptions { layout, heads, scale: 0.4, key_padding, windows };
                let y = multi_head_attention(&q, &k, &v, &options).unwrap();
                let axis = layout.channel_axis(qkv.rank()).unwrap();
                assert_eq!(y.dim(axis).unwrap(), channels, "{name}");
                // Back to `[B, H, T, D]`.
                let y = match layout {
                    TokenLayout::Heads => y,
                    TokenLayout::TokensFirst => {
                        y.reshape((batch, tokens, heads, size)).unwrap().transpose(1, 2).unwrap()
                    }
                    TokenLayout::OverFrames => unreachable!(),
                    TokenLayout::ChannelsFirst => y
                        .reshape((batch, frames, heads, size, tokens / frames))
                        .and_then(|y| y.permute((0, 2, 1, 4, 3)))
                        .and_then(|y| y.contiguous()?.reshape((batch, heads, tokens, size)))
                        .unwrap(),
                };
                let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                let (y, dx) = (check::to_vec(&y), check::to_vec(gradients.get(&x).unwrap()));
                if expected_output.is_empty() {
                    (expected_output, expected_gradient) = (y, dx);
                    continue;
                }
                for (found, expected) in [(&y, &expected_output), (&dx, &expected_gradient)] {
                    assert_eq!(found.len(), expected.len(), "{name}");
                    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                        let error = (found - expected).abs();
                        assert!(error < tolerance, "{name} [{i}]: {found} {expected}");
                    }
                }
            }
        }
    }
}

/// Attention over windows by loops over row-major tensors in `f64`: `[B, H, T, D]`.
fn windowed_reference([q, k, v]: [&Tensor; 3], keys_of: impl Fn(usize) -> Vec<usize>) -> Vec<f64> {
    let (batch, heads, queries, size) = q.dims4().unwrap();
    let keys = k.dims()[2];
    let [q, k, v] = [q, k, v].map(check::to_vec);
    let mut y = vec![];
    for head in 0..batch * heads {
        for query in 0..queries {
            let row = |x: &[f64], tokens: usize, token: usize| {
                x[(head * tokens + token) * size..][..size].to_vec()
            };
            let mut sum = 0.0;
            let mut output = vec![0.0; size];
            for key in keys_of(query) {
                let product = row(&q, queries, query).into_iter().zip(row(&k, keys, key));
                let weight = product.map(|(q, k)| q * k).sum::<f64>().exp();
                sum += weight;
                output.iter_mut().zip(row(&v, keys, key)).for_each(|(y, v)| *y += weight * v);
            }
            y.extend(output.into_iter().map(|y| y / sum));
        }
    }
    y
}

#[test]
fn windows_wrap_and_have_leftovers() {
    // Both directions between 4 frames of 9 positions and 35 audio tokens: 8 a frame, 3 left over.
    let (frames, shift, width) = (4, 3, 2);
    for [queries, keys] in [[36, 35], [35, 36], [36, 36]] {
        let windows = Window::of_frames(frames, queries, keys, width, shift).unwrap();
        let shapes: [&[usize]; 3] = [&[2, 2, queries, 3], &[2, 2, keys, 3], &[2, 2, keys, 3]];
        let [q, k, v] = [0, 1, 2].map(|i| check::normal(i as u64, shapes[i]));
        // As the paper's index tables have them.
        let keys_of = |query: usize| {
            let frame = (query / (queries / frames)).min(frames - 1);
            let each = keys / frames;
            (0..width * each).map(|j| (frame * each + shift * each + j) % keys).collect()
        };
        let expected = windowed_reference([&q, &k, &v], keys_of);
        let options = AttentionOptions {
            layout: TokenLayout::Heads,
            heads: 2,
            scale: 1.0,
            key_padding: None,
            windows: Some(&windows),
        };
        let attend = |[q, k, v]: [&Tensor; 3]| {
            let [q, k, v] = [q, k, v].map(|of| Channels { of, range: 0..3 });
            multi_head_attention(&q, &k, &v, &options)
        };
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3e-6)] {
            let [q, k, v] = [&q, &k, &v].map(|t| t.to_dtype(dtype).unwrap());
            let y = check::to_vec(&attend([&q, &k, &v]).unwrap());
            assert_eq!(y.len(), expected.len());
            for (y, expected) in y.iter().zip(&expected) {
                assert!((y - expected).abs() < tolerance, "{dtype:?}: {y} {expected}");
            }
        }
        check::f32_agrees_with_f64(&format!("windows {queries} {keys}"), &shapes, |inputs| {
            attend([&inputs[0], &inputs[1], &inputs[2]])
        });
    }
}

#[test]
fn window_gradients_match_differences() {
    let windows = Window::of_frames(3, 4, 7, 2, 2).unwrap();
    let options = AttentionOptions {
        layout: TokenLayout::ChannelsFirst,
        heads: 2,
        scale: 0.7,
        key_padding: None,
        windows: Some(&windows),
    };
    // Queries are a part of the channels; keys and values share a tensor.
    check::gradients("windows", &[&[2, 5, 4], &[2, 8, 7]], |inputs| {
        multi_head_attention(
            &Channels { of: &inputs[0], range: 1..5 },
            &Channels { of: &inputs[1], range: 0..4 },
            &Channels { of: &inputs[1], range: 4..8 },
            &options,
        )
    });
}

#[test]
fn f32_agrees_with_f64_over_several_tiles() {
    // Head sizes of the models and odd ones; lengths beside and at the limits of blocks.
    for [queries, keys, size] in
        [[70, 300, 32], [64, 256, 64], [129, 513, 128], [1, 257, 33], [65, 2, 96], [31, 600, 7]]
    {
        let shapes: [&[usize]; 3] =
            [&[2, 2, queries, size], &[2, 2, keys, size], &[2, 2, keys, size]];
        check::f32_agrees_with_f64(&format!("attention {shapes:?}"), &shapes, |inputs| {
            let scale = (size as f64).powf(-0.5);
            scaled_dot_product_attention(&inputs[0], &inputs[1], &inputs[2], None, scale)
        });
    }
}

#[test]
fn large_scores_do_not_overflow() {
    // Scores of about 1e5, both signs of the scale.
    let q = (check::normal(0, &[1, 1, 20, 8]) * 300.0).unwrap().to_dtype(DType::F32).unwrap();
    for scale in [1.0, -1.0] {
        let y = scaled_dot_product_attention(&q, &q, &q, None, scale).unwrap();
        let exact = q.to_dtype(DType::F64).unwrap();
        let exact = scaled_dot_product_attention(&exact, &exact, &exact, None, scale).unwrap();
        for (y, exact) in check::to_vec(&y).iter().zip(check::to_vec(&exact)) {
            assert!((y - exact).abs() < 1e-2, "{y} {exact}");
        }
    }
}

#[test]
fn threads_change_results_by_rounding_only() {
    let x = check::normal(0, &[1, 1, 300, 48]).to_dtype(DType::F32).unwrap();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let x = candle_core::Var::from_tensor(&x).unwrap();
            let [q, k, v] = thirds(&x, 16);
            let options = AttentionOptions {
                layout: TokenLayout::Heads,
                heads: 1,
                scale: 0.3,
                key_padding: None,
                windows: None,
            };
            let y = multi_head_attention(&q, &k, &v, &options).unwrap();
            let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            [check::to_vec(&y), check::to_vec(gradients.get(&x).unwrap())]
        })
    };
    let [one, three] = [run(1), run(3)];
    assert_eq!(run(3), three);
    assert_eq!(one[0], three[0]);
    for (one, three) in one[1].iter().zip(&three[1]) {
        assert!((one - three).abs() < 1e-5, "{one} {three}");
    }
}

#[test]
fn over_frames_every_position_attends_for_itself() {
    for [batch, heads, frames, size, positions] in
        [[1, 1, 1, 1, 1], [2, 3, 4, 5, 7], [1, 2, 16, 8, 33], [2, 1, 9, 6, 16]]
    {
        let channels = heads * size;
        let name = format!("{batch} {heads} {frames} {size} {positions}");
        let options = AttentionOptions {
            layout: TokenLayout::OverFrames,
            heads,
            scale: 0.4,
            key_padding: None,
            windows: None,
        };
        let attend = |x: &Tensor| {
            let [q, k, v] = thirds(x, channels);
            multi_head_attention(&q, &k, &v, &options)
        };
        let dims = [batch, frames, 3 * channels, positions];
        let x = check::normal(0, &dims);
        let y = check::to_vec(&attend(&x).unwrap());
        // The same with positions as items.
        let heads_of = |i: usize| {
            x.narrow(2, i * channels, channels)
                .and_then(|x| x.reshape((batch, frames, heads, size, positions)))
                .and_then(|x| x.permute((0, 4, 2, 1, 3)))
                .and_then(|x| x.contiguous()?.reshape((batch * positions, heads, frames, size)))
                .unwrap()
        };
        let expected = reference([&heads_of(0), &heads_of(1), &heads_of(2)], None, 0.4);
        let expected =
            Tensor::from_vec(expected, &[batch, positions, heads, frames, size][..], &Device::Cpu);
        let expected = expected.and_then(|y| y.permute((0, 3, 2, 4, 1))).unwrap();
        for (y, expected) in y.iter().zip(check::to_vec(&expected)) {
            assert!((y - expected).abs() < 1e-12, "{name}: {y} {expected}");
        }
        if frames > 1 {
            check::f32_agrees_with_f64(&name, &[&dims], |inputs| attend(&inputs[0]));
        }
    }
    // Queries and keys of different numbers of frames, in different tensors.
    check::gradients("over frames", &[&[2, 3, 4, 5], &[2, 2, 8, 5]], |inputs| {
        let options = AttentionOptions {
            layout: TokenLayout::OverFrames,
            heads: 2,
            scale: 0.7,
            key_padding: None,
            windows: None,
        };
        multi_head_attention(
            &Channels { of: &inputs[0], range: 0..4 },
            &Channels { of: &inputs[1], range: 0..4 },
            &Channels { of: &inputs[1], range: 4..8 },
            &options,
        )
    });
}

#[test]
fn operands_may_be_the_same_numbers() {
    for layout in [TokenLayout::ChannelsFirst, TokenLayout::OverFrames] {
        let options =
            AttentionOptions { layout, heads: 2, scale: 0.5, key_padding: None, windows: None };
        let ranges = [[0..4, 0..4, 0..4], [0..4, 2..6, 4..8], [4..8, 0..4, 0..4]];
        for (case, ranges) in ranges.into_iter().enumerate() {
            check::gradients(&format!("{layout:?} {case}"), &[&[2, 3, 8, 5]], |inputs| {
                let [q, k, v] = ranges.clone().map(|range| Channels { of: &inputs[0], range });
                multi_head_attention(&q, &k, &v, &options)
            });
        }
    }
}

#[test]
fn half_precision_keeps_its_dtype() {
    let x = check::normal(0, &[2, 24, 9]).to_dtype(DType::BF16).unwrap();
    let attend = |x: &Tensor| {
        let [q, k, v] = thirds(x, 8);
        let layout = TokenLayout::ChannelsFirst;
        let options =
            AttentionOptions { layout, heads: 2, scale: 0.5, key_padding: None, windows: None };
        multi_head_attention(&q, &k, &v, &options)
    };
    let y = attend(&x).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    let exact = attend(&x.to_dtype(DType::F64).unwrap()).unwrap();
    for (y, exact) in check::to_vec(&y).iter().zip(check::to_vec(&exact)) {
        assert!((y - exact).abs() < 4e-3 * exact.abs().max(1.0), "{y} {exact}");
    }
    assert!(attend(&x.to_dtype(DType::U32).unwrap()).is_err());
}
