//! Tables of exact numbers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use lighthubert::config::{EncoderConfig, ExtractorMode};
use lighthubert::masking::{Draws, MaskConfig, masked_places};
use lighthubert::{PaddingRule, SpaceName, Supernet, SupernetConfig, cost};
use serde_json::Value;
use shared::nn::Weights;
use shared::rng::Stream;
use tests::golden::Table;

use crate::networks::subnet;
use crate::{number, size, sizes};

/// Search spaces, numbers of subnets and parameters of these.
pub fn spaces(table: &mut Table) -> Result<()> {
    let layer_norm = SupernetConfig::published();
    let mut instance_norm = layer_norm.clone();
    instance_norm.encoder.extractor.mode = ExtractorMode::Default;
    for (name, entry) in table.value.as_object().context("spaces")?.clone() {
        let space: SpaceName = name.parse()?;
        let mut stated = entry["search_space"].clone();
        stated.as_object_mut().context("search_space")?.remove("atten_dim");
        let ours = space.space();
        table.check_that(
            serde_json::from_value::<lighthubert::SearchSpace>(stated)? == ours,
            || format!("search space {name}"),
        );
        let count = ours.count();
        let stated_count = &entry["num_subnets"];
        table.check_that(stated_count.as_u64().map(u128::from) == Some(count), || {
            format!("{count} subnets, the reference has {stated_count}")
        });
        let samples = entry["samples"].as_array().context("samples")?;
        ensure!(!samples.is_empty());
        for item in [&entry["max"], &entry["min"], &entry["default"]].into_iter().chain(samples) {
            let found = cost::parameters(&layer_norm, &subnet(&item["subnet"])?);
            table.check_that(size(&item["params"])? as u64 == found, || {
                format!("{found} parameters in {item}")
            });
        }
        for (kind, ours) in
            [("max", ours.largest()), ("min", ours.smallest()), ("default", space.default_subnet())]
        {
            let stated = subnet(&entry[kind]["subnet"])?;
            table.check_that(stated == ours, || format!("{name}: {kind} is {ours:?}"));
            let found = cost::parameters(&instance_norm, &ours);
            let stated = size(&entry["params_default_extractor"][kind])? as u64;
            table.check_that(stated == found, || format!("{name} {kind}: {found}, not {stated}"));
        }
    }
    Ok(())
}

/// Every tensor of the published supernets.
pub fn keys(table: &mut Table) -> Result<()> {
    let weights = Weights::shapes();
    Supernet::new(SupernetConfig::published(), &weights)?;
    let ours: BTreeMap<String, Vec<usize>> =
        weights.state().into_iter().map(|(name, it)| (name, it.dims().to_vec())).collect();
    let stated = table.value.as_object().context("keys")?.iter();
    let stated: BTreeMap<String, Vec<usize>> =
        stated.map(|(name, dims)| Ok((name.clone(), sizes(dims)?))).collect::<Result<_>>()?;
    for (name, dims) in &stated {
        table.check_that(ours.get(name) == Some(dims), || format!("{name}: {:?}", ours.get(name)));
    }
    table.check_that(ours.len() == stated.len(), || format!("{} tensors", ours.len()));
    Ok(())
}

/// Valid frames of utterances in longer signals, by both rules.
pub fn padding(table: &mut Table) -> Result<()> {
    let extractor = EncoderConfig::published().extractor;
    for entry in table.value.as_array().context("entries")?.clone() {
        let (samples, frames) = (size(&entry["samples"])?, size(&entry["frames"])?);
        ensure!(extractor.frames(samples) == frames);
        let lengths = sizes(&entry["lens"])?;
        for (list, rule) in
            [("valid_frames", PaddingRule::Chunks), ("conv_formula_valid", PaddingRule::Exact)]
        {
            let valid = |length: &usize| rule.valid_frames(*length, samples, frames, &extractor);
            let ours: Vec<usize> = lengths.iter().map(valid).collect();
            let stated = sizes(&entry[list])?;
            table.check_that(ours == stated, || format!("{list} {ours:?} of {entry}"));
        }
    }
    Ok(())
}

/// Masks, given all random draws behind them.
pub fn masks(table: &mut Table) -> Result<()> {
    for entry in table.value.as_array().context("entries")?.clone() {
        let shape = sizes(&entry["shape"])?;
        let lengths = match &entry["lens"] {
            Value::Null => vec![shape[1]; shape[0]],
            lengths => sizes(lengths)?,
        };
        let config = config(&entry["args"])?;
        let expected = entry["mask_indices"].as_array().context("mask_indices")?;
        let expected: Vec<Vec<usize>> = expected.iter().map(sizes).collect::<Result<_>>()?;
        let is_shared = entry["lens"].is_null();
        let found = match config.no_overlap {
            false => {
                let mut draws = Recorded::new(&entry, vec![]);
                let found = masked_places(&lengths, is_shared, &config, &mut draws)?;
                ensure!(draws.next == draws.log.len(), "draws are left over");
                Some(found).filter(|found| *found == expected)
            }
            true => reordered(&entry, &lengths, &config, &expected)?,
        };
        table.check_that(found.is_some(), || format!("other masks for {}", entry["args"]));
    }
    Ok(())
}

/// The masks in which no spans overlap. Where a span starts is not recorded, so the starts that the mask
/// shows are tried in every order: in one of them, all recorded draws must lead to the mask.
fn reordered(
    entry: &Value,
    lengths: &[usize],
    config: &MaskConfig,
    expected: &[Vec<usize>],
) -> Result<Option<Vec<Vec<usize>>>> {
    let starts = |row: &Vec<usize>| -> Vec<usize> {
        let set: BTreeSet<usize> = row.iter().copied().collect();
        set.iter().copied().filter(|it| *it == 0 || !set.contains(&(it - 1))).collect()
    };
    let orders: Vec<Vec<Vec<usize>>> = expected.iter().map(|row| orders(&starts(row))).collect();
    ensure!(orders.len() == 2, "expected two rows");
    for first in &orders[0] {
        for second in &orders[1] {
            let mut draws = Recorded::new(entry, [first.clone(), second.clone()].concat());
            let found = masked_places(lengths, true, config, &mut draws)?;
            if found == expected && !draws.is_wrong && draws.next == draws.log.len() {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

fn orders(items: &[usize]) -> Vec<Vec<usize>> {
    if items.len() <= 1 {
        return vec![items.to_vec()];
    }
    let with_first = |i: usize| {
        let mut rest = items.to_vec();
        let first = rest.remove(i);
        orders(&rest).into_iter().map(move |order| [vec![first], order].concat())
    };
    (0..items.len()).flat_map(with_first).collect()
}

/// The draws of a table, in their order.
struct Recorded {
    log: Vec<Value>,
    next: usize,
    starts: std::vec::IntoIter<usize>,
    /// Whether other draws were asked for than are recorded.
    is_wrong: bool,
}

impl Recorded {
    fn new(entry: &Value, starts: Vec<usize>) -> Self {
        let log = entry["draws"].as_array().cloned().unwrap_or_default();
        Self { log, next: 0, starts: starts.into_iter(), is_wrong: false }
    }

    fn take(&mut self, kind: &str) -> Value {
        let entry = self.log.get(self.next).cloned().unwrap_or_default();
        self.next += 1;
        self.is_wrong |= entry[0] != kind;
        entry
    }
}

impl Draws for Recorded {
    fn uniform(&mut self) -> f64 {
        self.take("rand")[1].as_f64().unwrap_or(f64::NAN)
    }

    fn integer(&mut self, low: usize, high: usize) -> usize {
        let start = self.starts.next().unwrap_or(low);
        self.is_wrong |= !(low..high).contains(&start);
        start.clamp(low, high - 1)
    }

    fn normal(&mut self) -> f64 {
        f64::NAN
    }

    fn distinct(&mut self, items: &[usize], count: usize) -> Vec<usize> {
        let entry = self.take("choice");
        let population = match &entry[1]["population"] {
            Value::Array(_) => {
                let mut stated = sizes(&entry[1]["population"]).unwrap_or_default();
                stated.sort_unstable();
                let mut items = items.to_vec();
                items.sort_unstable();
                stated == items
            }
            size => size.as_u64() == Some(items.len() as u64),
        };
        assert!(population && entry[1]["size"] == count, "{entry} for {count} of {items:?}");
        sizes(&entry[2]).unwrap_or_default()
    }

    fn weighted(&mut self, weights: &[usize]) -> usize {
        let entry = self.take("choice");
        self.is_wrong |= entry[1]["population"] != weights.len();
        let place = entry[2].as_u64().unwrap_or(0) as usize;
        self.is_wrong |= weights.get(place).is_none_or(|weight| *weight == 0);
        place.min(weights.len() - 1)
    }
}

/// How much is masked on average, by our own draws.
pub fn mask_statistics(table: &mut Table) -> Result<()> {
    const DRAWS: u64 = 2000;
    for entry in table.value.as_array().context("entries")?.clone() {
        let shape = sizes(&entry["shape"])?;
        let config = config(&entry)?;
        let lengths = vec![shape[1]; shape[0]];
        let mut fractions = vec![];
        for draw in 0..DRAWS {
            let mut stream = Stream::new(1, "mask", draw);
            let items = masked_places(&lengths, true, &config, &mut stream)?;
            fractions.push(items[0].len() as f64 / shape[1] as f64);
        }
        let mean = fractions.iter().sum::<f64>() / DRAWS as f64;
        let squares = fractions.iter().map(|fraction| (fraction - mean).powi(2)).sum::<f64>();
        let deviation = (squares / DRAWS as f64).sqrt();
        let (stated, spread) = (number(&entry["mean_fraction"])?, number(&entry["std_fraction"])?);
        // Five standard errors of the difference of two means.
        let allowed = 5.0 * spread * (1.0 / DRAWS as f64 + 1.0 / 3000.0).sqrt();
        table.check_that((mean - stated).abs() <= allowed, || {
            format!("{mean:.4} masked instead of {stated:.4} in {entry}")
        });
        table.check_that((deviation / spread - 1.0).abs() < 0.1, || {
            format!("deviation {deviation:.4} instead of {spread:.4} in {entry}")
        });
    }
    Ok(())
}

fn config(value: &Value) -> Result<MaskConfig> {
    let known = [
        "mask_prob",
        "mask_length",
        "min_masks",
        "require_same_masks",
        "mask_dropout",
        "no_overlap",
        "min_space",
    ];
    let statistics = ["shape", "mean_fraction", "std_fraction", "min", "max", "mean_runs"];
    let names: Vec<&String> = value.as_object().context("settings")?.keys().collect();
    let unknown =
        names.iter().find(|it| !known.contains(&it.as_str()) && !statistics.contains(&it.as_str()));
    ensure!(unknown.is_none(), "unknown setting {unknown:?}");
    let or = |name: &str, default: usize| match &value[name] {
        Value::Null => Ok(default),
        value => size(value),
    };
    Ok(MaskConfig {
        probability: number(&value["mask_prob"])?,
        length: size(&value["mask_length"])?,
        min_spans: or("min_masks", 0)?,
        no_overlap: value["no_overlap"].as_bool().unwrap_or(false),
        min_space: or("min_space", 0)?,
        same_count: value["require_same_masks"].as_bool().unwrap_or(true),
        dropout: value["mask_dropout"].as_f64().unwrap_or(0.0),
        ..MaskConfig::default()
    })
}
