//! Cutting recordings to length. What is too short is repeated from its start ("wrapped").

use crate::rng::Stream;

/// `samples` repeated from their start up to `length`; unchanged when they are longer already.
pub fn wrapped(samples: &[f32], length: usize) -> Vec<f32> {
    samples.iter().copied().cycle().take(length.max(samples.len())).collect()
}

/// A random piece of `length` samples. Recordings of at most `max(length, min_samples)` samples
/// are wrapped to one more than that first. An empty recording gives an empty piece.
pub fn random_crop(
    samples: &[f32],
    length: usize,
    min_samples: usize,
    stream: &mut Stream,
) -> Vec<f32> {
    let shortest = length.max(min_samples) + 1;
    let available = if samples.len() < shortest { shortest } else { samples.len() };
    let start = ((available - length) as f64 * stream.uniform()) as usize;
    samples.iter().copied().cycle().skip(start % samples.len().max(1)).take(length).collect()
}

/// `count` pieces of `length` samples at equal distances from the first to the last possible
/// place, as published results of speaker verification have it. With a `length` of 0 the one piece
/// is the whole recording. Recordings of at most `max(length, min_samples)` samples are wrapped to
/// one more than that first.
pub fn evaluation_segments(
    samples: &[f32],
    length: usize,
    count: usize,
    min_samples: usize,
) -> Vec<Vec<f32>> {
    let shortest = length.max(min_samples) + 1;
    let samples =
        if samples.len() < shortest { wrapped(samples, shortest) } else { samples.to_vec() };
    if length == 0 {
        return vec![samples];
    }
    let last = samples.len().saturating_sub(length);
    let step = last as f64 / count.saturating_sub(1).max(1) as f64;
    (0..count)
        .map(|i| {
            let start = if i + 1 == count && count > 1 { last } else { (i as f64 * step) as usize };
            samples.iter().copied().skip(start).take(length).collect()
        })
        .collect()
}

/// The recording in consecutive pieces of `length` samples, the last completed by wrapping around
/// to the start.
pub fn consecutive_segments(samples: &[f32], length: usize) -> Vec<Vec<f32>> {
    (0..samples.len())
        .step_by(length.max(1))
        .map(|start| samples.iter().copied().cycle().skip(start).take(length).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(length: usize) -> Vec<f32> {
        (0..length).map(|i| i as f32).collect()
    }

    #[test]
    fn crops_are_pieces_of_the_wrapped_recording() {
        for (have, length, min_samples) in [(100, 30, 0), (100, 30, 200), (7, 30, 0), (1, 3, 5)] {
            let samples = ramp(have);
            let mut stream = Stream::new(1, "crop", 0);
            let mut starts = vec![];
            for _ in 0..200 {
                let crop = random_crop(&samples, length, min_samples, &mut stream);
                assert_eq!(crop.len(), length);
                let follows = |pair: &[f32]| pair[1] == (pair[0] + 1.0) % have as f32;
                assert!(crop.windows(2).all(follows), "{crop:?}");
                starts.push(crop[0] as usize);
            }
            let reach = have.min(have.max(length.max(min_samples) + 1) - length);
            assert!(starts.iter().all(|start| *start < reach.max(1)), "{have} {length}");
        }
        assert!(random_crop(&[], 3, 0, &mut Stream::new(1, "crop", 0)).is_empty());
    }

    #[test]
    fn segments_reach_from_the_first_to_the_last_sample() {
        let segments = evaluation_segments(&ramp(11), 4, 3, 0);
        let firsts: Vec<f32> = segments.iter().map(|segment| segment[0]).collect();
        assert_eq!(firsts, [0.0, 3.0, 7.0]);
        assert_eq!(evaluation_segments(&ramp(3), 0, 1, 5), [[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]]);
        assert_eq!(evaluation_segments(&ramp(11), 4, 1, 0), [[0.0, 1.0, 2.0, 3.0]]);
    }

    #[test]
    fn consecutive_segments_wrap_at_the_end() {
        assert_eq!(consecutive_segments(&ramp(3), 2), [[0.0, 1.0], [2.0, 0.0]]);
        assert!(consecutive_segments(&[], 2).is_empty());
    }
}
