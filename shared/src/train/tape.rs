//! Gradient checkpointing: memory for time (Chen et al. 2016, section 3).

use std::cell::RefCell;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::Result;

/// What a segment computes: new tensors from old ones and parameters, always the same.
type Compute<'a> = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a>;

/// A computation in segments, of which only the results are kept: what a segment computed on the way
/// is computed again when gradients are taken, so that the graph of one segment is in memory at a
/// time.
#[derive(Default)]
pub struct Tape<'a> {
    segments: RefCell<Vec<Segment<'a>>>,
}

struct Segment<'a> {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    compute: Compute<'a>,
}

impl<'a> Tape<'a> {
    /// A tape without segments.
    pub fn new() -> Self {
        Self::default()
    }

    /// The results of `compute` for `inputs`. These are results of earlier segments, or constants: no
    /// gradient goes through them otherwise. `compute` is called again for the gradients and must do
    /// the same again.
    ///
    /// # Errors
    /// Those of `compute`.
    pub fn segment(
        &self,
        inputs: Vec<Tensor>,
        compute: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'a,
    ) -> Result<Vec<Tensor>> {
        // As variables, later segments end at them.
        let leaf = |output: &Tensor| Ok(Var::from_tensor(&output.detach())?.into_inner());
        let outputs: Vec<Tensor> = compute(&inputs)?.iter().map(leaf).collect::<Result<_>>()?;
        self.segments.borrow_mut().push(Segment {
            inputs,
            outputs: outputs.clone(),
            compute: Box::new(compute),
        });
        Ok(outputs)
    }

    /// The gradients of the scalar `loss`, which was computed from results of segments, by the
    /// variables that it depends on.
    ///
    /// # Errors
    /// Those of the segments; when a layer has no gradient.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        let mut gradients = of_variables(loss, loss.backward()?);
        let mut segments = self.segments.into_inner();
        while let Some(Segment { inputs, outputs, compute }) = segments.pop() {
            let slopes: Vec<Option<Tensor>> =
                outputs.iter().map(|output| gradients.remove(output)).collect();
            drop(outputs);
            if slopes.iter().all(Option::is_none) {
                continue;
            }
            // The gradient of this sum is that of the loss.
            let mut sum: Option<Tensor> = None;
            for (output, slope) in compute(&inputs)?.into_iter().zip(slopes) {
                let Some(slope) = slope else { continue };
                let term = (output * slope.detach())?.sum_all()?;
                sum = Some(match sum {
                    Some(sum) => (sum + term)?,
                    None => term,
                });
            }
            if let Some(sum) = sum {
                gradients.extend(of_variables(&sum, sum.backward()?))?;
            }
        }
        Ok(gradients)
    }
}

/// The gradients in `store` by the variables that `loss` was computed from. What candle also keeps,
/// gradients by constants such as masks, would fill the memory, a part more with each segment.
fn of_variables(loss: &Tensor, mut store: GradStore) -> GradStore {
    let mut kept = GradStore::default();
    for node in loss.sorted_nodes() {
        if node.is_variable()
            && let Some(gradient) = store.remove(node)
        {
            kept.insert(node, gradient);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn var(values: &[f32]) -> Var {
        Var::new(values, &Device::Cpu).unwrap()
    }

    /// Two results, of which the first comes back later beside the second.
    fn first(x: &[Tensor], a: &Tensor) -> Result<Vec<Tensor>> {
        let y = (&x[0] * a)?;
        Ok(vec![y.sin()?, (y.sqr()? + &x[0])?])
    }

    fn second(x: &[Tensor], a: &Tensor, b: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![((&x[0] * b)? + a.exp()?)?])
    }

    fn third(x: &[Tensor], b: &Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![((&x[0] * &x[1])? * b)?])
    }

    #[test]
    fn gradients_are_those_of_the_whole_graph() {
        let (a, b) = (var(&[0.3, -1.2, 2.0]), var(&[1.5, 0.4, -0.7]));
        let x = Tensor::new(&[0.9f32, -0.2, 0.6], &Device::Cpu).unwrap();

        let kept = first(std::slice::from_ref(&x), &a).unwrap();
        let next = second(&kept[1..], &a, &b).unwrap();
        let last = third(&[kept[0].clone(), next[0].clone()], &b).unwrap();
        let loss = last[0].sqr().unwrap().sum_all().unwrap();
        let expected = loss.backward().unwrap();

        let tape = Tape::new();
        let kept = tape.segment(vec![x], |x| first(x, &a)).unwrap();
        let next = tape.segment(kept[1..].to_vec(), |x| second(x, &a, &b)).unwrap();
        // A segment that the loss does not use.
        tape.segment(vec![next[0].clone()], |x| second(x, &a, &b)).unwrap();
        let last = tape.segment(vec![kept[0].clone(), next[0].clone()], |x| third(x, &b)).unwrap();
        let loss_again = last[0].sqr().unwrap().sum_all().unwrap();
        let found = tape.backward(&loss_again).unwrap();

        assert_eq!(loss_again.to_scalar::<f32>().unwrap(), loss.to_scalar::<f32>().unwrap());
        // Neither by the constant `x` nor by results of segments.
        assert_eq!(found.get_ids().count(), 2);
        for parameter in [&a, &b] {
            let [found, expected] = [&found, &expected]
                .map(|store| store.get(parameter).unwrap().to_vec1::<f32>().unwrap());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }
}
