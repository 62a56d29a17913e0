//! The speaker-verification model against the reference implementation.

mod data;
mod evaluation;
mod frontend;
mod layers;
mod networks;
mod published;
mod tables;
mod training;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::golden::{self, Case, Table, Verdict};

#[test]
fn golden_tdnn() {
    golden::run("tdnn", case, table);
}

fn case(case: &mut Case) -> Result<Verdict> {
    match case.kind.as_str() {
        "frontend" => frontend::features(case),
        "frontend_tables" => frontend::tables(case),
        "specaugment" => data::specaugment(case),
        "augment_arith" => data::augmentation(case),
        "load_wav" => data::segments(case),
        "ckpt_embedding" => published::embedding(case),
        "verify_e2e" => published::verification(case),
        "dynamic_conv" => layers::conv(case),
        "dynamic_batch_norm" => layers::batch_norm(case),
        "dynamic_conv_relu_bn" => layers::conv_relu_norm(case),
        "dynamic_linear" => layers::linear(case),
        "res2_conv" => layers::res2(case),
        "se_layer" => layers::squeeze_excite(case),
        "se_res2_block" => layers::block(case),
        "attentive_pooling" => layers::pooling(case),
        "supernet_eval" => networks::eval(case),
        "supernet_lengths" => networks::lengths(case),
        "supernet_train_bn" => networks::train_batch_norms(case),
        "supernet_gradients" => training::gradients(case),
        "materialised_subnet" => networks::materialised(case),
        "recalibration" => networks::recalibration(case),
        "fullsize_formula" => networks::full_size(case),
        "classification_loss" => training::loss(case),
        "train_steps" => training::steps(case),
        "metrics_eer_mindcf" => evaluation::metrics(case),
        "score_norm" => evaluation::score_normalisation(case),
        "predictor" | "predictor_train_step" => return Ok(Verdict::NotYetBuilt),
        kind => bail!("unknown kind {kind}"),
    }?;
    Ok(Verdict::Tested)
}

fn table(table: &mut Table) -> Result<Verdict> {
    match table.stem.as_str() {
        "arch_encoding_costs" => {
            tables::costs(table)?;
            return Ok(Verdict::Partly("encodings, predicted error rates and latencies"));
        }
        "cyclic_lr" => tables::learning_rates(table),
        stem if stem.starts_with("keys_") => tables::keys(table),
        "path_sampling" | "search_oracle_coarse" => return Ok(Verdict::NotYetBuilt),
        stem => bail!("unknown table {stem}"),
    }?;
    Ok(Verdict::Tested)
}

/// The whole number at `value`.
fn size(value: &Value) -> Result<usize> {
    let number = value.as_u64().with_context(|| format!("expected a size, found {value}"))?;
    Ok(usize::try_from(number)?)
}

/// The whole numbers in the list `value`.
fn sizes(value: &Value) -> Result<Vec<usize>> {
    value
        .as_array()
        .with_context(|| format!("expected sizes, found {value}"))?
        .iter()
        .map(size)
        .collect()
}

/// The number at `value`.
fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("expected a number, found {value}"))
}
