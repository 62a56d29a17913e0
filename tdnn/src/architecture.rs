//! Which network: depth, widths and kernels, and the architecture strings that name them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shared::{Error, Result};

/// Channel groups of a Res2 convolution: the mid width of a block is a multiple of it.
pub const RES2_SCALE: usize = 8;
/// Factor by which a squeeze-excitation layer narrows the trunk.
pub const SE_REDUCTION: usize = 4;
/// Channels of the attention's hidden layer, the same in every architecture.
pub const ATTENTION_CHANNELS: usize = 128;

const LARGEST_WIDTH: usize = 1 << 14;
const LARGEST_DEPTH: usize = 64;
const KERNELS: [usize; 4] = [1, 3, 5, 7];

const NAMED: [(&str, &str); 8] = [
    ("max", "4.512.512.512.512.512.5.5.5.5.5.1536"),
    ("Kmin", "4.512.512.512.512.512.1.1.1.1.1.1536"),
    ("Dmin", "2.512.512.512.1.1.1.1536"),
    ("C1min", "2.256.256.256.1.1.1.768"),
    ("C2min", "2.128.128.128.1.1.1.384"),
    ("Base", "3.512.512.512.512.5.3.3.3.1536"),
    ("Mobile", "3.384.256.256.256.5.3.3.3.768"),
    ("Small", "2.256.256.256.3.3.3.400"),
];

/// The elastic part of one SE-Res2 block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Channels between the two 1x1 convolutions; the Res2 convolutions have an eighth of them.
    pub mid: usize,
    /// Kernel of the Res2 convolutions.
    pub kernel: usize,
}

impl Block {
    /// Channels of one Res2 convolution.
    pub fn split(self) -> usize {
        self.mid / RES2_SCALE
    }
}

/// The numbers that tell one network of the family from another.
///
/// Written as a string `depth.trunk.mid_1..mid_d.stem_kernel.kernel_1..kernel_d.cat`, e.g.
/// `3.512.512.512.512.5.3.3.3.1536`; `-` is read in place of `.`, and the names of the paper's
/// networks ([`Architecture::named`]) are read as well.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Architecture {
    trunk: usize,
    stem_kernel: usize,
    blocks: Vec<Block>,
    cat: usize,
}

impl Architecture {
    /// The architecture with `widths` (trunk first, then the mid width of each block), `kernels`
    /// (stem first, then each block) and `cat` channels before pooling.
    ///
    /// # Errors
    /// When the lists differ in length, a number is out of its range, or a kernel is not 1, 3, 5
    /// or 7.
    pub fn new(widths: &[usize], kernels: &[usize], cat: usize) -> Result<Self> {
        let wrong = |reason: String| Err(Error::Argument(format!("architecture: {reason}")));
        let ([trunk, mids @ ..], [stem_kernel, block_kernels @ ..]) = (widths, kernels) else {
            return wrong("needs a trunk width and a stem kernel".into());
        };
        if mids.len() != block_kernels.len() || mids.is_empty() || mids.len() > LARGEST_DEPTH {
            return wrong(format!(
                "{} mid widths and {} block kernels, where 1 to {LARGEST_DEPTH} of each are needed",
                mids.len(),
                block_kernels.len()
            ));
        }
        if let Some(width) =
            widths.iter().chain([&cat]).find(|width| !(1..=LARGEST_WIDTH).contains(*width))
        {
            return wrong(format!("width {width} is outside 1..={LARGEST_WIDTH}"));
        }
        if let Some(mid) = mids.iter().find(|mid| **mid < RES2_SCALE) {
            return wrong(format!("mid width {mid} is below {RES2_SCALE}"));
        }
        if let Some(kernel) = kernels.iter().find(|kernel| !KERNELS.contains(kernel)) {
            return wrong(format!("kernel {kernel} is none of {KERNELS:?}"));
        }
        let blocks = mids.iter().zip(block_kernels);
        Ok(Self {
            trunk: *trunk,
            stem_kernel: *stem_kernel,
            blocks: blocks.map(|(&mid, &kernel)| Block { mid, kernel }).collect(),
            cat,
        })
    }

    /// The network that the paper or its authors call `name` (in any case): `max`, `Kmin`, `Dmin`,
    /// `C1min`, `C2min`, `Base`, `Mobile` or `Small`.
    pub fn named(name: &str) -> Option<Self> {
        let (_, string) = NAMED.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Self::from_fields(string).ok()
    }

    /// What the paper or its authors call this network, if they do; see [`Architecture::named`].
    pub fn name(&self) -> Option<&'static str> {
        let string = self.to_string();
        NAMED.iter().find(|(_, known)| *known == string).map(|(name, _)| *name)
    }

    /// Output channels of the stem and of every block.
    pub fn trunk(&self) -> usize {
        self.trunk
    }

    /// Kernel of the stem.
    pub fn stem_kernel(&self) -> usize {
        self.stem_kernel
    }

    /// The blocks, from the stem on.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Output channels of the aggregation convolution, which are pooled.
    pub fn cat(&self) -> usize {
        self.cat
    }

    /// Trunk width, then the mid width of each block.
    pub fn widths(&self) -> Vec<usize> {
        std::iter::once(self.trunk).chain(self.blocks.iter().map(|block| block.mid)).collect()
    }

    /// Stem kernel, then the kernel of each block.
    pub fn kernels(&self) -> Vec<usize> {
        let blocks = self.blocks.iter().map(|block| block.kernel);
        std::iter::once(self.stem_kernel).chain(blocks).collect()
    }

    /// Fails unless plain layers of these widths exist: mid widths divide into [`RES2_SCALE`]
    /// groups and the trunk by [`SE_REDUCTION`]. (A path through a supernet needs neither.)
    ///
    /// # Errors
    /// Naming the width.
    pub fn check_plain(&self) -> Result<()> {
        let mids = self.blocks.iter().map(|block| (block.mid, RES2_SCALE, "mid"));
        for (width, divisor, what) in mids.chain([(self.trunk, SE_REDUCTION, "trunk")]) {
            if width % divisor != 0 {
                return Err(Error::Argument(format!(
                    "architecture {self}: {what} width {width} is not a multiple of {divisor}"
                )));
            }
        }
        Ok(())
    }

    /// Fails unless this is a part of `largest`: no deeper, no wider, no larger kernels.
    ///
    /// # Errors
    /// Naming both.
    pub fn check_within(&self, largest: &Self) -> Result<()> {
        let within = self.depth() <= largest.depth()
            && self.widths().iter().zip(largest.widths()).all(|(a, b)| *a <= b)
            && self.kernels().iter().zip(largest.kernels()).all(|(a, b)| *a <= b)
            && self.cat <= largest.cat;
        if within {
            return Ok(());
        }
        Err(Error::Argument(format!("architecture {self} is not a part of the supernet {largest}")))
    }

    fn from_fields(string: &str) -> Result<Self> {
        let wrong = || {
            Error::Argument(format!(
                "architecture {string:?}: expected depth.trunk.mid_1..mid_d.stem_kernel.kernel_1\
                 ..kernel_d.cat, such as 2.256.256.256.3.3.3.400, or one of {}",
                NAMED.map(|(name, _)| name).join(", ")
            ))
        };
        let numbers: Vec<usize> = string
            .split(['.', '-'])
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| wrong())?;
        let [depth, lists @ .., cat] = numbers.as_slice() else { return Err(wrong()) };
        let (widths, kernels) = lists.split_at(lists.len() / 2);
        if lists.len() % 2 != 0 || widths.len().checked_sub(1) != Some(*depth) {
            return Err(wrong());
        }
        Self::new(widths, kernels, *cat)
    }
}

impl Default for Architecture {
    /// The smallest network that the authors recommend, `Small`.
    fn default() -> Self {
        let blocks = vec![Block { mid: 256, kernel: 3 }; 2];
        Self { trunk: 256, stem_kernel: 3, blocks, cat: 400 }
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(string: &str) -> Result<Self> {
        Self::named(string).map_or_else(|| Self::from_fields(string), Ok)
    }
}

impl TryFrom<String> for Architecture {
    type Error = Error;

    fn try_from(string: String) -> Result<Self> {
        string.parse()
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.to_string()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.depth())?;
        for number in self.widths().iter().chain(&self.kernels()) {
            write!(f, ".{number}")?;
        }
        write!(f, ".{}", self.cat)
    }
}

/// The size of a whole network: its architecture and its two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Input features a frame.
    pub features: usize,
    /// Numbers in an embedding.
    pub embedding: usize,
    /// Depth, widths and kernels; of a supernet, the largest.
    pub architecture: Architecture,
}

impl NetworkConfig {
    /// The network of `architecture` between the published ends: 80 features, embeddings of 192.
    pub fn published(architecture: Architecture) -> Self {
        Self { features: 80, embedding: 192, architecture }
    }

    /// The supernet of all published weights: 4 blocks of 512 channels.
    pub fn tdnn8m2g() -> Self {
        Self::uniform(4, 512)
    }

    /// The supernet of 4 blocks of 800 channels.
    pub fn tdnn14m4g() -> Self {
        Self::uniform(4, 800)
    }

    /// The supernet of 3 blocks of 1024 channels.
    pub fn tdnn16m4g() -> Self {
        Self::uniform(3, 1024)
    }

    /// The supernet of 5 blocks of 1024 channels.
    pub fn tdnn26m7g() -> Self {
        Self::uniform(5, 1024)
    }

    /// The fixed network nearest to ECAPA-TDNN with 512 channels.
    pub fn ecapa_tdnn() -> Self {
        Self::published(Architecture {
            trunk: 512,
            stem_kernel: 5,
            blocks: vec![Block { mid: 512, kernel: 3 }; 3],
            cat: 1536,
        })
    }

    fn uniform(depth: usize, width: usize) -> Self {
        let blocks = vec![Block { mid: width, kernel: 5 }; depth];
        Self::published(Architecture { trunk: width, stem_kernel: 5, blocks, cat: 1536 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strings_and_names_are_read_and_written() {
        for (name, string) in NAMED {
            let architecture: Architecture = string.parse().unwrap();
            assert_eq!(architecture.to_string(), string);
            assert_eq!(Architecture::named(name).unwrap(), architecture);
            assert_eq!(architecture.name(), Some(name));
            assert_eq!(name.to_lowercase().parse::<Architecture>().unwrap(), architecture);
            assert_eq!(string.replace('.', "-").parse::<Architecture>().unwrap(), architecture);
            architecture.check_plain().unwrap();
            architecture.check_within(&NetworkConfig::tdnn8m2g().architecture).unwrap();
        }
    }

    #[test]
    fn wrong_strings_are_refused() {
        for bad in [
            "",
            "Bas",
            "2",
            "2.3",
            "0.256.3.400",
            "2.256.256.256.3.3.400",
            "2.256.256.256.3.3.2.400",
            "2.256.256.256.3.3.9.400",
            "3.256.256.256.3.3.3.400",
            "2.256.256.7.3.3.3.400",
            "2.0.256.256.3.3.3.400",
            "2.256.256.256.3.3.3.0",
            "2.256.256.99999.3.3.3.400",
            "2.256.256.256.3.3.3.400.",
            "2.256.256.-256.3.3.3.400",
            "18446744073709551615.1.1",
        ] {
            assert!(bad.parse::<Architecture>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_without_plain_layers_is_told_so() {
        for (string, plain) in [
            ("1.20.40.3.3.33", true),
            ("1.20.44.3.3.33", false),
            ("1.18.40.3.3.33", false),
            ("3.383.256.256.256.5.3.3.3.768", false),
        ] {
            assert_eq!(string.parse::<Architecture>().unwrap().check_plain().is_ok(), plain);
        }
    }

    #[test]
    fn parts_are_told_from_others() {
        let largest: Architecture = "2.32.64.32.5.3.5.40".parse().unwrap();
        for (string, within) in [
            ("2.32.64.32.5.3.5.40", true),
            ("1.24.16.1.3.33", true),
            ("3.32.64.32.32.5.3.5.5.40", false),
            ("2.40.64.32.5.3.5.40", false),
            ("2.32.64.40.5.3.5.40", false),
            ("2.32.64.32.5.5.5.40", false),
            ("2.32.64.32.5.3.5.41", false),
        ] {
            let architecture: Architecture = string.parse().unwrap();
            assert_eq!(architecture.check_within(&largest).is_ok(), within, "{string}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[-0-9.a-zA-Z]{0,60}") {
            if let Ok(architecture) = text.parse::<Architecture>() {
                let again: Architecture = architecture.to_string().parse().unwrap();
                prop_assert_eq!(architecture, again);
            }
        }
    }
}
