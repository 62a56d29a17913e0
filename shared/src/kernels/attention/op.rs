//! Attention as an operation of candle's graph.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor, WithDType, bail};

use super::backward::{self, Results, Targets};
use super::forward::{self, Target};
use super::lanes::{self, Positions};
use super::operands::{Operand, Operands};
use super::place::{Form, Place, TokenLayout};
use super::reference;
use super::windows::Job;
use crate::kernels::gemm::Output;

/// Attention of queries, keys and values, which may be parts of one tensor.
pub(super) struct Attention {
    /// Where queries, keys and values are in their tensors.
    pub(super) forms: [Form; 3],
    /// For each of them, the first argument that is the same tensor: it gets the gradient.
    pub(super) holders: [usize; 3],
    /// Where the result is in its tensor.
    pub(super) output_form: Form,
    pub(super) output_dims: Vec<usize>,
    /// Queries of each head.
    pub(super) queries: usize,
    /// Keys of each head.
    pub(super) keys: usize,
    /// Positions that attend for themselves, for [`TokenLayout::OverFrames`].
    pub(super) positions: Positions,
    /// What attends to what, for each position of each item.
    pub(super) jobs: Vec<Vec<Job>>,
    pub(super) scale: f64,
    /// Logarithms of the sums of powers, which the forward pass leaves for the gradient.
    pub(super) log_sums: OnceLock<Vec<f32>>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = Shape::from(self.output_dims.clone());
        let place = self.output_form.place(&Layout::contiguous(&shape));
        let count = shape.elem_count();
        let arguments = [(q, q_layout), (k, k_layout), (v, v_layout)];
        if let CpuStorage::F64(_) = q {
            let operands = self.operands(arguments)?;
            let output = reference::forward(operands, &self.jobs, count, place);
            return Ok((CpuStorage::F64(output), shape));
        }
        let operands = self.operands(arguments)?;
        let mut output = Vec::with_capacity(count);
        let target = Target { data: output.as_mut_ptr(), place };
        if self.output_form.layout == TokenLayout::OverFrames {
            // SAFETY: the memory has room for all positions and heads, each of which is written before
            // the length is set; positions lie side by side, as is seen to before.
            unsafe {
                lanes::forward(operands, self.positions, target);
                output.set_len(count);
            }
            return Ok((CpuStorage::F32(output), shape));
        }
        let heads = self.jobs.len() * self.output_form.heads;
        let mut log_sums = vec![0.0; heads * self.queries];
        let log_sums_target = Output { data: log_sums.as_mut_ptr(), stride: self.queries };
        // SAFETY: the memory has room for all heads and queries, all of which the jobs have; each is
        // written before the length is set.
        unsafe {
            forward::run(operands, &self.jobs, target, log_sums_target);
            output.set_len(count);
        }
        // Only the first forward pass of an operation counts, and there is only one.
        let _ = self.log_sums.set(log_sums);
        Ok((CpuStorage::F32(output), shape))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let tensors = [q, k, v];
        let stored = tensors.map(Tensor::storage_and_layout);
        let [q, k, v] = [0, 1, 2].map(|i| cpu(&stored[i].0).map(|storage| (storage, stored[i].1)));
        let arguments = [q?, k?, v?];
        let (output_storage, output_layout) = output.storage_and_layout();
        let gradient = self.prepare(gradient)?;
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let output = (cpu(&output_storage)?, output_layout);
        let gradient = (cpu(&gradient_storage)?, gradient_layout);
        let [dq, dk, dv] = match arguments[0].0 {
            CpuStorage::F64(_) => {
                let gradients = self.precise_gradients(arguments, gradient)?;
                self.to_tensors(tensors, gradients)?
            }
            _ => {
                let gradients = self.gradients(arguments, output, gradient)?;
                self.to_tensors(tensors, gradients)?
            }
        };
        Ok((dq, dk, dv))
    }
}

type Argument<'a> = (&'a CpuStorage, &'a Layout);

fn operand<'a, T: WithDType>(argument: Argument<'a>, form: &Form) -> Result<Operand<'a, T>> {
    Ok(Operand { data: argument.0.as_slice()?, place: form.place(argument.1) })
}

fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("attention computes on the CPU only"),
    }
}

impl Attention {
    /// `x` itself, or a copy in which positions lie side by side where they must.
    pub(super) fn prepare(&self, x: &Tensor) -> Result<Tensor> {
        let is_over_frames = self.output_form.layout == TokenLayout::OverFrames;
        if is_over_frames && x.stride().last() != Some(&1) { x.contiguous() } else { Ok(x.clone()) }
    }

    fn operands<'a, T: WithDType>(&self, arguments: [Argument<'a>; 3]) -> Result<Operands<'a, T>> {
        let operand = |i: usize| operand(arguments[i], &self.forms[i]);
        Ok(Operands {
            q: operand(0)?,
            k: operand(1)?,
            v: operand(2)?,
            heads: self.output_form.heads,
            queries: self.queries,
            keys: self.keys,
            scale: self.scale,
        })
    }

    /// The gradients at the arguments; empty for those whose gradient another one holds.
    fn gradients(
        &self,
        arguments: [Argument; 3],
        output: Argument,
        gradient: Argument,
    ) -> Result<[Vec<f32>; 3]> {
        let operands = self.operands(arguments)?;
        let is_over_frames = self.output_form.layout == TokenLayout::OverFrames;
        let results = Results {
            output: operand(output, &self.output_form)?,
            gradient: operand(gradient, &self.output_form)?,
            log_sums: self.log_sums.get().map_or(&[], Vec::as_slice),
        };
        let places = self.gradient_places(arguments);
        let parts = if is_over_frames { 1 } else { backward::parts(&operands, &self.jobs) };
        let mut memory: Vec<[Vec<f32>; 3]> =
            (0..parts).map(|_| self.gradient_memory(arguments)).collect();
        let targets: Vec<Targets> = memory
            .iter_mut()
            .map(|memory| {
                let data = memory.each_mut().map(|memory| memory.as_mut_ptr());
                let target = |i: usize| Target { data: data[self.holders[i]], place: places[i] };
                Targets { q: target(0), k: target(1), v: target(2) }
            })
            .collect();
        // SAFETY: the places are those of contiguous tensors of the shapes of the arguments, which
        // the memory was made for.
        unsafe {
            if is_over_frames {
                lanes::backward(operands, self.positions, results.gradient, targets[0]);
            } else {
                backward::run(operands, results, &self.jobs, &targets);
            }
        }
        let mut memory = memory.into_iter();
        let mut total = memory.next().unwrap_or_default();
        for part in memory {
            for (total, part) in total.iter_mut().zip(part) {
                total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
            }
        }
        Ok(total)
    }

    /// [`Attention::gradients`] in `f64`.
    fn precise_gradients(
        &self,
        arguments: [Argument; 3],
        gradient: Argument,
    ) -> Result<[Vec<f64>; 3]> {
        let operands = self.operands(arguments)?;
        let dy = operand(gradient, &self.output_form)?;
        let places = self.gradient_places(arguments);
        let targets = [0, 1, 2].map(|i| (self.holders[i], places[i]));
        let mut gradients = self.gradient_memory(arguments);
        reference::backward(operands, &self.jobs, dy, &mut gradients, targets);
        Ok(gradients)
    }

    /// Where each operand lies in a contiguous tensor of the shape of its argument.
    fn gradient_places(&self, arguments: [Argument; 3]) -> [Place; 3] {
        [0, 1, 2].map(|i| self.forms[i].place(&Layout::contiguous(arguments[i].1.shape())))
    }

    fn gradient_memory<T: WithDType>(&self, arguments: [Argument; 3]) -> [Vec<T>; 3] {
        [0, 1, 2].map(|i| {
            let is_holder = self.holders[i] == i;
            let count = if is_holder { arguments[i].1.shape().elem_count() } else { 0 };
            vec![T::zero(); count]
        })
    }

    fn to_tensors<T: WithDType>(
        &self,
        arguments: [&Tensor; 3],
        gradients: [Vec<T>; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        let mut tensors = [None, None, None];
        for (i, gradient) in gradients.into_iter().enumerate() {
            if self.holders[i] == i && arguments[i].track_op() {
                let tensor =
                    Tensor::from_vec(gradient, arguments[i].shape(), arguments[i].device());
                tensors[i] = Some(tensor?);
            }
        }
        Ok(tensors)
    }
}
