//! The speech encoder against the reference implementation.

mod ctc;
mod heads;
mod layers;
mod networks;
mod tables;
mod wer;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::golden::{self, Case, Table, Verdict};

#[test]
fn golden_lighthubert() {
    golden::run("lighthubert", case, table);
}

fn case(case: &mut Case) -> Result<Verdict> {
    match case.kind.as_str() {
        "feature_extractor" => layers::extractor(case),
        "positional_conv" => layers::positional(case),
        "transformer_layer" => layers::transformer(case),
        "sliding_attention" => layers::sliding_attention(case),
        "model" => networks::model(case),
        "checkpoint" => networks::checkpoints(case),
        "ctc" => ctc::losses(case),
        "superb_heads" => heads::superb(case),
        // Training.
        "distillation" | "train_trace" => return Ok(Verdict::NotYetBuilt),
        kind => bail!("unknown kind {kind}"),
    }?;
    Ok(Verdict::Tested)
}

fn table(table: &mut Table) -> Result<Verdict> {
    match table.stem.as_str() {
        "supernet_params" => tables::spaces(table),
        "padding_mask" => tables::padding(table),
        "mask_indices" => tables::masks(table),
        "mask_stats" => tables::mask_statistics(table),
        stem if stem.starts_with("keys_") => tables::keys(table),
        "wer" => wer::examples(table),
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
    let items = value.as_array().with_context(|| format!("expected sizes, found {value}"))?;
    items.iter().map(size).collect()
}

/// The number at `value`.
fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("expected a number, found {value}"))
}
