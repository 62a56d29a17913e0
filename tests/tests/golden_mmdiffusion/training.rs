//! Losses, gradients and training steps.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use mmdiffusion::diffusion::{Target, Variance};
use mmdiffusion::training::{Losses, Objective};
use mmdiffusion::{
    CoupledUnet, Diffusion, DiffusionConfig, Pair, Spacing, SuperResolutionConfig,
    SuperResolutionUnet, UnetConfig,
};
use serde_json::Value;
use shared::nn::{Precision, Weights};
use shared::train::{AdamConfig, Ema, Gradients, Optimiser, Rule};
use tests::golden::{Case, Class};

/// Training of the coupled network.
pub fn coupled(case: &mut Case) -> Result<()> {
    let flags = case.config["cfg"].as_object().context("config.cfg")?.clone();
    let (config, flags) = UnetConfig::from_flags(flags)?;
    let base = DiffusionConfig::from_flags(&flags, config.learn_sigma)?;
    let shifts: Vec<usize> =
        case.array("in.window_shifts")?.values.iter().map(|shift| *shift as usize).collect();
    let (clean, noise) = (pair(case, "in.x_start.")?, pair(case, "in.noise.")?);
    let t = steps(case, "in.t")?;
    let variants = case.sub_cases("variants")?;
    for (name, variant) in &variants {
        let (diffusion, rescale_bound) = variant_of(&base, &variant["diffusion"])?;
        let objective = Objective { diffusion: &diffusion, rescale_bound };
        let weights = trainable(case)?;
        let network = CoupledUnet::new(&config, &weights, Precision::F32)?;
        weights.check(false)?;
        let losses = |network: &CoupledUnet| -> Result<Losses> {
            Ok(objective.losses(&clean, &noise, &t, |x, time| network.forward(x, time, &shifts))?)
        };
        let found = losses(&network)?;
        let mean = found.total.mean_all()?;
        case.check(&format!("{name}.loss"), &found.total, Class::Forward)?;
        case.check(&format!("{name}.mean_loss"), &mean, Class::Forward)?;
        for (term, value) in &found.terms {
            case.check(&format!("{name}.{term}"), value, Class::Forward)?;
        }
        let parameters = weights.variables();
        let gradients = mean.backward()?;
        let mut squares = 0.0;
        for parameter in &parameters {
            let gradient = gradients.get(&parameter.var).context(parameter.name.clone())?;
            squares += gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
            let result = format!("{name}.grad.{}", parameter.name);
            if case.array(&format!("out.{result}")).is_ok() {
                case.check(&result, gradient, Class::Gradient)?;
            }
        }
        let norm = Tensor::new(squares.sqrt(), &Device::Cpu)?;
        case.check(&format!("{name}.grad_norm"), &norm, Class::Gradient)?;
        if name != "mse" {
            continue;
        }

        let number = |key: &str| case.config[key].as_f64().with_context(|| format!("config.{key}"));
        let adam = AdamConfig { weight_decay: number("weight_decay")?, ..AdamConfig::default() };
        let (lr, rate) = (number("lr")?, number("ema_rate")?);
        let mut optimiser = Optimiser::new(&parameters, Rule::AdamW(adam))?;
        let mut ema = Ema::new(&parameters, &[rate])?;
        for _ in 0..2 {
            let loss = losses(&network)?.total.mean_all()?;
            optimiser.step(lr, &Gradients::of(&loss, &parameters)?)?;
            ema.update()?;
        }
        let averages = ema.tensors(0)?;
        for (set, tensors) in [("adamw", weights.state()), ("ema", averages)] {
            for name in case.names(&format!("out.{set}.")) {
                let tensor = tensors.get(&name).with_context(|| name.clone())?;
                case.check(&format!("{set}.{name}"), tensor, Class::Gradient)?;
            }
        }
        case.check("loss_after_2_steps", &losses(&network)?.total, Class::Gradient)?;
    }
    Ok(())
}

/// Loss and gradients of the super-resolution network, with `train.*` of its case.
pub fn super_resolution(case: &mut Case, config: &SuperResolutionConfig) -> Result<()> {
    let diffusion = Diffusion::new(&DiffusionConfig::super_resolution(), &Spacing::All)?;
    let objective = Objective { diffusion: &diffusion, rescale_bound: false };
    let weights = trainable(case)?;
    let network = SuperResolutionUnet::new(config, &weights, Precision::F32)?;
    weights.check(false)?;
    let (clean, noise) = (case.tensor("in.train.x_start")?, case.tensor("in.train.noise")?);
    let low_res = case.tensor("in.low_res")?;
    let t = steps(case, "in.train.t")?;
    let predict = |x: &Tensor, time: &Tensor| network.forward(x, time, &low_res);
    let found = objective.losses(&clean, &noise, &t, predict)?;
    case.check("train.loss", &found.total, Class::Forward)?;
    for (term, value) in &found.terms {
        let term = term.strip_suffix("_image").unwrap_or(term);
        case.check(&format!("train.{term}"), value, Class::Forward)?;
    }
    let gradients = found.total.mean_all()?.backward()?;
    for parameter in weights.variables() {
        let result = format!("train.grad.{}", parameter.name);
        if case.array(&format!("out.{result}")).is_ok() {
            let gradient = gradients.get(&parameter.var).context(parameter.name)?;
            case.check(&result, gradient, Class::Gradient)?;
        }
    }
    Ok(())
}

fn trainable(case: &Case) -> Result<Weights> {
    Ok(Weights::loaded(case.weights()?, &case.path, true, DType::F32, &Device::Cpu))
}

fn steps(case: &Case, name: &str) -> Result<Vec<usize>> {
    Ok(case.array(name)?.values.iter().map(|step| *step as usize).collect())
}

fn pair(case: &Case, prefix: &str) -> Result<Pair> {
    let part = |name: &str| case.tensor(&format!("{prefix}{name}"));
    Ok(Pair { video: part("video")?, audio: part("audio")? })
}

/// The diffusion of a variant, and whether the bound is rescaled.
fn variant_of(base: &DiffusionConfig, variant: &Value) -> Result<(Diffusion, bool)> {
    let mut config = base.clone();
    let text = |key: &str| variant[key].as_str().unwrap_or_default();
    match text("mean") {
        "" | "EPSILON" => {}
        "START_X" => config.target = Target::Clean,
        "PREVIOUS_X" => config.target = Target::Previous,
        other => bail!("mean {other}"),
    }
    match text("var") {
        "" => {}
        "LEARNED_RANGE" => config.variance = Variance::LearnedRange,
        "LEARNED" => config.variance = Variance::Learned,
        "FIXED_SMALL" => config.variance = Variance::FixedSmall,
        "FIXED_LARGE" => config.variance = Variance::FixedLarge,
        other => bail!("var {other}"),
    }
    let rescale_bound = match text("loss") {
        "" | "MSE" => false,
        "RESCALED_MSE" => true,
        other => bail!("loss {other}"),
    };
    Ok((Diffusion::new(&config, &Spacing::All)?, rescale_bound))
}
