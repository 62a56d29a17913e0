//! Noise schedules and the coefficients that follow from them.

use serde::{Deserialize, Serialize};

/// How the noise grows over the steps of the forward process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Betas on a straight line, 1e-4 to 0.02 for 1000 steps (Ho et al. 2020).
    #[default]
    Linear,
    /// A squared cosine for the cumulative product (Nichol and Dhariwal 2021, equation 17).
    Cosine,
}

impl Schedule {
    /// The variances that `steps` steps add.
    pub fn betas(self, steps: usize) -> Vec<f64> {
        let count = steps as f64;
        match self {
            Self::Linear => {
                let (first, last) = (0.1 / count, 20.0 / count);
                let rise = (last - first) / (count - 1.0).max(1.0);
                (0..steps).map(|i| first + rise * i as f64).collect()
            }
            Self::Cosine => {
                let kept = |time: f64| {
                    ((time + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                (0..steps)
                    .map(|i| {
                        (1.0 - kept((i + 1) as f64 / count) / kept(i as f64 / count)).min(0.999)
                    })
                    .collect()
            }
        }
    }
}

/// Coefficients of the forward process and its posteriors, one of each per step. In the names,
/// `abar` is the cumulative product of 1 - beta.
#[derive(Clone, Debug, PartialEq)]
pub struct Coefficients {
    /// Variance that the step adds.
    pub betas: Vec<f64>,
    /// abar.
    pub alphas_cumprod: Vec<f64>,
    /// abar of the step before; 1 for the first.
    pub alphas_cumprod_prev: Vec<f64>,
    /// abar of the step after; 0 for the last.
    pub alphas_cumprod_next: Vec<f64>,
    /// sqrt(abar).
    pub sqrt_alphas_cumprod: Vec<f64>,
    /// sqrt(1 - abar).
    pub sqrt_one_minus_alphas_cumprod: Vec<f64>,
    /// log(1 - abar).
    pub log_one_minus_alphas_cumprod: Vec<f64>,
    /// sqrt(1 / abar).
    pub sqrt_recip_alphas_cumprod: Vec<f64>,
    /// sqrt(1 / abar - 1).
    pub sqrt_recipm1_alphas_cumprod: Vec<f64>,
    /// Variance of q(x_{t-1} | x_t, x_0); 0 for the first step.
    pub posterior_variance: Vec<f64>,
    /// Its logarithm, that of the second step for the first.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0).
    pub posterior_mean_coef1: Vec<f64>,
    /// Factor of x_t in that mean.
    pub posterior_mean_coef2: Vec<f64>,
}

impl Coefficients {
    /// The coefficients of steps that add the variances `betas`.
    pub fn new(betas: Vec<f64>) -> Self {
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        let of_abar = |function: fn(f64) -> f64| -> Vec<f64> {
            alphas_cumprod.iter().map(|abar| function(*abar)).collect()
        };
        let alphas_cumprod_prev: Vec<f64> =
            std::iter::once(1.0).chain(alphas_cumprod.iter().copied()).take(betas.len()).collect();
        let alphas_cumprod_next =
            alphas_cumprod.iter().copied().skip(1).chain([0.0]).take(betas.len()).collect();
        let of_step = |function: fn(f64, f64, f64) -> f64| -> Vec<f64> {
            betas
                .iter()
                .zip(&alphas_cumprod)
                .zip(&alphas_cumprod_prev)
                .map(|((beta, abar), previous)| function(*beta, *abar, *previous))
                .collect()
        };
        let posterior_variance =
            of_step(|beta, abar, previous| beta * (1.0 - previous) / (1.0 - abar));
        // A process of one step has nothing but its beta to take.
        let second = posterior_variance.get(1).or(betas.first()).copied();
        let posterior_log_variance_clipped = second
            .into_iter()
            .chain(posterior_variance.iter().copied().skip(1))
            .map(f64::ln)
            .collect();
        Self {
            sqrt_alphas_cumprod: of_abar(f64::sqrt),
            sqrt_one_minus_alphas_cumprod: of_abar(|abar| (1.0 - abar).sqrt()),
            log_one_minus_alphas_cumprod: of_abar(|abar| (1.0 - abar).ln()),
            sqrt_recip_alphas_cumprod: of_abar(|abar| (1.0 / abar).sqrt()),
            sqrt_recipm1_alphas_cumprod: of_abar(|abar| (1.0 / abar - 1.0).sqrt()),
            posterior_mean_coef1: of_step(|beta, abar, previous| {
                beta * previous.sqrt() / (1.0 - abar)
            }),
            posterior_mean_coef2: of_step(|beta, abar, previous| {
                (1.0 - previous) * (1.0 - beta).sqrt() / (1.0 - abar)
            }),
            posterior_variance,
            posterior_log_variance_clipped,
            alphas_cumprod_prev,
            alphas_cumprod_next,
            alphas_cumprod,
            betas,
        }
    }

    /// The coefficients of a process that makes only the steps `kept` of this one, in rising order.
    pub fn spaced(&self, kept: &[usize]) -> Self {
        let mut last = 1.0;
        let betas = kept
            .iter()
            .filter_map(|step| self.alphas_cumprod.get(*step))
            .map(|abar| {
                let beta = 1.0 - abar / last;
                last = *abar;
                beta
            })
            .collect();
        Self::new(betas)
    }
}
