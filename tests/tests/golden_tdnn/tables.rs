//! Tables of exact numbers.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use serde_json::Value;
use shared::nn::Weights;
use shared::train::{CyclicMode, Schedule};
use tdnn::{Architecture, NetworkConfig, Subnet, Supernet, cost};
use tests::golden::Table;

use crate::networks::{architecture, supernet_config};
use crate::{number, sizes};

pub fn costs(table: &mut Table) -> Result<()> {
    for item in table.value["items"].as_array().context("items")?.clone() {
        let architecture = architecture(&item["arch"])?;
        check_names(table, &architecture, &item)?;
        let config = NetworkConfig::published(architecture);
        for (entry, ours) in [
            ("count_ops_300", cost::macs(&config, 300)),
            ("count_ops_301", cost::macs(&config, 301)),
            ("count_ops_201", cost::macs(&config, 201)),
            ("params", cost::parameters(&config)),
        ] {
            check_count(table, &item, entry, ours)?;
        }
    }
    Ok(())
}

pub fn learning_rates(table: &mut Table) -> Result<()> {
    let schedule = Schedule::Cyclic {
        base_lr: number(&table.value["base"])?,
        peak_lr: number(&table.value["max"])?,
        up_steps: table.value["step_size_up"].as_u64().context("step_size_up")?,
        down_steps: None,
        mode: CyclicMode::Triangular2,
    };
    for (step, rate) in table.value["lr"].as_array().context("lr")?.clone().iter().enumerate() {
        let (expected, ours) = (number(rate)?, schedule.lr(step as u64));
        table.check_that((expected - ours).abs() <= 1e-15, || {
            format!("step {step}: learning rate {ours} instead of {expected}")
        });
    }
    Ok(())
}

pub fn keys(table: &mut Table) -> Result<()> {
    if table.value["constructor"].is_object() {
        return supernet_keys(table);
    }
    for (name, item) in table.value.as_object().context("networks")?.clone() {
        let architecture = architecture(&item["arch"])?;
        check_names(table, &architecture, &item)?;
        let config = NetworkConfig::published(architecture);
        check_count(table, &item, "macs_T300", cost::macs(&config, 300))?;
        check_count(table, &item, "macs_T301", cost::macs(&config, 301))?;
        check_count(table, &item, "params", cost::parameters(&config))?;
        let weights = Weights::fresh(0, DType::F32, &Device::Cpu);
        Subnet::new(config, &weights)?;
        let ours = shapes(&weights);
        check_shapes(table, &format!("{name}.state_keys"), &item["state_keys"], &ours)?;
        let norms: BTreeMap<String, Vec<usize>> = ours
            .keys()
            .filter_map(|key| key.strip_suffix("running_mean"))
            .flat_map(|norm| ours.iter().filter(move |(key, _)| key.starts_with(norm)))
            .map(|(key, shape)| (key.clone(), shape.clone()))
            .collect();
        check_shapes(table, &format!("{name}.bn_tar_keys"), &item["bn_tar_keys"], &norms)?;
    }
    Ok(())
}

fn supernet_keys(table: &mut Table) -> Result<()> {
    let item = table.value.clone();
    let config = supernet_config(&item["constructor"])?;
    let weights = Weights::fresh(0, DType::F32, &Device::Cpu);
    Supernet::new(config.clone(), &weights)?;
    let ours = shapes(&weights);
    check_shapes(table, "keys", &item["keys"], &ours)?;
    let trainable: usize =
        weights.variables().iter().map(|parameter| parameter.var.elem_count()).sum();
    check_count(table, &item, "n_tensors", ours.len() as u64)?;
    check_count(table, &item, "trainable_params_incl_transform_matrices", trainable as u64)?;
    check_count(table, &item, "count_params", cost::parameters(&config))?;
    check_count(table, &item, "count_ops_300", cost::macs(&config, 300))?;
    check_count(table, &item, "count_ops_301", cost::macs(&config, 301))
}

fn shapes(weights: &Weights) -> BTreeMap<String, Vec<usize>> {
    weights.state().into_iter().map(|(name, tensor)| (name, tensor.dims().to_vec())).collect()
}

fn check_shapes(
    table: &mut Table,
    what: &str,
    expected: &Value,
    ours: &BTreeMap<String, Vec<usize>>,
) -> Result<()> {
    let expected: BTreeMap<String, Vec<usize>> = expected
        .as_object()
        .with_context(|| what.to_string())?
        .iter()
        .map(|(name, shape)| Ok((name.clone(), sizes(shape)?)))
        .collect::<Result<_>>()?;
    for name in expected.keys().chain(ours.keys()) {
        table.check_that(expected.get(name) == ours.get(name), || {
            format!("{what}: {name} is {:?} instead of {:?}", ours.get(name), expected.get(name))
        });
    }
    Ok(())
}

fn check_count(table: &mut Table, item: &Value, entry: &str, ours: u64) -> Result<()> {
    let expected = number(&item[entry]).context(entry.to_string())?;
    table.check_that(expected == ours as f64, || {
        format!("{}: {entry} is {ours} instead of {expected}", item["string"])
    });
    Ok(())
}

fn check_names(table: &mut Table, architecture: &Architecture, item: &Value) -> Result<()> {
    let string = item["string"].as_str().context("string")?;
    table.check_that(architecture.to_string() == string, || format!("{architecture} is {string}"));
    table
        .check_that(string.parse::<Architecture>().is_ok_and(|read| read == *architecture), || {
            format!("{string} is read as another architecture")
        });
    if let Some(name) = item["name"].as_str() {
        table.check_that(
            Architecture::named(name).is_none_or(|named| named == *architecture),
            || format!("{name} names another architecture than {string}"),
        );
    }
    Ok(())
}
