//! Where the tokens of attention lie in a tensor.

use std::ops::Range;

use candle_core::Layout;

use crate::{Error, Result};

/// What the dimensions of queries, keys and values are. `C` channels hold `H` heads of `D` channels one
/// after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLayout {
    /// `[B, H, T, D]`.
    Heads,
    /// `[B, T, C]`, as linear layers leave them.
    TokensFirst,
    /// `[B, C, T]`, as convolutions leave them, or `[B, F, C, P]`: `F` frames of `P` tokens.
    ChannelsFirst,
    /// `[B, F, C, P]`, in which every one of `P` positions attends for itself, over `F` frames.
    OverFrames,
}

impl TokenLayout {
    /// Which dimension holds the channels (of each head, for [`Self::Heads`]), if a tensor of so
    /// many dimensions has this layout.
    pub(super) fn channel_axis(self, rank: usize) -> Option<usize> {
        match (self, rank) {
            (Self::Heads, 4) => Some(3),
            (Self::TokensFirst, 3) => Some(2),
            (Self::ChannelsFirst, 3 | 4) => Some(rank - 2),
            (Self::OverFrames, 4) => Some(2),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Heads => "[B, H, T, D]",
            Self::TokensFirst => "[B, T, C]",
            Self::ChannelsFirst => "[B, C, T] or [B, F, C, P]",
            Self::OverFrames => "[B, F, C, P]",
        }
    }
}

/// How one operand is found in a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) layout: TokenLayout,
    pub(super) heads: usize,
    /// The first channel.
    pub(super) first: usize,
    /// Channels of each head.
    pub(super) size: usize,
}

/// Sizes of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    /// Positions of an item of the batch that attend for themselves.
    pub(super) positions: usize,
    pub(super) tokens: usize,
    /// Tokens that lie at equal distances.
    pub(super) tokens_per_frame: usize,
}

impl Form {
    /// The sizes of the operand in a tensor of shape `dims`.
    pub(super) fn sizes(&self, what: &str, dims: &[usize]) -> Result<Sizes> {
        let wrong = || Error::shape(format!("{what} of attention"), self.layout.name(), dims);
        let axis = self.layout.channel_axis(dims.len()).ok_or_else(wrong)?;
        let channels =
            if self.layout == TokenLayout::Heads { self.size } else { self.heads * self.size };
        let has_heads = self.layout != TokenLayout::Heads || dims[1] == self.heads;
        if !has_heads || self.first + channels > dims[axis] {
            let expected = format!(
                "{}, channels {} to {} for {} heads",
                self.layout.name(),
                self.first,
                self.first + channels,
                self.heads
            );
            return Err(Error::shape(format!("{what} of attention"), expected, dims));
        }
        let [positions, frames, tokens_per_frame] = match (self.layout, dims) {
            (TokenLayout::Heads, dims) => [1, 1, dims[2]],
            (TokenLayout::TokensFirst, dims) => [1, 1, dims[1]],
            (TokenLayout::ChannelsFirst, &[_, frames, _, tokens]) => [1, frames, tokens],
            (TokenLayout::ChannelsFirst, dims) => [1, 1, dims[2]],
            (TokenLayout::OverFrames, dims) => [dims[3], 1, dims[1]],
        };
        let tokens = frames * tokens_per_frame;
        Ok(Sizes { batch: dims[0], positions, tokens, tokens_per_frame })
    }

    /// The place of the operand in a tensor that has passed [`Form::sizes`].
    pub(super) fn place(&self, layout: &Layout) -> Place {
        let (dims, strides) = (layout.dims(), layout.stride());
        let axis = self.layout.channel_axis(dims.len()).unwrap_or_default();
        let channel = strides[axis];
        let (head, frame, token, tokens_per_frame) = match (self.layout, strides) {
            (TokenLayout::Heads, s) => (s[1], 0, s[2], dims[2]),
            (TokenLayout::TokensFirst, s) => (channel * self.size, 0, s[1], dims[1]),
            (TokenLayout::ChannelsFirst, &[_, frame, _, token]) => {
                (channel * self.size, frame, token, dims[3])
            }
            (TokenLayout::ChannelsFirst, s) => (channel * self.size, 0, s[2], dims[2]),
            (TokenLayout::OverFrames, s) => (channel * self.size, 0, s[1], dims[1]),
        };
        let (positions, position) = match (self.layout, dims, strides) {
            (TokenLayout::OverFrames, &[.., positions], &[.., position]) => (positions, position),
            _ => (1, 0),
        };
        Place {
            offset: layout.start_offset() + self.first * channel,
            item: strides[0],
            positions: positions.max(1),
            position,
            head,
            frame,
            token,
            channel,
            tokens_per_frame: tokens_per_frame.max(1),
            size: self.size,
        }
    }
}

/// Where the elements of an operand lie: the offset of the first, and distances between neighbours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    offset: usize,
    item: usize,
    /// Positions of each item.
    positions: usize,
    position: usize,
    head: usize,
    frame: usize,
    pub(super) token: usize,
    pub(super) channel: usize,
    tokens_per_frame: usize,
    /// Channels of a head.
    pub(super) size: usize,
}

impl Place {
    /// That of a head. Items are counted over all positions.
    pub(super) fn of_head(&self, item: usize, head: usize) -> Self {
        let (item, position) = (item / self.positions, item % self.positions);
        let offset = self.offset + item * self.item + position * self.position + head * self.head;
        Self { offset, ..*self }
    }

    /// Offset of the first channel of a token.
    pub(super) fn of_token(&self, token: usize) -> usize {
        let (frame, token) = (token / self.tokens_per_frame, token % self.tokens_per_frame);
        self.offset + frame * self.frame + token * self.token
    }

    /// Offset of an element.
    pub(super) fn at(&self, token: usize, channel: usize) -> usize {
        self.of_token(token) + channel * self.channel
    }

    /// The parts of `tokens` that lie in one frame and have no more than `most` tokens; all parts of a
    /// frame are about equally large, multiples of `step` but for the last.
    pub(super) fn blocks(
        &self,
        tokens: Range<usize>,
        most: usize,
        step: usize,
    ) -> Vec<Range<usize>> {
        let mut blocks = vec![];
        let mut start = tokens.start;
        while start < tokens.end {
            let frame_end = (start / self.tokens_per_frame + 1) * self.tokens_per_frame;
            let end = frame_end.min(tokens.end);
            let count = (end - start).div_ceil(most);
            let len = (end - start).div_ceil(count).next_multiple_of(step);
            blocks.extend((start..end).step_by(len).map(|at| at..end.min(at + len)));
            start = end;
        }
        blocks
    }
}
