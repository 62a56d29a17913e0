//! Schedules, posteriors and the variational bound.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use mmdiffusion::diffusion::{Coefficients, Gaussian, Schedule, Target, Variance, column};
use mmdiffusion::state::Modality;
use mmdiffusion::{Diffusion, DiffusionConfig, Spacing};
use serde_json::Value;
use tests::golden::{Case, Class};

/// The process `config` describes, with all its steps unless it has a `respacing`.
pub fn process(config: &Value) -> Result<Diffusion> {
    Ok(Diffusion::new(&process_config(config)?, &spacing(config)?)?)
}

fn process_config(config: &Value) -> Result<DiffusionConfig> {
    let schedule = match config["schedule"].as_str() {
        Some(name) => serde_json::from_value::<Schedule>(name.into())?,
        None => Schedule::Linear,
    };
    let steps = ["steps", "T", "diffusion_steps"]
        .iter()
        .find_map(|name| config[name].as_u64())
        .unwrap_or(1000);
    Ok(DiffusionConfig { steps: usize::try_from(steps)?, schedule, ..DiffusionConfig::default() })
}

fn spacing(config: &Value) -> Result<Spacing> {
    Ok(config["respacing"].as_str().unwrap_or("").parse()?)
}

pub fn schedules(case: &mut Case) -> Result<()> {
    for (name, value) in case.sub_cases("schedules")? {
        let diffusion = process(&value)?;
        let coefficients = diffusion.coefficients();
        for array in case.names(&format!("out.{name}.")) {
            let result = match array.as_str() {
                "timestep_map" => steps_tensor(diffusion.kept())?,
                array => {
                    let values = coefficient(coefficients, array)?.clone();
                    Tensor::from_vec(values, diffusion.steps(), &Device::Cpu)?
                }
            };
            case.check(&format!("{name}.{array}"), &result, Class::Forward)?;
        }
    }
    for (name, value) in case.sub_cases("spacings")? {
        let steps = value[0].as_u64().context("steps")? as usize;
        let kept = value[1].as_str().context("spacing")?.parse::<Spacing>()?.kept(steps);
        let expected = case.array(&format!("out.{name}"));
        match (expected.is_ok(), kept) {
            (true, kept) => case.check_equal(&name, &steps_tensor(&kept?)?)?,
            (false, kept) => case.check_that(&name, kept.is_err(), || format!("is {kept:?}")),
        }
    }
    Ok(())
}

fn steps_tensor(steps: &[usize]) -> Result<Tensor> {
    let steps: Vec<i64> = steps.iter().map(|step| *step as i64).collect();
    Ok(Tensor::new(steps, &Device::Cpu)?)
}

fn coefficient<'a>(coefficients: &'a Coefficients, name: &str) -> Result<&'a Vec<f64>> {
    Ok(match name {
        "betas" => &coefficients.betas,
        "alphas_cumprod" => &coefficients.alphas_cumprod,
        "alphas_cumprod_prev" => &coefficients.alphas_cumprod_prev,
        "alphas_cumprod_next" => &coefficients.alphas_cumprod_next,
        "sqrt_alphas_cumprod" => &coefficients.sqrt_alphas_cumprod,
        "sqrt_one_minus_alphas_cumprod" => &coefficients.sqrt_one_minus_alphas_cumprod,
        "log_one_minus_alphas_cumprod" => &coefficients.log_one_minus_alphas_cumprod,
        "sqrt_recip_alphas_cumprod" => &coefficients.sqrt_recip_alphas_cumprod,
        "sqrt_recipm1_alphas_cumprod" => &coefficients.sqrt_recipm1_alphas_cumprod,
        "posterior_variance" => &coefficients.posterior_variance,
        "posterior_log_variance_clipped" => &coefficients.posterior_log_variance_clipped,
        "posterior_mean_coef1" => &coefficients.posterior_mean_coef1,
        "posterior_mean_coef2" => &coefficients.posterior_mean_coef2,
        name => anyhow::bail!("unknown coefficient {name}"),
    })
}

pub fn posteriors(case: &mut Case) -> Result<()> {
    let base = process_config(&case.config)?;
    let spacing = spacing(&case.config)?;
    let t = steps(case, "in.t")?;
    let diffusion = Diffusion::new(&base, &spacing)?;
    case.check_equal("timestep_map", &steps_tensor(diffusion.kept())?)?;
    for rescale_times in [false, true] {
        let config = DiffusionConfig { rescale_times, ..base.clone() };
        let times = Diffusion::new(&config, &spacing)?.model_times(&t)?;
        let name = format!("model_time.rescale_{}", if rescale_times { "True" } else { "False" });
        case.check(&name, &Tensor::new(times, &Device::Cpu)?, Class::Forward)?;
    }
    for modality in [Modality::Video, Modality::Audio] {
        let input = Inputs::of(case, modality, t.clone())?;
        for name in case.names("out.") {
            if name == "timestep_map" || name.starts_with("model_time.") {
                continue;
            }
            let Some(quantity) = name.strip_suffix(&format!(".{}", modality.name())) else {
                continue;
            };
            let result = input.quantity(&base, &spacing, quantity).context(name.clone())?;
            let shape = case.array(&format!("out.{name}"))?.dims.clone();
            // The reference repeats numbers that are the same for a whole sample.
            let result =
                if result.dims() == shape { result } else { result.broadcast_as(shape)? };
            case.check(&name, &result, Class::Forward)?;
        }
    }
    Ok(())
}

/// What all quantities of a modality are made of.
struct Inputs {
    modality: Modality,
    t: Vec<usize>,
    clean: Tensor,
    noise: Tensor,
    step_noise: Tensor,
    output: Tensor,
}

impl Inputs {
    fn of(case: &Case, modality: Modality, t: Vec<usize>) -> Result<Self> {
        let input = |name: &str| case.tensor(&format!("in.{name}.{}", modality.name()));
        Ok(Self {
            modality,
            t,
            clean: input("x_start")?,
            noise: input("noise")?,
            step_noise: input("noise2")?,
            output: input("model_out2")?,
        })
    }

    fn quantity(&self, base: &DiffusionConfig, spacing: &Spacing, name: &str) -> Result<Tensor> {
        let Self { t, clean, .. } = self;
        let diffusion = Diffusion::new(base, spacing)?;
        let x = diffusion.q_sample(clean, t, &self.noise)?;
        let of_gaussian = |gaussian: Gaussian, quantity: &str| -> Result<Tensor> {
            Ok(match quantity {
                "mean" => gaussian.mean,
                "log_variance" => gaussian.log_variance,
                "variance" => gaussian.log_variance.exp()?,
                quantity => anyhow::bail!("unknown quantity {quantity}"),
            })
        };
        let parts: Vec<&str> = name.split('.').collect();
        match parts[..] {
            ["q_sample"] => Ok(x),
            ["q_mean_variance", quantity] => {
                of_gaussian(diffusion.q_mean_variance(clean, t)?, quantity)
            }
            ["q_posterior", "variance"] => {
                Ok(column(&diffusion.coefficients().posterior_variance, t, clean)?)
            }
            ["q_posterior", quantity] => {
                of_gaussian(diffusion.q_posterior(clean, &x, t)?, quantity)
            }
            ["prior_bpd"] => Ok(diffusion.prior_bits(clean)?),
            ["ddim_reverse"] => {
                let predicted =
                    self.predict(base, spacing, &x, ["EPSILON", "FIXED_LARGE"], true)?;
                Ok(diffusion.ddim_reverse_step(&x, &predicted.clean, t)?)
            }
            ["pmv", target, variance, clip, quantity] => {
                let predicted =
                    self.predict(base, spacing, &x, [target, variance], clip == "clip")?;
                match quantity {
                    "pred_xstart" => Ok(predicted.clean),
                    quantity => of_gaussian(predicted.previous, quantity),
                }
            }
            ["p_sample", target, variance, clip, "sample"] => {
                let predicted =
                    self.predict(base, spacing, &x, [target, variance], clip == "clip")?;
                Ok(diffusion.ancestral_step(&predicted.previous, t, &self.step_noise)?)
            }
            ["ddim", target, variance, clip, whole, tenths, "sample"] => {
                let predicted =
                    self.predict(base, spacing, &x, [target, variance], clip == "clip")?;
                let eta: f64 = format!("{}.{tenths}", whole.trim_start_matches("eta")).parse()?;
                let noise = Some(&self.step_noise);
                Ok(diffusion.ddim_step(&x, &predicted.clean, t, eta, noise)?)
            }
            [bound @ ("vb" | "vb_noclip"), target, variance, _] => {
                let predicted =
                    self.predict(base, spacing, &x, [target, variance], bound == "vb")?;
                Ok(diffusion.variational_bits(clean, &x, t, &predicted.previous)?)
            }
            _ => anyhow::bail!("unknown quantity"),
        }
    }

    /// What the recorded output says about `x` for a network of these kinds.
    fn predict(
        &self,
        base: &DiffusionConfig,
        spacing: &Spacing,
        x: &Tensor,
        [target, variance]: [&str; 2],
        clip: bool,
    ) -> Result<Predicted> {
        let config = DiffusionConfig {
            target: match target {
                "EPSILON" => Target::Epsilon,
                "START_X" => Target::Clean,
                "PREVIOUS_X" => Target::Previous,
                target => anyhow::bail!("unknown target {target}"),
            },
            variance: match variance {
                "FIXED_SMALL" => Variance::FixedSmall,
                "FIXED_LARGE" => Variance::FixedLarge,
                "LEARNED" => Variance::Learned,
                "LEARNED_RANGE" => Variance::LearnedRange,
                variance => anyhow::bail!("unknown variance {variance}"),
            },
            ..base.clone()
        };
        let diffusion = Diffusion::new(&config, spacing)?;
        let axis = self.modality.channel_axis();
        let output = if config.variance.is_learned() {
            self.output.clone()
        } else {
            self.output.narrow(axis, 0, x.dim(axis)?)?
        };
        let clean = diffusion.predicted_clean(x, &output, &self.t, axis, clip)?;
        let previous = diffusion.predicted_previous(x, &output, &clean, &self.t, axis)?;
        Ok(Predicted { clean, previous })
    }
}

struct Predicted {
    clean: Tensor,
    previous: Gaussian,
}

fn steps(case: &Case, name: &str) -> Result<Vec<usize>> {
    Ok(case.array(name)?.values.iter().map(|step| *step as usize).collect())
}
