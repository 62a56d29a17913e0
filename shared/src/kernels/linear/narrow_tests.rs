use candle_core::{DType, Device, Tensor};

use super::narrow::NarrowWeight;
use super::packed::narrow;
use super::{Activation, linear};
use crate::kernels::check::{self, Form};
use crate::kernels::epilogue::After;
use crate::kernels::isa::{InstructionSet, instruction_set};
use crate::kernels::narrow::{Format, reference};

/// The linear layer in narrow numbers on an instruction set.
fn found(
    format: Format,
    set: InstructionSet,
    [x, weight]: [&Tensor; 2],
    bias: Option<&Tensor>,
    activation: Activation,
) -> Tensor {
    let (outputs, inputs) = weight.dims2().unwrap();
    let rows: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
    let packed = NarrowWeight::new(format, set, &rows, [outputs, inputs]).unwrap();
    narrow(x, weight.dims(), &packed, bias, activation, After::default()).unwrap()
}

#[test]
fn linear_matches_its_reference_on_all_instruction_sets() {
    // Leading dimensions, inputs, outputs.
    let cases: [(&[usize], usize, usize); 8] = [
        (&[1], 1, 1),
        (&[3, 5], 7, 4),
        (&[2], 3, 33),
        (&[1], 130, 70),
        (&[2, 13], 64, 32),
        (&[29], 9, 65),
        (&[70], 33, 1),
        (&[150], 70, 40),
    ];
    for (leading, inputs, outputs) in cases {
        let x_dims = [leading, &[inputs]].concat();
        let exact =
            |x: &Tensor, weight: &Tensor| linear(x, weight, None, Activation::Identity).unwrap();
        for form in Form::ALL {
            let x = form.normal(0, &x_dims).to_dtype(DType::F32).unwrap();
            let weight = form.normal(1, &[outputs, inputs]).to_dtype(DType::F32).unwrap();
            let bias = check::normal(2, &[outputs]).to_dtype(DType::F32).unwrap();
            let wide_bias = bias.to_dtype(DType::F64).unwrap();
            let rounded = [&x, &weight].map(reference::bf16);
            let sums = exact(&rounded[0], &rounded[1]);
            let magnitude = exact(&rounded[0].abs().unwrap(), &rounded[1].abs().unwrap());

            let rows = x.reshape(((), inputs)).unwrap();
            let (items, scales): (Vec<Tensor>, Vec<f32>) = (0..rows.dims()[0])
                .map(|row| reference::integers(&rows.narrow(0, row, 1).unwrap()))
                .unzip();
            let (channels, channel_scales): (Vec<Tensor>, Vec<f32>) = (0..outputs)
                .map(|channel| reference::weight_integers(&weight.narrow(0, channel, 1).unwrap()))
                .unzip();
            let integers =
                exact(&Tensor::cat(&items, 0).unwrap(), &Tensor::cat(&channels, 0).unwrap());
            let integers = check::to_vec(&integers);
            let biases: Vec<f32> = bias.to_vec1().unwrap();

            for set in InstructionSet::available() {
                let case = format!("{x_dims:?} {outputs}, {form:?}, {set}");
                for bias in [None, Some(&bias)] {
                    let run =
                        |format| found(format, set, [&x, &weight], bias, Activation::Identity);
                    let (mut expected, mut magnitude) = (sums.clone(), magnitude.clone());
                    if bias.is_some() {
                        expected = expected.broadcast_add(&wide_bias).unwrap();
                        magnitude = magnitude.broadcast_add(&wide_bias.abs().unwrap()).unwrap();
                    }
                    let y = run(Format::Bf16);
                    reference::assert_sums(&case, &y, &expected, &magnitude, inputs + 1);

                    let y: Vec<f32> = run(Format::Int8).flatten_all().unwrap().to_vec1().unwrap();
                    for (at, &found) in y.iter().enumerate() {
                        let (row, channel) = (at / outputs, at % outputs);
                        let scale = scales[row] * channel_scales[channel];
                        let bias = bias.map_or(0.0, |_| biases[channel]);
                        let expected = integers[at] as f32 * scale + bias;
                        assert_eq!(found, expected, "{case}, element {at}");
                    }
                }
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_thread_count_or_the_other_rows() {
    let x = check::normal(0, &[200, 300]).to_dtype(DType::F32).unwrap();
    let weight = check::normal(1, &[170, 300]).to_dtype(DType::F32).unwrap();
    for format in [Format::Bf16, Format::Int8] {
        let run = |threads: usize, x: &Tensor| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let y = found(format, instruction_set(), [x, &weight], None, Activation::Gelu);
                check::to_vec(&y)
            })
        };
        let together = run(1, &x);
        assert!(run(2, &x) == together && run(7, &x) == together);
        assert!(run(2, &x.narrow(0, 77, 1).unwrap()) == together[77 * 170..78 * 170]);
    }
}

#[test]
fn sizes_without_elements_and_too_many_products() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let bias = Tensor::new(&[1f32, -2.0, 3.0], &Device::Cpu).unwrap();
    let set = instruction_set();
    for format in [Format::Bf16, Format::Int8] {
        let run = |x: &Tensor, inputs: usize| {
            found(format, set, [x, &zeros(&[3, inputs])], Some(&bias), Activation::Relu)
        };
        assert_eq!(run(&zeros(&[2, 0, 7]), 7).dims(), [2, 0, 3]);
        let expected = [[1.0, 0.0, 3.0], [1.0, 0.0, 3.0]];
        assert_eq!(run(&zeros(&[2, 0]), 0).to_vec2::<f32>().unwrap(), expected);
        assert_eq!(run(&zeros(&[2, 5]), 5).to_vec2::<f32>().unwrap(), expected);
    }
    let most = i32::MAX as usize / (255 * 127);
    // The largest sum that can occur is right.
    let [x, weight] =
        [1.0f32, -1.0].map(|value| Tensor::full(value, (1, most), &Device::Cpu).unwrap());
    for set in InstructionSet::available() {
        let y = found(Format::Int8, set, [&x, &weight], None, Activation::Identity);
        let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // Rounding of the sum, of both scales and of the two products with them.
        assert!((y[0] / -(most as f32) - 1.0).abs() <= 5.0 * f32::EPSILON, "{set}: {}", y[0]);
    }
    let row = vec![0.0; most + 1];
    assert!(NarrowWeight::new(Format::Int8, set, &row, [1, most + 1]).is_err());
}
