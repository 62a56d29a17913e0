//! Made clips in which sound and picture belong together: balls that bounce, each impact heard.
//!
//! What a ball is made of decides on its colour and its timbre, its size on its pitch, the speed of an
//! impact on its loudness. A clip depends on the seed and its number alone.

mod picture;
mod scene;
mod sound;

use shared::rng::Stream;
use shared::{Error, Result};

pub use scene::{Ball, Impact, Material, Scene, SceneKind};

/// Size of the clips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DemoConfig {
    /// Frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
    /// Width and height in pixels.
    pub side_pixels: usize,
    /// Samples a second.
    pub rate_hz: u32,
}

impl Default for DemoConfig {
    /// 1.6 s, as the published model has it: 16 frames of 10 a second and 16 kHz.
    fn default() -> Self {
        Self { frames: 16, fps: 10.0, side_pixels: 128, rate_hz: 16_000 }
    }
}

impl DemoConfig {
    /// Samples of sound in a clip.
    pub fn samples(&self) -> usize {
        (self.duration_s() * f64::from(self.rate_hz)).round() as usize
    }

    /// Length of a clip.
    pub fn duration_s(&self) -> f64 {
        self.frames as f64 / self.fps
    }

    /// # Errors
    /// [`Error::Argument`] when a size is zero or beyond what makes sense.
    pub fn check(&self) -> Result<()> {
        let sensible = (1..=10_000).contains(&self.frames)
            && (1.0..=240.0).contains(&self.fps)
            && (8..=1024).contains(&self.side_pixels)
            && (4_000..=192_000).contains(&self.rate_hz);
        if sensible {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "clips of {} frames at {} fps, {} pixels and {} Hz: expected 1 to 10000 frames at 1 to \
             240 fps, 8 to 1024 pixels and 4000 to 192000 Hz",
            self.frames, self.fps, self.side_pixels, self.rate_hz
        )))
    }
}

/// A made clip.
#[derive(Clone, Debug)]
pub struct DemoClip {
    /// Frames, each `side x side` pixels of red, green and blue.
    pub frames: Vec<Vec<u8>>,
    /// Samples in +-1.
    pub samples: Vec<f32>,
    /// What happens in it.
    pub scene: Scene,
    /// The impacts that are heard, in order.
    pub impacts: Vec<Impact>,
}

/// Clip `number` of `seed`.
///
/// # Errors
/// As [`DemoConfig::check`].
pub fn clip(config: &DemoConfig, seed: u64, number: u64) -> Result<DemoClip> {
    config.check()?;
    let scene = Scene::draw(&mut Stream::new(seed, "demo scene", number));
    let mut motion = scene.motion(config.rate_hz);
    let samples_per_frame = f64::from(config.rate_hz) / config.fps;
    let mut frames = Vec::with_capacity(config.frames);
    for sample in 0..config.samples() {
        // A frame shows the middle of the time for which it stands.
        if sample as f64 >= (frames.len() as f64 + 0.5) * samples_per_frame {
            frames.push(picture::draw(&scene, motion.centres(), config.side_pixels));
        }
        motion.step();
    }
    let impacts = motion.into_impacts();
    let samples = sound::render(&scene, &impacts, config.samples(), config.rate_hz);
    Ok(DemoClip { frames, samples, scene, impacts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_depend_on_seed_and_number_alone() {
        let config = DemoConfig { side_pixels: 32, ..DemoConfig::default() };
        let first = clip(&config, 1, 5).unwrap();
        let again = clip(&config, 1, 5).unwrap();
        assert_eq!((&first.frames, &first.samples), (&again.frames, &again.samples));
        for (seed, number) in [(1, 6), (2, 5)] {
            assert_ne!(clip(&config, seed, number).unwrap().frames, first.frames);
        }
        assert_eq!(first.frames.len(), 16);
        assert!(first.frames.iter().all(|frame| frame.len() == 32 * 32 * 3));
        assert_eq!(first.samples.len(), 25_600);
    }

    #[test]
    fn sounds_begin_where_balls_hit_something() {
        let config = DemoConfig { side_pixels: 16, ..DemoConfig::default() };
        for number in 0..40 {
            let clip = clip(&config, 3, number).unwrap();
            assert!(clip.samples.iter().all(|sample| sample.is_finite() && sample.abs() < 1.0));
            let first = clip.impacts.first().map_or(clip.samples.len(), |impact| {
                (impact.time_s * f64::from(config.rate_hz)) as usize
            });
            assert!(
                clip.samples[..first.min(clip.samples.len())].iter().all(|sample| *sample == 0.0)
            );
            for impact in &clip.impacts {
                let at = (impact.time_s * f64::from(config.rate_hz)) as usize;
                let after = clip.samples.iter().skip(at).take(400);
                assert!(after.map(|sample| sample.abs()).fold(0.0, f32::max) > 1e-3, "{impact:?}");
            }
        }
    }

    #[test]
    fn senseless_sizes_are_refused() {
        let good = DemoConfig::default();
        for config in [
            DemoConfig { frames: 0, ..good },
            DemoConfig { fps: f64::NAN, ..good },
            DemoConfig { side_pixels: 0, ..good },
            DemoConfig { rate_hz: 0, ..good },
        ] {
            assert!(clip(&config, 0, 0).is_err());
        }
    }
}
