//! Tests against the sum over all paths, and against differences.

use candle_core::{Device, Var};

use super::*;
use crate::kernels::check;

/// The loss of one utterance by its definition: all paths, collapsed.
fn exhaustive(logits: &[f64], classes: usize, labels: &[u32], blank: u32) -> f64 {
    let frames = logits.len() / classes;
    let probability = |frame: usize, class: usize| {
        let frame = &logits[frame * classes..][..classes];
        frame[class].exp() / frame.iter().map(|logit| logit.exp()).sum::<f64>()
    };
    let mut sum = 0.0;
    for number in 0..classes.pow(frames as u32) {
        let path: Vec<usize> =
            (0..frames).map(|frame| number / classes.pow(frame as u32) % classes).collect();
        let mut collapsed = path.clone();
        collapsed.dedup();
        collapsed.retain(|class| *class != blank as usize);
        if collapsed.iter().map(|class| *class as u32).eq(labels.iter().copied()) {
            sum +=
                path.iter().enumerate().map(|(t, class)| probability(t, *class)).product::<f64>();
        }
    }
    -sum.ln()
}

fn labels() -> Vec<Vec<u32>> {
    vec![vec![1, 1, 2], vec![], vec![3], vec![2, 2, 2, 2], vec![1, 3, 1]]
}

const LENGTHS: [usize; 5] = [6, 4, 1, 6, 3];

#[test]
fn losses_are_those_of_all_paths() {
    let logits = check::normal(0, &[5, 6, 4]);
    for blank in [0u32, 3] {
        let labels: Vec<Vec<u32>> = labels()
            .into_iter()
            .map(|labels| labels.into_iter().map(|it| if it == blank { 0 } else { it }).collect())
            .collect();
        let options = CtcOptions { blank, zero_infinity: false };
        let found = check::to_vec(&ctc_loss(&logits, &LENGTHS, &labels, options).unwrap());
        for item in 0..5 {
            let logits =
                check::to_vec(&logits.get(item).unwrap().narrow(0, 0, LENGTHS[item]).unwrap());
            let expected = exhaustive(&logits, 4, &labels[item], blank);
            let agrees = (found[item] - expected).abs() < 1e-12 || found[item] == expected;
            assert!(agrees, "{blank} {item}: {} instead of {expected}", found[item]);
        }
        assert_eq!(found[3], f64::INFINITY);
    }
}

#[test]
fn gradients_match_differences() {
    for batch in [1, 5] {
        check::gradients(&format!("CTC, batch {batch}"), &[&[batch, 6, 4]], |x| {
            ctc_loss(&x[0], &LENGTHS[..batch], &labels()[..batch], CtcOptions::default())
        });
        check::gradients(&format!("mean of CTC, batch {batch}"), &[&[batch, 6, 4]], |x| {
            let labels = &labels()[..batch];
            let losses = ctc_loss(&x[0], &LENGTHS[..batch], labels, CtcOptions::default())?;
            Ok(ctc_mean(&losses, labels)?.unsqueeze(0)?)
        });
    }
}

#[test]
fn long_utterances_neither_underflow_nor_depend_on_their_batch() {
    let (frames, classes) = (2000, 5);
    let logits = (check::normal(1, &[3, frames, classes]) * 30.0).unwrap();
    let labels: Vec<Vec<u32>> =
        (0..3).map(|item| (0..300).map(|i| 1 + (i * 7 + item) % 4).collect()).collect();
    let lengths = [frames, 1700, 900];
    let options = CtcOptions::default();
    let together = check::to_vec(&ctc_loss(&logits, &lengths, &labels, options).unwrap());
    for item in 0..3 {
        let alone = logits.narrow(0, item, 1).unwrap().narrow(1, 0, lengths[item]).unwrap();
        let labels = &labels[item..item + 1];
        let loss =
            check::to_vec(&ctc_loss(&alone, &lengths[item..=item], labels, options).unwrap());
        assert_eq!(loss[0], together[item]);
        assert!(loss[0].is_finite() && loss[0] > 100.0);
    }
}

#[test]
fn infinite_losses_have_no_gradient_or_none_is_defined() {
    for (zero_infinity, expected) in [(true, 0.0), (false, f64::NAN)] {
        let logits = Var::from_tensor(&check::normal(0, &[2, 3, 4])).unwrap();
        let options = CtcOptions { blank: 0, zero_infinity };
        let labels = [vec![1, 1, 1], vec![2]];
        let losses = ctc_loss(&logits, &[3, 3], &labels, options).unwrap();
        let gradients = losses.sum_all().unwrap().backward().unwrap();
        let gradient = check::to_vec(gradients.get(&logits).unwrap());
        let same = |value: &f64| value.to_bits() == expected.to_bits();
        assert!(gradient[..12].iter().all(same), "{gradient:?}");
        assert!(gradient[12..].iter().all(|value| value.is_finite() && *value != 0.0));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let logits = Tensor::zeros((2, 3, 4), DType::F32, &Device::Cpu).unwrap();
    let options = CtcOptions::default();
    let good = [vec![1], vec![2]];
    assert!(ctc_loss(&logits, &[3, 3], &good, options).is_ok());
    for (lengths, labels) in [
        (vec![3], good.to_vec()),
        (vec![3, 4], good.to_vec()),
        (vec![3, 3], vec![vec![1]]),
        (vec![3, 3], vec![vec![1], vec![4]]),
        (vec![3, 3], vec![vec![1], vec![0]]),
    ] {
        assert!(ctc_loss(&logits, &lengths, &labels, options).is_err(), "{lengths:?} {labels:?}");
    }
    assert!(ctc_loss(&logits, &[3, 3], &good, CtcOptions { blank: 4, ..options }).is_err());
    assert!(ctc_loss(&logits.get(0).unwrap(), &[3], &good[..1], options).is_err());
    assert!(ctc_mean(&Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap(), &good).is_err());
}

#[test]
fn what_is_not_a_number_is_not_taken_for_an_infinite_loss() {
    let mut values = check::to_vec(&check::normal(0, &[1, 3, 4]));
    values[5] = f64::NAN;
    let logits = Tensor::from_vec(values, (1, 3, 4), &Device::Cpu).unwrap();
    let losses = ctc_loss(&logits, &[3], &[vec![1, 2]], CtcOptions::default()).unwrap();
    assert!(check::to_vec(&losses)[0].is_nan());
}
