//! Convolution and its gradients as operations of candle's graph.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail,
};

use super::Geometry;
use super::reference::{self, View};
use crate::kernels::activation::{self, Activation, apply};
use crate::kernels::contiguous_slice;

/// The convolution of an input with a weight and, as third argument, a contiguous bias.
pub(super) struct Convolution {
    pub geometry: Geometry,
    /// Fused activation; one whose derivative follows from its output.
    pub activation: Activation,
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let arguments = [(x, x_layout), (weight, weight_layout)];
        run(Pass::Forward(self.activation), &self.geometry, arguments, None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = activation::gradient_from_output(y, gradient, self.activation)?;
        Ok((
            x.track_op().then(|| input_gradient(&gradient, weight, &self.geometry)).transpose()?,
            weight.track_op().then(|| weight_gradient(x, &gradient, &self.geometry)).transpose()?,
        ))
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "convolution-with-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let arguments = [(x, x_layout), (weight, weight_layout)];
        run(Pass::Forward(self.activation), &self.geometry, arguments, Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = activation::gradient_from_output(y, gradient, self.activation)?;
        Ok((
            x.track_op().then(|| input_gradient(&gradient, weight, &self.geometry)).transpose()?,
            weight.track_op().then(|| weight_gradient(x, &gradient, &self.geometry)).transpose()?,
            bias.track_op().then(|| bias_gradient(&gradient)).transpose()?,
        ))
    }
}

/// A transposed convolution: what the geometry's convolution has as input gradient.
pub(super) struct Transposed(pub Geometry);

impl CustomOp2 for Transposed {
    fn name(&self) -> &'static str {
        "transposed-convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        run(Pass::InputGradient, &self.0, [(x, x_layout), (weight, weight_layout)], None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let op = Convolution { geometry: self.0.clone(), activation: Activation::Identity };
        Ok((
            x.track_op().then(|| gradient.apply_op2_no_bwd(weight, &op)).transpose()?,
            weight.track_op().then(|| weight_gradient(gradient, x, &self.0)).transpose()?,
        ))
    }
}

/// Gradient `[B, C, ..]` at the input from the gradient at the output.
fn input_gradient(gradient: &Tensor, weight: &Tensor, geometry: &Geometry) -> Result<Tensor> {
    gradient.apply_op2_no_bwd(weight, &Transposed(geometry.clone()))
}

/// Gradient `[O, C/g, ..]` at the weight from the input and the gradient at the output.
fn weight_gradient(x: &Tensor, gradient: &Tensor, geometry: &Geometry) -> Result<Tensor> {
    x.apply_op2_no_bwd(gradient, &WeightGradient(geometry.clone()))
}

/// Gradient `[O]` at the bias from the gradient `[B, O, ..]` at the output.
pub(super) fn bias_gradient(gradient: &Tensor) -> Result<Tensor> {
    gradient.flatten_from(2)?.sum((0, 2))
}

struct WeightGradient(Geometry);

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "convolution-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        run(Pass::WeightGradient, &self.0, [(x, x_layout), (gradient, gradient_layout)], None)
    }
}

/// The three products of a convolution.
#[derive(Clone, Copy)]
enum Pass {
    /// Of input and weight.
    Forward(Activation),
    /// Of the gradient at the output and the weight.
    InputGradient,
    /// Of the input and the gradient at the output.
    WeightGradient,
}

type Argument<'a> = (&'a CpuStorage, &'a Layout);

fn run(
    pass: Pass,
    geometry: &Geometry,
    arguments: [Argument; 2],
    bias: Option<Argument>,
) -> Result<(CpuStorage, Shape)> {
    Ok(match arguments[0].0 {
        CpuStorage::F32(_) => {
            let (values, shape) = run_reference(pass, geometry, arguments, bias)?;
            (CpuStorage::F32(values), shape)
        }
        CpuStorage::F64(_) => {
            let (values, shape) = run_reference(pass, geometry, arguments, bias)?;
            (CpuStorage::F64(values), shape)
        }
        other => bail!("convolution of {:?}", other.dtype()),
    })
}

fn run_reference<T: WithDType>(
    pass: Pass,
    geometry: &Geometry,
    [a, b]: [Argument; 2],
    bias: Option<Argument>,
) -> Result<(Vec<T>, Shape)> {
    let (a, b) = (view(a)?, view(b)?);
    Ok(match pass {
        Pass::Forward(activation) => {
            let mut y: Vec<T> = reference::forward(a, b, geometry);
            let bias = bias.map(|(bias, layout)| contiguous_slice(bias, layout)).transpose()?;
            let space: usize = geometry.output.iter().product();
            for (row, values) in y.chunks_mut(space).enumerate() {
                let bias = bias.map_or(T::zero(), |bias| bias[row % geometry.out_channels]);
                for value in values {
                    *value = T::from_f64(apply(activation, (*value + bias).to_f64()));
                }
            }
            (y, geometry.output_dims().into())
        }
        Pass::InputGradient => {
            (reference::input_gradient(a, b, geometry), geometry.input_dims().into())
        }
        Pass::WeightGradient => {
            (reference::weight_gradient(a, b, geometry), geometry.weight_dims().into())
        }
    })
}

fn view<'a, T: WithDType>((storage, layout): Argument<'a>) -> Result<View<'a, T>> {
    let mut strides = [0; 5];
    let own = layout.stride();
    strides[..2].copy_from_slice(&own[..2]);
    strides[7 - own.len()..].copy_from_slice(&own[2..]);
    Ok(View { data: &storage.as_slice::<T>()?[layout.start_offset()..], strides })
}
