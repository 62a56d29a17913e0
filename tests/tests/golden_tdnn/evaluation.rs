//! Scores and error rates.

use anyhow::{Context, Result};
use shared::eval::verification::{
    CohortStatistics, CostModel, Trials, adaptive_s_norm, min_dcf_sample_by_sample,
};
use tdnn::score::mean_cosine;
use tests::golden::{Array, Case};

/// Allowed error of sums in f64.
const EXACT: f64 = 1e-12;
/// Precision of the root finder that the reference computes equal error rates with.
const EQUAL_ERROR: f64 = 1e-9;

pub fn metrics(case: &mut Case) -> Result<()> {
    for (name, value) in case.sub_cases("cases")? {
        let scores = case.array(&format!("in.{name}.scores"))?.values.clone();
        let targets: Vec<bool> =
            case.array(&format!("in.{name}.labels"))?.values.iter().map(|v| *v == 1.0).collect();
        let trials = Trials::new(&scores, &targets)?;
        let ties = value["ties"].as_bool().context("ties")?;

        let equal = trials.equal_error_rate();
        case.check_number(&format!("{name}.eer"), equal.rate, EQUAL_ERROR)?;
        case.check_number(&format!("{name}.eer_exact"), equal.rate, EXACT)?;
        // Differs between versions of the reference's own library.
        case.skip(&format!("{name}.eer_thr_upstream"));
        for result in case.names(&format!("out.{name}.mindcf_group_")) {
            let model = CostModel::prior(result.parse()?);
            let cost = trials.min_dcf(model)?.cost;
            case.check_number(&format!("{name}.mindcf_group_{result}"), cost, EXACT)?;
            let (cost_name, threshold_name) =
                (format!("{name}.mindcf_{result}"), format!("{name}.mindcf_thr_{result}"));
            if ties {
                // Depends on an unstable sort; the grouped value above is the definition.
                case.skip(&cost_name);
                case.skip(&threshold_name);
            } else {
                let least = min_dcf_sample_by_sample(&scores, &targets, model)?;
                case.check_number(&cost_name, least.cost, EXACT)?;
                // Several thresholds may cost the same but for rounding.
                let threshold = case.array(&format!("out.{threshold_name}"))?.values[0];
                let cost = trials.actual_dcf(model, threshold)?;
                case.check_that(&threshold_name, (cost - least.cost).abs() <= EXACT, || {
                    format!("threshold {threshold} costs {cost}, the least is {}", least.cost)
                });
            }
        }
    }
    Ok(())
}

pub fn score_normalisation(case: &mut Case) -> Result<()> {
    let recordings = vectors(case.array("in.emb")?);
    let segments = case.array("in.emb")?.dims[1];
    let recordings: Vec<&[Vec<f32>]> = recordings.chunks(segments).collect();
    let cohort = vectors(case.array("in.cohort")?);
    let index = |name: &str| -> Result<Vec<usize>> {
        Ok(case.array(name)?.values.iter().map(|index| *index as usize).collect())
    };
    let pairs: Vec<(usize, usize)> =
        index("in.trial_enroll")?.into_iter().zip(index("in.trial_test")?).collect();

    let raw: Vec<f64> =
        pairs.iter().map(|(e, t)| mean_cosine(recordings[*e], recordings[*t])).collect();
    case.check_numbers("raw_cosine", &raw, 1e-6)?;
    let against_cohort: Vec<Vec<f32>> = recordings
        .iter()
        .map(|recording| {
            cohort.iter().map(|member| mean_cosine(recording, &[member]) as f32).collect()
        })
        .collect();
    let flat: Vec<f64> = against_cohort.iter().flatten().map(|score| f64::from(*score)).collect();
    case.check_numbers("cohort_scores", &flat, 1e-6)?;

    for top in case.names("out.asnorm_top") {
        let statistics = statistics(&against_cohort, Some(top.parse()?))?;
        let normalised: Vec<f64> = (pairs.iter().zip(&raw))
            .map(|((e, t), score)| adaptive_s_norm(*score, statistics[*e], statistics[*t]))
            .collect();
        case.check_numbers(&format!("asnorm_top{top}"), &normalised, 1e-4)?;
    }
    let all = statistics(&against_cohort, None)?;
    // The reference divides by the number of trials here, not of cohort members.
    let divisor = (cohort.len() as f64 / pairs.len() as f64).sqrt();
    let biased: Vec<CohortStatistics> = all
        .iter()
        .map(|s| CohortStatistics { mean: s.mean, deviation: s.deviation * divisor })
        .collect();
    let s_norm: Vec<f64> = (pairs.iter().zip(&raw))
        .map(|((e, t), score)| adaptive_s_norm(*score, biased[*e], biased[*t]))
        .collect();
    case.check_numbers("snorm", &s_norm, 1e-4)?;
    let zt_norm: Vec<f64> = (pairs.iter().zip(&raw))
        .map(|((e, t), score)| all[*t].normalise(all[*e].normalise(*score)))
        .collect();
    case.check_numbers("ztnorm_all", &zt_norm, 1e-4)?;
    let distances: Vec<f64> =
        pairs.iter().map(|(e, t)| -distance(recordings[*e], recordings[*t])).collect();
    case.check_numbers("raw_norm2", &distances, 1e-6)
}

fn statistics(scores: &[Vec<f32>], top: Option<usize>) -> Result<Vec<CohortStatistics>> {
    Ok(scores.iter().map(|row| CohortStatistics::of(row, top)).collect::<Result<_, _>>()?)
}

/// The distance that the reference's score `norm2` is the negative of: for each segment of the
/// enrolment and each dimension, the Euclidean norm over the *segments of the test*, then the mean.
fn distance(enrolment: &[Vec<f32>], test: &[Vec<f32>]) -> f64 {
    let norms = enrolment.iter().flat_map(|segment| {
        segment.iter().enumerate().map(|(d, e)| {
            let difference = |t: &Vec<f32>| f64::from(*e) - f64::from(t[d]) + 1e-6;
            test.iter().map(|t| difference(t).powi(2)).sum::<f64>().sqrt()
        })
    });
    norms.sum::<f64>() / enrolment.iter().map(Vec::len).sum::<usize>() as f64
}

/// The rows of an array along its last dimension.
fn vectors(array: &Array) -> Vec<Vec<f32>> {
    let length = array.dims.last().copied().unwrap_or(1);
    array.f32s().chunks(length).map(<[f32]>::to_vec).collect()
}
