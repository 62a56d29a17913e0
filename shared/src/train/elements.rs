//! The elements of f32 tensors on the CPU as slices, to be read and changed without copies.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor};

/// Calls `read` with the elements of an f32 tensor on the CPU; a copy is made only when they are
/// not contiguous.
pub(super) fn with_elements<R>(
    tensor: &Tensor,
    read: impl FnOnce(&[f32]) -> Result<R>,
) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => {
            read(values.get(start..end).unwrap_or_default())
        }
        _ => candle_core::bail!("expected f32 on the CPU, found {:?}", tensor.dtype()),
    }
}

/// Calls `change` with the elements of a contiguous f32 tensor on the CPU, to be changed in place.
///
/// Calls may nest for tensors of separate storage. Each holds its tensor's lock until `change`
/// returns.
pub(super) fn with_elements_mut(
    tensor: &Tensor,
    change: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<()> {
    tensor.inplace_op1(&InPlace(RefCell::new(Some(change))))
}

/// Passes a closure through candle's interface for operations that change a tensor.
struct InPlace<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "in-place update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("expected contiguous f32 to update in place")
        };
        match (self.0.take(), values.get_mut(start..end)) {
            (Some(change), Some(values)) => change(values),
            _ => candle_core::bail!("an in-place update runs once, on a whole tensor"),
        }
    }
}
