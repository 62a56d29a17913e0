//! Convolution as plain loops: the path of `f64`, and what the fast path is tested against.

use candle_core::WithDType;

use super::Geometry;
use super::view::View;
use crate::kernels::activation::{Activation, Smooth, activate_in_place};

/// Calls `visit` with every pair of an input and an output position (space only) that the tap
/// `tap` connects.
fn positions(geometry: &Geometry, tap: [usize; 3], mut visit: impl FnMut([usize; 3], [usize; 3])) {
    for od in 0..geometry.output[0] {
        let Some(id) = geometry.met(0, od, tap[0]) else { continue };
        for oh in 0..geometry.output[1] {
            let Some(ih) = geometry.met(1, oh, tap[1]) else { continue };
            for ow in 0..geometry.output[2] {
                let Some(iw) = geometry.met(2, ow, tap[2]) else { continue };
                visit([id, ih, iw], [od, oh, ow]);
            }
        }
    }
}

/// Calls `visit` with every (item, input channel, output channel, input channel within its group,
/// tap) that multiply.
fn products(geometry: &Geometry, mut visit: impl FnMut(usize, usize, usize, usize, [usize; 3])) {
    let (in_group, out_group) = (geometry.in_group(), geometry.out_group());
    for b in 0..geometry.batch {
        for o in 0..geometry.out_channels {
            for i in 0..in_group {
                for tap in geometry.taps() {
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

/// The convolution, contiguous.
pub(super) fn forward<T: Smooth>(
    x: View<T>,
    weight: View<T>,
    bias: Option<&[T]>,
    geometry: &Geometry,
    activation: Activation,
) -> Vec<T> {
    let (count, strides) = contiguous(geometry.batch, geometry.out_channels, geometry.output);
    let mut y = vec![T::zero(); count];
    products(geometry, |b, c, o, i, tap| {
        let w = weight.at([o, i, tap[0], tap[1], tap[2]]);
        positions(geometry, tap, |[id, ih, iw], [od, oh, ow]| {
            y[index(&strides, [b, o, od, oh, ow])] += w * x.at([b, c, id, ih, iw]);
        });
    });
    if let Some(bias) = bias {
        let space = geometry.output.iter().product();
        for (values, bias) in y.chunks_mut(space).zip(bias.iter().cycle()) {
            values.iter_mut().for_each(|value| *value += *bias);
        }
    }
    activate_in_place(activation, &mut y);
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
    let in_group = geometry.in_group();
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
