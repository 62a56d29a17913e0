//! A transformer layer.

use candle_core::{D, DType, Tensor};
use shared::Result;
use shared::nn::functional::{
    AttentionOptions, Channels, TokenLayout, Window as KeyWindow, add_layer_norm,
    layer_norm_of_sum, multi_head_attention,
};
use shared::nn::{LayerNorm, Linear, Weights};

use crate::config::{EncoderConfig, FfnActivation, NORM_EPS};
use crate::network::Regularisation;
use crate::subnet::{HEAD_DIM, LayerShape, Window};

/// Self-attention and a feed-forward block, each with a residual connection and a layer norm.
pub struct TransformerLayer {
    attention: SelfAttention,
    attention_norm: LayerNorm,
    fc1: Linear,
    activation: FfnActivation,
    fc2: Linear,
    final_norm: LayerNorm,
    layer_norm_first: bool,
}

/// What a layer leaves.
pub struct LayerOutput {
    /// `[B, T, E]`.
    pub x: Tensor,
    /// The output of the feed-forward block before its residual connection, `[B, T, E]`: what
    /// distillation aims at.
    pub layer_result: Tensor,
}

impl TransformerLayer {
    /// The layer of an encoder of width `embed`.
    ///
    /// # Errors
    /// As [`Weights::parameter`].
    pub fn new(
        config: &EncoderConfig,
        embed: usize,
        shape: &LayerShape,
        weights: &Weights,
    ) -> Result<Self> {
        let norm = |name| LayerNorm::new(&weights.at(name), embed, NORM_EPS);
        Ok(Self {
            attention: SelfAttention::new(embed, shape, &weights.at("self_attn"))?,
            attention_norm: norm("self_attn_layer_norm")?,
            fc1: Linear::new(&weights.at("fc1"), embed, shape.ffn, true)?,
            activation: config.activation,
            fc2: Linear::new(&weights.at("fc2"), shape.ffn, embed, true)?,
            final_norm: norm("final_layer_norm")?,
            layer_norm_first: config.layer_norm_first,
        })
    }

    /// The output for `x` `[B, T, E]`; frames where `padding` `[B, T]` (`u8`) is not 0 are not
    /// attended to. Training leaves out what `regularisation` says of the layer of this number.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        padding: Option<&Tensor>,
        regularisation: Option<(&Regularisation, usize)>,
    ) -> Result<LayerOutput> {
        let thinned = |x: Tensor, block: &str| match regularisation {
            Some((it, layer)) => it.hidden.forward(&x, &format!("layers.{layer}.{block}")),
            None => Ok(x),
        };
        let sum_norm = |sum: &Tensor, x: &Tensor, norm: &LayerNorm| {
            layer_norm_of_sum(sum, x, Some(&norm.weight), Some(&norm.bias), norm.eps)
        };
        if self.layer_norm_first {
            let attended = self.attention.forward(&self.attention_norm.forward(x)?, padding)?;
            let attended = thinned(attended, "attention")?;
            let LayerNorm { weight, bias, eps } = &self.final_norm;
            let (x, normed) = add_layer_norm(&attended, x, Some(weight), Some(bias), *eps)?;
            let layer_result = self.feed_forward(&normed, regularisation)?;
            let x = (x + thinned(layer_result.clone(), "feed_forward")?)?;
            return Ok(LayerOutput { x, layer_result });
        }
        let attended = thinned(self.attention.forward(x, padding)?, "attention")?;
        let x = sum_norm(&attended, x, &self.attention_norm)?;
        let layer_result = self.feed_forward(&x, regularisation)?;
        let added = thinned(layer_result.clone(), "feed_forward")?;
        Ok(LayerOutput { x: sum_norm(&added, &x, &self.final_norm)?, layer_result })
    }

    /// The attention alone.
    pub fn attention(&self) -> &SelfAttention {
        &self.attention
    }

    fn feed_forward(
        &self,
        x: &Tensor,
        regularisation: Option<(&Regularisation, usize)>,
    ) -> Result<Tensor> {
        let hidden = self.fc1.forward_with(x, self.activation.fused())?;
        let mut hidden = self.activation.finish(hidden)?;
        if let Some((it, layer)) = regularisation {
            hidden = it.activation.forward(&hidden, &format!("layers.{layer}.activation"))?;
        }
        self.fc2.forward(&hidden)
    }
}

/// Multi-head self-attention with projections before and after.
pub struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    window: Window,
}

impl SelfAttention {
    fn new(embed: usize, shape: &LayerShape, weights: &Weights) -> Result<Self> {
        let attention = shape.attention_dim();
        let project = |name| Linear::new(&weights.at(name), embed, attention, true);
        Ok(Self {
            q_proj: project("q_proj")?,
            k_proj: project("k_proj")?,
            v_proj: project("v_proj")?,
            out_proj: Linear::new(&weights.at("out_proj"), attention, embed, true)?,
            heads: shape.heads,
            window: shape.window,
        })
    }

    /// The output `[B, T, E]` for `x` `[B, T, E]`, see [`TransformerLayer::forward`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, padding: Option<&Tensor>) -> Result<Tensor> {
        let q = self.q_proj.forward(x)?;
        let k = self.k_proj.forward(x)?;
        let v = self.v_proj.forward(x)?;
        let scale = 1.0 / (HEAD_DIM as f64).sqrt();
        self.out_proj.forward(&attend([&q, &k, &v], self.heads, scale, self.window, padding)?)
    }
}

/// Attention of queries, keys and values `[B, T, 64 H]` in `heads` heads.
///
/// Sliding windows have the published program's edge: the sequence is filled up *in front* to a multiple
/// of the window with keys and values of 0 that are attended to like any others, so that the first
/// frames' results are drawn towards 0. A frame that sees nothing but padding has a result of 0.
///
/// # Errors
/// When the shapes do not fit.
pub fn attend(
    [q, k, v]: [&Tensor; 3],
    heads: usize,
    scale: f64,
    window: Window,
    padding: Option<&Tensor>,
) -> Result<Tensor> {
    let all = |of| Channels { of, range: 0..Tensor::dim(of, D::Minus1).unwrap_or_default() };
    let attend = |q, k, v, key_padding, windows| {
        let layout = TokenLayout::TokensFirst;
        let options = AttentionOptions { layout, heads, scale, key_padding, windows };
        multi_head_attention(&all(q), &all(k), &all(v), &options)
    };
    let Window::Frames(window) = window else {
        return attend(q, k, v, padding, None);
    };
    let (batch, frames, channels) = k.dims3()?;
    let front = frames.next_multiple_of(window) - frames;
    let windows: Vec<KeyWindow> = (0..frames)
        .map(|frame| {
            let first_key = (frame + front).saturating_sub(window / 2);
            let end = (frame + front + window / 2 + 1).min(front + frames);
            KeyWindow { queries: frame..frame + 1, first_key, keys: end - first_key }
        })
        .collect();
    if front == 0 {
        return attend(q, k, v, padding, Some(&windows));
    }
    let zeros = Tensor::zeros((batch, front, channels), k.dtype(), k.device())?;
    let [k, v] = [Tensor::cat(&[&zeros, k], 1)?, Tensor::cat(&[&zeros, v], 1)?];
    let unmasked = Tensor::zeros((batch, front), DType::U8, k.device())?;
    let padding = padding.map(|padding| Tensor::cat(&[&unmasked, padding], 1)).transpose()?;
    attend(q, &k, &v, padding.as_ref(), Some(&windows))
}
