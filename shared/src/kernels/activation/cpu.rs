//! Activations on the processor.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rten_simd::{Isa, SimdOp};

use super::Activation;
use super::functions::{
    Smooth, gelu, gelu_derivative, relu, relu_derivative, sigmoid, sigmoid_derivative, silu,
    silu_derivative, tanh_derivative,
};
use crate::kernels::isa::dispatch;
use crate::kernels::norm::ChannelNorm;
use crate::kernels::parallel::{write_pieces, write_rows};
use crate::kernels::rows::Rows;

/// `activation` of every element of `x`.
pub(super) fn forward<T: Smooth>(x: &Rows<T>, activation: Activation) -> Vec<T> {
    fn map<T: Smooth>(x: &Rows<T>, function: impl Fn(T) -> T + Copy + Sync) -> Vec<T> {
        let map = |x, y: &mut [MaybeUninit<T>]| dispatch(Map { x, y, function });
        // SAFETY (both): `map` gets as many elements of `x` as of the result.
        match x.all() {
            Some(x) => unsafe { write_pieces(x.len(), |first, y| map(&x[first..][..y.len()], y)) },
            None => unsafe { write_rows(x.count(), x.len(), |row, y| map(x.row(row), y)) },
        }
    }
    match activation {
        Activation::Identity => map(x, |x| x),
        Activation::Relu => map(x, relu),
        Activation::Silu => map(x, silu),
        Activation::Gelu => map(x, gelu),
        Activation::Tanh => map(x, T::tanh),
        Activation::Sigmoid => map(x, sigmoid),
    }
}

/// Writes all of `y = activation((x - pivot) scale + shift)`.
pub(crate) fn activate_normalised<T: Smooth>(
    activation: Activation,
    x: &[T],
    norm: ChannelNorm<T>,
    y: &mut [MaybeUninit<T>],
) {
    match activation {
        Activation::Identity => {
            dispatch(MapNormalised { x, norm, y, function: std::convert::identity })
        }
        Activation::Relu => dispatch(MapNormalised { x, norm, y, function: relu }),
        Activation::Silu => dispatch(MapNormalised { x, norm, y, function: silu }),
        Activation::Gelu => dispatch(MapNormalised { x, norm, y, function: gelu }),
        Activation::Tanh => dispatch(MapNormalised { x, norm, y, function: T::tanh }),
        Activation::Sigmoid => dispatch(MapNormalised { x, norm, y, function: sigmoid }),
    }
}

/// Replaces every element of `x` by its activation.
pub(crate) fn activate_in_place<T: Smooth>(activation: Activation, x: &mut [T]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => dispatch(MapInPlace { x, function: relu }),
        Activation::Silu => dispatch(MapInPlace { x, function: silu }),
        Activation::Gelu => dispatch(MapInPlace { x, function: gelu }),
        Activation::Tanh => dispatch(MapInPlace { x, function: T::tanh }),
        Activation::Sigmoid => dispatch(MapInPlace { x, function: sigmoid }),
    }
}

/// Replaces every element of `x`, an input of `activation`, by the derivative there times `dy`.
pub(crate) fn differentiate_in_place<T: Smooth>(activation: Activation, x: &mut [T], dy: &[T]) {
    if activation.is_output_differentiable() {
        activate_in_place(activation, x);
    }
    match activation {
        Activation::Identity => x.copy_from_slice(dy),
        Activation::Relu => dispatch(ProductInPlace { x, dy, derivative: relu_derivative }),
        Activation::Silu => dispatch(ProductInPlace { x, dy, derivative: silu_derivative }),
        Activation::Gelu => dispatch(ProductInPlace { x, dy, derivative: gelu_derivative }),
        Activation::Tanh => dispatch(ProductInPlace { x, dy, derivative: tanh_derivative }),
        Activation::Sigmoid => dispatch(ProductInPlace { x, dy, derivative: sigmoid_derivative }),
    }
}

/// `dy` times the derivative of `activation` at `point`: its output where
/// [`Activation::is_output_differentiable`], else its input.
pub(super) fn gradient<T: Smooth>(point: &Rows<T>, dy: &Rows<T>, activation: Activation) -> Vec<T> {
    fn map<T: Smooth>(
        point: &Rows<T>,
        dy: &Rows<T>,
        derivative: impl Fn(T) -> T + Copy + Sync,
    ) -> Vec<T> {
        let map = |point, dy, dx: &mut [MaybeUninit<T>]| {
            dispatch(Product { point, dy, dx, derivative });
        };
        // SAFETY (both): `map` gets as many elements of all three.
        match (point.all(), dy.all()) {
            (Some(point), Some(dy)) => unsafe {
                write_pieces(point.len(), |first, dx| {
                    map(&point[first..][..dx.len()], &dy[first..][..dx.len()], dx)
                })
            },
            _ => unsafe {
                let work = |row, dx: &mut [_]| map(point.row(row), dy.row(row), dx);
                write_rows(point.count(), point.len(), work)
            },
        }
    }
    match activation {
        Activation::Identity => map(point, dy, |_| T::one()),
        Activation::Relu => map(point, dy, relu_derivative),
        Activation::Silu => map(point, dy, silu_derivative),
        Activation::Gelu => map(point, dy, gelu_derivative),
        Activation::Tanh => map(point, dy, tanh_derivative),
        Activation::Sigmoid => map(point, dy, sigmoid_derivative),
    }
}

// The loops. They are operations of `rten_simd` only for being compiled for each instruction
// set; the compiler vectorises them, as the functions are inlined.

/// `y = function(x)`.
struct Map<'a, T, F> {
    x: &'a [T],
    y: &'a mut [MaybeUninit<T>],
    function: F,
}

impl<T: Smooth, F: Fn(T) -> T> SimdOp for Map<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            y.write((self.function)(x));
        }
    }
}

/// `y = function((x - pivot) scale + shift)`.
struct MapNormalised<'a, T, F> {
    x: &'a [T],
    norm: ChannelNorm<T>,
    y: &'a mut [MaybeUninit<T>],
    function: F,
}

impl<T: Smooth, F: Fn(T) -> T> SimdOp for MapNormalised<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        let ChannelNorm { pivot, scale, shift } = self.norm;
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            y.write((self.function)((x - pivot) * scale + shift));
        }
    }
}

/// `x = function(x)`.
struct MapInPlace<'a, T, F> {
    x: &'a mut [T],
    function: F,
}

impl<T: Smooth, F: Fn(T) -> T> SimdOp for MapInPlace<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        self.x.iter_mut().for_each(|x| *x = (self.function)(*x));
    }
}

/// `dx = dy derivative(point)`.
struct Product<'a, T, F> {
    point: &'a [T],
    dy: &'a [T],
    dx: &'a mut [MaybeUninit<T>],
    derivative: F,
}

impl<T: Smooth, F: Fn(T) -> T> SimdOp for Product<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        for ((dx, &point), &dy) in self.dx.iter_mut().zip(self.point).zip(self.dy) {
            dx.write(dy * (self.derivative)(point));
        }
    }
}

/// `x = dy derivative(x)`.
struct ProductInPlace<'a, T, F> {
    x: &'a mut [T],
    dy: &'a [T],
    derivative: F,
}

impl<T: Smooth, F: Fn(T) -> T> SimdOp for ProductInPlace<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _: I) {
        for (x, &dy) in self.x.iter_mut().zip(self.dy) {
            *x = dy * (self.derivative)(*x);
        }
    }
}
