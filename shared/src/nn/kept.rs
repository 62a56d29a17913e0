//! Weights that a layer packs once and keeps.

use std::sync::OnceLock;

use candle_core::{DType, Tensor};

use super::functional::Precision;
use crate::Result;
use crate::kernels::narrow::check_no_gradient;

/// A layer's weight in the form `P` in which the kernels of a precision read it: made when it is
/// needed first.
///
/// The weight of a layer that can be trained is a variable, or depends on one: it is never kept, so
/// that nothing of it can be out of date.
#[derive(Debug)]
pub(super) struct Kept<P> {
    precision: Precision,
    packed: OnceLock<P>,
}

impl<P> Default for Kept<P> {
    fn default() -> Self {
        Self { precision: Precision::default(), packed: OnceLock::new() }
    }
}

impl<P> Kept<P> {
    /// For a layer with the given weight and bias, nothing kept yet.
    ///
    /// # Errors
    /// In narrow precision, when one of them can be trained.
    pub fn new(precision: Precision, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        if precision != Precision::F32 {
            check_no_gradient([Some(weight), bias])?;
        }
        Ok(Self { precision, packed: OnceLock::new() })
    }

    /// For a layer whose weight is `packed` already.
    pub fn holding(precision: Precision, packed: P) -> Self {
        Self { precision, packed: OnceLock::from(packed) }
    }

    /// The precision.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The packed form of `weight`, always the layer's; none when the weight is used as it is.
    ///
    /// # Errors
    /// Those of `pack`.
    pub fn get(
        &self,
        weight: &Tensor,
        pack: impl FnOnce(Precision) -> Result<P>,
    ) -> Result<Option<&P>> {
        let is_narrow = self.precision != Precision::F32;
        let is_used_as_it_is =
            weight.track_op() || !weight.device().is_cpu() || weight.dtype() == DType::F64;
        if is_used_as_it_is && !is_narrow {
            return Ok(None);
        }
        if let Some(packed) = self.packed.get() {
            return Ok(Some(packed));
        }
        let packed = pack(self.precision)?;
        Ok(Some(self.packed.get_or_init(|| packed)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::kernels::check;
    use crate::nn::functional::{Activation, ConvOptions, conv1d, conv2d, linear};
    use crate::nn::{BatchNorm1d, Conv1d, Conv2d, Linear, Weights};

    fn options() -> ConvOptions<1> {
        ConvOptions { padding: [(1, 1)], activation: Activation::Relu, ..Default::default() }
    }

    fn layers(weights: &Weights) -> (Conv1d, Linear) {
        let conv = Conv1d::new(&weights.at("conv"), 5, 6, [3], true, options()).unwrap();
        (conv, Linear::new(&weights.at("linear"), 7, 4, true).unwrap())
    }

    /// A convolution and a linear layer with the tensors of `weights` that cannot be trained.
    fn frozen(weights: &Weights) -> (Conv1d, Linear) {
        let origin = Path::new("test");
        layers(&Weights::loaded(weights.state(), origin, false, DType::F32, &Device::Cpu))
    }

    fn fresh() -> Weights {
        let weights = Weights::fresh(1, DType::F32, &Device::Cpu);
        layers(&weights);
        weights
    }

    fn normal(dims: &[usize]) -> Tensor {
        check::normal(0, dims).to_dtype(DType::F32).unwrap()
    }

    #[test]
    fn kept_weights_give_the_same_bits() {
        // Sizes at which the kernels read the weights in different forms.
        let origin = Path::new("test");
        let weights = Weights::loaded([].into(), origin, false, DType::F32, &Device::Cpu);
        let signals = Conv1d::new(&weights.at("1"), 96, 102, [3], true, options()).unwrap();
        for length in [2, 9, 600] {
            let x = normal(&[2, 96, length]);
            let expected =
                conv1d(&x, signals.weight().unwrap(), signals.bias(), &options()).unwrap();
            for layer in [&signals, &signals, &signals.clone()] {
                let found = layer.forward(&x).unwrap();
                assert_eq!(check::to_vec(&found), check::to_vec(&expected), "{length}");
            }
        }
        let options = ConvOptions { padding: [(1, 1); 2], ..Default::default() };
        let pictures = Conv2d::new(&weights.at("2"), 64, 64, [3, 3], false, options.clone());
        let pictures = pictures.unwrap();
        for width in [1, 30] {
            let x = normal(&[2, 64, 10, width]);
            let expected = conv2d(&x, pictures.weight().unwrap(), None, &options).unwrap();
            for layer in [&pictures, &pictures] {
                let found = layer.forward(&x).unwrap();
                assert_eq!(check::to_vec(&found), check::to_vec(&expected), "{width}");
            }
        }
        let rows = Linear::new(&weights.at("3"), 37, 50, true).unwrap();
        for count in [1, 6, 7, 40] {
            let x = normal(&[count, 37]);
            let expected = linear(&x, rows.weight(), rows.bias(), Activation::Identity).unwrap();
            for layer in [&rows, &rows, &rows.clone()] {
                let found = layer.forward(&x).unwrap();
                assert_eq!(check::to_vec(&found), check::to_vec(&expected), "{count}");
            }
        }
    }

    #[test]
    fn what_follows_a_layer_is_that_of_layers_of_their_own() {
        let weights = Weights::fresh(2, DType::F32, &Device::Cpu);
        let layers = |weights: &Weights| {
            let (conv, linear) = layers(weights);
            (conv, linear, BatchNorm1d::new(&weights.at("norm"), 6, 1e-5, 0.1).unwrap())
        };
        let signal = normal(&[3, 5, 90]);
        let (conv, _, norm) = layers(&weights);
        norm.forward(&conv.forward(&signal).unwrap(), true).unwrap();
        let origin = Path::new("test");
        let frozen = Weights::loaded(weights.state(), origin, false, DType::F32, &Device::Cpu);
        let rows = normal(&[3, 2, 7]);
        for weights in [&weights, &frozen] {
            let (conv, linear, norm) = layers(weights);
            for precision in [Precision::F32, Precision::Bf16] {
                let narrowed = |conv: Conv1d, linear: Linear| -> Result<(Conv1d, Linear)> {
                    Ok((conv.with_precision(precision)?, linear.with_precision(precision)?))
                };
                let Ok((conv, linear)) = narrowed(conv.clone(), linear.clone()) else { continue };
                let (y, z) = (conv.forward(&signal).unwrap(), linear.forward(&rows).unwrap());
                let video = signal.reshape((3, 5, 6, 5, 3)).unwrap();
                let v = conv.forward_over_frames(&video).unwrap();
                let pairs = [
                    (conv.forward_over_frames_add(&video, &v.detach()), Ok((&v + &v).unwrap())),
                    (conv.forward_norm(&signal, &norm), norm.forward(&y, false)),
                    (conv.forward_add(&signal, &y.detach()), Ok((&y + &y).unwrap())),
                    (linear.forward_add(&rows, &z.detach()), Ok((&z + &z).unwrap())),
                ];
                for (found, expected) in pairs {
                    let [found, expected] = [found, expected].map(|y| check::to_vec(&y.unwrap()));
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn compact_layers_give_the_same_and_no_gradients() {
        let origin = Path::new("test");
        let weights = Weights::loaded([].into(), origin, false, DType::F32, &Device::Cpu);
        let close = |found: &Tensor, expected: &Tensor, what: &str| {
            let (found, expected) = (check::to_vec(found), check::to_vec(expected));
            assert_eq!(found.len(), expected.len());
            let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            assert!(largest.fold(0.0, f64::max) < 1e-5, "{what}");
        };
        // Sizes at which whole layers have other forms, and videos with frames behind channels.
        for (i, (channels, dilation, kernel)) in
            [(96, 1, 3), (96, 5, 3), (20, 2, 3), (70, 1, 1)].into_iter().enumerate()
        {
            let span = dilation * (kernel / 2);
            let options = ConvOptions {
                dilation: [dilation],
                padding: [(span, span)],
                activation: Activation::Silu,
                ..Default::default()
            };
            let at = weights.at(format!("1.{i}"));
            let whole = Conv1d::new(&at, channels, channels, [kernel], true, options).unwrap();
            let mut compact = whole.clone();
            compact.compact().unwrap();
            assert!(compact.weight().is_none() && whole.weight().is_some());
            for length in [1, 7, 600] {
                let x = normal(&[2, channels, length]);
                let what = format!("{channels} {dilation} {kernel} {length}");
                close(&compact.forward(&x).unwrap(), &whole.forward(&x).unwrap(), &what);
            }
            let x = normal(&[2, 5, channels, 3, 2]).transpose(1, 2).unwrap();
            let expected = whole.forward_over_frames(&x).unwrap();
            close(&compact.forward_over_frames(&x).unwrap(), &expected, "over frames");
            let signal = candle_core::Var::from_tensor(&normal(&[1, channels, 9])).unwrap();
            let message = compact.forward(&signal).unwrap_err().to_string();
            assert!(message.contains("gradient"), "{message}");
        }
        for (i, stride) in [1, 2].into_iter().enumerate() {
            let options =
                ConvOptions { stride: [stride; 2], padding: [(1, 1); 2], ..Default::default() };
            let whole =
                Conv2d::new(&weights.at(format!("2.{i}")), 64, 64, [3, 3], true, options).unwrap();
            let mut compact = whole.clone();
            compact.compact().unwrap();
            for size in [1, 5, 30] {
                let x = normal(&[2, 64, size, size]);
                let what = format!("{stride} {size}");
                close(&compact.forward(&x).unwrap(), &whole.forward(&x).unwrap(), &what);
            }
            let x = normal(&[2, 3, 64, 5, 4]).transpose(1, 2).unwrap();
            let expected = whole.forward_of_frames(&x).unwrap();
            close(&compact.forward_of_frames(&x).unwrap(), &expected, "of frames");
        }
        let (mut trainable, _) = layers(&fresh());
        assert!(trainable.compact().is_err());
    }

    #[test]
    fn variables_are_never_kept_and_what_is_kept_never_changes() {
        let weights = fresh();
        let variables = weights.variables();
        let origin = Path::new("test");
        let trainable = Weights::loaded(weights.state(), origin, true, DType::F32, &Device::Cpu);
        let (conv, linear) = layers(&trainable);
        let (kept_conv, kept_linear) = frozen(&trainable);
        let (signal, rows) = (normal(&[2, 5, 9]), normal(&[2, 6, 7]));
        let run = |conv: &Conv1d, linear: &Linear| {
            let outputs = [conv.forward(&signal).unwrap(), linear.forward(&rows).unwrap()];
            outputs.map(|output| check::to_vec(&output))
        };
        let before = run(&conv, &linear);
        assert_eq!(run(&kept_conv, &kept_linear), before);
        for parameter in variables.iter().chain(&trainable.variables()) {
            parameter.var.set(&parameter.var.affine(-2.0, 0.5).unwrap()).unwrap();
        }
        let after = run(&conv, &linear);
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        assert_eq!(run(&frozen(&trainable).0, &frozen(&trainable).1), after);
        assert_eq!(run(&kept_conv, &kept_linear), before);
    }

    #[test]
    fn narrow_precision_is_near_single_precision() {
        let weights = fresh();
        let (signal, rows) = (normal(&[2, 5, 9]), normal(&[2, 3, 7]));
        let run = |precision| {
            let (conv, linear) = frozen(&weights);
            let conv = conv.with_precision(precision).unwrap();
            let linear = linear.with_precision(precision).unwrap();
            assert_eq!((conv.precision(), linear.precision()), (precision, precision));
            let outputs = [conv.forward(&signal).unwrap(), linear.forward(&rows).unwrap()];
            outputs.map(|output| check::to_vec(&output))
        };
        let exact = run(Precision::F32);
        // Roughly the step of the numbers next to the largest: 2^-8, 1/127.
        for (precision, tolerance) in [(Precision::Bf16, 0.01), (Precision::Int8, 0.02)] {
            for (found, exact) in run(precision).iter().zip(&exact) {
                assert_ne!(found, exact, "{precision:?}");
                let norm = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
                let error: f64 = found.iter().zip(exact).map(|(a, b)| (a - b).powi(2)).sum();
                assert!(error.sqrt() <= tolerance * norm, "{precision:?}");
            }
        }
    }

    #[test]
    fn narrow_precision_refuses_gradients() {
        let weights = fresh();
        for precision in [Precision::Bf16, Precision::Int8] {
            let (conv, linear) = layers(&weights);
            assert!(conv.with_precision(precision).is_err());
            assert!(linear.with_precision(precision).is_err());
            let (conv, linear) = frozen(&weights);
            let conv = conv.with_precision(precision).unwrap();
            let linear = linear.with_precision(precision).unwrap();
            let [signal, rows]: [&[usize]; 2] = [&[2, 5, 9], &[2, 3, 7]];
            let [signal, rows] =
                [signal, rows].map(|dims| candle_core::Var::from_tensor(&normal(dims)).unwrap());
            let message = conv.forward(&signal).unwrap_err().to_string();
            assert!(message.contains("gradient"), "{message}");
            assert!(linear.forward(&rows).is_err());
            assert!(conv.forward(&signal.as_detached_tensor()).is_ok());
        }
        // In single precision a layer that cannot be trained passes gradients on.
        let (conv, _) = frozen(&weights);
        let signal = candle_core::Var::from_tensor(&normal(&[2, 5, 9])).unwrap();
        let y = conv.forward(&signal).unwrap();
        assert!(y.sum_all().unwrap().backward().unwrap().get(&signal).is_some());
    }

    #[test]
    fn wrong_shapes_are_refused_in_all_precisions() {
        let weights = fresh();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let (conv, linear) = frozen(&weights);
            let conv = conv.with_precision(precision).unwrap();
            let linear = linear.with_precision(precision).unwrap();
            for dims in [&[2, 4, 9][..], &[5, 9], &[2, 5, 0]] {
                assert!(conv.forward(&normal(dims)).is_err(), "{precision:?} {dims:?}");
            }
            for dims in [&[][..], &[6], &[7, 3]] {
                assert!(linear.forward(&normal(dims)).is_err(), "{precision:?} {dims:?}");
            }
        }
    }
}
