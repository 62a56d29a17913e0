//! How alike two voices are.

/// Cosine similarity of two vectors; 0 when one has no length.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-8)
}

/// Mean cosine over all pairs of an embedding of one recording and one of the other.
pub fn mean_cosine<A: AsRef<[f32]>, B: AsRef<[f32]>>(a: &[A], b: &[B]) -> f64 {
    let pairs = a.iter().flat_map(|x| b.iter().map(move |y| cosine(x.as_ref(), y.as_ref())));
    pairs.sum::<f64>() / (a.len() * b.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_those_of_the_angle() {
        for (a, b, expected) in [
            ([1.0, 0.0], [2.0, 0.0], 1.0),
            ([1.0, 0.0], [0.0, 3.0], 0.0),
            ([1.0, 0.0], [-1.0, 0.0], -1.0),
            ([1.0, 0.0], [1.0, 1.0], 0.5f64.sqrt()),
            ([0.0, 0.0], [1.0, 1.0], 0.0),
        ] {
            assert!((cosine(&a, &b) - expected).abs() < 1e-7, "{a:?} {b:?}");
        }
        let mean = mean_cosine(&[[1.0, 0.0], [0.0, 1.0]], &[[1.0, 0.0], [0.0, 1.0]]);
        assert!((mean - 0.5).abs() < 1e-12);
    }
}
