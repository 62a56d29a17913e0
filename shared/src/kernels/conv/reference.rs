//! Convolution as plain loops: the path of `f64`, and what the fast path is tested against.

use candle_core::WithDType;

use super::Geometry;

/// A tensor of five dimensions (two for channels or batch, three of space) in any layout.
pub(super) struct View<'a, T> {
    pub data: &'a [T],
    pub strides: [usize; 5],
}

impl<T: Copy> View<'_, T> {
    fn at(&self, [a, b, d, h, w]: [usize; 5]) -> T {
        let [sa, sb, sd, sh, sw] = self.strides;
        self.data[a * sa + b * sb + d * sd + h * sh + w * sw]
    }
}

/// Calls `visit` with every pair of an input and an output position (space only) that the tap
/// `tap` connects.
fn positions(geometry: &Geometry, tap: [usize; 3], mut visit: impl FnMut([usize; 3], [usize; 3])) {
    let input = |axis: usize, output: usize| {
        (output * geometry.stride[axis] + tap[axis] * geometry.dilation[axis])
            .checked_sub(geometry.padding_before[axis])
            .filter(|&input| input < geometry.input[axis])
    };
    for od in 0..geometry.output[0] {
        let Some(id) = input(0, od) else { continue };
        for oh in 0..geometry.output[1] {
            let Some(ih) = input(1, oh) else { continue };
            for ow in 0..geometry.output[2] {
                let Some(iw) = input(2, ow) else { continue };
                visit([id, ih, iw], [od, oh, ow]);
            }
        }
    }
}

/// Calls `visit` with every (item, input channel, output channel, input channel within its group,
/// tap) that multiply.
fn products(geometry: &Geometry, mut visit: impl FnMut(usize, usize, usize, usize, [usize; 3])) {
    let in_group = geometry.in_channels / geometry.groups;
    let out_group = geometry.out_channels / geometry.groups;
    let [kd, kh, kw] = geometry.kernel;
    for b in 0..geometry.batch {
        for o in 0..geometry.out_channels {
            for i in 0..in_group {
                for tap in 0..kd * kh * kw {
                    let tap = [tap / (kh * kw), tap / kw % kh, tap % kw];
                    visit(b, o / out_group * in_group + i, o, i, tap);
                }
            }
        }
    }
}

fn contiguous(outer: usize, inner: usize, sizes: [usize; 3]) -> (usize, [usize; 5]) {
    let [d, h, w] = sizes;
    (outer * inner * d * h * w, [inner * d * h * w, d * h * w, h * w, w, 1])
}

fn index(strides: &[usize; 5], position: [usize; 5]) -> usize {
    strides.iter().zip(position).map(|(stride, at)| stride * at).sum()
}

/// The convolution, contiguous, without bias.
pub(super) fn forward<T: WithDType>(x: View<T>, weight: View<T>, geometry: &Geometry) -> Vec<T> {
    let (count, strides) = contiguous(geometry.batch, geometry.out_channels, geometry.output);
    let mut y = vec![T::zero(); count];
    products(geometry, |b, c, o, i, tap| {
        let w = weight.at([o, i, tap[0], tap[1], tap[2]]);
        positions(geometry, tap, |[id, ih, iw], [od, oh, ow]| {
            y[index(&strides, [b, o, od, oh, ow])] += w * x.at([b, c, id, ih, iw]);
        });
    });
    y
}

/// Gradient at the input, contiguous, from the gradient `y` at the output.
pub(super) fn input_gradient<T: WithDType>(
    y: View<T>,
    weight: View<T>,
    geometry: &Geometry,
) -> Vec<T> {
    let (count, strides) = contiguous(geometry.batch, geometry.in_channels, geometry.input);
    let mut x = vec![T::zero(); count];
    products(geometry, |b, c, o, i, tap| {
        let w = weight.at([o, i, tap[0], tap[1], tap[2]]);
        positions(geometry, tap, |[id, ih, iw], [od, oh, ow]| {
            x[index(&strides, [b, c, id, ih, iw])] += w * y.at([b, o, od, oh, ow]);
        });
    });
    x
}

/// Gradient at the weight, contiguous, from the input and the gradient `y` at the output.
pub(super) fn weight_gradient<T: WithDType>(x: View<T>, y: View<T>, geometry: &Geometry) -> Vec<T> {
    let in_group = geometry.in_channels / geometry.groups;
    let (count, strides) = contiguous(geometry.out_channels, in_group, geometry.kernel);
    let mut weight = vec![T::zero(); count];
    products(geometry, |b, c, o, i, tap| {
        let mut sum = T::zero();
        positions(geometry, tap, |[id, ih, iw], [od, oh, ow]| {
            sum += x.at([b, c, id, ih, iw]) * y.at([b, o, od, oh, ow]);
        });
        weight[index(&strides, [o, i, tap[0], tap[1], tap[2]])] += sum;
    });
    weight
}
