//! Generation with a network for clips whose sound follows their picture.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use shared::nn::{Precision, Weights};
use shared::rng::Stream;

use super::*;
use crate::SuperResolutionUnet;
use crate::conditioning::Loss;
use crate::config::{DiffusionFlags, SuperResolutionConfig};
use crate::samplers::time::Timeline;
use crate::samplers::{Ddim, Ddpm, DpmSolver, Heun, UniPc};
use crate::{Diffusion, Spacing};

/// Correlation of the sound's elements with the picture's.
const CORRELATION: f64 = 0.95;
const SIZE: ClipSize = ClipSize { video: [4, 1, 3, 5], audio: [1, 60] };

/// The perfect network for clips whose elements are normal and correlated between the modalities, with
/// standard deviation 1/2.
struct Coupled(Timeline);

impl Coupled {
    fn new() -> Self {
        let config = DiffusionConfig::default();
        let diffusion = Diffusion::new(&config, &Spacing::All).unwrap();
        Self(Timeline::new(&config, &diffusion.coefficients().alphas_cumprod))
    }
}

impl Denoiser for Coupled {
    fn predict(&self, x: &Pair, model_time: &Tensor, _: usize) -> Result<Pair> {
        let time: f32 = model_time.get(0)?.to_scalar()?;
        let point = self.0.at((time + 1.0) / 1000.0);
        let (alpha, sigma) = (f64::from(point.alpha), f64::from(point.sigma));
        let audio = x.audio.reshape(x.video.shape())?;
        let factor =
            |sign: f64| sigma / (alpha * alpha * 0.25 * (1.0 + sign * CORRELATION) + sigma * sigma);
        let sum = (&x.video + &audio)?.affine(0.5 * factor(1.0), 0.0)?;
        let difference = (&x.video - &audio)?.affine(0.5 * factor(-1.0), 0.0)?;
        Ok(Pair {
            video: (&sum + &difference)?,
            audio: (sum - difference)?.reshape(x.audio.shape())?,
        })
    }
}

fn normal(purpose: &str, shape: &[usize]) -> Tensor {
    let mut values = vec![0f32; shape.iter().product()];
    Stream::new(9, purpose, 0).fill_normal(&mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().affine(0.5, 0.0).unwrap()
}

fn generator(
    denoiser: &Coupled,
    sampler: Sampler,
    guidance: Guidance,
    batch: usize,
) -> Generator<'_> {
    Generator {
        denoiser,
        diffusion: DiffusionConfig::default(),
        sampler,
        guidance,
        size: SIZE,
        seed: 5,
        batch,
        device: Device::Cpu,
    }
}

fn samplers() -> Vec<Sampler> {
    let spacing = Spacing::Sections(vec![40]);
    vec![
        Sampler::Ddpm(Ddpm { spacing: spacing.clone(), clip: false }),
        Sampler::Ddim(Ddim { spacing, eta: 0.0, clip: false }),
        Sampler::DpmSolver(DpmSolver::default()),
        Sampler::DpmSolver(DpmSolver { thresholding: false, ..DpmSolver::plus_plus(20) }),
        Sampler::UniPc(UniPc { thresholding: false, ..UniPc::default() }),
        Sampler::Heun(Heun { clip: false, ..Heun::default() }),
    ]
}

fn clips(generator: &Generator, samples: &[u64], given: Option<&Given>) -> Vec<(u64, Pair)> {
    let mut clips = vec![];
    let mut observe = |event: Event| {
        if let Event::Finished { sample, clip } = event {
            clips.push((sample, clip));
        }
        Ok(())
    };
    generator.generate(samples, given, &mut observe).unwrap();
    clips
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let squares = numbers(a).into_iter().zip(numbers(b)).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.elem_count() as f64).sqrt()
}

const REPLACEMENT: Guidance = Guidance::Replacement;

fn gradient(scale: f64) -> Guidance {
    Guidance::Gradient { scale, loss: Loss::PerSample }
}

#[test]
fn the_batch_changes_nothing() {
    let network = Coupled::new();
    let given = Given::Video(normal("given", &[1, 4, 1, 3, 5]));
    for sampler in samplers().into_iter().chain([Sampler::DpmSolver(DpmSolver::adaptive())]) {
        for guidance in [REPLACEMENT, gradient(20.0)] {
            if sampler.is_adaptive() && guidance != REPLACEMENT {
                continue;
            }
            let all = generator(&network, sampler.clone(), guidance, 3);
            let single = generator(&network, sampler.clone(), guidance, 1);
            for given in [None, Some(&given)] {
                let together = clips(&all, &[4, 7, 0, 9], given);
                assert_eq!(together.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [4, 7, 0, 9]);
                for (i, clip) in &together {
                    let (_, alone) = &clips(&single, &[*i], given)[0];
                    let far = distance(&clip.video, &alone.video)
                        .max(distance(&clip.audio, &alone.audio));
                    assert!(far < 1e-6, "{} {guidance:?}: {far}", sampler.name());
                }
            }
        }
    }
}

/// Sound generated for a picture follows it, and the picture comes back as it is.
#[test]
fn the_rest_fits_what_is_given() {
    let network = Coupled::new();
    let elements = normal("given", &[60]);
    let as_video = elements.reshape((1, 4, 1, 3, 5)).unwrap();
    let as_audio = elements.reshape((1, 1, 60)).unwrap();
    let expected = elements.affine(CORRELATION, 0.0).unwrap();
    for sampler in samplers() {
        for (given, has_video) in
            [(Given::Video(as_video.clone()), true), (Given::Audio(as_audio.clone()), false)]
        {
            let error = |guidance: Guidance| {
                let generator = generator(&network, sampler.clone(), guidance, 4);
                let found = clips(&generator, &[0, 1, 2, 3], Some(&given));
                let errors = found.into_iter().map(|(_, clip)| {
                    let (known, free) =
                        if has_video { (clip.video, clip.audio) } else { (clip.audio, clip.video) };
                    assert_eq!(numbers(&known), numbers(&elements), "{}", sampler.name());
                    distance(&free.flatten_all().unwrap(), &expected)
                });
                errors.sum::<f64>() / 4.0
            };
            let unrelated = elements.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
            let unrelated = f64::from(unrelated * 2.0).sqrt();
            let (replaced, guided) = (error(REPLACEMENT), error(gradient(40.0)));
            println!("{}: {unrelated:.3} {replaced:.3} {guided:.3}", sampler.name());
            assert!(replaced < 0.75 * unrelated, "{}: {replaced}", sampler.name());
            assert!(guided < 0.95 * replaced, "{}: {guided} {replaced}", sampler.name());
        }
    }
}

#[test]
fn the_published_loss_weakens_with_the_batch() {
    let network = Coupled::new();
    let given = Given::Audio(normal("given", &[1, 1, 60]));
    let sampler = samplers().swap_remove(1);
    let predicted = |scale: f64, loss: Loss, samples: &[u64]| {
        let guidance = Guidance::Gradient { scale, loss };
        let generator = generator(&network, sampler.clone(), guidance, 4);
        generator.predict(samples, Some(&given)).unwrap().video.get(0).unwrap()
    };
    let mean_of_two = predicted(40.0, Loss::BatchMean, &[3, 4]);
    assert!(distance(&mean_of_two, &predicted(20.0, Loss::PerSample, &[3])) < 1e-6);
    assert!(distance(&mean_of_two, &predicted(40.0, Loss::PerSample, &[3])) > 1e-4);
}

#[test]
fn clips_of_any_length_go_on_from_their_start() {
    let network = Coupled::new();
    let start =
        Pair { video: normal("video", &[1, 3, 1, 3, 5]), audio: normal("audio", &[1, 1, 45]) };
    let sampler = Sampler::DpmSolver(DpmSolver { thresholding: false, ..DpmSolver::plus_plus(12) });
    for (frames, overlap, windows) in [(4, 3, 1), (5, 3, 2), (9, 2, 3), (11, 1, 3)] {
        let extend = |batch: usize, samples: &[u64]| {
            let generator = generator(&network, sampler.clone(), REPLACEMENT, batch);
            let (mut clips, mut seen) = (vec![], 0);
            let mut observe = |event: Event| {
                match event {
                    Event::Step { window, .. } => seen = seen.max(window + 1),
                    Event::Finished { clip, .. } => clips.push(clip),
                }
                Ok(())
            };
            let continuation = Continuation { frames, overlap };
            generator.extend(samples, &start, continuation, &mut observe).unwrap();
            assert_eq!(seen, windows, "{frames} frames, overlap {overlap}");
            clips
        };
        let together = extend(2, &[0, 6]);
        for (clip, sample) in together.iter().zip([0, 6]) {
            assert_eq!(clip.video.dims(), [1, frames, 1, 3, 5]);
            assert_eq!(clip.audio.dims(), [1, 1, frames * 15]);
            let beginning = clip.video.narrow(1, 0, 3).unwrap();
            assert_eq!(numbers(&beginning), numbers(&start.video));
            let beginning = clip.audio.narrow(2, 0, 45).unwrap();
            assert_eq!(numbers(&beginning), numbers(&start.audio));
            assert!(distance(&clip.video, &extend(1, &[sample])[0].video) < 1e-6);
            // Generated sound follows the generated picture.
            let fresh = clip.video.narrow(1, 3, frames - 3).unwrap().flatten_all().unwrap();
            let sound = clip.audio.narrow(2, 45, frames * 15 - 45).unwrap().flatten_all().unwrap();
            assert!(distance(&fresh, &sound) < 0.35, "{}", distance(&fresh, &sound));
        }
        assert!(distance(&together[0].video, &together[1].video) > 0.05);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let network = Coupled::new();
    let generator = generator(&network, Sampler::default(), REPLACEMENT, 2);
    let nothing = &mut |_: Event| Ok(());
    for given in [
        Given::Video(normal("given", &[1, 5, 1, 3, 5])),
        Given::Video(normal("given", &[1, 4, 3, 3, 5])),
        Given::Video(normal("given", &[3, 4, 1, 3, 5])),
        Given::Audio(normal("given", &[1, 61])),
        Given::Audio(normal("given", &[1, 1, 61])),
    ] {
        assert!(generator.generate(&[0, 1], Some(&given), nothing).is_err(), "{given:?}");
    }
    let start = |frames: usize, samples: usize| Pair {
        video: normal("video", &[1, frames, 1, 3, 5]),
        audio: normal("audio", &[1, 1, samples]),
    };
    for (start, frames, overlap) in [
        (start(2, 30), 2, 1),
        (start(2, 30), 8, 0),
        (start(2, 30), 8, 4),
        (start(2, 29), 8, 2),
        (start(0, 0), 8, 2),
    ] {
        let continuation = Continuation { frames, overlap };
        assert!(generator.extend(&[0], &start, continuation, nothing).is_err(), "{continuation:?}");
    }
    let size = ClipSize { video: [4, 1, 3, 5], audio: [1, 61] };
    assert!(size.samples_per_frame().is_err());
    let adaptive = Generator {
        sampler: Sampler::DpmSolver(DpmSolver::adaptive()),
        guidance: gradient(1.0),
        ..generator
    };
    let given = Given::Video(normal("given", &[1, 4, 1, 3, 5]));
    let error = adaptive.generate(&[0], Some(&given), nothing).unwrap_err().to_string();
    assert!(error.contains("adaptive"), "{error}");
}

/// A super-resolution network whose every weight is random.
fn enlarging() -> SuperResolutionUnet {
    let config = SuperResolutionConfig {
        large_size: 16,
        small_size: 4,
        num_channels: 32,
        num_res_blocks: 1,
        channel_mult: vec![1, 2],
        attention_resolutions: vec![2],
        ..SuperResolutionConfig::default()
    };
    let fresh = Weights::fresh(3, DType::F32, &Device::Cpu);
    SuperResolutionUnet::new(&config, &fresh, Precision::F32).unwrap();
    let moved = |(place, (name, tensor)): (usize, (String, Tensor))| {
        let mut noise = vec![0f32; tensor.elem_count()];
        Stream::new(3, "weights", place as u64).fill_normal(&mut noise);
        let noise = Tensor::from_vec(noise, tensor.shape(), &Device::Cpu).unwrap();
        (name, (tensor + noise.affine(0.02, 0.0).unwrap()).unwrap())
    };
    let tensors = fresh.state().into_iter().enumerate().map(moved).collect();
    let weights = Weights::loaded(tensors, Path::new("test"), false, DType::F32, &Device::Cpu);
    SuperResolutionUnet::new(&config, &weights, Precision::F32).unwrap()
}

/// Equal frames become equal pictures, and the batch changes nothing, with every sampler.
#[test]
fn frames_are_enlarged_from_shared_noise() {
    let network = enlarging();
    let diffusion = DiffusionConfig::from_flags(&DiffusionFlags::default(), true).unwrap();
    let frame = normal("frame", &[1, 3, 4, 4]);
    let other = normal("other frame", &[1, 3, 4, 4]);
    let video = Tensor::cat(&[&frame, &other, &frame], 0).unwrap();
    let spacing = Spacing::Sections(vec![5]);
    let samplers = [
        Sampler::Ddpm(Ddpm { spacing: spacing.clone(), clip: true }),
        Sampler::Ddim(Ddim { spacing: spacing.clone(), eta: 0.0, clip: true }),
        Sampler::Ddim(Ddim { spacing, eta: 1.0, clip: true }),
        Sampler::DpmSolver(DpmSolver::plus_plus(5)),
        Sampler::UniPc(UniPc::default()),
    ];
    for sampler in samplers {
        let name = sampler.name();
        let upscale = |batch: usize, sample: u64| {
            let upscaler = Upscaler {
                network: &network,
                diffusion: diffusion.clone(),
                sampler: sampler.clone(),
                seed: 5,
                batch,
                device: Device::Cpu,
            };
            upscaler.upscale(sample, &video, &mut |_, _| Ok(())).unwrap()
        };
        let together = upscale(3, 2);
        assert_eq!(together.dims(), [3, 3, 16, 16], "{name}");
        let picture = |index: usize| together.get(index).unwrap();
        assert!(distance(&picture(0), &picture(2)) < 1e-5, "{name}");
        assert!(distance(&picture(0), &picture(1)) > 1e-3, "{name}");
        assert!(distance(&together, &upscale(1, 2)) < 1e-5, "{name}");
        assert!(distance(&together, &upscale(3, 4)) > 1e-3, "{name}");
    }
}
