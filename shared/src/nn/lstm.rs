//! Long short-term memory.

use candle_core::Tensor;

use super::functional::{Activation, Direction, linear, lstm};
use super::{Init, Weights};
use crate::Result;

/// One layer of a long short-term memory, in one or both directions. Parameters are PyTorch's, the
/// gates in the order input, forget, candidate, output: `weight_ih_l0 [4 H, I]`, `weight_hh_l0
/// [4 H, H]`, `bias_ih_l0` and `bias_hh_l0 [4 H]`, and the same with the ending `_reverse`.
#[derive(Clone, Debug)]
pub struct Lstm {
    directions: Vec<OneWay>,
    hidden: usize,
}

#[derive(Clone, Debug)]
struct OneWay {
    input_weight: Tensor,
    recurrent_weight: Tensor,
    input_bias: Tensor,
    recurrent_bias: Tensor,
    direction: Direction,
}

impl Lstm {
    /// A layer from `inputs` to `hidden` features in each direction, initialised as in PyTorch.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(
        weights: &Weights,
        inputs: usize,
        hidden: usize,
        bidirectional: bool,
    ) -> Result<Self> {
        let init = Init::fan_in(hidden);
        let one_way = |direction: Direction, ending: &str| -> Result<OneWay> {
            let name = |name: &str| format!("{name}_l0{ending}");
            Ok(OneWay {
                input_weight: weights.parameter(&name("weight_ih"), (4 * hidden, inputs), init)?,
                recurrent_weight: weights.parameter(
                    &name("weight_hh"),
                    (4 * hidden, hidden),
                    init,
                )?,
                input_bias: weights.parameter(&name("bias_ih"), 4 * hidden, init)?,
                recurrent_bias: weights.parameter(&name("bias_hh"), 4 * hidden, init)?,
                direction,
            })
        };
        let mut directions = vec![one_way(Direction::Forward, "")?];
        if bidirectional {
            directions.push(one_way(Direction::Backward, "_reverse")?);
        }
        Ok(Self { directions, hidden })
    }

    /// Features of the output: the hidden size, twice with both directions.
    pub fn outputs(&self) -> usize {
        self.directions.len() * self.hidden
    }

    /// The hidden states `[B, T, outputs]` for `x [B, T, I]`, of which `lengths[b]` frames count; 0 in
    /// those beyond. The backward direction, whose states come second, starts at each sequence's last
    /// frame.
    ///
    /// # Errors
    /// When the shapes do not fit, or a length is above T.
    pub fn forward(&self, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let states = self.directions.iter().map(|one_way| {
            let bias = (&one_way.input_bias + &one_way.recurrent_bias)?;
            let gates = linear(x, &one_way.input_weight, Some(&bias), Activation::Identity)?;
            lstm(&gates, &one_way.recurrent_weight, lengths, one_way.direction)
        });
        let states: Vec<Tensor> = states.collect::<Result<_>>()?;
        Ok(Tensor::cat(&states, 2)?)
    }
}
