use candle_core::{DType, Device, Tensor};

use super::*;
use crate::kernels::check;
use crate::kernels::norm::GivenNorm;

/// Sizes of a one-dimensional case: batch, channels in and out, length and kernel size.
struct Case {
    sizes: [usize; 5],
    options: ConvOptions<1>,
}

/// The cases in which convolutions have been wrong elsewhere: batch 1 and more, padding 0, 1 and
/// unequal, stride and dilation 1 and more, groups, depthwise, odd sizes.
fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for batch in [1, 3] {
        for padding in [(0, 0), (1, 1), (2, 1)] {
            for stride in [1, 2] {
                for dilation in [1, 2] {
                    for (groups, channels_in, channels_out) in [(1, 3, 5), (2, 4, 6), (4, 4, 4)] {
                        cases.push(Case {
                            sizes: [batch, channels_in, channels_out, 9, 3],
                            options: ConvOptions {
                                stride: [stride],
                                dilation: [dilation],
                                padding: [padding],
                                groups,
                                ..Default::default()
                            },
                        });
                    }
                }
            }
        }
    }
    // Pointwise; kernels as long as the input; a stride beyond the kernel; one channel.
    for (sizes, stride, padding) in [
        ([2, 5, 3, 7, 1], 1, (0, 0)),
        ([2, 5, 3, 7, 1], 3, (1, 1)),
        ([2, 3, 2, 5, 5], 1, (0, 0)),
        ([2, 3, 2, 11, 2], 4, (0, 3)),
        ([1, 1, 1, 6, 4], 1, (5, 5)),
    ] {
        cases.push(Case {
            sizes,
            options: ConvOptions { stride: [stride], padding: [padding], ..Default::default() },
        });
    }
    cases
}

/// The definition of convolution, element by element.
fn definition(x: &Tensor, weight: &Tensor, bias: &Tensor, options: &ConvOptions<1>) -> Vec<f64> {
    let (x, dims) = (x.to_vec3::<f64>().unwrap(), x.dims());
    let (weight, sizes) = (weight.to_vec3::<f64>().unwrap(), weight.dims());
    let bias = bias.to_vec1::<f64>().unwrap();
    let ([stride], [dilation], [(before, after)]) =
        (options.stride, options.dilation, options.padding);
    let length = (dims[2] + before + after - dilation * (sizes[2] - 1) - 1) / stride + 1;
    let mut y = vec![];
    for item in &x {
        for o in 0..sizes[0] {
            let first = o / (sizes[0] / options.groups) * sizes[1];
            for t in 0..length {
                let mut sum = bias[o];
                for i in 0..sizes[1] {
                    for (k, tap) in weight[o][i].iter().enumerate() {
                        let at = (t * stride + k * dilation) as isize - before as isize;
                        if (0..dims[2] as isize).contains(&at) {
                            sum += tap * item[first + i][at as usize];
                        }
                    }
                }
                y.push(sum);
            }
        }
    }
    y
}

#[test]
fn conv1d_matches_its_definition() {
    for Case { sizes: [b, c, o, t, k], options } in cases() {
        let x = check::normal(0, &[b, c, t]);
        let weight = check::normal(1, &[o, c / options.groups, k]);
        let bias = check::normal(2, &[o]);
        let expected = definition(&x, &weight, &bias, &options);
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            let [x, weight, bias] = [&x, &weight, &bias].map(|t| t.to_dtype(dtype).unwrap());
            let found = conv1d(&x, &weight, Some(&bias), &options).unwrap();
            let found = check::to_vec(&found);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < tolerance, "{options:?} {dtype:?}");
            }
        }
    }
}

#[test]
fn conv1d_gradients_match_finite_differences() {
    for Case { sizes: [b, c, o, t, k], options } in cases() {
        let shapes: [&[usize]; 3] = [&[b, c, t], &[o, c / options.groups, k], &[o]];
        check::gradients(&format!("{shapes:?} {options:?}"), &shapes, |inputs| {
            conv1d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
        });
    }
}

#[test]
fn f32_agrees_with_f64_at_the_sizes_of_models() {
    let cases = [
        // batch, channels in and out, length, kernel, stride, dilation, groups
        [2, 80, 96, 61, 5, 1, 1, 1],
        [3, 24, 24, 203, 3, 1, 4, 1],
        [1, 130, 70, 150, 1, 1, 1, 1],
        [2, 40, 36, 100, 3, 2, 1, 1],
        [2, 48, 48, 40, 16, 1, 1, 4],
        [2, 33, 33, 50, 5, 1, 1, 33],
        [19, 6, 12, 70, 4, 1, 2, 3],
        [3, 5, 9, 40, 3, 1, 1, 1],
    ];
    for [b, c, o, t, k, stride, dilation, groups] in cases {
        let padding = dilation * (k - 1) / 2;
        let options = ConvOptions {
            stride: [stride],
            dilation: [dilation],
            padding: [(padding, padding)],
            groups,
            activation: Activation::Relu,
        };
        let shapes: [&[usize]; 3] = [&[b, c, t], &[o, c / groups, k], &[o]];
        check::f32_agrees_with_f64(&format!("{shapes:?}"), &shapes, |inputs| {
            conv1d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
        });
    }
}

#[test]
fn repeated_inputs_and_gradients_are_read_like_copies() {
    let weight = check::normal(1, &[5, 3, 3]).to_dtype(DType::F32).unwrap();
    for stride in [1, 2] {
        let options = ConvOptions { stride: [stride], padding: [(1, 1)], ..Default::default() };
        check::repeated(&format!("stride {stride}"), &[4, 3, 9], |x| {
            conv1d(x, &weight, None, &options)
        });
    }
}

#[test]
fn fused_activations_have_their_gradients() {
    for activation in [
        Activation::Relu,
        Activation::Silu,
        Activation::Gelu,
        Activation::Tanh,
        Activation::Sigmoid,
    ] {
        let options = ConvOptions { padding: [(1, 1)], activation, ..Default::default() };
        let shapes: [&[usize]; 2] = [&[2, 3, 6], &[4, 3, 3]];
        check::gradients(&format!("{activation:?}"), &shapes, |inputs| {
            conv1d(&inputs[0], &inputs[1], None, &options)
        });
    }
}

#[test]
fn what_follows_is_as_if_it_were_computed_by_itself() {
    // Read in place, from a padded copy and gathered; transformed, with dilations of both kinds, and
    // squares; groups.
    for (x, weight, dilation, padding, groups) in [
        (&[2, 33, 70][..], &[40, 33, 1][..], 1, 0, 1),
        (&[2, 33, 70], &[40, 33, 3], 2, 2, 1),
        (&[3, 24, 50], &[48, 8, 5], 1, 1, 3),
        (&[2, 130, 600], &[129, 130, 3], 3, 3, 1),
        (&[2, 128, 600], &[128, 128, 3], 70, 70, 1),
        (&[2, 5, 9, 8], &[7, 5, 3, 3], 1, 1, 1),
        (&[3, 64, 15, 18], &[65, 64, 3, 3], 1, 1, 1),
    ] {
        fn outputs<const D: usize>(
            inputs: &[Tensor],
            options: &ConvOptions<D>,
        ) -> [Result<Tensor>; 2] {
            let [x, weight, bias, mean, variance, scale, shift, residual] = inputs else {
                unreachable!()
            };
            let norm = GivenNorm { mean, variance, weight: scale, bias: shift, eps: 0.1 };
            let after = After { norm: Some(norm), residual: Some(residual) };
            [
                conv_add(x, weight, Some(bias), residual, options),
                convolve(x, weight, None, Some(bias), options, after),
            ]
        }
        let activation = Activation::Silu;
        let run = |inputs: &[Tensor]| match x.len() {
            3 => outputs::<1>(
                inputs,
                &ConvOptions {
                    dilation: [dilation],
                    padding: [(padding, padding)],
                    groups,
                    activation,
                    ..Default::default()
                },
            ),
            _ => outputs::<2>(
                inputs,
                &ConvOptions { padding: [(padding, padding); 2], activation, ..Default::default() },
            ),
        };
        let mut dims = x.to_vec();
        dims[1] = weight[0];
        dims[2] -= dilation * (weight[2] - 1);
        dims[2] += 2 * padding;
        let channels = &weight[..1];
        let shapes = [x, weight, channels, channels, channels, channels, channels, &dims];
        let mut inputs: Vec<Tensor> = shapes
            .iter()
            .enumerate()
            .map(|(i, dims)| check::Form::Narrowed.normal(i as u64, dims))
            .collect();
        inputs[4] = inputs[4].sqr().unwrap();
        let single: Vec<Tensor> =
            inputs.iter().map(|input| input.to_dtype(DType::F32).unwrap()).collect();
        // In f64 every step is an operation of its own.
        for (found, expected) in run(&single).into_iter().zip(run(&inputs)) {
            let [found, expected] = [found, expected].map(|y| check::to_vec(&y.unwrap()));
            let scale = expected.iter().fold(0.0f64, |max, y| max.max(y.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5 * scale, "{x:?} {found} {expected}");
            }
        }
    }
}

#[test]
fn sums_with_residuals_have_their_gradients() {
    for activation in [Activation::Identity, Activation::Relu, Activation::Silu] {
        let options = ConvOptions { padding: [(1, 1)], activation, ..Default::default() };
        let shapes: [&[usize]; 4] = [&[2, 3, 6], &[4, 3, 3], &[4], &[2, 4, 6]];
        check::gradients(&format!("sum, {activation:?}"), &shapes, |inputs| {
            conv_add(&inputs[0], &inputs[1], Some(&inputs[2]), &inputs[3], &options)
        });
    }
    let x = check::normal(0, &[2, 3, 6]);
    let weight = check::normal(1, &[4, 3, 3]);
    let wrong = check::normal(2, &[2, 4, 5]);
    assert!(conv_add(&x, &weight, None, &wrong, &ConvOptions::<1>::default()).is_err());
}

#[test]
fn conv2d_gradients_match_finite_differences() {
    for groups in [1, 2] {
        let options = ConvOptions {
            stride: [2, 1],
            dilation: [1, 2],
            padding: [(1, 0), (2, 1)],
            groups,
            activation: Activation::Identity,
        };
        let shapes: [&[usize]; 3] = [&[2, 2, 6, 5], &[4, 2 / groups, 3, 2], &[4]];
        check::gradients(&format!("{options:?}"), &shapes, |inputs| {
            conv2d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
        });
    }
}

#[test]
fn conv3d_gradients_match_finite_differences() {
    let options =
        ConvOptions { stride: [1, 2, 1], padding: [(1, 1), (0, 1), (1, 0)], ..Default::default() };
    let shapes: [&[usize]; 3] = [&[2, 2, 3, 4, 3], &[3, 2, 2, 3, 2], &[3]];
    check::gradients("conv3d", &shapes, |inputs| {
        conv3d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
    });
}

#[test]
fn kernels_along_one_axis_have_their_gradients() {
    // Frames, lines, columns: neighbours that lie far apart.
    for kernel in [[3, 1, 1], [1, 3, 1], [1, 1, 3], [2, 1, 1]] {
        for axis_padding in [(0, 0), (1, 1), (2, 1)] {
            let padding = kernel.map(|size| if size > 1 { axis_padding } else { (0, 0) });
            let options = ConvOptions { padding, ..Default::default() };
            let shapes: [&[usize]; 3] = [&[2, 3, 4, 3, 3], &[&[2, 3], &kernel[..]].concat(), &[2]];
            check::gradients(&format!("{kernel:?} {options:?}"), &shapes, |inputs| {
                conv3d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
            });
        }
    }
    let options = ConvOptions { padding: [(4, 4), (0, 0)], dilation: [4, 1], ..Default::default() };
    check::f32_agrees_with_f64("lines", &[&[2, 9, 30, 12], &[14, 9, 3, 1]], |inputs| {
        conv2d(&inputs[0], &inputs[1], None, &options)
    });
}

#[test]
fn transformed_kernels_agree_with_f64() {
    // Enough channels for Winograd's algorithm. In time: dilations below and above the length of a
    // run, lengths that fill the last tiles and that do not, unequal padding.
    for (batch, length, dilation, padding, [inputs, outputs]) in [
        (31, 33, 1, (1, 1), [96, 102]),
        (3, 400, 3, (3, 3), [102, 96]),
        (7, 150, 20, (20, 20), [96, 96]),
        (3, 380, 64, (70, 60), [96, 97]),
        (300, 4, 1, (1, 1), [96, 96]),
        (64, 9, 2, (6, 5), [96, 96]),
        (1, 1400, 7, (7, 7), [96, 96]),
        (1, 1400, 300, (300, 300), [96, 96]),
    ] {
        let options = ConvOptions {
            dilation: [dilation],
            padding: [padding],
            activation: Activation::Relu,
            ..Default::default()
        };
        let shapes: [&[usize]; 3] = [&[batch, inputs, length], &[outputs, inputs, 3], &[outputs]];
        let geometry = Geometry::new(shapes[0], shapes[1], &options).unwrap();
        assert!(winograd::Tiles::of(&geometry).is_some(), "{shapes:?}");
        check::f32_agrees_with_f64(&format!("{shapes:?} {options:?}"), &shapes, |inputs| {
            conv1d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
        });
    }
    // Frames and images, odd sizes, all paddings, sizes
    // beyond a block of tiles and below a tile.
    let cases = [
        ([2, 1, 17, 40], [70, 65], [(1, 1), (1, 1)]),
        ([1, 3, 16, 16], [96, 64], [(0, 0), (2, 1)]),
        ([9, 2, 7, 5], [64, 75], [(2, 2), (0, 1)]),
        ([1, 1, 3, 200], [64, 64], [(1, 1), (1, 1)]),
        ([130, 1, 1, 1], [64, 64], [(1, 1), (1, 1)]),
        ([5, 1, 4, 4], [67, 64], [(5, 3), (4, 6)]),
    ];
    for ([batch, frames, height, width], [inputs, outputs], [lines, columns]) in cases {
        let options = ConvOptions {
            padding: [(0, 0), lines, columns],
            activation: Activation::Relu,
            ..Default::default()
        };
        let shapes: [&[usize]; 3] =
            [&[batch, inputs, frames, height, width], &[outputs, inputs, 1, 3, 3], &[outputs]];
        let geometry = Geometry::new(shapes[0], shapes[1], &options).unwrap();
        assert!(winograd::Tiles::of(&geometry).is_some(), "{shapes:?}");
        check::f32_agrees_with_f64(&format!("{shapes:?} {options:?}"), &shapes, |inputs| {
            conv3d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
        });
    }
}

#[test]
fn conv_transpose1d_gradients_match_finite_differences() {
    for (stride, output_padding, dilation, groups) in
        [(1, 0, 1, 1), (2, 1, 1, 1), (2, 0, 2, 2), (3, 2, 1, 4)]
    {
        for (batch, padding) in [(1, (0, 0)), (3, (1, 1)), (2, (0, 2))] {
            let options =
                ConvTranspose1dOptions { stride, padding, output_padding, dilation, groups };
            let shapes: [&[usize]; 3] = [&[batch, 4, 5], &[4, 8 / groups, 3], &[8]];
            check::gradients(&format!("{options:?}"), &shapes, |inputs| {
                conv_transpose1d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
            });
        }
    }
}

#[test]
fn conv_transpose1d_is_the_adjoint_of_conv1d() {
    // <conv(x), y> = <x, conv_transpose(y)> with the same weight.
    let (x, weight) = (check::normal(0, &[2, 4, 12]), check::normal(1, &[6, 4, 3]));
    let options =
        ConvOptions { stride: [2], padding: [(1, 2)], dilation: [2], ..Default::default() };
    let y = conv1d(&x, &weight, None, &options).unwrap();
    let z = check::normal(2, y.dims());
    let back = ConvTranspose1dOptions {
        stride: 2,
        padding: (1, 2),
        dilation: 2,
        output_padding: 12 + 3 - 4 - 1 - (y.dims()[2] - 1) * 2,
        ..Default::default()
    };
    let adjoint = conv_transpose1d(&z, &weight, None, &back).unwrap();
    let dot = |a: &Tensor, b: &Tensor| -> f64 {
        (a * b).unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    assert!((dot(&y, &z) - dot(&x, &adjoint)).abs() < 1e-9);
}

#[test]
fn f32_agrees_with_f64_for_images_and_videos() {
    // Batch, channels in and out, height, width, kernel, stride, dilation, groups.
    let cases = [
        [2, 20, 30, 17, 40, 3, 1, 1, 1],
        [1, 12, 14, 16, 16, 3, 2, 1, 2],
        [3, 8, 40, 33, 7, 5, 1, 2, 1],
        [2, 40, 70, 12, 9, 1, 1, 1, 1],
    ];
    for [b, c, o, h, w, k, stride, dilation, groups] in cases {
        let padding = dilation * (k - 1) / 2;
        let options = ConvOptions {
            stride: [stride; 2],
            dilation: [dilation; 2],
            padding: [(padding, padding); 2],
            groups,
            activation: Activation::Silu,
        };
        let shapes: [&[usize]; 3] = [&[b, c, h, w], &[o, c / groups, k, k], &[o]];
        check::f32_agrees_with_f64(&format!("{shapes:?} {options:?}"), &shapes, |inputs| {
            conv2d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
        });
    }
    let options = ConvOptions { padding: [(1, 1), (1, 0), (0, 1)], ..Default::default() };
    check::f32_agrees_with_f64("conv3d", &[&[2, 9, 5, 12, 20], &[14, 9, 3, 2, 2]], |inputs| {
        conv3d(&inputs[0], &inputs[1], None, &options)
    });
}

#[test]
fn f32_agrees_with_f64_for_transposed_convolutions() {
    for (stride, dilation, groups) in [(1, 1, 1), (2, 1, 2), (4, 3, 1)] {
        let options = ConvTranspose1dOptions {
            stride,
            dilation,
            groups,
            padding: (3, 2),
            output_padding: stride - 1,
        };
        let shapes: [&[usize]; 3] = [&[3, 36, 50], &[36, 40 / groups, 8], &[40]];
        check::f32_agrees_with_f64(&format!("{options:?}"), &shapes, |inputs| {
            conv_transpose1d(&inputs[0], &inputs[1], Some(&inputs[2]), &options)
        });
    }
}

#[test]
fn results_do_not_depend_on_the_thread_count() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let shapes: [&[usize]; 2] = [&[5, 48, 300], &[64, 48, 5]];
        let [x, weight] = [0, 1].map(|input| {
            let values = check::normal(input as u64, shapes[input]).to_dtype(DType::F32).unwrap();
            candle_core::Var::from_tensor(&values).unwrap()
        });
        let options = ConvOptions { padding: [(2, 2)], ..Default::default() };
        pool.install(|| {
            let y = conv1d(&x, &weight, None, &options).unwrap();
            let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            [&y, gradients.get(&x).unwrap(), gradients.get(&weight).unwrap()].map(check::to_vec)
        })
    };
    let alone = run(1);
    assert!(run(2) == alone && run(7) == alone);
}

#[test]
fn half_precision_is_computed_in_f32() {
    let (x, weight) = (check::normal(0, &[2, 3, 8]), check::normal(1, &[4, 3, 3]));
    for dtype in [DType::BF16, DType::F16] {
        let [half_x, half_weight] = [&x, &weight].map(|t| t.to_dtype(dtype).unwrap());
        let [x, weight] = [&half_x, &half_weight].map(|t| t.to_dtype(DType::F32).unwrap());
        let found = conv1d(&half_x, &half_weight, None, &ConvOptions::default()).unwrap();
        let expected = conv1d(&x, &weight, None, &ConvOptions::default()).unwrap();
        assert_eq!(found.dtype(), dtype);
        assert_eq!(check::to_vec(&found), check::to_vec(&expected.to_dtype(dtype).unwrap()));
    }
}

#[test]
fn impossible_sizes_are_errors() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let huge = usize::MAX / 2;
    let cases: [(&str, &[usize], &[usize], ConvOptions<1>); 10] = [
        ("input shorter than the kernel", &[1, 2, 3], &[4, 2, 5], ConvOptions::default()),
        ("empty input", &[1, 2, 0], &[4, 2, 1], ConvOptions::default()),
        ("channels differ", &[1, 3, 9], &[4, 2, 3], ConvOptions::default()),
        ("no channels", &[1, 0, 9], &[4, 0, 3], ConvOptions::default()),
        ("rank", &[3, 9], &[4, 3, 3], ConvOptions::default()),
        ("groups 0", &[1, 2, 9], &[4, 2, 3], ConvOptions { groups: 0, ..Default::default() }),
        ("stride 0", &[1, 2, 9], &[4, 2, 3], ConvOptions { stride: [0], ..Default::default() }),
        ("kernel 0", &[1, 2, 9], &[4, 2, 0], ConvOptions::default()),
        (
            "dilation overflows",
            &[1, 2, 9],
            &[4, 2, 5],
            ConvOptions { dilation: [huge], ..Default::default() },
        ),
        (
            "padding overflows",
            &[1, 2, 9],
            &[4, 2, 3],
            ConvOptions { padding: [(huge, huge)], ..Default::default() },
        ),
    ];
    for (name, x, weight, options) in cases {
        assert!(conv1d(&zeros(x), &zeros(weight), None, &options).is_err(), "{name}");
    }
    let (x, weight) = (zeros(&[1, 2, 9]), zeros(&[4, 2, 3]));
    assert!(conv1d(&x, &weight, Some(&zeros(&[3])), &ConvOptions::default()).is_err());
    let cut = ConvTranspose1dOptions { padding: (9, 9), ..Default::default() };
    assert!(conv_transpose1d(&x, &zeros(&[2, 4, 3]), None, &cut).is_err());
}
