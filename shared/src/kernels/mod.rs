//! Differentiable operations that candle lacks, computes wrongly or computes slowly.
//!
//! Each operation takes tensors of any strides and offset. `f32` runs on the fast path, `f64` on
//! the portable reference loops, `bf16` and `f16` are converted to `f32` and back.

pub mod activation;
pub mod attention;
pub mod attentive_statistics;
pub mod conv;
pub mod ctc;
pub(crate) mod epilogue;
pub(crate) mod gemm;
pub mod isa;
pub mod linear;
pub mod lstm;
pub(crate) mod narrow;
pub mod norm;
pub mod pool;
pub mod softmax;
pub mod upsample;

#[cfg(test)]
pub(crate) mod check;

mod parallel;
mod real;
mod rows;
mod vectorised;

pub(crate) use parallel::keep_candle_on_one_thread;

use candle_core::{CpuStorage, DType, Layout, Storage, Tensor, WithDType};

use crate::{Error, Result};

/// `tensor` in the dtype that kernels compute in: `f64` stays, `bf16` and `f16` become `f32`.
pub(crate) fn to_compute_dtype(what: &str, tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::F32 | DType::F64 => Ok(tensor.clone()),
        DType::BF16 | DType::F16 => Ok(tensor.to_dtype(DType::F32)?),
        other => Err(Error::Argument(format!(
            "{what}: expected dtype f32, f64, f16 or bf16, found {}",
            other.as_str()
        ))),
    }
}

/// `tensor` in `dtype`; the tensor itself when it has it already.
pub(crate) fn to_dtype(tensor: Tensor, dtype: DType) -> Result<Tensor> {
    if tensor.dtype() == dtype { Ok(tensor) } else { Ok(tensor.to_dtype(dtype)?) }
}

/// A tensor's storage, which is in the memory of the CPU.
pub(crate) fn on_cpu(storage: &Storage) -> candle_core::Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => candle_core::bail!("this kernel computes on the CPU only"),
    }
}

/// The elements of a contiguous tensor.
pub(crate) fn contiguous_slice<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => candle_core::bail!("a kernel expects a contiguous tensor, found {layout:?}"),
    }
}
