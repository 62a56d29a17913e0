//! The sound of a scene.

use super::scene::{Ball, Impact, Material, Scene};

/// How long an impact takes to reach its loudness.
const ATTACK_S: f64 = 0.001;
/// Partials that are weaker than this have ended.
const SILENCE: f64 = 1e-4;
/// Loudness of an impact of one unit a second.
const LOUDNESS: f64 = 0.16;
/// Pitch of a ball of radius 0.1.
const PITCH_HZ: f64 = 500.0;

/// What is heard of a ball that is hit.
struct Timbre {
    /// Frequency, relative to the pitch, and strength of each partial.
    partials: &'static [(f64, f64)],
    /// Time in which the lowest partial falls to 1/e; others fall faster as they are higher.
    decay_s: f64,
    /// Pitch relative to that of other materials.
    pitch: f64,
}

fn timbre(material: Material) -> Timbre {
    match material {
        Material::Rubber => {
            Timbre { partials: &[(1.0, 1.0), (1.6, 0.3)], decay_s: 0.035, pitch: 0.5 }
        }
        Material::Wood => {
            Timbre { partials: &[(1.0, 1.0), (2.6, 0.5), (4.7, 0.25)], decay_s: 0.05, pitch: 1.0 }
        }
        Material::Metal => {
            Timbre { partials: &[(1.0, 0.8), (2.2, 0.5), (3.6, 0.35)], decay_s: 0.22, pitch: 1.6 }
        }
    }
}

/// Pitch of a ball: larger ones sound lower.
fn pitch_hz(ball: &Ball) -> f64 {
    PITCH_HZ * timbre(ball.material).pitch * (0.1 / ball.radius).powf(1.3)
}

/// The sum of all impacts, softly limited to +-1.
pub(super) fn render(scene: &Scene, impacts: &[Impact], samples: usize, rate_hz: u32) -> Vec<f32> {
    let rate = f64::from(rate_hz);
    let mut sum = vec![0.0f64; samples];
    for impact in impacts {
        let Some(ball) = scene.balls.get(impact.ball) else { continue };
        let Timbre { partials, decay_s, .. } = timbre(ball.material);
        for (ratio, strength) in partials {
            let frequency_hz = pitch_hz(ball) * ratio;
            if frequency_hz >= 0.5 * rate {
                continue;
            }
            let strength = strength * LOUDNESS * impact.speed;
            let decay_s = decay_s / ratio.sqrt();
            // The sound begins with the first sample at or after the impact.
            let first = (impact.time_s * rate).ceil() as usize;
            let audible_s = decay_s * (strength / SILENCE).ln().max(0.0);
            let count = (audible_s * rate) as usize;
            for (i, value) in sum.iter_mut().skip(first).take(count).enumerate() {
                let time_s = i as f64 / rate;
                let attack = (time_s / ATTACK_S).min(1.0);
                let phase = std::f64::consts::TAU * frequency_hz * time_s;
                *value += strength * attack * (-time_s / decay_s).exp() * phase.sin();
            }
        }
    }
    sum.into_iter().map(|value| value.tanh() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo_data::SceneKind;

    fn heard(material: Material, radius: f64, speed: f64) -> Vec<f32> {
        let ball = Ball {
            material,
            radius,
            shade: 0.0,
            centre: [0.5; 2],
            velocity: [0.0; 2],
            restitution: 1.0,
        };
        let balls = vec![ball];
        let scene = Scene { kind: SceneKind::Drop, gravity: 5.0, floor: 0.1, light: 0.5, balls };
        render(&scene, &[Impact { time_s: 0.1, ball: 0, speed }], 16_000, 16_000)
    }

    fn energy(samples: &[f32]) -> f64 {
        samples.iter().map(|sample| f64::from(*sample).powi(2)).sum()
    }

    fn crossings(samples: &[f32]) -> usize {
        samples[1_600..2_400].windows(2).filter(|pair| pair[0] * pair[1] < 0.0).count()
    }

    #[test]
    fn faster_is_louder_smaller_is_higher_and_metal_rings() {
        for material in [Material::Rubber, Material::Wood, Material::Metal] {
            assert!(energy(&heard(material, 0.1, 2.0)) > 2.0 * energy(&heard(material, 0.1, 1.0)));
            let (small, large) = (heard(material, 0.08, 1.0), heard(material, 0.16, 1.0));
            assert!(crossings(&small) as f64 > 1.5 * crossings(&large) as f64);
            assert!(small[..1_600].iter().all(|sample| *sample == 0.0));
        }
        let late = |material| energy(&heard(material, 0.1, 1.5)[4_000..]);
        assert!(late(Material::Metal) > 100.0 * late(Material::Wood));
    }
}
