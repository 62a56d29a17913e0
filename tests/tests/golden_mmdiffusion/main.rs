//! The audio-video model and its diffusion against the reference implementation.

mod diffusion;
mod networks;
mod sampling;
mod training;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::golden::{self, Case, Table, Verdict};

#[test]
fn golden_mmdiffusion() {
    golden::run("mmdiffusion", case, table);
}

fn case(case: &mut Case) -> Result<Verdict> {
    match case.kind.as_str() {
        "misc_modules" => networks::modules(case),
        "resblock" => networks::residual_blocks(case),
        "cross_attention" => networks::cross_attention(case),
        "unet" => networks::unet(case),
        "super_resolution" => networks::super_resolution(case),
        "schedules" => diffusion::schedules(case),
        "p_mean_variance" => diffusion::posteriors(case),
        "dpm_analytic" => sampling::dpm_solver(case),
        "sampling" => sampling::unconditional(case),
        "sampling_conditional" => sampling::conditional(case),
        "training" => training::coupled(case),
        kind => bail!("unknown kind {kind}"),
    }?;
    Ok(Verdict::Tested)
}

fn table(table: &mut Table) -> Result<Verdict> {
    match table.stem.as_str() {
        stem if stem.starts_with("keys_") => networks::keys(table)?,
        stem => bail!("unknown stem {stem}"),
    }
    Ok(Verdict::Tested)
}

/// The whole number at `value`.
fn size(value: &Value) -> Result<usize> {
    let number = value.as_u64().with_context(|| format!("expected a size, found {value}"))?;
    Ok(usize::try_from(number)?)
}

/// The whole numbers in the list `value`.
fn sizes(value: &Value) -> Result<Vec<usize>> {
    let list = value.as_array().with_context(|| format!("expected sizes, found {value}"))?;
    list.iter().map(size).collect()
}
