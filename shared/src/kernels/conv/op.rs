//! Convolution and its gradients as operations of candle's graph.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::fast::{self, PackedForms, PackedWeight};
use super::view::View;
use super::{Geometry, reference, weight_gradient};
use crate::kernels::activation::{self, Activation};
use crate::kernels::contiguous_slice;
use crate::kernels::epilogue::{Ending, Epilogue};
use crate::kernels::parallel;
use crate::kernels::real::Real;
use crate::kernels::rows::{Rows, contiguous_rows};

/// The convolution of an input with a weight and, as third argument, a contiguous bias.
pub(super) struct Convolution {
    pub geometry: Geometry,
    /// Fused activation; in training one whose derivative follows from its output.
    pub activation: Activation,
    /// What else is fused: in training nothing.
    pub ending: Ending,
    /// Where the weight is kept in the forms of the fast path, if it does not change.
    pub packed: Option<Arc<PackedForms>>,
}

impl Convolution {
    fn run(
        &self,
        x: Argument,
        weight: Argument,
        bias: Option<Argument>,
    ) -> Result<(CpuStorage, Shape)> {
        self.ending.with(self.activation, |epilogue| {
            let pass = Pass::Forward(epilogue, self.packed.as_deref());
            run(pass, &self.geometry, [x, weight], bias)
        })
    }

    /// Gradients at the input and weight, and the one before the activation.
    fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Tensor)> {
        let gradient = activation::gradient_from_output(y, gradient, self.activation)?;
        let gradient = contiguous_rows(&gradient, 2)?;
        Ok((
            x.track_op().then(|| input_gradient(&gradient, weight, &self.geometry)).transpose()?,
            weight.track_op().then(|| weight_gradient(x, &gradient, &self.geometry)).transpose()?,
            gradient,
        ))
    }
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
        self.run((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.gradients(x, weight, y, gradient)?;
        Ok((dx, dw))
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
        self.run((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, gradient) = self.gradients(x, weight, y, gradient)?;
        let db = bias.track_op().then(|| gradient.apply_op1_no_bwd(&BiasGradient)).transpose()?;
        Ok((dx, dw, db))
    }
}

/// A transposed convolution: what the geometry's convolution has as input gradient. The space of
/// its input is contiguous.
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
        let gradient = contiguous_rows(gradient, 2)?;
        let forward = || {
            let activation = Activation::Identity;
            let (geometry, ending) = (self.0.clone(), Ending::default());
            let op = Convolution { geometry, activation, ending, packed: None };
            gradient.apply_op2_no_bwd(weight, &op)
        };
        Ok((
            x.track_op().then(forward).transpose()?,
            weight.track_op().then(|| weight_gradient(&gradient, x, &self.0)).transpose()?,
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

/// Gradient `[O]` at the bias from the gradient `[B, O, ..]` at the output, whose space is
/// contiguous.
struct BiasGradient;

impl CustomOp1 for BiasGradient {
    fn name(&self) -> &'static str {
        "convolution-bias-gradient"
    }

    fn cpu_fwd(&self, gradient: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn channel_sums<T: Real>(rows: &Rows<T>, channels: usize) -> Vec<T> {
            let channel_elements = rows.count() / channels * rows.len();
            parallel::map_rows(channels, channel_elements, |channel| {
                let items = (channel..rows.count()).step_by(channels);
                T::from_f64(items.map(|row| T::sum(rows.row(row))).sum())
            })
        }
        let channels = layout.dims()[1];
        let sums = match gradient {
            CpuStorage::F64(_) => {
                CpuStorage::F64(channel_sums(&Rows::new(gradient, layout, 2)?, channels))
            }
            _ => CpuStorage::F32(channel_sums(&Rows::new(gradient, layout, 2)?, channels)),
        };
        Ok((sums, channels.into()))
    }
}

/// The three products of a convolution.
#[derive(Clone, Copy)]
enum Pass<'a> {
    /// Of input and weight; with the weight's packed forms, if they are kept.
    Forward(Epilogue<'a>, Option<&'a PackedForms>),
    /// Of the gradient at the output and the weight.
    InputGradient,
    /// Of the input and the gradient at the output.
    WeightGradient,
}

type Argument<'a> = (&'a CpuStorage, &'a Layout);

/// Both operands and the geometry, as ones over time where [`Geometry::over_time`] has it.
fn over_time<'a, 'g>(
    pass: Pass,
    a: View<'a, f32>,
    b: View<'a, f32>,
    geometry: &'g Geometry,
) -> (View<'a, f32>, View<'a, f32>, Cow<'g, Geometry>) {
    let is_contiguous = match pass {
        Pass::InputGradient => true,
        Pass::Forward(..) | Pass::WeightGradient => a.is_space_contiguous(geometry.input),
    };
    match geometry.over_time().filter(|_| is_contiguous) {
        Some((axis, signal)) => {
            let b = match pass {
                Pass::WeightGradient => b.flat(),
                Pass::Forward(..) | Pass::InputGradient => b.along(axis),
            };
            (a.flat(), b, Cow::Owned(signal))
        }
        None => (a, b, Cow::Borrowed(geometry)),
    }
}

fn run(
    pass: Pass,
    geometry: &Geometry,
    [a, b]: [Argument; 2],
    bias: Option<Argument>,
) -> Result<(CpuStorage, Shape)> {
    let storage = match a.0 {
        CpuStorage::F64(_) => {
            let (a, b) = (View::new(a.0, a.1)?, View::new(b.0, b.1)?);
            let bias = bias.map(|(bias, layout)| contiguous_slice(bias, layout)).transpose()?;
            CpuStorage::F64(match pass {
                Pass::Forward(epilogue, _) => {
                    reference::forward(a, b, bias, geometry, epilogue.activation)
                }
                Pass::InputGradient => reference::input_gradient(a, b, geometry),
                Pass::WeightGradient => reference::weight_gradient(a, b, geometry),
            })
        }
        _ => {
            let (a, b) = (View::new(a.0, a.1)?, View::new(b.0, b.1)?);
            let bias = bias.map(|(bias, layout)| contiguous_slice(bias, layout)).transpose()?;
            let (a, b, geometry) = over_time(pass, a, b, geometry);
            let geometry = &*geometry;
            CpuStorage::F32(match pass {
                Pass::Forward(epilogue, Some(packed)) => {
                    fast::forward(a, packed.get(b, geometry), bias, geometry, epilogue)
                }
                Pass::Forward(epilogue, None) => {
                    fast::forward(a, &PackedWeight::new(b, geometry), bias, geometry, epilogue)
                }
                Pass::InputGradient => fast::input_gradient(a, b, geometry),
                Pass::WeightGradient => weight_gradient::weight_gradient(a, b, geometry),
            })
        }
    };
    let dims = match pass {
        Pass::Forward(..) => geometry.output_dims(),
        Pass::InputGradient => geometry.input_dims(),
        Pass::WeightGradient => geometry.weight_dims(),
    };
    Ok((storage, dims.into()))
}
