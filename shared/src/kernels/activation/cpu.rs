//! Activations on the processor.

use candle_core::backend::BackendStorage;
use candle_core::cpu::erf::{erf_f32, erf_f64};
use candle_core::{CpuStorage, Layout, Result, WithDType, bail};

use super::Activation;
use crate::kernels::contiguous_slice;

/// `activation` of every element of a contiguous tensor.
pub(super) fn activate(
    storage: &CpuStorage,
    layout: &Layout,
    activation: Activation,
) -> Result<CpuStorage> {
    Ok(match storage {
        CpuStorage::F32(_) => {
            CpuStorage::F32(values(storage, layout)?.map(|x| scalar_f32(activation, x)).collect())
        }
        CpuStorage::F64(_) => {
            CpuStorage::F64(values(storage, layout)?.map(|x| scalar(activation, x)).collect())
        }
        other => bail!("activation of {:?}", other.dtype()),
    })
}

/// `gradient` times the derivative of `activation` at `point`, its input or output; both contiguous.
pub(super) fn gradient(
    point: (&CpuStorage, &Layout),
    gradient: (&CpuStorage, &Layout),
    activation: Activation,
    point_is_output: bool,
) -> Result<CpuStorage> {
    fn product<T: WithDType>(
        point: (&CpuStorage, &Layout),
        gradient: (&CpuStorage, &Layout),
        derivative: impl Fn(f64) -> f64,
    ) -> Result<Vec<T>> {
        let points = values::<T>(point.0, point.1)?;
        let gradients = values::<T>(gradient.0, gradient.1)?;
        Ok(points.zip(gradients).map(|(x, g)| g * T::from_f64(derivative(x.to_f64()))).collect())
    }
    let derivative = |x| {
        if point_is_output {
            derivative_at_output(activation, x)
        } else {
            derivative(activation, x)
        }
    };
    Ok(match point.0 {
        CpuStorage::F32(_) => CpuStorage::F32(product(point, gradient, derivative)?),
        CpuStorage::F64(_) => CpuStorage::F64(product(point, gradient, derivative)?),
        other => bail!("activation gradient of {:?}", other.dtype()),
    })
}

fn values<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<impl Iterator<Item = T> + 'a> {
    Ok(contiguous_slice::<T>(storage, layout)?.iter().copied())
}

fn scalar_f32(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Distribution function of the standard normal.
fn normal_cdf(x: f64) -> f64 {
    0.5 * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// Density of the standard normal.
fn normal_pdf(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

pub(crate) fn scalar(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * normal_cdf(x),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
    }
}

/// Derivative at the input `x`; at the kink of ReLU 0, as PyTorch has it.
fn derivative(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => 1.0,
        Activation::Relu => f64::from(x > 0.0),
        Activation::Silu => {
            let s = sigmoid(x);
            s * (1.0 + x * (1.0 - s))
        }
        Activation::Gelu => normal_cdf(x) + x * normal_pdf(x),
        Activation::Tanh => 1.0 - x.tanh().powi(2),
        Activation::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
    }
}

/// Derivative expressed by the output `y`.
fn derivative_at_output(activation: Activation, y: f64) -> f64 {
    match activation {
        Activation::Relu => f64::from(y > 0.0),
        Activation::Tanh => 1.0 - y * y,
        Activation::Sigmoid => y * (1.0 - y),
        _ => 1.0,
    }
}
