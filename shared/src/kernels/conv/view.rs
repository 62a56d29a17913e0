//! Tensors of a convolution as the kernels see them.

use candle_core::{CpuStorage, Layout, Result, WithDType};

/// A tensor of five dimensions (two of batch and channels, three of space) in any layout.
#[derive(Clone, Copy)]
pub(super) struct View<'a, T> {
    /// Elements from the tensor's first on.
    pub data: &'a [T],
    /// Distance of neighbours along each dimension.
    pub strides: [usize; 5],
}

impl<'a, T: WithDType> View<'a, T> {
    /// The view of a tensor with one to three spatial dimensions.
    pub fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (outer, space) = layout.stride().split_at(2);
        let mut strides = [0; 5];
        strides[..2].copy_from_slice(outer);
        strides[5 - space.len()..].copy_from_slice(space);
        Ok(Self { data: &storage.as_slice::<T>()?[layout.start_offset()..], strides })
    }

    /// The element at `position`.
    pub fn at(&self, position: [usize; 5]) -> T {
        self.data[position.iter().zip(&self.strides).map(|(at, stride)| at * stride).sum::<usize>()]
    }

    /// Whether the elements of a channel, of the spatial size `size`, lie side by side in order.
    pub fn is_space_contiguous(&self, size: [usize; 3]) -> bool {
        let mut consecutive = 1;
        (0..3).rev().all(|axis| {
            let fits = size[axis] == 1 || self.strides[2 + axis] == consecutive;
            consecutive *= size[axis];
            fits
        })
    }

    /// The same elements with the spatial dimension `axis` as the only one.
    pub fn along(self, axis: usize) -> Self {
        let [batch, channels, ..] = self.strides;
        Self { strides: [batch, channels, 0, 0, self.strides[2 + axis]], ..self }
    }

    /// The same elements, whose space is contiguous, with all of it as the only spatial dimension.
    pub fn flat(self) -> Self {
        let [batch, channels, ..] = self.strides;
        Self { strides: [batch, channels, 0, 0, 1], ..self }
    }

    /// Elements from the first of item `item` and channel `channel` on.
    pub fn channel(&self, item: usize, channel: usize) -> &'a [T] {
        &self.data[item * self.strides[0] + channel * self.strides[1]..]
    }
}
