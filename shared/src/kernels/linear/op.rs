//! Matrix products and their gradients as operations of candle's graph.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail,
};

use super::reference::{self, Matrix};
use crate::kernels::activation::{self, Activation, apply};
use crate::kernels::contiguous_slice;

type Argument<'a> = (&'a CpuStorage, &'a Layout);

/// Products of `[.., M, K]` and `[.., K, N]` matrices.
pub(super) struct MatMul;

impl CustomOp2 for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(match a {
            CpuStorage::F32(_) => {
                let (values, shape) = products::<f32>((a, a_layout), (b, b_layout))?;
                (CpuStorage::F32(values), shape)
            }
            CpuStorage::F64(_) => {
                let (values, shape) = products::<f64>((a, a_layout), (b, b_layout))?;
                (CpuStorage::F64(values), shape)
            }
            other => bail!("matmul of {:?}", other.dtype()),
        })
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _product: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((
            a.track_op().then(|| product(gradient, &b.t()?)).transpose()?,
            b.track_op().then(|| product(&a.t()?, gradient)).transpose()?,
        ))
    }
}

fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.apply_op2_no_bwd(b, &MatMul)
}

/// `x` `[N, I]` times the transpose of a weight `[O, I]`, plus a bias, after an activation whose
/// derivative follows from its output.
pub(super) struct Linear(pub Activation);

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let gradient = activation::gradient_from_output(y, gradient, self.0)?;
        Ok((
            x.track_op().then(|| product(&gradient, weight)).transpose()?,
            weight.track_op().then(|| product(&gradient.t()?, x)).transpose()?,
        ))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-with-bias"
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
        let gradient = activation::gradient_from_output(y, gradient, self.0)?;
        Ok((
            x.track_op().then(|| product(&gradient, weight)).transpose()?,
            weight.track_op().then(|| product(&gradient.t()?, x)).transpose()?,
            bias.track_op().then(|| gradient.sum(0)).transpose()?,
        ))
    }
}

impl Linear {
    fn run(
        &self,
        x: Argument,
        (weight, weight_layout): Argument,
        bias: Option<Argument>,
    ) -> Result<(CpuStorage, Shape)> {
        let transposed = weight_layout.transpose(0, 1)?;
        let weight = (weight, &transposed);
        Ok(match x.0 {
            CpuStorage::F32(_) => {
                let (mut y, shape) = products::<f32>(x, weight)?;
                finish(&mut y, bias, self.0)?;
                (CpuStorage::F32(y), shape)
            }
            CpuStorage::F64(_) => {
                let (mut y, shape) = products::<f64>(x, weight)?;
                finish(&mut y, bias, self.0)?;
                (CpuStorage::F64(y), shape)
            }
            other => bail!("linear of {:?}", other.dtype()),
        })
    }
}

/// Adds the bias to each row and applies the activation.
fn finish<T: WithDType>(y: &mut [T], bias: Option<Argument>, activation: Activation) -> Result<()> {
    if let Some((storage, layout)) = bias {
        let bias = contiguous_slice::<T>(storage, layout)?;
        for row in y.chunks_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias).for_each(|(value, &bias)| *value += bias);
        }
    }
    if activation != Activation::Identity {
        y.iter_mut().for_each(|value| *value = T::from_f64(apply(activation, value.to_f64())));
    }
    Ok(())
}

fn products<T: WithDType>(a: Argument, b: Argument) -> Result<(Vec<T>, Shape)> {
    let (leading, [rows, depth]) = split(a.1)?;
    let (_, [_, columns]) = split(b.1)?;
    let shape: Vec<usize> = leading.iter().copied().chain([rows, columns]).collect();
    let (Some(count), Some(size)) = (
        shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim)),
        rows.checked_mul(columns),
    ) else {
        bail!("a product of shape {shape:?} is too large")
    };
    let mut out = vec![T::zero(); count];
    if size > 0 {
        let matrices = matrices::<T>(a)?.into_iter().zip(matrices::<T>(b)?);
        for ((a, b), out) in matrices.zip(out.chunks_mut(size)) {
            reference::product(a, b, [depth, columns], out);
        }
    }
    Ok((out, shape.into()))
}

fn split(layout: &Layout) -> Result<(&[usize], [usize; 2])> {
    match layout.dims() {
        [leading @ .., rows, columns] => Ok((leading, [*rows, *columns])),
        other => bail!("a matrix of shape {other:?}"),
    }
}

/// The matrices of a tensor `[.., M, K]`, in row-major order of the leading dimensions.
fn matrices<'a, T: WithDType>((storage, layout): Argument<'a>) -> Result<Vec<Matrix<'a, T>>> {
    let data = storage.as_slice::<T>()?;
    let (leading, _) = split(layout)?;
    let strides = layout.stride();
    let [row_stride, column_stride] = [strides[leading.len()], strides[leading.len() + 1]];
    Ok(offsets(leading, strides)
        .into_iter()
        .map(|offset| Matrix {
            data: &data[layout.start_offset() + offset..],
            row_stride,
            column_stride,
        })
        .collect())
}

/// Offset of each element of a tensor, in row-major order.
fn offsets(dims: &[usize], strides: &[usize]) -> Vec<usize> {
    dims.iter().zip(strides).fold(vec![0], |offsets, (&dim, &stride)| {
        offsets.iter().flat_map(|offset| (0..dim).map(move |i| offset + i * stride)).collect()
    })
}
