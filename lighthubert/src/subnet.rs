//! Which part of a supernet is active.

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

use crate::config::{SUPERNET_LAYERS, SupernetConfig};

/// Channels of an attention head, the same in all networks.
pub const HEAD_DIM: usize = 64;

/// Which frames a frame attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// All.
    Global,
    /// Those at most half of this even number of frames away.
    Frames(usize),
}

/// The sizes of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Attention heads, of [`HEAD_DIM`] channels each.
    pub heads: usize,
    /// Hidden units of the feed-forward block.
    pub ffn: usize,
    /// Reach of the attention.
    pub window: Window,
}

impl LayerShape {
    /// Channels of queries, keys and values.
    pub fn attention_dim(&self) -> usize {
        self.heads * HEAD_DIM
    }
}

/// The sizes of one network within a supernet; as JSON, the dictionary of the published program:
/// `embed_dim`, `layer_num`, and `atten_dim`, `ffn_embed`, `heads_num` and `slide_wsz` with an entry
/// for every layer that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Dictionary", into = "Dictionary")]
pub struct Subnet {
    embed_dim: usize,
    layers: Vec<LayerShape>,
}

impl Subnet {
    /// A network of the given width and layers.
    pub fn new(embed_dim: usize, layers: Vec<LayerShape>) -> Self {
        Self { embed_dim, layers }
    }

    /// Width: channels between the layers.
    pub fn embed_dim(&self) -> usize {
        self.embed_dim
    }

    /// The layers that are kept, in order.
    pub fn layers(&self) -> &[LayerShape] {
        &self.layers
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The supernet's layers that are kept.
    ///
    /// # Errors
    /// When no layers are chosen for this depth.
    pub fn kept_layers(&self) -> Result<&'static [usize]> {
        Ok(match self.depth() {
            12 => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            11 => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            10 => &[0, 1, 2, 3, 4, 5, 6, 8, 9, 10],
            9 => &[0, 1, 2, 4, 5, 6, 8, 9, 10],
            8 => &[0, 1, 2, 4, 5, 6, 8, 9],
            7 => &[0, 1, 2, 4, 5, 8, 9],
            6 => &[0, 1, 4, 5, 8, 9],
            depth => {
                return Err(Error::Argument(format!(
                    "subnet: layer_num is {depth}, expected 6 to {SUPERNET_LAYERS}"
                )));
            }
        })
    }

    /// Fails unless the network is a part of `supernet`, naming the size that is not.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn check_within(&self, supernet: &SupernetConfig) -> Result<()> {
        let within = |name: String, found: usize, most: usize| match (1..=most).contains(&found) {
            true => Ok(()),
            false => {
                Err(Error::Argument(format!("subnet: {name} is {found}, expected 1 to {most}")))
            }
        };
        within("embed_dim".into(), self.embed_dim, supernet.embed_dim)?;
        let groups = supernet.encoder.positional.groups;
        if !self.embed_dim.is_multiple_of(groups) {
            return Err(Error::Argument(format!(
                "subnet: embed_dim is {}, expected a multiple of the {groups} groups of the \
                 positional convolution",
                self.embed_dim
            )));
        }
        self.kept_layers()?;
        for (i, layer) in self.layers.iter().enumerate() {
            within(format!("heads_num of layer {i}"), layer.heads, supernet.attention_heads())?;
            within(format!("ffn_embed of layer {i}"), layer.ffn, supernet.ffn_embed_dim)?;
            ffn_units(supernet, self.embed_dim, layer.ffn)?;
        }
        Ok(())
    }
}

/// A choice among the units of a full layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Units {
    /// The first.
    First(usize),
    /// Those of these numbers.
    Index(Vec<u32>),
}

/// The hidden units that a feed-forward block of `ffn` units uses in a network of width `embed`.
///
/// The full block is `s = ffn_embed_dim / embed_dim` blocks of equal length, and of each that is
/// needed the same leading part is used, as many units as the network is wide.
///
/// # Errors
/// When the ratio of the two sizes is above `s`.
pub fn ffn_units(supernet: &SupernetConfig, embed: usize, ffn: usize) -> Result<Units> {
    let blocks = supernet.ffn_embed_dim / supernet.embed_dim;
    if ffn == supernet.ffn_embed_dim || blocks <= 1 {
        return Ok(Units::First(ffn));
    }
    let block = supernet.ffn_embed_dim / blocks;
    // In f64, whose rounding decides for odd sizes.
    let ratio = ffn as f64 / embed as f64;
    let part = (ffn as f64 / ratio) as usize;
    let used = ratio.ceil() as usize;
    if used > blocks || part == 0 {
        return Err(Error::Argument(format!(
            "subnet: ffn_embed {ffn} is more than {blocks} times embed_dim {embed}"
        )));
    }
    let units = |i: usize| {
        let count = part.min(ffn.saturating_sub(i * part));
        (0..count).map(move |unit| (i * block + unit) as u32)
    };
    let index: Vec<u32> = (0..used).flat_map(units).collect();
    Ok(match index.last() {
        Some(last) if *last as usize + 1 == index.len() => Units::First(index.len()),
        _ => Units::Index(index),
    })
}

/// The published form of a [`Subnet`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dictionary {
    embed_dim: usize,
    layer_num: usize,
    atten_dim: Vec<usize>,
    ffn_embed: Vec<usize>,
    heads_num: Vec<usize>,
    #[serde(default)]
    slide_wsz: Option<Vec<WindowEntry>>,
    /// Only informs.
    #[serde(default, skip_serializing)]
    #[allow(dead_code)]
    ffn_ratio: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum WindowEntry {
    Frames(usize),
    Name(String),
}

impl TryFrom<Dictionary> for Subnet {
    type Error = Error;

    fn try_from(dictionary: Dictionary) -> Result<Self> {
        let Dictionary { embed_dim, layer_num, atten_dim, ffn_embed, heads_num, slide_wsz, .. } =
            dictionary;
        let wrong = |reason: String| Error::Argument(format!("subnet: {reason}"));
        let windows =
            slide_wsz.unwrap_or_else(|| vec![WindowEntry::Name("global".into()); layer_num]);
        for (name, found) in [
            ("atten_dim", atten_dim.len()),
            ("ffn_embed", ffn_embed.len()),
            ("heads_num", heads_num.len()),
            ("slide_wsz", windows.len()),
        ] {
            if found != layer_num {
                return Err(wrong(format!(
                    "{name} has {found} entries, expected layer_num, {layer_num}"
                )));
            }
        }
        let sizes = atten_dim.into_iter().zip(ffn_embed).zip(heads_num).zip(windows);
        let layers = sizes.map(|(((attention, ffn), heads), window)| {
            if heads.checked_mul(HEAD_DIM) != Some(attention) {
                return Err(wrong(format!(
                    "atten_dim {attention} is not {HEAD_DIM} times heads_num {heads}"
                )));
            }
            let window = match window {
                WindowEntry::Name(name) if name == "global" => Window::Global,
                WindowEntry::Frames(frames) if frames > 0 && frames.is_multiple_of(2) => {
                    Window::Frames(frames)
                }
                _ => return Err(wrong("slide_wsz takes \"global\" or even numbers".into())),
            };
            Ok(LayerShape { heads, ffn, window })
        });
        Ok(Self::new(embed_dim, layers.collect::<Result<_>>()?))
    }
}

impl From<Subnet> for Dictionary {
    fn from(subnet: Subnet) -> Self {
        let each = |size: fn(&LayerShape) -> usize| subnet.layers.iter().map(size).collect();
        let windows = subnet.layers.iter().map(|layer| match layer.window {
            Window::Global => WindowEntry::Name("global".into()),
            Window::Frames(frames) => WindowEntry::Frames(frames),
        });
        Self {
            embed_dim: subnet.embed_dim,
            layer_num: subnet.layers.len(),
            atten_dim: each(LayerShape::attention_dim),
            ffn_embed: each(|layer| layer.ffn),
            heads_num: each(|layer| layer.heads),
            slide_wsz: Some(windows.collect()),
            ffn_ratio: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feed_forward_blocks_use_the_leading_part_of_each_block() {
        let published = SupernetConfig::published();
        let ranges = |ranges: &[std::ops::Range<u32>]| {
            Units::Index(ranges.iter().cloned().flatten().collect())
        };
        for (embed, ffn, expected) in [
            (768, 3072, Units::First(3072)),
            (768, 2688, Units::First(2688)),
            (512, 1792, ranges(&[0..512, 768..1280, 1536..2048, 2304..2560])),
            (640, 2560, ranges(&[0..640, 768..1408, 1536..2176, 2304..2944])),
            (256, 768, ranges(&[0..256, 768..1024, 1536..1792])),
            (256, 100, Units::First(100)),
        ] {
            assert_eq!(ffn_units(&published, embed, ffn).unwrap(), expected, "{embed} {ffn}");
        }
        assert!(ffn_units(&published, 256, 1025).is_err());
        // The rounding of 21 / (21 / 19) leaves 18 units a block.
        let narrow = SupernetConfig { embed_dim: 64, ffn_embed_dim: 256, ..published };
        let found = ffn_units(&narrow, 19, 21).unwrap();
        assert_eq!(found, ranges(&[0..18, 64..67]));
    }

    #[test]
    fn dictionaries_are_read_and_written() {
        let text = r#"{"embed_dim":512,"layer_num":2,"atten_dim":[512,640],"ffn_embed":[2048,1792],"heads_num":[8,10],"slide_wsz":["global",16]}"#;
        let subnet: Subnet = serde_json::from_str(text).unwrap();
        assert_eq!(subnet.layers()[1].window, Window::Frames(16));
        assert_eq!(serde_json::to_string(&subnet).unwrap(), text);
        for (from, to) in [
            ("\"layer_num\":2", "\"layer_num\":3"),
            ("512,640]", "512,641]"),
            ("16]", "15]"),
            ("\"global\"", "\"local\""),
            ("\"embed_dim\"", "\"width\""),
        ] {
            assert!(serde_json::from_str::<Subnet>(&text.replace(from, to)).is_err(), "{to}");
        }
        let with_ratio = text.replace("{", "{\"ffn_ratio\":[4.0,3.5],");
        assert_eq!(serde_json::from_str::<Subnet>(&with_ratio).unwrap(), subnet);
        assert!(subnet.kept_layers().is_err());
    }

    #[test]
    fn only_parts_of_the_supernet_are_taken() {
        let published = SupernetConfig::published();
        let layer = LayerShape { heads: 8, ffn: 2048, window: Window::Global };
        let subnet = |embed, layer, depth| Subnet::new(embed, vec![layer; depth]);
        assert!(subnet(512, layer, 6).check_within(&published).is_ok());
        for (subnet, word) in [
            (subnet(784, layer, 12), "embed_dim"),
            (subnet(500, layer, 12), "groups"),
            (subnet(512, layer, 5), "layer_num"),
            (subnet(512, LayerShape { heads: 13, ..layer }, 12), "heads_num"),
            (subnet(512, LayerShape { ffn: 3073, ..layer }, 12), "ffn_embed"),
            (subnet(512, LayerShape { ffn: 2049, ..layer }, 12), "4 times"),
        ] {
            let message = subnet.check_within(&published).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
