//! Checks of an operation's gradients, for the tests of all kernels.

use candle_core::{DType, Device, Tensor, Var};

use crate::Result;
use crate::rng::Stream;

/// How an input lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// Row-major.
    Contiguous,
    /// A part of a tensor that is larger along every dimension.
    Narrowed,
    /// The transpose (of the last two dimensions) of a row-major tensor.
    Transposed,
}

impl Form {
    pub(crate) const ALL: [Self; 3] = [Self::Contiguous, Self::Narrowed, Self::Transposed];

    /// Shape of the tensor in memory whose [`Form::view`] has the shape `dims`.
    fn stored_dims(self, dims: &[usize]) -> Vec<usize> {
        let mut stored = dims.to_vec();
        match self {
            Self::Narrowed => stored.iter_mut().for_each(|dim| *dim += 2),
            Self::Transposed if dims.len() > 1 => stored.swap(dims.len() - 2, dims.len() - 1),
            _ => {}
        }
        stored
    }

    /// Normally distributed numbers in this form; the same for the same `index` and shape.
    pub(crate) fn normal(self, index: u64, dims: &[usize]) -> Tensor {
        self.view(&normal(index, &self.stored_dims(dims)), dims)
    }

    fn view(self, stored: &Tensor, dims: &[usize]) -> Tensor {
        match self {
            Self::Narrowed => dims
                .iter()
                .enumerate()
                .fold(stored.clone(), |view, (axis, &dim)| view.narrow(axis, 1, dim).unwrap()),
            Self::Transposed if dims.len() > 1 => stored.t().unwrap(),
            _ => stored.clone(),
        }
    }
}

/// Checks the gradients that `operation` has at all its inputs, which are normally distributed and
/// of the given shapes, against central differences in `f64`: those of `f64` and those of `f32`,
/// with inputs that are row-major, narrowed and transposed. The values in `f32` are checked, too.
///
/// # Panics
/// With the case, input and element of the first disagreement.
pub(crate) fn gradients(
    case: &str,
    shapes: &[&[usize]],
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    for form in Form::ALL {
        let case = format!("{case}, {form:?}");
        let stored: Vec<Tensor> = shapes
            .iter()
            .enumerate()
            .map(|(input, dims)| normal(input as u64, &form.stored_dims(dims)))
            .collect();
        // The scalar that is differentiated: the output times fixed numbers.
        let loss = |stored: &[Tensor]| {
            let views: Vec<Tensor> =
                stored.iter().zip(shapes).map(|(t, dims)| form.view(t, dims)).collect();
            let output = operation(&views).unwrap_or_else(|error| panic!("{case}: {error}"));
            let factors = normal(1000, output.dims()).to_dtype(output.dtype()).unwrap();
            (&output * &factors).unwrap().sum_all().unwrap()
        };
        let exact = loss(&stored).to_scalar::<f64>().unwrap();
        for dtype in [DType::F64, DType::F32] {
            // f32: rounding of sums of some hundred terms. f64: the error of the differences.
            let tolerance = if dtype == DType::F64 { 1e-7 } else { 1e-4 };
            let variables: Vec<Var> = stored
                .iter()
                .map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap())
                .collect();
            let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
            let value = loss(&tensors);
            let found = value.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
            assert_close(&format!("{case}, {dtype:?}, value"), found, exact, 1.0, tolerance);
            let gradients = value.backward().unwrap();
            for (input, tensor) in tensors.iter().enumerate() {
                let gradient = gradients
                    .get(tensor)
                    .unwrap_or_else(|| panic!("{case}: input {input} has no gradient"));
                assert_eq!(gradient.dims(), tensor.dims(), "{case}: gradient of input {input}");
                let gradient = to_vec(gradient);
                let scale = gradient.iter().fold(1e-3f64, |max, g| max.max(g.abs()));
                for (element, &found) in gradient.iter().enumerate() {
                    let expected = difference(&stored, input, element, &loss);
                    let name = format!("{case}, {dtype:?}, input {input}, element {element}");
                    assert_close(&name, found, expected, scale, tolerance);
                }
            }
        }
    }
}

/// Checks that `operation` has in `f32` the value and the gradients that it has in `f64`, for
/// normally distributed inputs of the given shapes, to a relative error (L2) of 1e-5. For sizes at
/// which differences would take too long.
///
/// # Panics
/// With the case and input of the first disagreement.
pub(crate) fn f32_agrees_with_f64(
    case: &str,
    shapes: &[&[usize]],
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    for form in Form::ALL {
        let run = |dtype| {
            let variables: Vec<Var> = shapes
                .iter()
                .enumerate()
                .map(|(input, dims)| {
                    let stored = normal(input as u64, &form.stored_dims(dims));
                    // Both dtypes start from the same, exactly representable numbers.
                    let stored = stored.to_dtype(DType::F32).unwrap();
                    Var::from_tensor(&stored.to_dtype(dtype).unwrap()).unwrap()
                })
                .collect();
            let views: Vec<Tensor> = variables
                .iter()
                .zip(shapes)
                .map(|(v, dims)| form.view(v.as_tensor(), dims))
                .collect();
            let output = operation(&views).unwrap_or_else(|error| panic!("{case}: {error}"));
            let factors = normal(1000, output.dims()).to_dtype(dtype).unwrap();
            let gradients = (&output * &factors).unwrap().sum_all().unwrap().backward().unwrap();
            let mut results = vec![to_vec(&output)];
            results.extend(variables.iter().map(|v| to_vec(gradients.get(v).unwrap())));
            results
        };
        for (what, (found, expected)) in run(DType::F32).iter().zip(run(DType::F64)).enumerate() {
            let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
            let distance =
                found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            let what = if what == 0 { "value".into() } else { format!("gradient {}", what - 1) };
            assert!(
                distance <= 1e-5 * norm,
                "{case}, {form:?}: {what} differs by {:.2e} (relative L2)",
                distance / norm
            );
        }
    }
}

/// Checks that `operation` has, for an input of the shape `dims` that repeats one item without a
/// copy and with a gradient at the output that repeats one number, the value and the gradient that
/// it has for copies.
///
/// # Panics
/// With the case when they differ.
pub(crate) fn repeated(case: &str, dims: &[usize], operation: impl Fn(&Tensor) -> Result<Tensor>) {
    let item = normal(0, &[&[1], &dims[1..]].concat()).to_dtype(DType::F32).unwrap();
    let run = |is_copied: bool| {
        let input = Var::from_tensor(&item).unwrap();
        let repeated = input.broadcast_as(dims).unwrap();
        let repeated = if is_copied { repeated.contiguous().unwrap() } else { repeated };
        let output = operation(&repeated).unwrap_or_else(|error| panic!("{case}: {error}"));
        let sum = if is_copied {
            (&output * output.ones_like().unwrap()).unwrap().sum_all().unwrap()
        } else {
            output.sum_all().unwrap()
        };
        let gradients = sum.backward().unwrap();
        [to_vec(&output), to_vec(gradients.get(&input).unwrap())]
    };
    assert_eq!(run(false), run(true), "{case}");
}

/// Normally distributed numbers in `f64`; the same for the same `index` and count.
pub(crate) fn normal(index: u64, dims: &[usize]) -> Tensor {
    let mut stream = Stream::new(0, "kernel check", index);
    let values: Vec<f64> = (0..dims.iter().product()).map(|_| stream.normal()).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

/// The elements in row-major order, as `f64`.
pub(crate) fn to_vec(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn difference(
    stored: &[Tensor],
    input: usize,
    element: usize,
    loss: &impl Fn(&[Tensor]) -> Tensor,
) -> f64 {
    const STEP: f64 = 1e-5;
    let shifted = |step: f64| {
        let mut values = to_vec(&stored[input]);
        values[element] += step;
        let mut stored = stored.to_vec();
        stored[input] = Tensor::from_vec(values, stored[input].dims(), &Device::Cpu).unwrap();
        loss(&stored).to_scalar::<f64>().unwrap()
    };
    (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP)
}

fn assert_close(name: &str, found: f64, expected: f64, scale: f64, tolerance: f64) {
    let error = (found - expected).abs() / scale.max(expected.abs());
    assert!(error <= tolerance, "{name}: found {found}, expected {expected}");
}
