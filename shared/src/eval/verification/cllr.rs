//! Cllr: the cost of log-likelihood ratios as such (Brummer and du Preez 2006).

use super::trials::{Tie, Trials};

impl Trials {
    /// The cost of the scores taken as natural log-likelihood ratios, in bits: 0 for a perfect
    /// system, 1 for one that always says 0, more for one that misleads.
    pub fn cllr(&self) -> f64 {
        let (targets, nontargets) = self.ties().iter().fold((0.0, 0.0), |(t, n), tie| {
            let target = if tie.targets > 0.0 { tie.targets * bits(-tie.score) } else { 0.0 };
            let nontarget =
                if tie.nontargets > 0.0 { tie.nontargets * bits(tie.score) } else { 0.0 };
            (t + target, n + nontarget)
        });
        0.5 * (targets / self.targets() + nontargets / self.nontargets())
    }

    /// The lowest [`Trials::cllr`] that any non-decreasing change of the scores can reach: what is
    /// lost by discrimination rather than by calibration.
    pub fn min_cllr(&self) -> f64 {
        let prior = self.nontargets() / self.targets();
        let cost: f64 = self
            .isotonic_blocks()
            .iter()
            .map(|block| {
                // The block's log-likelihood ratio; infinite where it holds one class only, which
                // then costs nothing.
                let llr = (block.targets / block.nontargets * prior).ln();
                let target = if block.targets > 0.0 { block.targets * bits(-llr) } else { 0.0 };
                let nontarget =
                    if block.nontargets > 0.0 { block.nontargets * bits(llr) } else { 0.0 };
                target / self.targets() + nontarget / self.nontargets()
            })
            .sum();
        0.5 * cost
    }

    /// Neighbouring scores pooled until the share of targets grows from block to block
    /// (pool adjacent violators).
    fn isotonic_blocks(&self) -> Vec<Tie> {
        let mut blocks: Vec<Tie> = vec![];
        for tie in self.ties() {
            let mut block = *tie;
            while let Some(before) = blocks.last() {
                // targets / all of `before` >= targets / all of `block`, without division.
                if before.targets * block.nontargets < block.targets * before.nontargets {
                    break;
                }
                block.targets += before.targets;
                block.nontargets += before.nontargets;
                blocks.pop();
            }
            blocks.push(block);
        }
        blocks
    }
}

/// `log2(1 + e^x)` without overflow.
fn bits(x: f64) -> f64 {
    (x.max(0.0) + (-x.abs()).exp().ln_1p()) / std::f64::consts::LN_2
}
