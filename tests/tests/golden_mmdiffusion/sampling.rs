//! Samplers: solvers on a model in closed form, and whole loops with small networks.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use mmdiffusion::conditioning::{Condition, Given, Guidance, Loss};
use mmdiffusion::generate::LowResolutionDenoiser;
use mmdiffusion::samplers::time::{Point, Timeline};
use mmdiffusion::samplers::{
    Ddim, Ddpm, DpmSolver, Expansion, Method, Run, Skip, Tolerance, singlestep_orders,
};
use mmdiffusion::{
    Denoiser, DiffusionConfig, DiffusionFlags, Pair, Sampler, Spacing, SuperResolutionUnet,
    UnetConfig,
};
use serde_json::Value;
use shared::nn::Precision;
use tests::golden::{Case, Class};

use crate::diffusion::process;
use crate::networks::coupled;

/// Factor of the guidance in the reference's half-precision mode.
const HALF_PRECISION_SCALE: f64 = (1u64 << 20) as f64;

pub fn dpm_solver(case: &mut Case) -> Result<()> {
    let config = process(&case.config)?.config().clone();
    let abar = case.array("in.alphas_cumprod")?.values.clone();
    timeline(case, &Timeline::new(&config, &abar))?;
    if let Ok(orders) = case.sub_cases("singlestep_orders") {
        for (name, expected) in orders {
            let (order, steps) = name.split_once('/').context("order/steps")?;
            let ours = singlestep_orders(steps.parse()?, order.parse()?);
            let expected: Vec<usize> = serde_json::from_value(expected)?;
            case.check_that(&name, ours == expected, || format!("{ours:?}"));
        }
    }
    let start = pair(case, "in.x_T")?;
    for (name, value) in case.sub_cases("variants")? {
        let network = Recorder::new(Box::new(closed_form));
        let sampler = Sampler::DpmSolver(solver(&value["ctor"], &value["sample"])?);
        let mut trajectory = Trajectory::default();
        let clip = sample(&sampler, &config, &network, None, &mut vec![], &start, &mut trajectory)?;
        check_pair(case, &name, &clip)?;
        check_times(case, &name, &network.times.into_inner())?;
    }
    Ok(())
}

/// The closed-form model of the solver cases: `eps_v = sin(2a+.3) tanh(v) + .1 mean(audio) + .2 v`,
/// `eps_a = .8 cos(1.5a) tanh(u) + .05 mean(video) + .3 u`, a = t/1000.
fn closed_form(x: &Pair, time: &Tensor, _: usize) -> shared::Result<Pair> {
    let a = time.affine(1e-3, 0.0)?;
    let column = |tensor: Tensor, rank: usize| -> shared::Result<Tensor> {
        let samples = tensor.dim(0)?;
        Ok(tensor.reshape([vec![samples], vec![1; rank - 1]].concat())?)
    };
    let mean = |tensor: &Tensor| tensor.flatten_from(1)?.mean(D::Minus1);
    let part = |x: &Tensor, factor: Tensor, other: Tensor, own: f64| -> shared::Result<Tensor> {
        let bent = x.tanh()?.broadcast_mul(&column(factor, x.rank())?)?;
        Ok((bent.broadcast_add(&column(other, x.rank())?)? + x.affine(own, 0.0)?)?)
    };
    Ok(Pair {
        video: part(&x.video, a.affine(2.0, 0.3)?.sin()?, mean(&x.audio)?.affine(0.1, 0.0)?, 0.2)?,
        audio: part(
            &x.audio,
            a.affine(1.5, 0.0)?.cos()?.affine(0.8, 0.0)?,
            mean(&x.video)?.affine(0.05, 0.0)?,
            0.3,
        )?,
    })
}

fn timeline(case: &mut Case, timeline: &Timeline) -> Result<()> {
    let (times, lambdas) = (case.array("in.ns.t")?.f32s(), case.array("in.ns.lambda")?.f32s());
    let of = |points: Vec<Point>, number: fn(&Point) -> f32| {
        let numbers: Vec<f32> = points.iter().map(number).collect();
        Tensor::new(numbers, &Device::Cpu)
    };
    for name in case.names("out.") {
        let points = || times.iter().map(|time| timeline.at(*time)).collect();
        let result = match name.split('.').collect::<Vec<_>>()[..] {
            ["ns", "marginal_log_mean_coeff"] => of(points(), |point| point.log_alpha),
            ["ns", "marginal_alpha"] => of(points(), |point| point.alpha),
            ["ns", "marginal_std"] => of(points(), |point| point.sigma),
            ["ns", "marginal_lambda"] => of(points(), |point| point.lambda),
            ["ns", "inverse_lambda"] => {
                let points = lambdas.iter().map(|lambda| timeline.at_lambda(*lambda)).collect();
                of(points, |point| point.time)
            }
            ["time_steps", skip, steps] => {
                of(timeline.grid(self::skip(skip)?, steps.parse()?), |point| point.time)
            }
            _ => continue,
        };
        case.check(&name, &result?, Class::Forward)?;
    }
    Ok(())
}

fn skip(name: &str) -> Result<Skip> {
    Ok(match name {
        "logSNR" => Skip::LogSnr,
        "time_uniform" => Skip::TimeUniform,
        "time_quadratic" => Skip::TimeQuadratic,
        name => anyhow::bail!("unknown skip type {name}"),
    })
}

/// The solver that the reference builds with these arguments.
fn solver(constructor: &Value, sample: &Value) -> Result<DpmSolver> {
    let flag = |value: &Value, name: &str| value[name].as_bool().unwrap_or(false);
    let count = |name: &str, default| sample[name].as_u64().map_or(default, |count| count as usize);
    let method = match sample["method"].as_str().unwrap_or("singlestep") {
        "singlestep" => Method::Singlestep,
        "singlestep_fixed" => Method::SinglestepFixed,
        "multistep" => Method::Multistep,
        "adaptive" => {
            let standard = Tolerance::default();
            Method::Adaptive(Tolerance {
                absolute: sample["atol"].as_f64().unwrap_or(standard.absolute),
                relative: sample["rtol"].as_f64().unwrap_or(standard.relative),
            })
        }
        method => anyhow::bail!("unknown method {method}"),
    };
    Ok(DpmSolver {
        steps: count("steps", 20),
        order: count("order", 3),
        method,
        skip: skip(sample["skip_type"].as_str().unwrap_or("time_uniform"))?,
        data_prediction: flag(constructor, "predict_x0"),
        expansion: match sample["solver_type"].as_str() {
            Some("taylor") => Expansion::Taylor,
            _ => Expansion::DpmSolver,
        },
        thresholding: flag(constructor, "thresholding"),
        denoise: flag(sample, "denoise"),
        upstream: true,
        ..DpmSolver::default()
    })
}

type Network<'a> = dyn Fn(&Pair, &Tensor, usize) -> shared::Result<Pair> + 'a;

/// A network, and the times at which it was asked.
struct Recorder<'a> {
    network: Box<Network<'a>>,
    times: RefCell<Vec<f64>>,
}

impl<'a> Recorder<'a> {
    fn new(network: Box<Network<'a>>) -> Self {
        Self { network, times: RefCell::default() }
    }
}

impl Denoiser for Recorder<'_> {
    fn predict(&self, x: &Pair, model_time: &Tensor, evaluation: usize) -> shared::Result<Pair> {
        let time = model_time.get(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        self.times.borrow_mut().push(time);
        (self.network)(x, model_time, evaluation)
    }
}

/// The states after each step.
#[derive(Default)]
struct Trajectory(Vec<Pair>);

/// Samples from `start` with the recorded draws `noise`, the next one last.
fn sample(
    sampler: &Sampler,
    diffusion: &DiffusionConfig,
    network: &Recorder,
    condition: Option<&Condition<Pair>>,
    noise: &mut Vec<Pair>,
    start: &Pair,
    trajectory: &mut Trajectory,
) -> Result<Pair> {
    let run = Run {
        denoiser: network,
        diffusion,
        condition,
        noise: &mut |_| {
            noise.pop().ok_or_else(|| shared::Error::Argument("no noise is left".to_string()))
        },
        on_step: &mut |step| {
            trajectory.0.push(step.x.clone());
            Ok(())
        },
    };
    Ok(sampler.sample(run, start.clone())?)
}

fn pair(case: &Case, name: &str) -> Result<Pair> {
    Ok(Pair {
        video: case.tensor(&format!("{name}.video"))?,
        audio: case.tensor(&format!("{name}.audio"))?,
    })
}

fn check_pair(case: &mut Case, name: &str, result: &Pair) -> Result<()> {
    case.check(&format!("{name}.video"), &result.video, Class::Forward)?;
    case.check(&format!("{name}.audio"), &result.audio, Class::Forward)
}

/// Compares the times at which the network was asked, unless the reference itself asks at others in
/// f64: the steps of an adaptive solver hang on the last bit of its error.
fn check_times(case: &mut Case, name: &str, times: &[f64]) -> Result<()> {
    let name = format!("{name}.model_times");
    if case.is_ambiguous(&name) {
        case.skip(&name);
        return Ok(());
    }
    case.check_equal(&name, &Tensor::new(times, &Device::Cpu)?)
}

pub fn unconditional(case: &mut Case) -> Result<()> {
    loops(case, |case, run, diffusion, spacing| {
        Ok(match run["kind"].as_str().context("kind")? {
            "ddim" => {
                let eta = run["eta"].as_f64().unwrap_or(0.0);
                (Sampler::Ddim(Ddim { spacing, eta, clip: clips(run) }), None)
            }
            "ddpm" => (Sampler::Ddpm(Ddpm { spacing, clip: clips(run) }), None),
            "dpm" => (Sampler::DpmSolver(solver(&run["ctor"], &run["sample"])?), None),
            kind => anyhow::bail!("unknown kind {kind} in {} {diffusion:?}", case.path.display()),
        })
    })
}

pub fn conditional(case: &mut Case) -> Result<()> {
    loops(case, |case, run, _, spacing| {
        ensure!(run["kind"] == "cond", "unknown kind {}", run["kind"]);
        let scale = run["class_scale"].as_f64().context("class_scale")?;
        let scale = if run["use_fp16"].as_bool().unwrap_or(false) {
            scale * HALF_PRECISION_SCALE
        } else {
            scale
        };
        let guidance = if scale == 0.0 {
            Guidance::Replacement
        } else {
            Guidance::Gradient { scale, loss: Loss::BatchMean }
        };
        let given = match run["condition"].as_str().context("condition")? {
            "video" => Given::Video(case.tensor("in.gt.video")?),
            "audio" => Given::Audio(case.tensor("in.gt.audio")?),
            condition => anyhow::bail!("unknown condition {condition}"),
        };
        Ok((Sampler::Ddpm(Ddpm { spacing, clip: clips(run) }), Some((given, guidance))))
    })
}

fn clips(run: &Value) -> bool {
    run["clip_denoised"].as_bool().unwrap_or(true)
}

type Plan = (Sampler, Option<(Given, Guidance)>);

/// Makes all runs of a case as `plan` reads them.
fn loops(
    case: &mut Case,
    plan: impl Fn(&Case, &Value, &DiffusionConfig, Spacing) -> Result<Plan>,
) -> Result<()> {
    let flags = case.config["cfg"].as_object().context("config.cfg")?.clone();
    let (config, diffusion) = UnetConfig::from_flags(flags)?;
    let network = coupled(case, Precision::F32)?;
    for (name, run) in case.sub_cases("runs")? {
        let diffusion = with_overrides(&diffusion, &run["diff"])?;
        let spacing = diffusion.timestep_respacing.parse()?;
        let process = DiffusionConfig::from_flags(&diffusion, config.learn_sigma)?;
        let (sampler, condition) = plan(case, &run, &process, spacing)?;
        let mut noise = draws(case, &name)?;
        let start = match case.array(&format!("in.{name}.x_T.video")) {
            Ok(_) => pair(case, &format!("in.{name}.x_T"))?,
            Err(_) => noise.pop().context("no noise is recorded")?,
        };
        let condition =
            condition.map(|(given, guidance)| given.condition(&start, guidance)).transpose()?;
        let shifts = forced_shifts(case, &name)?;
        let none = vec![0; network.largest_shifts(start.video.dim(1)?).len()];
        let recorder = Recorder::new(Box::new(|x, time, evaluation| {
            network.forward(x, time, shifts.get(evaluation).unwrap_or(&none))
        }));
        let mut trajectory = Trajectory::default();
        let clip = sample(
            &sampler,
            &process,
            &recorder,
            condition.as_ref(),
            &mut noise,
            &start,
            &mut trajectory,
        )
        .with_context(|| name.clone())?;
        check_pair(case, &name, &clip)?;
        if case.array(&format!("out.{name}.traj.video")).is_ok() {
            let stacked = |part: fn(&Pair) -> &Tensor| {
                Tensor::stack(&trajectory.0.iter().map(part).collect::<Vec<_>>(), 0)
            };
            let states = Pair { video: stacked(|x| &x.video)?, audio: stacked(|x| &x.audio)? };
            check_pair(case, &format!("{name}.traj"), &states)?;
        }
        check_times(case, &name, &recorder.times.into_inner())?;
    }
    Ok(())
}

/// The settings `flags` with those that a run has of its own.
fn with_overrides(flags: &DiffusionFlags, run: &Value) -> Result<DiffusionFlags> {
    let mut flags = serde_json::to_value(flags)?;
    for (name, value) in run.as_object().into_iter().flatten() {
        let name = match name.as_str() {
            "resp" => "timestep_respacing",
            "steps" => "diffusion_steps",
            "schedule" => "noise_schedule",
            name => name,
        };
        flags[name] = value.clone();
    }
    Ok(serde_json::from_value(flags)?)
}

/// The recorded draws of a run, the next one last.
fn draws(case: &Case, run: &str) -> Result<Vec<Pair>> {
    if case.array(&format!("in.{run}.noise.video")).is_err() {
        return Ok(vec![]);
    }
    let noise = pair(case, &format!("in.{run}.noise"))?;
    (0..noise.video.dim(0)?)
        .rev()
        .map(|i| Ok(Pair { video: noise.video.get(i)?, audio: noise.audio.get(i)? }))
        .collect()
}

/// The shifts of each evaluation of a run.
fn forced_shifts(case: &Case, run: &str) -> Result<Vec<Vec<usize>>> {
    let Ok(shifts) = case.array(&format!("in.{run}.shifts")) else { return Ok(vec![]) };
    let blocks = *shifts.dims.get(1).context("shifts of each block")?;
    let shifts: Vec<usize> = shifts.values.iter().map(|shift| *shift as usize).collect();
    Ok(shifts.chunks(blocks.max(1)).map(<[usize]>::to_vec).collect())
}

/// The loops of super-resolution, in which the frames of a clip share their noise.
pub fn super_resolution(case: &mut Case, network: &SuperResolutionUnet) -> Result<()> {
    let settings = case.config["ddim"].clone();
    let spacing: Spacing = settings["respacing"].as_str().context("respacing")?.parse()?;
    let frames = crate::size(&settings["frames_per_clip"])?;
    let noise = case.tensor("in.loop.noise_per_clip")?;
    let (clips, channels, height, width) = noise.dims4()?;
    let noise = noise
        .unsqueeze(1)?
        .broadcast_as((clips, frames, channels, height, width))?
        .reshape((clips * frames, channels, height, width))?;
    let flags = with_overrides(&DiffusionFlags::default(), &case.config["diffusion"])?;
    let diffusion = DiffusionConfig::from_flags(&flags, network.config().learn_sigma)?;
    let denoiser = LowResolutionDenoiser { network, low_resolution: case.tensor("in.low_res")? };
    let samplers = [
        ("ddim", Sampler::Ddim(Ddim { spacing: spacing.clone(), ..Ddim::default() })),
        ("ddpm_same_noise", Sampler::Ddpm(Ddpm { spacing, ..Ddpm::default() })),
    ];
    for (name, sampler) in samplers {
        let run = Run {
            denoiser: &denoiser,
            diffusion: &diffusion,
            condition: None,
            // The reference adds the noise that it starts with at every step.
            noise: &mut |_| Ok(noise.clone()),
            on_step: &mut |_| Ok(()),
        };
        let pictures = sampler.sample(run, noise.clone())?;
        case.check(name, &pictures, Class::Forward)?;
    }
    Ok(())
}
