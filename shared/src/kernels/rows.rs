//! Tensors seen as rows: runs of consecutive numbers, one for each index of the leading dimensions.

use std::ops::Range;

use candle_core::{CpuStorage, Layout, Result, Tensor};

use super::activation::Smooth;
use super::on_cpu;
use super::real::Real;

/// The rows of a tensor: all dimensions after the first `leading` ones, wherever they lie.
pub(crate) struct Rows<'a, T> {
    data: &'a [T],
    starts: Vec<usize>,
    len: usize,
}

impl<'a, T: Real> Rows<'a, T> {
    /// The rows of a tensor that [`contiguous_rows`] prepared.
    pub(crate) fn new(storage: &'a CpuStorage, layout: &Layout, leading: usize) -> Result<Self> {
        let data = T::cpu_storage_as_slice(storage)?;
        let (dims, row_dims) = layout.dims().split_at(leading);
        let mut starts = vec![layout.start_offset()];
        for (&dim, &stride) in dims.iter().zip(layout.stride()) {
            starts = starts.iter().flat_map(|s| (0..dim).map(move |i| s + i * stride)).collect();
        }
        Ok(Self { data, starts, len: row_dims.iter().product() })
    }

    /// Calls `work` with the rows of some tensors on the CPU that [`contiguous_rows`] prepared, each with
    /// its number of leading dimensions.
    pub(crate) fn of_all<const N: usize, R>(
        tensors: [(&Tensor, usize); N],
        work: impl FnOnce([Rows<'_, T>; N]) -> Result<R>,
    ) -> Result<R> {
        let guards = tensors.map(|(tensor, _)| tensor.storage_and_layout());
        let mut arguments = vec![];
        for ((storage, layout), (_, leading)) in guards.iter().zip(tensors) {
            arguments.push((on_cpu(storage)?, *layout, leading));
        }
        work(rows_of(arguments)?)
    }

    /// Calls `work` with the rows of `x`, a tensor on the CPU that [`contiguous_rows`] prepared.
    pub(crate) fn of<R>(
        x: &Tensor,
        leading: usize,
        work: impl FnOnce(Rows<'_, T>) -> Result<R>,
    ) -> Result<R> {
        let (storage, layout) = x.storage_and_layout();
        work(Rows::new(on_cpu(&storage)?, layout, leading)?)
    }

    /// Row number `row` in the order of the leading dimensions.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.data[self.starts[row]..][..self.len]
    }

    /// The elements of all rows, if each follows the one before.
    pub(crate) fn all(&self) -> Option<&'a [T]> {
        self.run(0..self.count())
    }

    /// The elements of the neighbouring rows `rows`, if each follows the one before.
    pub(crate) fn run(&self, rows: Range<usize>) -> Option<&'a [T]> {
        let starts = &self.starts[rows];
        let (&first, &last) = (starts.first()?, starts.last()?);
        let follows = |pair: &[usize]| pair[1] == pair[0] + self.len;
        starts.windows(2).all(follows).then(|| &self.data[first..last + self.len])
    }

    /// How many rows there are.
    pub(crate) fn count(&self) -> usize {
        self.starts.len()
    }

    /// Elements in each row.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// What a kernel makes of the rows of its `N` arguments, in the type that they have: `M` results.
pub(crate) trait OnRows<const N: usize, const M: usize> {
    /// The elements of the results.
    fn on_rows<T: Smooth>(&self, rows: [Rows<'_, T>; N]) -> [Vec<T>; M];

    /// The same for tensors as they come to an operation, each with its number of leading dimensions.
    fn run(&self, arguments: [(&CpuStorage, &Layout, usize); N]) -> Result<[CpuStorage; M]> {
        Ok(match arguments.first() {
            Some((CpuStorage::F64(_), ..)) => {
                self.on_rows(rows_of(arguments.to_vec())?).map(CpuStorage::F64)
            }
            _ => self.on_rows(rows_of(arguments.to_vec())?).map(CpuStorage::F32),
        })
    }
}

fn rows_of<'a, T: Real, const N: usize>(
    arguments: Vec<(&'a CpuStorage, &Layout, usize)>,
) -> Result<[Rows<'a, T>; N]> {
    let rows =
        arguments.into_iter().map(|(storage, layout, leading)| Rows::new(storage, layout, leading));
    let rows: Vec<Rows<T>> = rows.collect::<Result<_>>()?;
    let count = rows.len();
    rows.try_into().or_else(|_| candle_core::bail!("{count} arguments of a kernel with {N}"))
}

/// `x` itself where all dimensions after the first `leading` ones lie in consecutive memory, as in
/// most narrowed tensors, otherwise a copy where they do.
pub(crate) fn contiguous_rows(x: &Tensor, leading: usize) -> Result<Tensor> {
    let mut consecutive = 1;
    for (&dim, &stride) in x.dims().iter().zip(x.stride()).skip(leading).rev() {
        if dim != 1 && stride != consecutive {
            return x.contiguous();
        }
        consecutive *= dim;
    }
    Ok(x.clone())
}
