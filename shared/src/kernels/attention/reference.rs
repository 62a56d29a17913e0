//! Attention and its gradients in `f64`, one query at a time.

use super::operands::{Operand, Operands};
use super::place::Place;
use super::windows::Job;

/// The product of a token's channels with those of a token of another operand.
fn dot((x, x_token): (&Operand<f64>, usize), (y, y_token): (&Operand<f64>, usize)) -> f64 {
    (0..x.place.size).map(|channel| x.at(x_token, channel) * y.at(y_token, channel)).sum()
}

/// The weights of `keys` for a query.
fn weights(operands: &Operands<f64>, query: usize, keys: &[usize]) -> Vec<f64> {
    let Operands { q, k, scale, .. } = operands;
    let scores: Vec<f64> = keys.iter().map(|&key| scale * dot((q, query), (k, key))).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    scores.iter().map(|score| (score - max).exp() / sum).collect()
}

/// Calls `work` with the operands of each head, a query and its keys.
fn for_each_query(
    operands: Operands<f64>,
    jobs: &[Vec<Job>],
    mut work: impl FnMut((usize, usize), Operands<f64>, usize, &[usize]),
) {
    for (item, jobs) in jobs.iter().enumerate() {
        for head in 0..operands.heads {
            let operands = operands.of_head(item, head);
            for job in jobs {
                let keys: Vec<usize> = job.keys.iter().cloned().flatten().collect();
                job.queries.clone().for_each(|query| work((item, head), operands, query, &keys));
            }
        }
    }
}

/// The result in memory of `count` elements, at `place`.
pub(super) fn forward(
    operands: Operands<f64>,
    jobs: &[Vec<Job>],
    count: usize,
    place: Place,
) -> Vec<f64> {
    let mut output = vec![0.0; count];
    for_each_query(operands, jobs, |(item, head), operands, query, keys| {
        let place = place.of_head(item, head);
        for (weight, &key) in weights(&operands, query, keys).iter().zip(keys) {
            for channel in 0..place.size {
                output[place.at(query, channel)] += weight * operands.v.at(key, channel);
            }
        }
    });
    output
}

/// Adds the gradients for the gradient `dy` at the result to `gradients`, in which those of q, k and v
/// are found by index and place. With `w` the weights and `dw = v dy`: `ds = w (dw - sum(w dw))`.
pub(super) fn backward(
    operands: Operands<f64>,
    jobs: &[Vec<Job>],
    dy: Operand<f64>,
    gradients: &mut [Vec<f64>],
    targets: [(usize, Place); 3],
) {
    for_each_query(operands, jobs, |(item, head), operands, query, keys| {
        let Operands { q, k, v, scale, .. } = operands;
        let dy = dy.of_head(item, head);
        let [dq, dk, dv] = targets.map(|(index, place)| (index, place.of_head(item, head)));
        let mut add = |(index, place): (usize, Place), token, channel, value| {
            gradients[index][place.at(token, channel)] += value;
        };
        let weights = weights(&operands, query, keys);
        let products: Vec<f64> = keys.iter().map(|&key| dot((&dy, query), (&v, key))).collect();
        let mean: f64 = weights.iter().zip(&products).map(|(w, dw)| w * dw).sum();
        for ((&key, weight), product) in keys.iter().zip(&weights).zip(&products) {
            for channel in 0..v.place.size {
                add(dv, key, channel, weight * dy.at(query, channel));
            }
            let slope = scale * weight * (product - mean);
            for channel in 0..q.place.size {
                add(dq, query, channel, slope * k.at(key, channel));
                add(dk, key, channel, slope * q.at(query, channel));
            }
        }
    });
}
