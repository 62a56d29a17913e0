use candle_core::{DType, Device, Tensor};

use super::narrow::NarrowWeight;
use super::packed::narrow;
use super::{ConvOptions, Geometry, convolve};
use crate::kernels::activation::{Activation, activate};
use crate::kernels::check::{self, Form};
use crate::kernels::epilogue::After;
use crate::kernels::isa::{InstructionSet, instruction_set};
use crate::kernels::narrow::{Format, reference};

/// The convolution in narrow numbers on an instruction set.
fn found<const D: usize>(
    format: Format,
    set: InstructionSet,
    [x, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
    options: &ConvOptions<D>,
) -> Tensor {
    let geometry = Geometry::new(x.dims(), weight.dims(), options).unwrap();
    let rows: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
    let packed = NarrowWeight::new(format, set, &rows, &geometry).unwrap();
    narrow(x, weight.dims(), &packed, bias, options, After::default()).unwrap()
}

/// Checks a convolution without activation of inputs of these shapes on all instruction sets, for
/// inputs in all forms: in bf16 to the rounding of sums in `f32`, in integers to the last bit.
fn check<const D: usize>(x_dims: &[usize], weight_dims: &[usize], options: ConvOptions<D>) {
    let case = format!("{x_dims:?} {weight_dims:?} {options:?}");
    let exact = |x: &Tensor, weight: &Tensor| {
        convolve(x, weight, None, None, &options, After::default()).unwrap()
    };
    for form in Form::ALL {
        let x = form.normal(0, x_dims).to_dtype(DType::F32).unwrap();
        let weight = form.normal(1, weight_dims).to_dtype(DType::F32).unwrap();
        let bias = check::normal(2, &weight_dims[..1]).to_dtype(DType::F32).unwrap();
        // Channels of the output in the last place, so that biases and scales fit.
        let last = |y: &Tensor| y.transpose(1, D + 1).unwrap();
        let rounded = [&x, &weight].map(reference::bf16);
        let [expected, magnitude] = [
            exact(&rounded[0], &rounded[1]),
            exact(&rounded[0].abs().unwrap(), &rounded[1].abs().unwrap()),
        ];
        let products = weight_dims[1..].iter().product::<usize>();
        let (items, affines): (Vec<Tensor>, Vec<_>) =
            (0..x_dims[0]).map(|item| reference::integers(&x.narrow(0, item, 1).unwrap())).unzip();
        let (channels, scales): (Vec<Tensor>, Vec<f32>) = (0..weight_dims[0])
            .map(|channel| reference::weight_integers(&weight.narrow(0, channel, 1).unwrap()))
            .unzip();
        let sums = exact(&Tensor::cat(&items, 0).unwrap(), &Tensor::cat(&channels, 0).unwrap());
        let biases: Vec<f32> = bias.to_vec1().unwrap();
        let positions = sums.elem_count() / (x_dims[0] * weight_dims[0]);
        let integers: Vec<f32> = check::to_vec(&sums)
            .chunks_exact(positions)
            .enumerate()
            .flat_map(|(row, sums)| {
                let (item, channel) = (row / weight_dims[0], row % weight_dims[0]);
                let scale = affines[item] * scales[channel];
                sums.iter().map(move |&sum| sum as f32 * scale).collect::<Vec<_>>()
            })
            .collect();
        for set in InstructionSet::available() {
            let case = format!("{case}, {form:?}, {set}");
            for bias in [None, Some(&bias)] {
                let y = found(Format::Bf16, set, [&x, &weight], bias, &options);
                let (mut expected, mut magnitude) = (expected.clone(), magnitude.clone());
                if let Some(bias) = bias {
                    let bias = bias.to_dtype(DType::F64).unwrap();
                    expected = last(&last(&expected).broadcast_add(&bias).unwrap());
                    let bias = bias.abs().unwrap();
                    magnitude = last(&last(&magnitude).broadcast_add(&bias).unwrap());
                }
                reference::assert_sums(&case, &y, &expected, &magnitude, products + 1);

                let y = found(Format::Int8, set, [&x, &weight], bias, &options);
                assert_eq!(y.dims(), sums.dims(), "{case}");
                let y: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
                for (at, (found, expected)) in y.iter().zip(&integers).enumerate() {
                    let bias = bias.map_or(0.0, |_| biases[at / positions % weight_dims[0]]);
                    assert_eq!(*found, expected + bias, "{case}, element {at}");
                }
            }
        }
    }
}

#[test]
fn conv1d_matches_its_reference_on_all_instruction_sets() {
    // Batch, channels in and out, length, kernel, stride, dilation, padding, groups.
    let cases = [
        ([1, 1, 1, 1, 1], 1, 1, (0, 0), 1),
        ([3, 3, 5, 9, 3], 1, 1, (1, 1), 1),
        ([2, 7, 6, 11, 3], 1, 2, (3, 1), 1),
        ([2, 4, 6, 9, 3], 2, 1, (0, 2), 2),
        ([2, 6, 6, 10, 5], 3, 2, (4, 4), 6),
        ([3, 5, 3, 7, 1], 1, 1, (0, 0), 1),
        ([2, 5, 3, 7, 1], 3, 1, (1, 1), 1),
        ([2, 2, 3, 3, 3], 1, 1, (0, 0), 1),
        ([1, 1, 1, 6, 4], 1, 1, (5, 5), 1),
        ([11, 37, 30, 70, 3], 1, 2, (2, 2), 1),
        ([1, 34, 26, 133, 5], 1, 1, (4, 0), 2),
    ];
    for ([b, c, o, t, k], stride, dilation, padding, groups) in cases {
        let options = ConvOptions {
            stride: [stride],
            dilation: [dilation],
            padding: [padding],
            groups,
            activation: Activation::Identity,
        };
        check(&[b, c, t], &[o, c / groups, k], options);
    }
}

#[test]
fn conv2d_and_conv3d_match_their_reference_on_all_instruction_sets() {
    let image = |stride, dilation, padding, groups| ConvOptions {
        stride,
        dilation,
        padding,
        groups,
        activation: Activation::Identity,
    };
    check(&[2, 5, 6, 7], &[4, 5, 3, 3], image([1, 1], [1, 1], [(1, 1), (1, 1)], 1));
    check(&[2, 6, 9, 8], &[4, 3, 3, 2], image([2, 1], [1, 2], [(1, 0), (2, 1)], 2));
    check(&[1, 3, 8, 21], &[14, 3, 3, 3], image([1, 2], [2, 1], [(0, 3), (0, 0)], 1));
    check(&[3, 6, 5, 37], &[13, 6, 3, 3], image([1, 1], [1, 1], [(1, 1), (1, 1)], 1));
    check(&[2, 9, 4, 5], &[7, 9, 1, 1], image([1, 1], [1, 1], [(0, 0), (0, 0)], 1));
    let video = |stride, padding| ConvOptions { stride, padding, ..Default::default() };
    // Along one axis alone: the columns are positions in order for the first two only.
    check(&[2, 3, 5, 4, 6], &[4, 3, 3, 1, 1], video([1; 3], [(1, 1), (0, 0), (0, 0)]));
    check(&[1, 3, 1, 5, 6], &[4, 3, 1, 3, 1], video([1; 3], [(0, 0), (2, 0), (0, 0)]));
    check(&[1, 3, 4, 5, 6], &[4, 3, 1, 3, 1], video([1; 3], [(0, 0), (2, 0), (0, 0)]));
    check(&[2, 2, 4, 5, 7], &[3, 2, 2, 3, 2], video([1, 2, 1], [(1, 1), (0, 1), (1, 0)]));
}

#[test]
fn activations_follow_the_bias() {
    let x = check::normal(0, &[2, 5, 40]).to_dtype(DType::F32).unwrap();
    let weight = check::normal(1, &[6, 5, 3]).to_dtype(DType::F32).unwrap();
    let bias = check::normal(2, &[6]).to_dtype(DType::F32).unwrap();
    let run = |format, activation| {
        let options = ConvOptions::<1> { activation, ..Default::default() };
        found(format, instruction_set(), [&x, &weight], Some(&bias), &options)
    };
    for format in [Format::Bf16, Format::Int8] {
        let plain = run(format, Activation::Identity);
        for activation in [Activation::Relu, Activation::Silu, Activation::Gelu, Activation::Tanh] {
            let expected = check::to_vec(&activate(&plain, activation).unwrap());
            assert_eq!(check::to_vec(&run(format, activation)), expected);
        }
    }
}

#[test]
fn errors_of_integers_are_those_of_rounding() {
    let x = check::normal(0, &[3, 40, 50]).to_dtype(DType::F32).unwrap();
    let weight = check::normal(1, &[30, 40, 3]).to_dtype(DType::F32).unwrap();
    let options = ConvOptions { padding: [(1, 1)], ..Default::default() };
    let y = found(Format::Int8, instruction_set(), [&x, &weight], None, &options);
    let [x, weight] = [&x, &weight].map(|t| t.to_dtype(DType::F64).unwrap());
    let exact = convolve(&x, &weight, None, None, &options, After::default()).unwrap();
    // Each factor is off by at most half its step; the steps of the largest will do for all.
    let step = |t: &Tensor, steps: f64| {
        let values = check::to_vec(t);
        let [low, high] = [f64::min, f64::max].map(|f| values.iter().copied().fold(0.0, f));
        (high - low, high.max(-low) / steps)
    };
    let (x_step, weight_step) = (step(&x, 127.0).0 / 255.0, step(&weight, 127.0).1);
    let ones = weight.ones_like().unwrap();
    let x_sum = convolve(&x.abs().unwrap(), &ones, None, None, &options, After::default()).unwrap();
    let weight_sums: Vec<f64> =
        check::to_vec(&weight.abs().unwrap().sum((1, 2)).unwrap()).into_iter().collect();
    let (y, exact, x_sum) = (check::to_vec(&y), check::to_vec(&exact), check::to_vec(&x_sum));
    for (at, (y, exact)) in y.iter().zip(&exact).enumerate() {
        let bound = 0.5 * weight_step * x_sum[at]
            + 0.5 * x_step * weight_sums[at / 50 % 30]
            + 0.25 * x_step * weight_step * 120.0;
        assert!((y - exact).abs() <= bound * 1.0001, "{y} {exact} {bound}");
    }
}

#[test]
fn results_do_not_depend_on_the_thread_count_or_the_batch() {
    let x = check::normal(0, &[5, 48, 300]).to_dtype(DType::F32).unwrap();
    let weight = check::normal(1, &[64, 48, 5]).to_dtype(DType::F32).unwrap();
    let options = ConvOptions { padding: [(2, 2)], ..Default::default() };
    for format in [Format::Bf16, Format::Int8] {
        let run = |threads: usize, x: &Tensor| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                check::to_vec(&found(format, instruction_set(), [x, &weight], None, &options))
            })
        };
        let together = run(1, &x);
        assert!(run(2, &x) == together && run(7, &x) == together);
        let alone: Vec<f64> = (0..5).flat_map(|i| run(2, &x.narrow(0, i, 1).unwrap())).collect();
        assert!(alone == together);
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1.0f32; 2 * 3 * 8];
        values[3 * 8 + 12] = wrong;
        let x = Tensor::from_vec(values, (2, 3, 8), &Device::Cpu).unwrap();
        let weight = check::normal(1, &[4, 3, 8]).to_dtype(DType::F32).unwrap();
        for format in [Format::Bf16, Format::Int8] {
            let y =
                found(format, instruction_set(), [&x, &weight], None, &ConvOptions::<1>::default());
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(y[..4].iter().all(|y| y.is_finite()), "{format:?} {wrong}");
            assert!(y[4..].iter().all(|y| !y.is_finite()), "{format:?} {wrong}");
        }
    }
}

#[test]
fn sizes_without_elements_and_other_dtypes() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    let weight = zeros(&[4, 3, 2], DType::F32);
    for format in [Format::Bf16, Format::Int8] {
        let run = |x: &Tensor| {
            found(format, instruction_set(), [x, &weight], None, &ConvOptions::<1>::default())
        };
        assert_eq!(run(&zeros(&[0, 3, 5], DType::F32)).dims(), [0, 4, 4]);
        for dtype in [DType::F64, DType::BF16, DType::F16] {
            let y = run(&zeros(&[1, 3, 5], dtype));
            assert_eq!((y.dtype(), y.dims()), (dtype, &[1, 4, 4][..]));
        }
    }
}
