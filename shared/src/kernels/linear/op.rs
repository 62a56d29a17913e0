//! Matrix products and their gradients as operations of candle's graph.

use std::sync::{Arc, OnceLock};

use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail,
};

use crate::kernels::activation::{self, Activation, activate_in_place};
use crate::kernels::contiguous_slice;
use crate::kernels::epilogue::{Ending, Epilogue};
use crate::kernels::gemm::{self, Matrix, PackedRight, Start};
use crate::kernels::parallel::get_or_make;

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
        let arguments = ((a, a_layout), (b, b_layout));
        match a {
            CpuStorage::F64(_) => precise(arguments.0, arguments.1, None, Activation::Identity),
            _ => fast(arguments.0, arguments.1, None, None, Epilogue::default()),
        }
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

/// `x` `[N, I]` times the transpose of a weight `[O, I]`, plus a bias, after an activation.
pub(super) struct Linear {
    /// In training one whose derivative follows from its output.
    pub activation: Activation,
    /// What else is fused: in training nothing.
    pub ending: Ending,
    /// Where the transposed weight is kept in the form of the fast path, if it does not change.
    pub packed: Option<Arc<OnceLock<PackedRight>>>,
}

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
        let gradient = activation::gradient_from_output(y, gradient, self.activation)?;
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
        let gradient = activation::gradient_from_output(y, gradient, self.activation)?;
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
        match x.0 {
            CpuStorage::F64(_) => precise(x, (weight, &transposed), bias, self.activation),
            _ => self.ending.with(self.activation, |epilogue| {
                fast(x, (weight, &transposed), self.packed.as_deref(), bias, epilogue)
            }),
        }
    }
}

/// `a b + bias` and what follows for all matrices of `a` and `b`, in `f32`; `packed` is where the only
/// matrix of `b` is kept, if it does not change.
fn fast(
    a: Argument,
    b: Argument,
    packed: Option<&OnceLock<PackedRight>>,
    bias: Option<Argument>,
    epilogue: Epilogue,
) -> Result<(CpuStorage, Shape)> {
    let shape = product_shape(a.1, b.1)?;
    let bias = bias.map(|(bias, layout)| contiguous_slice(bias, layout)).transpose()?;
    let start = bias.map_or(Start::Zero, Start::ColumnBias);
    let (a, b) = (matrices(a)?, matrices(b)?);
    let products = match packed {
        Some(packed) if !gemm::are_row_products(&a, &b) => {
            let packed = get_or_make(packed, || PackedRight::new(b[0]));
            gemm::products_with(&a, &[packed], b[0].columns, start, epilogue)
        }
        _ => gemm::products(&a, &b, start, epilogue),
    };
    Ok((CpuStorage::F32(products), shape))
}

/// `activation(a b + bias)` for all matrices of `a` and `b`, in `f64`, by plain loops.
fn precise(
    a: Argument,
    b: Argument,
    bias: Option<Argument>,
    activation: Activation,
) -> Result<(CpuStorage, Shape)> {
    let shape = product_shape(a.1, b.1)?;
    let bias = bias.map(|(bias, layout)| contiguous_slice(bias, layout)).transpose()?;
    let mut out = Vec::with_capacity(shape.elem_count());
    for (a, b) in matrices::<f64>(a)?.into_iter().zip(matrices::<f64>(b)?) {
        for row in 0..a.rows {
            for column in 0..b.columns {
                let start = bias.map_or(0.0, |bias| bias[column]);
                out.push((0..a.columns).fold(start, |sum, k| sum + a.at(row, k) * b.at(k, column)));
            }
        }
    }
    activate_in_place(activation, &mut out);
    Ok((CpuStorage::F64(out), shape))
}

/// Shape `[.., M, N]` of the products of `[.., M, K]` and `[.., K, N]`.
fn product_shape(a: &Layout, b: &Layout) -> Result<Shape> {
    let (leading, [rows, _]) = split(a)?;
    let (_, [_, columns]) = split(b)?;
    let dims = [leading, &[rows, columns]].concat();
    match dims.iter().try_fold(size_of::<f64>(), |count, &dim| count.checked_mul(dim)) {
        Some(_) => Ok(dims.into()),
        None => bail!("a product of shape {dims:?} is too large"),
    }
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
    let (leading, [rows, columns]) = split(layout)?;
    let (outer, inner) = layout.stride().split_at(leading.len());
    let mut starts = vec![layout.start_offset()];
    for (&dim, &stride) in leading.iter().zip(outer) {
        starts =
            starts.iter().flat_map(|start| (0..dim).map(move |i| start + i * stride)).collect();
    }
    Ok(starts
        .into_iter()
        .map(|start| Matrix {
            data: &data[start..],
            rows,
            columns,
            row_stride: inner[0],
            column_stride: inner[1],
        })
        .collect())
}
