//! The most probable class of each frame.

use super::emissions::Emissions;
use super::timestamps::Span;

/// The classes that are the most probable ones in their frames, repetitions joined and blanks left
/// out. Of classes with the same probability it is the first.
pub fn greedy(emissions: &Emissions, blank: u32) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut last = blank;
    for (frame, probabilities) in emissions.iter().enumerate() {
        let mut best = (0, f32::NEG_INFINITY);
        for (class, probability) in (0..).zip(probabilities) {
            if *probability > best.1 {
                best = (class, *probability);
            }
        }
        let (class, probability) = (best.0, f64::from(best.1).exp());
        match spans.last_mut() {
            Some(span) if class == last && class != blank => span.extend(frame, probability),
            _ if class != blank => spans.push(Span::new(class, frame, probability)),
            _ => {}
        }
        last = class;
    }
    spans
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn repetitions_are_joined_and_blanks_separate() {
        let rows = [1, 1, 0, 1, 2, 2, 0, 0, 2].map(|best| {
            let mut row = [0.1f32; 3];
            row[best] = 0.8;
            row.map(f32::ln)
        });
        let emissions = Emissions::new(&Tensor::new(&rows, &Device::Cpu).unwrap()).unwrap();
        let spans = greedy(&emissions, 0);
        let found: Vec<_> = spans.iter().map(|it| (it.class, it.first, it.last)).collect();
        assert_eq!(found, [(1, 0, 1), (1, 3, 3), (2, 4, 5), (2, 8, 8)]);
        assert!(spans.iter().all(|span| (span.confidence() - 0.8).abs() < 1e-6));
        let silence = Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(greedy(&Emissions::new(&silence).unwrap(), 0).is_empty());
    }
}
