//! The recurrence of a long short-term memory (Hochreiter and Schmidhuber 1997, with forget gates).

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};

use super::activation::{Activation, Smooth, activate_in_place};
use super::epilogue::Epilogue;
use super::gemm::{self, Matrix, PackedRight, Start};
use super::linear::matmul;
use super::rows::{Rows, contiguous_rows};
use super::{contiguous_slice, to_compute_dtype, to_dtype};
use crate::{Error, Result};

/// Numbers of a frame that are kept for the gradient, in units of the hidden size: output, cell, and
/// the input, forget, candidate and output gates.
const KEPT: usize = 6;

/// Which way a recurrence goes through time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first frame of each sequence to its last.
    Forward,
    /// From the last frame of each sequence to its first.
    Backward,
}

impl Direction {
    /// The frame of the step number `step` in a sequence of `length` frames.
    fn frame(self, step: usize, length: usize) -> usize {
        match self {
            Self::Forward => step,
            Self::Backward => length - 1 - step,
        }
    }
}

/// Hidden states `[B, T, H]` of a recurrence with the weight `[4 H, H]` between steps, from the inputs'
/// part of the gates `gates [B, T, 4 H]`, biases included. States are 0 before the first step and in
/// frames beyond `lengths[b]`, which count for nothing.
///
/// With `z = gates_t + weight h_{t-1}` in the order of PyTorch, input, forget, candidate, output:
/// `c_t = sigmoid(z_f) c_{t-1} + sigmoid(z_i) tanh(z_g)` and `h_t = sigmoid(z_o) tanh(c_t)`.
///
/// # Errors
/// When the shapes do not fit, or a length is above T.
pub fn lstm(
    gates: &Tensor,
    weight: &Tensor,
    lengths: &[usize],
    direction: Direction,
) -> Result<Tensor> {
    let &[quadruple, hidden] = weight.dims() else {
        return Err(Error::shape("recurrent weight of an LSTM", "[4 H, H]", weight.dims()));
    };
    if quadruple != 4 * hidden || hidden == 0 {
        return Err(Error::shape("recurrent weight of an LSTM", "[4 H, H]", weight.dims()));
    }
    let fits = matches!(gates.dims(), &[batch, frames, width] if width == quadruple
        && batch == lengths.len()
        && lengths.iter().all(|length| *length <= frames));
    if !fits {
        let longest = lengths.iter().max().unwrap_or(&0);
        let expected = format!("[{}, {longest} or more, {quadruple}]", lengths.len());
        return Err(Error::shape("gates of an LSTM", expected, gates.dims()));
    }
    let dtype = gates.dtype();
    let gates = contiguous_rows(&to_compute_dtype("gates of an LSTM", gates)?, 1)?;
    let weight = to_dtype(weight.clone(), gates.dtype())?.contiguous()?;
    let kept = gates.apply_op2(&weight, Lstm { lengths: lengths.to_vec(), direction, hidden })?;
    to_dtype(kept.narrow(2, 0, hidden)?, dtype)
}

/// Gives the numbers of [`KEPT`] for each frame; only the first, the output, may have a gradient.
struct Lstm {
    lengths: Vec<usize>,
    direction: Direction,
    hidden: usize,
}

impl Lstm {
    /// How many steps the longest sequence takes.
    fn steps(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Of each sequence that takes the step: its number, the frame, and that of the step before.
    fn active(&self, step: usize) -> Vec<(usize, usize, Option<usize>)> {
        let taking = self.lengths.iter().enumerate().filter(|(_, length)| step < **length);
        let frame = |step, length| self.direction.frame(step, length);
        taking
            .map(|(item, &length)| {
                (item, frame(step, length), step.checked_sub(1).map(|before| frame(before, length)))
            })
            .collect()
    }

    /// `product` multiplies hidden states `[N, H]` with the transposed weight.
    fn forward<T: Smooth>(
        &self,
        gates: &Rows<'_, T>,
        frames: usize,
        product: impl Fn(&[T], usize) -> Vec<T>,
    ) -> Vec<T> {
        let (hidden, kept) = (self.hidden, KEPT * self.hidden);
        let mut out = vec![T::zero(); gates.count() * frames * kept];
        let place = |item: usize, frame: usize| (item * frames + frame) * kept;
        let mut states = Vec::new();
        for step in 0..self.steps() {
            let active = self.active(step);
            states.clear();
            for &(item, _, before) in &active {
                match before {
                    Some(before) => states.extend_from_slice(&out[place(item, before)..][..hidden]),
                    None => states.resize(states.len() + hidden, T::zero()),
                }
            }
            let recurrent = product(&states, active.len());
            for (&(item, frame, before), recurrent) in
                active.iter().zip(recurrent.chunks_exact(4 * hidden))
            {
                let gates = &gates.row(item)[frame * 4 * hidden..][..4 * hidden];
                let start = place(item, frame);
                let gate = &mut out[start + 2 * hidden..][..4 * hidden];
                for ((gate, &input), &recurrent) in gate.iter_mut().zip(gates).zip(recurrent) {
                    *gate = input + recurrent;
                }
                activate_in_place(Activation::Sigmoid, &mut gate[..2 * hidden]);
                activate_in_place(Activation::Tanh, &mut gate[2 * hidden..3 * hidden]);
                activate_in_place(Activation::Sigmoid, &mut gate[3 * hidden..]);
                for i in 0..hidden {
                    let cell = before.map_or(T::zero(), |it| out[place(item, it) + hidden + i]);
                    let gate = |number: usize| out[start + (2 + number) * hidden + i];
                    let cell = gate(1) * cell + gate(0) * gate(2);
                    out[start + hidden + i] = cell;
                    out[start + i] = cell;
                }
                activate_in_place(Activation::Tanh, &mut out[start..][..hidden]);
                for i in 0..hidden {
                    let output_gate = out[start + 5 * hidden + i];
                    out[start + i] *= output_gate;
                }
            }
        }
        out
    }

    /// The gradient at the gates `[B, T, 4 H]`, from what the forward direction kept and the gradient at
    /// its output; `product` multiplies gradients at gates `[N, 4 H]` with the weight.
    fn backward<T: Smooth>(
        &self,
        kept: &Rows<'_, T>,
        gradient: &Rows<'_, T>,
        product: impl Fn(&[T], usize) -> Vec<T>,
    ) -> Vec<T> {
        let (hidden, one) = (self.hidden, T::one());
        let frames = kept.len() / (KEPT * hidden);
        let mut out = vec![T::zero(); kept.count() * frames * 4 * hidden];
        // Gradients at state and cell that come from the step after.
        let mut from_state = vec![T::zero(); kept.count() * hidden];
        let mut from_cell = from_state.clone();
        let mut stepped = Vec::new();
        let mut cell_tanh = vec![T::zero(); hidden];
        for step in (0..self.steps()).rev() {
            let active = self.active(step);
            stepped.clear();
            for &(item, frame, before) in &active {
                let row = |frame: usize| &kept.row(item)[frame * KEPT * hidden..][..KEPT * hidden];
                let now = row(frame);
                let dh = &gradient.row(item)[frame * KEPT * hidden..][..hidden];
                cell_tanh.copy_from_slice(&now[hidden..2 * hidden]);
                activate_in_place(Activation::Tanh, &mut cell_tanh);
                let start = stepped.len();
                stepped.resize(start + 4 * hidden, T::zero());
                let dz = &mut stepped[start..];
                for i in 0..hidden {
                    let [input, forget, candidate, output] =
                        [2, 3, 4, 5].map(|number| now[number * hidden + i]);
                    let cell_before = before.map_or(T::zero(), |it| row(it)[hidden + i]);
                    let dh = dh[i] + from_state[item * hidden + i];
                    let dc = dh * output * (one - cell_tanh[i] * cell_tanh[i])
                        + from_cell[item * hidden + i];
                    from_cell[item * hidden + i] = dc * forget;
                    dz[i] = dc * candidate * input * (one - input);
                    dz[hidden + i] = dc * cell_before * forget * (one - forget);
                    dz[2 * hidden + i] = dc * input * (one - candidate * candidate);
                    dz[3 * hidden + i] = dh * cell_tanh[i] * output * (one - output);
                }
                let place = (item * frames + frame) * 4 * hidden;
                out[place..place + 4 * hidden].copy_from_slice(dz);
            }
            let states = product(&stepped, active.len());
            for (&(item, ..), state) in active.iter().zip(states.chunks_exact(hidden)) {
                from_state[item * hidden..(item + 1) * hidden].copy_from_slice(state);
            }
        }
        out
    }

    /// The hidden states of the steps before, `[B, T, H]`.
    fn states_before<T: Smooth>(&self, kept: &Rows<'_, T>) -> Vec<T> {
        let hidden = self.hidden;
        let frames = kept.len() / (KEPT * hidden);
        let mut out = vec![T::zero(); kept.count() * frames * hidden];
        for step in 1..self.steps() {
            for (item, frame, before) in self.active(step) {
                let Some(before) = before else { continue };
                let state = &kept.row(item)[before * KEPT * hidden..][..hidden];
                out[(item * frames + frame) * hidden..][..hidden].copy_from_slice(state);
            }
        }
        out
    }

    fn gradients<T: Smooth>(
        &self,
        kept: &Tensor,
        gradient: &Tensor,
        product: impl Fn(&[T], usize) -> Vec<T>,
    ) -> candle_core::Result<[Tensor; 2]> {
        let (batch, frames, _) = kept.dims3()?;
        Rows::<T>::of_all([(kept, 1), (gradient, 1)], |[kept, gradient]| {
            let device = &candle_core::Device::Cpu;
            let gates = self.backward(&kept, &gradient, product);
            let before = self.states_before(&kept);
            Ok([
                Tensor::from_vec(gates, (batch, frames, 4 * self.hidden), device)?,
                Tensor::from_vec(before, (batch, frames, self.hidden), device)?,
            ])
        })
    }
}

impl CustomOp2 for Lstm {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn cpu_fwd(
        &self,
        gates: &CpuStorage,
        gates_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, frames, _) = gates_layout.shape().dims3()?;
        let out = match gates {
            CpuStorage::F64(_) => {
                let weight = contiguous_slice(weight, weight_layout)?;
                let weight = Matrix::row_major(weight, 4 * self.hidden, self.hidden).t();
                let gates = Rows::new(gates, gates_layout, 1)?;
                let product = |states: &[f64], rows| precise_product(states, rows, weight);
                CpuStorage::F64(self.forward(&gates, frames, product))
            }
            _ => {
                let weight = contiguous_slice(weight, weight_layout)?;
                let weight = Matrix::row_major(weight, 4 * self.hidden, self.hidden).t();
                let gates = Rows::new(gates, gates_layout, 1)?;
                // Packed once for all steps; not needed where there are few sequences.
                let packed = std::cell::OnceCell::new();
                let product = |states: &[f32], rows: usize| {
                    let states = [Matrix::row_major(states, rows, self.hidden)];
                    if gemm::are_row_products(&states, &[weight]) {
                        return gemm::products(
                            &states,
                            &[weight],
                            Start::Zero,
                            Epilogue::default(),
                        );
                    }
                    let packed = packed.get_or_init(|| PackedRight::new(weight));
                    let columns = weight.columns;
                    gemm::products_with(
                        &states,
                        &[packed],
                        columns,
                        Start::Zero,
                        Epilogue::default(),
                    )
                };
                CpuStorage::F32(self.forward(&gates, frames, product))
            }
        };
        Ok((out, Shape::from((batch, frames, KEPT * self.hidden))))
    }

    fn bwd(
        &self,
        _: &Tensor,
        weight: &Tensor,
        kept: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = contiguous_rows(gradient, 1)?;
        let shape = (4 * self.hidden, self.hidden);
        let [gates, before] = match kept.dtype() {
            DType::F64 => {
                let weight = weight.flatten_all()?.to_vec1()?;
                let weight = Matrix::row_major(&weight, shape.0, shape.1);
                self.gradients(kept, &gradient, |gates: &[f64], rows| {
                    precise_product(gates, rows, weight)
                })?
            }
            _ => {
                let weight = weight.flatten_all()?.to_vec1()?;
                let weight = [Matrix::row_major(&weight, shape.0, shape.1)];
                self.gradients(kept, &gradient, |gates: &[f32], rows| {
                    let gates = [Matrix::row_major(gates, rows, shape.0)];
                    gemm::products(&gates, &weight, Start::Zero, Epilogue::default())
                })?
            }
        };
        let flat = |tensor: &Tensor| tensor.flatten(0, 1);
        let dweight = matmul(&flat(&gates)?.t()?, &flat(&before)?);
        let dweight = dweight.map_err(candle_core::Error::wrap)?;
        Ok((Some(gates), Some(dweight)))
    }
}

/// `rows` rows times `right`, by plain loops.
fn precise_product(rows: &[f64], count: usize, right: Matrix<f64>) -> Vec<f64> {
    let left = Matrix::row_major(rows, count, right.rows);
    let element = |row: usize, column: usize| {
        (0..right.rows).map(|k| left.at(row, k) * right.at(k, column)).sum()
    };
    (0..count).flat_map(|row| (0..right.columns).map(move |column| element(row, column))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check;

    const LENGTHS: [usize; 8] = [5, 3, 1, 0, 5, 2, 4, 5];

    /// Hidden states of one sequence by the definition, `gates [T, 4 H]`.
    fn reference(gates: &[f64], weight: &[f64], hidden: usize, backward: bool) -> Vec<f64> {
        let frames = gates.len() / (4 * hidden);
        let mut out = vec![0.0; frames * hidden];
        let (mut h, mut c) = (vec![0.0; hidden], vec![0.0; hidden]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for step in 0..frames {
            let frame = if backward { frames - 1 - step } else { step };
            let z: Vec<f64> = (0..4 * hidden)
                .map(|row| {
                    let dot: f64 = (0..hidden).map(|k| weight[row * hidden + k] * h[k]).sum();
                    gates[frame * 4 * hidden + row] + dot
                })
                .collect();
            for i in 0..hidden {
                c[i] = sigmoid(z[hidden + i]) * c[i] + sigmoid(z[i]) * z[2 * hidden + i].tanh();
                h[i] = sigmoid(z[3 * hidden + i]) * c[i].tanh();
            }
            out[frame * hidden..][..hidden].copy_from_slice(&h);
        }
        out
    }

    #[test]
    fn states_match_the_definition_and_end_with_each_sequence() {
        let hidden = 3;
        let (gates, weight) = (check::normal(0, &[8, 5, 12]), check::normal(1, &[12, 3]));
        for direction in [Direction::Forward, Direction::Backward] {
            let found = check::to_vec(&lstm(&gates, &weight, &LENGTHS, direction).unwrap());
            for (item, length) in LENGTHS.into_iter().enumerate() {
                let own = gates.get(item).unwrap().narrow(0, 0, length).unwrap();
                let mut expected = reference(
                    &check::to_vec(&own),
                    &check::to_vec(&weight),
                    hidden,
                    direction == Direction::Backward,
                );
                expected.resize(5 * hidden, 0.0);
                for (found, expected) in found[item * 5 * hidden..].iter().zip(expected) {
                    assert!((found - expected).abs() < 1e-14, "{direction:?} {item}");
                }
            }
        }
    }

    #[test]
    fn gradients_match_differences() {
        for direction in [Direction::Forward, Direction::Backward] {
            for (batch, hidden) in [(1, 1), (3, 2), (8, 3)] {
                let shapes: [&[usize]; 2] = [&[batch, 5, 4 * hidden], &[4 * hidden, hidden]];
                check::gradients(&format!("LSTM {direction:?} {shapes:?}"), &shapes, |inputs| {
                    lstm(&inputs[0], &inputs[1], &LENGTHS[..batch], direction)
                });
            }
        }
    }

    #[test]
    fn larger_sizes_agree_with_f64() {
        for batch in [2, 9] {
            let shapes: [&[usize]; 2] = [&[batch, 4, 4 * 37], &[4 * 37, 37]];
            check::f32_agrees_with_f64(&format!("LSTM {shapes:?}"), &shapes, |inputs| {
                let weight = (&inputs[1] * 0.2)?;
                lstm(&inputs[0], &weight, &[4, 3, 4, 1, 2, 4, 4, 3, 4][..batch], Direction::Forward)
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (gates, weight) = (check::normal(0, &[2, 5, 12]), check::normal(1, &[12, 3]));
        let run = |gates: &Tensor, weight: &Tensor, lengths: &[usize]| {
            lstm(gates, weight, lengths, Direction::Forward).is_ok()
        };
        assert!(run(&gates, &weight, &[5, 0]));
        assert!(!run(&gates, &weight, &[5, 6]) && !run(&gates, &weight, &[5]));
        assert!(!run(&gates, &weight.t().unwrap(), &[5, 5]));
        assert!(!run(&gates.narrow(2, 0, 8).unwrap(), &weight, &[5, 5]));
        assert!(!run(&gates.get(0).unwrap(), &weight, &[5, 5]));
    }
}
