//! Sizes of a convolution, checked once and lifted to three spatial dimensions.

use super::ConvOptions;
use crate::{Error, Result};

/// Sizes of a convolution. Fewer than three spatial dimensions are led by ones of size 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Items in the batch.
    pub batch: usize,
    /// Channels that the convolution reads.
    pub in_channels: usize,
    /// Channels that it writes.
    pub out_channels: usize,
    /// Independent groups of channels.
    pub groups: usize,
    /// Spatial size read.
    pub input: [usize; 3],
    /// Size of the kernel.
    pub kernel: [usize; 3],
    /// Spatial size written.
    pub output: [usize; 3],
    /// Step of the kernel.
    pub stride: [usize; 3],
    /// Distance between taps.
    pub dilation: [usize; 3],
    /// Zeros before the first element of each dimension (negative: elements left out); those after
    /// follow from the other sizes.
    pub padding_before: [isize; 3],
    /// Number of spatial dimensions of the tensors.
    pub spatial_dims: usize,
}

impl Geometry {
    /// The geometry of a convolution of an input `[B, C, ..]` with a weight `[O, C/g, ..]`.
    pub fn new<const D: usize>(
        x: &[usize],
        weight: &[usize],
        options: &ConvOptions<D>,
    ) -> Result<Self> {
        check_rank("convolution input", x, D + 2)?;
        check_rank("convolution weight", weight, D + 2)?;
        let (in_channels, out_channels) = (x[1], weight[0]);
        check_groups("out_channels", out_channels, options.groups)?;
        if weight[1].checked_mul(options.groups) != Some(in_channels) {
            return Err(Error::shape(
                "convolution input",
                format!("{} groups of {} channels", options.groups, weight[1]),
                x,
            ));
        }
        if in_channels == 0 {
            return Err(Error::shape("convolution input", "at least 1 channel", x));
        }
        let mut geometry = Self {
            batch: x[0],
            in_channels,
            out_channels,
            groups: options.groups,
            input: lift(&x[2..], 1),
            kernel: lift(&weight[2..], 1),
            output: [1; 3],
            stride: lift(&options.stride, 1),
            dilation: lift(&options.dilation, 1),
            padding_before: [0; 3],
            spatial_dims: D,
        };
        geometry.check_steps()?;
        let padding_before: [usize; 3] = lift(&options.padding.map(|(before, _)| before), 0);
        let padding_after: [usize; 3] = lift(&options.padding.map(|(_, after)| after), 0);
        for (axis, after) in padding_after.into_iter().enumerate() {
            let extent = geometry.kernel_extent(axis)?;
            let padded = geometry.input[axis]
                .checked_add(padding_before[axis])
                .and_then(|size| size.checked_add(after))
                .ok_or_else(too_large)?;
            if padded < extent {
                let name = format!("convolution input with padding, spatial axis {}", axis + D - 3);
                return Err(Error::shape(name, format!("at least {extent} elements"), &[padded]));
            }
            geometry.output[axis] = (padded - extent) / geometry.stride[axis] + 1;
            geometry.padding_before[axis] =
                isize::try_from(padding_before[axis]).map_err(|_| too_large())?;
        }
        geometry.check_counts()?;
        Ok(geometry)
    }

    /// Elements from the first to the last tap along `axis`, both included.
    fn kernel_extent(&self, axis: usize) -> Result<usize> {
        (self.kernel[axis] - 1)
            .checked_mul(self.dilation[axis])
            .and_then(|span| span.checked_add(1))
            .ok_or_else(too_large)
    }

    fn check_steps(&self) -> Result<()> {
        for (name, sizes) in
            [("kernel size", self.kernel), ("stride", self.stride), ("dilation", self.dilation)]
        {
            if sizes.contains(&0) {
                return Err(Error::Argument(format!("convolution: {name} must be at least 1")));
            }
        }
        Ok(())
    }

    /// Fails unless all tensors, padding included, can be addressed.
    fn check_counts(&self) -> Result<()> {
        let mut padded = self.input;
        for (axis, size) in padded.iter_mut().enumerate() {
            let reach = (self.output[axis] - 1).checked_mul(self.stride[axis]);
            let reach = reach.and_then(|start| start.checked_add(self.kernel_extent(axis).ok()?));
            *size = reach.ok_or_else(too_large)?.max(*size);
        }
        let counts = [
            (self.batch, self.in_channels, padded),
            (self.batch, self.out_channels, self.output),
            (self.out_channels, self.in_channels, self.kernel),
        ];
        for (outer, inner, sizes) in counts {
            [inner, sizes[0], sizes[1], sizes[2], size_of::<f64>()]
                .iter()
                .try_fold(outer, |count, &size| count.checked_mul(size))
                .filter(|&bytes| isize::try_from(bytes).is_ok())
                .ok_or_else(too_large)?;
        }
        Ok(())
    }

    /// Channels read by a group.
    pub fn in_group(&self) -> usize {
        self.in_channels / self.groups
    }

    /// Channels written by a group.
    pub fn out_group(&self) -> usize {
        self.out_channels / self.groups
    }

    /// The taps of the kernel, in the order of the weight's elements.
    pub fn taps(&self) -> impl ExactSizeIterator<Item = [usize; 3]> + Clone {
        let [depth, height, width] = self.kernel;
        (0..depth * height * width).map(move |tap| {
            let row = tap / width;
            [row / height, row % height, tap % width]
        })
    }

    /// Elements from the first tap to the last along `axis`.
    pub fn span(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilation[axis]
    }

    /// The input position along `axis` that `tap` meets at the output position `output`.
    pub fn met(&self, axis: usize, output: usize, tap: usize) -> Option<usize> {
        let padded = (output * self.stride[axis] + tap * self.dilation[axis]) as isize;
        let input = usize::try_from(padded - self.padding_before[axis]).ok()?;
        (input < self.input[axis]).then_some(input)
    }

    /// Whether there is no more than one element along the first two axes.
    pub fn is_signal(&self) -> bool {
        let is_single = |axis| {
            [self.input[axis], self.kernel[axis], self.output[axis]] == [1; 3]
                && self.padding_before[axis] == 0
        };
        is_single(0) && is_single(1)
    }

    /// The axis along which the kernel has all its taps, and the same convolution over time, for
    /// steps of 1 along an axis that no other leads: neighbours along it are neighbours in time, as
    /// many elements apart as the axes behind have. Space must be contiguous. A convolution over the
    /// frames of a video is one over its pixels in this way.
    pub fn over_time(&self) -> Option<(usize, Self)> {
        let axis = (0..3).find(|&axis| self.kernel[axis] > 1)?;
        let is_untouched = |other: usize| {
            self.kernel[other] == 1
                && self.padding_before[other] == 0
                && self.input[other] == self.output[other]
        };
        let fits = self.stride == [1; 3]
            && (0..axis).all(|other| self.input[other] == 1)
            && (0..3).all(|other| other == axis || is_untouched(other));
        let inner: usize = self.input[axis + 1..].iter().product();
        fits.then(|| {
            let over_time = Self {
                input: [1, 1, self.input[axis] * inner],
                kernel: [1, 1, self.kernel[axis]],
                output: [1, 1, self.output[axis] * inner],
                dilation: [1, 1, self.dilation[axis] * inner],
                padding_before: [0, 0, self.padding_before[axis] * inner as isize],
                ..self.clone()
            };
            (axis, over_time)
        })
    }

    /// Whether each output position depends on the input at the same position alone.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; 3]
            && self.stride == [1; 3]
            && self.padding_before == [0; 3]
            && self.input == self.output
    }

    /// The convolution of the gradient at the output that gives the gradient at the input, for
    /// steps of 1: with the taps in reverse order, and input and output channels exchanged.
    pub fn backwards(&self) -> Option<Self> {
        (self.stride == [1; 3]).then(|| Self {
            in_channels: self.out_channels,
            out_channels: self.in_channels,
            input: self.output,
            output: self.input,
            padding_before: std::array::from_fn(|axis| {
                self.span(axis) as isize - self.padding_before[axis]
            }),
            ..self.clone()
        })
    }

    /// Shape of the tensor read, as the caller knows it.
    pub fn input_dims(&self) -> Vec<usize> {
        self.dims([self.batch, self.in_channels], self.input)
    }

    /// Shape of the tensor written.
    pub fn output_dims(&self) -> Vec<usize> {
        self.dims([self.batch, self.out_channels], self.output)
    }

    /// Shape of the weight.
    pub fn weight_dims(&self) -> Vec<usize> {
        self.dims([self.out_channels, self.in_channels / self.groups], self.kernel)
    }

    fn dims(&self, outer: [usize; 2], sizes: [usize; 3]) -> Vec<usize> {
        outer.iter().chain(&sizes[3 - self.spatial_dims..]).copied().collect()
    }
}

/// A convolution's geometry for a transposed convolution of `x` `[B, C, T]` with a weight
/// `[C, O/g, K]`: the convolution that reads what the transposed one writes.
pub(super) fn transposed(
    x: &[usize],
    weight: &[usize],
    options: &super::ConvTranspose1dOptions,
) -> Result<Geometry> {
    check_rank("transposed convolution input", x, 3)?;
    check_rank("transposed convolution weight", weight, 3)?;
    let channels = weight[0];
    check_groups("in_channels", channels, options.groups)?;
    if x[1] != channels {
        return Err(Error::shape("transposed convolution input", format!("[B, {channels}, T]"), x));
    }
    if options.output_padding >= options.stride.max(options.dilation) {
        return Err(Error::Argument(format!(
            "transposed convolution: output_padding {} must be below the stride or the dilation",
            options.output_padding
        )));
    }
    if weight[2] == 0 || options.stride == 0 || options.dilation == 0 || x[2] == 0 {
        return Err(Error::Argument(
            "transposed convolution: length, kernel size, stride and dilation must be at least 1"
                .into(),
        ));
    }
    let (before, after) = options.padding;
    // Output length as PyTorch defines it.
    let length = (x[2] - 1)
        .checked_mul(options.stride)
        .zip((weight[2] - 1).checked_mul(options.dilation))
        .and_then(|(spread, span)| spread.checked_add(span)?.checked_add(1))
        .and_then(|length| length.checked_add(options.output_padding))
        .ok_or_else(too_large)?;
    let cropped = before.checked_add(after).and_then(|crop| length.checked_sub(crop));
    let length = cropped.filter(|&length| length > 0).ok_or_else(|| {
        Error::shape(
            "transposed convolution input",
            format!("an output longer than the padding of {before} + {after}"),
            x,
        )
    })?;
    let out_channels = weight[1].checked_mul(options.groups).ok_or_else(too_large)?;
    let geometry = Geometry {
        batch: x[0],
        in_channels: out_channels,
        out_channels: channels,
        groups: options.groups,
        input: [1, 1, length],
        kernel: [1, 1, weight[2]],
        output: [1, 1, x[2]],
        stride: [1, 1, options.stride],
        dilation: [1, 1, options.dilation],
        padding_before: [0, 0, isize::try_from(before).map_err(|_| too_large())?],
        spatial_dims: 1,
    };
    geometry.check_counts()?;
    Ok(geometry)
}

fn check_rank(what: &str, dims: &[usize], rank: usize) -> Result<()> {
    if dims.len() == rank {
        return Ok(());
    }
    Err(Error::shape(what, format!("{rank} dimensions"), dims))
}

fn check_groups(what: &str, channels: usize, groups: usize) -> Result<()> {
    if groups > 0 && channels.is_multiple_of(groups) {
        return Ok(());
    }
    Err(Error::Argument(format!("convolution: {groups} groups do not divide {what} = {channels}")))
}

fn lift(sizes: &[usize], fill: usize) -> [usize; 3] {
    let mut lifted = [fill; 3];
    lifted[3 - sizes.len()..].copy_from_slice(sizes);
    lifted
}

fn too_large() -> Error {
    Error::Argument("convolution: sizes are too large to address".into())
}
