//! Search spaces: the networks that a supernet was trained for.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shared::rng::Stream;
use shared::{Error, Result};

use crate::config::{RATE_HZ, SupernetConfig};
use crate::cost;
use crate::subnet::{LayerShape, Subnet, Window};

/// Subnets drawn before a budget is given up.
const MOST_DRAWS: usize = 100_000;

/// Length of the signal whose multiply-accumulates a [`Budget`] limits: 10 s.
pub const BUDGET_SAMPLES: usize = 10 * RATE_HZ as usize;

/// What a network may cost at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Parameters, see [`cost::parameters`].
    pub parameters: Option<u64>,
    /// Multiply-accumulates for 10 s, see [`cost::macs`].
    pub macs: Option<u64>,
}

impl Budget {
    /// Whether `subnet` of `supernet` costs no more.
    ///
    /// # Errors
    /// When the subnet is not within the supernet.
    pub fn allows(&self, supernet: &SupernetConfig, subnet: &Subnet) -> Result<bool> {
        let is_within = |most: Option<u64>, found: u64| most.is_none_or(|most| found <= most);
        let macs = cost::macs(&supernet.network(subnet)?, BUDGET_SAMPLES);
        Ok(is_within(self.parameters, cost::parameters(supernet, subnet))
            && is_within(self.macs, macs))
    }
}

/// A published search space, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpaceName {
    /// LightHuBERT Base.
    Base,
    /// LightHuBERT Small.
    Small,
    /// The first stage of training: the space of Base, of which only the largest network is trained.
    Stage1,
}

impl SpaceName {
    /// The search space.
    pub fn space(self) -> SearchSpace {
        match self {
            Self::Base | Self::Stage1 => SearchSpace {
                embed_dim: vec![512, 640, 768],
                heads_num: vec![8, 10, 12],
                ffn_ratio: vec![3.5, 4.0],
                layer_num: vec![12],
            },
            Self::Small => SearchSpace {
                embed_dim: vec![256, 384, 512],
                heads_num: vec![4, 6, 8],
                ffn_ratio: vec![3.0, 3.5, 4.0],
                layer_num: vec![10, 11, 12],
            },
        }
    }

    /// The network whose results are published.
    pub fn default_subnet(self) -> Subnet {
        match self {
            Self::Base => uniform(640, 10, 4.0, 12),
            Self::Small => uniform(384, 6, 4.0, 12),
            Self::Stage1 => self.space().largest(),
        }
    }
}

impl FromStr for SpaceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "base" => Ok(Self::Base),
            "small" => Ok(Self::Small),
            "stage1" => Ok(Self::Stage1),
            _ => Err(Error::Argument(format!(
                "search space {text:?} is none of base, small and stage1"
            ))),
        }
    }
}

/// The sizes that networks may have, each list in ascending order. Heads and ratios of hidden units
/// to width are chosen for every layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSpace {
    /// Widths.
    pub embed_dim: Vec<usize>,
    /// Attention heads.
    pub heads_num: Vec<usize>,
    /// Hidden units of a feed-forward block over the width.
    pub ffn_ratio: Vec<f64>,
    /// Numbers of layers.
    pub layer_num: Vec<usize>,
}

impl SearchSpace {
    /// The largest network.
    pub fn largest(&self) -> Subnet {
        self.at_end(|list| list.last(), |list| list.last())
    }

    /// The smallest network.
    pub fn smallest(&self) -> Subnet {
        self.at_end(|list| list.first(), |list| list.first())
    }

    /// How many networks there are.
    pub fn count(&self) -> u128 {
        let each = (self.heads_num.len() * self.ffn_ratio.len()) as u128;
        let layers = self.layer_num.iter().map(|depth| each.saturating_pow(*depth as u32));
        layers.fold(0, u128::saturating_add).saturating_mul(self.embed_dim.len() as u128)
    }

    /// A network drawn from `stream`: number of layers, width, ratio of every layer, heads of every
    /// layer, in this order and each uniformly.
    pub fn sample(&self, stream: &mut Stream) -> Subnet {
        let depth = pick(&self.layer_num, stream);
        let embed = pick(&self.embed_dim, stream);
        let ratios: Vec<f64> = (0..depth).map(|_| pick(&self.ffn_ratio, stream)).collect();
        let layers = ratios
            .into_iter()
            .map(|ratio| layer(embed, pick(&self.heads_num, stream), ratio))
            .collect();
        Subnet::new(embed, layers)
    }

    /// A network drawn from `stream` until one is within `budget` as a part of `supernet`.
    ///
    /// # Errors
    /// When the smallest network is not, or none is found.
    pub fn sample_within(
        &self,
        supernet: &SupernetConfig,
        budget: &Budget,
        stream: &mut Stream,
    ) -> Result<Subnet> {
        let smallest = self.smallest();
        if !budget.allows(supernet, &smallest)? {
            return Err(Error::Argument(format!(
                "no subnet is within the budget: the smallest has {} parameters and {} \
                 multiply-accumulates for 10 s",
                cost::parameters(supernet, &smallest),
                cost::macs(&supernet.network(&smallest)?, BUDGET_SAMPLES)
            )));
        }
        for _ in 0..MOST_DRAWS {
            let subnet = self.sample(stream);
            if budget.allows(supernet, &subnet)? {
                return Ok(subnet);
            }
        }
        Err(Error::Argument(format!(
            "none of {MOST_DRAWS} random subnets is within the budget; it allows little more than the \
             smallest"
        )))
    }

    fn at_end(
        &self,
        size: fn(&[usize]) -> Option<&usize>,
        ratio: fn(&[f64]) -> Option<&f64>,
    ) -> Subnet {
        let size = |list: &[usize]| size(list).copied().unwrap_or(0);
        uniform(
            size(&self.embed_dim),
            size(&self.heads_num),
            ratio(&self.ffn_ratio).copied().unwrap_or(0.0),
            size(&self.layer_num),
        )
    }
}

fn layer(embed: usize, heads: usize, ratio: f64) -> LayerShape {
    LayerShape { heads, ffn: (ratio * embed as f64) as usize, window: Window::Global }
}

fn uniform(embed: usize, heads: usize, ratio: f64, depth: usize) -> Subnet {
    Subnet::new(embed, vec![layer(embed, heads, ratio); depth])
}

fn pick<T: Copy + Default>(list: &[T], stream: &mut Stream) -> T {
    list.get(stream.below(list.len())).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_lie_in_the_space_and_repeat() {
        for name in [SpaceName::Base, SpaceName::Small] {
            let (space, supernet) = (name.space(), SupernetConfig::published());
            let draw = |index| space.sample(&mut Stream::new(3, "subnet", index));
            let bounds =
                [space.smallest(), space.largest()].map(|it| cost::parameters(&supernet, &it));
            let mut depths = std::collections::BTreeSet::new();
            for index in 0..200 {
                let subnet = draw(index);
                subnet.check_within(&supernet).unwrap();
                depths.insert(subnet.depth());
                let parameters = cost::parameters(&supernet, &subnet);
                assert!((bounds[0]..=bounds[1]).contains(&parameters));
            }
            assert_eq!(depths.len(), space.layer_num.len());
            assert_eq!(draw(1), draw(1));
            assert_ne!(draw(1), draw(2));
        }
    }

    #[test]
    fn budgets_hold() {
        let (space, supernet) = (SpaceName::Base.space(), SupernetConfig::published());
        let draw = |budget| space.sample_within(&supernet, &budget, &mut Stream::new(0, "x", 0));
        let parameters = Budget { parameters: Some(60_000_000), macs: None };
        let macs = Budget { parameters: None, macs: Some(55_000_000_000) };
        for budget in [parameters, macs, Budget::default()] {
            let subnet = draw(budget).unwrap();
            assert!(budget.allows(&supernet, &subnet).unwrap());
        }
        assert!(!parameters.allows(&supernet, &space.largest()).unwrap());
        assert!(!macs.allows(&supernet, &space.largest()).unwrap());
        let budget = Budget { parameters: Some(41_249_535), macs: None };
        let message = draw(budget).unwrap_err().to_string();
        assert!(message.contains("41249536"), "{message}");
    }
}
