//! Samplers on data whose noise can be said in closed form.

use std::cell::Cell;

use candle_core::{DType, Device, Tensor};
use shared::rng::Stream;

use super::time::{ModelTime, Timeline};
use super::*;
use crate::diffusion::{Diffusion, DiffusionConfig};
use crate::pair::{Denoiser, Pair};

/// Clips with independent normal elements.
const MEAN: f64 = 0.3;
const DEVIATION: f64 = 0.5;
/// What is left of the error where it is all rounding.
const ROUNDING: f64 = 1.2e-4;

/// The perfect network for such clips: the expected noise in x.
struct Perfect {
    timeline: Timeline,
    evaluations: Cell<usize>,
}

impl Perfect {
    fn new(config: &DiffusionConfig) -> Self {
        let diffusion = Diffusion::new(config, &Spacing::All).unwrap();
        let timeline = Timeline::new(config, &diffusion.coefficients().alphas_cumprod);
        Self { timeline, evaluations: Cell::new(0) }
    }

    fn epsilon(&self, x: &Tensor, time: f32) -> Result<Tensor> {
        let point = self.timeline.at((time + 1.0) / 1000.0);
        let (alpha, sigma) = (f64::from(point.alpha), f64::from(point.sigma));
        let factor = sigma / ((alpha * DEVIATION).powi(2) + sigma * sigma);
        Ok(x.affine(factor, -factor * alpha * MEAN)?)
    }
}

impl<S: State> Denoiser<S> for Perfect {
    fn predict(&self, x: &S, model_time: &Tensor, evaluation: usize) -> Result<S> {
        assert_eq!(evaluation, self.evaluations.replace(evaluation + 1));
        let times: Vec<f32> = model_time.to_vec1()?;
        assert_eq!(times.len(), x.batch()?);
        S::each(|part| self.epsilon(part.of(x), times[0]))
    }
}

fn sample<S: State>(sampler: &Sampler, x: &S) -> S {
    let config = DiffusionConfig::default();
    let mut stream = Stream::new(1, "noise", 0);
    let run = Run {
        denoiser: &Perfect::new(&config),
        diffusion: &config,
        condition: None,
        noise: &mut |x: &S| S::each(|part| normal(&mut stream, part.of(x).dims())),
        on_step: &mut |_| Ok(()),
    };
    sampler.sample(run, x.clone()).unwrap()
}

fn normal(stream: &mut Stream, shape: &[usize]) -> Result<Tensor> {
    let mut values = vec![0f32; shape.iter().product()];
    stream.fill_normal(&mut values);
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn pictures() -> Tensor {
    normal(&mut Stream::new(2, "start", 0), &[3, 1, 5, 7]).unwrap()
}

/// Where the probability-flow equation takes `x` from one noise level to another.
fn solution(x: &Tensor, from: [f64; 2], to: [f64; 2]) -> Tensor {
    let deviation = |[alpha, sigma]: [f64; 2]| (alpha * DEVIATION).hypot(sigma);
    let ratio = deviation(to) / deviation(from);
    x.affine(ratio, MEAN * (to[0] - from[0] * ratio)).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a - b).unwrap().to_dtype(DType::F64).unwrap();
    difference.sqr().unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

/// The errors of a solver at several numbers of steps.
fn errors(sampler: impl Fn(usize) -> Sampler, steps: &[usize]) -> Vec<f64> {
    let config = DiffusionConfig::default();
    let timeline = Perfect::new(&config).timeline;
    let ends = [timeline.start(), timeline.end()];
    let [start, end] = ends.map(|point| [f64::from(point.alpha), f64::from(point.sigma)]);
    let x = pictures();
    steps
        .iter()
        .map(|steps| {
            let sampler = sampler(*steps);
            let end = if matches!(sampler, Sampler::Heun(_)) { [1.0, 0.0] } else { end };
            distance(&sample(&sampler, &x), &solution(&x, start, end))
        })
        .collect()
}

fn solver(steps: usize, order: usize, method: Method, data: bool, expansion: Expansion) -> Sampler {
    Sampler::DpmSolver(DpmSolver {
        steps,
        order,
        method,
        data_prediction: data,
        expansion,
        model_time: ModelTime::Continuous,
        ..DpmSolver::default()
    })
}

/// The error falls with the number of steps at least as the order says, down to what f32 leaves.
#[test]
fn solvers_converge_at_their_order() {
    let steps = [24, 48];
    let slope = |name: String, order: f64, errors: Vec<f64>| {
        let slope = (errors[0] / errors[1]).log2();
        println!("{name}: {errors:?}, order {slope:.2}");
        (slope < order - 0.3 && errors[1] > ROUNDING)
            .then(|| format!("{name}: order {slope:.2}, errors {errors:?}"))
    };
    let mut failures = vec![];
    for method in [Method::Singlestep, Method::SinglestepFixed, Method::Multistep] {
        for (order, data) in [1, 2, 3].map(|order| [(order, false), (order, true)]).concat() {
            for expansion in [Expansion::DpmSolver, Expansion::Taylor] {
                let errors = errors(|steps| solver(steps, order, method, data, expansion), &steps);
                let name = format!("{method:?} {order} data {data} {expansion:?}");
                failures.extend(slope(name, order as f64, errors));
            }
        }
    }
    for scale in [BasisScale::H, BasisScale::Exponential] {
        for order in [1, 2, 3] {
            let settings = UniPc {
                order,
                scale,
                thresholding: false,
                model_time: ModelTime::Continuous,
                ..UniPc::default()
            };
            let errors =
                errors(|steps| Sampler::UniPc(UniPc { steps, ..settings.clone() }), &steps);
            failures.extend(slope(format!("unipc {order} {scale:?}"), order as f64, errors));
        }
    }
    let heun = |steps| Sampler::Heun(Heun { steps, rho: 7.0, clip: false });
    failures.extend(slope("heun".to_string(), 2.0, errors(heun, &steps)));
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn adaptive_solvers_keep_their_tolerance() {
    for (order, data) in [(2, false), (2, true), (3, false), (3, true)] {
        for relative in [0.05, 0.001] {
            let method = Method::Adaptive(Tolerance { absolute: relative / 6.0, relative });
            let found = errors(|_| solver(20, order, method, data, Expansion::DpmSolver), &[0]);
            assert!(found[0] < 2.0 * relative, "order {order}, data {data}: {found:?}");
        }
    }
}

#[test]
fn stochastic_samplers_have_the_moments_of_the_data() {
    let x = normal(&mut Stream::new(3, "start", 0), &[2, 1, 40, 40]).unwrap();
    for sampler in [
        Sampler::named("ddpm", Some(250)).unwrap(),
        Sampler::Ddim(Ddim { eta: 1.0, spacing: Spacing::Stride(250), clip: false }),
        Sampler::Ddim(Ddim { eta: 0.0, spacing: Spacing::Stride(250), clip: false }),
    ] {
        let clean = sample(&sampler, &x);
        let mean = f64::from(clean.mean_all().unwrap().to_scalar::<f32>().unwrap());
        let variance =
            distance(&clean, &Tensor::full(mean as f32, x.shape(), &Device::Cpu).unwrap());
        assert!((mean - MEAN).abs() < 0.05, "{sampler:?}: mean {mean}");
        assert!((variance - DEVIATION).abs() < 0.05, "{sampler:?}: deviation {variance}");
    }
}

#[test]
fn ddim_reversed_leads_back() {
    let config = DiffusionConfig::default();
    let settings = Ddim { spacing: Spacing::Stride(500), eta: 0.0, clip: false };
    let x = pictures();
    let clean = sample(&Sampler::Ddim(settings.clone()), &x);
    let run = Run {
        denoiser: &Perfect::new(&config),
        diffusion: &config,
        condition: None,
        noise: &mut |x: &Tensor| Ok(x.clone()),
        on_step: &mut |_| Ok(()),
    };
    let back = settings.invert(run, clean).unwrap();
    assert!(distance(&back, &x) < 0.02, "{}", distance(&back, &x));
}

#[test]
fn pairs_are_sampled_as_their_parts_are_alone() {
    let (video, audio) = (pictures().unsqueeze(1).unwrap(), pictures().flatten_from(2).unwrap());
    let x = Pair { video, audio };
    for name in Sampler::NAMES.into_iter().filter(|name| *name != "ddpm" && !name.contains("ada")) {
        let sampler = Sampler::named(name, Some(10)).unwrap();
        let (together, alone) = (sample(&sampler, &x), sample(&sampler, &pictures()));
        let video = together.video.squeeze(1).unwrap();
        let audio = together.audio.reshape(alone.shape()).unwrap();
        assert!(distance(&video, &alone) < 1e-6 && distance(&audio, &alone) < 1e-6, "{name}");
    }
}

#[test]
fn settings_are_written_and_read() {
    for name in Sampler::NAMES {
        let sampler = Sampler::named(name, None).unwrap();
        let json = serde_json::to_string(&sampler).unwrap();
        assert_eq!(serde_json::from_str::<Sampler>(&json).unwrap(), sampler, "{json}");
    }
    let short: Sampler = serde_json::from_str(r#"{"sampler":"ddim","eta":0.5}"#).unwrap();
    assert_eq!(short, Sampler::Ddim(Ddim { eta: 0.5, ..Ddim::default() }));
    for bad in [r#"{"sampler":"dim"}"#, r#"{"sampler":"ddim","eat":0.5}"#, r#"{"eta":0.5}"#] {
        assert!(serde_json::from_str::<Sampler>(bad).is_err(), "{bad}");
    }
}

#[test]
fn impossible_settings_are_refused() {
    let x = pictures();
    let config = DiffusionConfig::default();
    let solver = |solver: DpmSolver| Sampler::DpmSolver(solver);
    for sampler in [
        solver(DpmSolver { steps: 0, ..DpmSolver::default() }),
        solver(DpmSolver { steps: usize::MAX, ..DpmSolver::default() }),
        solver(DpmSolver { order: 0, ..DpmSolver::default() }),
        solver(DpmSolver { order: 4, ..DpmSolver::default() }),
        solver(DpmSolver { order: 1, ..DpmSolver::adaptive() }),
        solver(DpmSolver {
            method: Method::Adaptive(Tolerance { absolute: 0.0, relative: 0.0 }),
            ..DpmSolver::default()
        }),
        solver(DpmSolver { thresholding: true, ..DpmSolver::default() }),
        Sampler::Ddim(Ddim { eta: f64::NAN, ..Ddim::default() }),
        Sampler::UniPc(UniPc { steps: 0, ..UniPc::default() }),
        Sampler::UniPc(UniPc { order: 4, ..UniPc::default() }),
        Sampler::Heun(Heun { steps: 1001, ..Heun::default() }),
        Sampler::Heun(Heun { rho: 0.0, ..Heun::default() }),
        Sampler::Ddpm(Ddpm { spacing: Spacing::Stride(600), ..Ddpm::default() }),
    ] {
        let run = Run {
            denoiser: &Perfect::new(&config),
            diffusion: &config,
            condition: None,
            noise: &mut |x: &Tensor| Ok(x.clone()),
            on_step: &mut |_| Ok(()),
        };
        assert!(sampler.sample(run, x.clone()).is_err(), "{sampler:?}");
    }
    assert!(Sampler::named("euler", None).is_err());
    for name in Sampler::NAMES {
        assert!(Sampler::named(name, Some(0)).is_err(), "{name}");
    }
}

/// A network that fails at its third evaluation.
struct Broken;

impl Denoiser<Tensor> for Broken {
    fn predict(&self, x: &Tensor, _: &Tensor, evaluation: usize) -> Result<Tensor> {
        Ok(x.affine(if evaluation == 2 { f64::NAN } else { 0.1 }, 0.0)?)
    }
}

#[test]
fn numbers_that_are_not_finite_stop_the_run() {
    for (name, step) in [("ddpm", "step 3 of"), ("ddim", "step 3 of"), ("heun", "step 2 of")] {
        let config = DiffusionConfig::default();
        let run = Run {
            denoiser: &Broken,
            diffusion: &config,
            condition: None,
            noise: &mut |x: &Tensor| Ok(x.clone()),
            on_step: &mut |_| Ok(()),
        };
        let error = Sampler::named(name, Some(8)).unwrap().sample(run, pictures()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(step) && text.contains(name) && text.contains("image"), "{text}");
    }
}

#[test]
fn the_observer_sees_every_step_and_can_stop() {
    let config = DiffusionConfig::default();
    for name in Sampler::NAMES.into_iter().filter(|name| !name.contains("adaptive")) {
        let mut seen = vec![];
        let run = Run {
            denoiser: &Perfect::new(&config),
            diffusion: &config,
            condition: None,
            noise: &mut |x: &Tensor| Ok(x.clone()),
            on_step: &mut |step| {
                seen.push((step.number, step.steps, step.clean.dims().to_vec()));
                if step.number == 3 { Err(Error::Interrupted) } else { Ok(()) }
            },
        };
        let outcome = Sampler::named(name, Some(12)).unwrap().sample(run, pictures());
        assert!(matches!(outcome, Err(Error::Interrupted)), "{name}");
        assert_eq!(
            seen.iter().map(|(number, ..)| *number).collect::<Vec<_>>(),
            [1, 2, 3],
            "{name}"
        );
        assert!(seen.iter().all(|(_, steps, dims)| steps.is_some() && dims == &[3, 1, 5, 7]));
    }
}
