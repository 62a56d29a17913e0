//! Optimisers: which parameters move by how much, and the state that makes a run resumable.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use rayon::prelude::*;

use super::Gradients;
use super::update::{Rule, Step};
use crate::nn::Parameter;
use crate::{Error, Result};

/// What happens to a parameter that a step's loss did not reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unreached {
    /// It stays as it is, and so do its moments: PyTorch's `zero_grad(set_to_none=True)`.
    #[default]
    Skip,
    /// Once it had a gradient, a missing one counts as zero: momentum and weight decay go on
    /// moving it. PyTorch's `zero_grad(set_to_none=False)`, its default before version 2.
    Zero,
}

/// How a parameter's settings differ from those of the optimiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Multiplies the learning rate.
    pub lr_multiplier: f64,
    /// Multiplies the weight decay; 0 switches it off.
    pub weight_decay_multiplier: f64,
}

impl Default for Group {
    fn default() -> Self {
        Self { lr_multiplier: 1.0, weight_decay_multiplier: 1.0 }
    }
}

impl Group {
    /// The usual rule for models with norm layers: no weight decay on biases and on the scales and
    /// shifts of norms, which are the parameters of fewer than two dimensions.
    pub fn decay_matrices_only(parameter: &Parameter) -> Self {
        let weight_decay_multiplier = if parameter.var.rank() < 2 { 0.0 } else { 1.0 };
        Self { weight_decay_multiplier, ..Self::default() }
    }
}

/// Everything that an [`Optimiser`] remembers; with the parameters, it continues exactly.
#[derive(Clone, Debug, Default)]
pub struct OptimiserState {
    /// Moments, as `<moment>.<parameter>`.
    pub tensors: BTreeMap<String, Tensor>,
    /// How often each parameter was updated.
    pub steps: BTreeMap<String, u64>,
}

/// Moves parameters along their gradients.
pub struct Optimiser {
    rule: Rule,
    unreached: Unreached,
    slots: Vec<Slot>,
}

struct Slot {
    parameter: Parameter,
    group: Group,
    /// Updates so far; the tensors exist from the first on.
    steps: u64,
    state: Vec<Var>,
}

impl Optimiser {
    /// An optimiser for `parameters`, which all follow `rule`.
    ///
    /// # Errors
    /// When a setting of the rule is outside its domain, or two parameters have one name.
    pub fn new(parameters: &[Parameter], rule: Rule) -> Result<Self> {
        rule.validate()?;
        let mut names: Vec<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair.first() == pair.last()) {
            return Err(Error::Argument(format!("two parameters are named {}", pair.concat())));
        }
        let slot = |parameter: &Parameter| Slot {
            parameter: parameter.clone(),
            group: Group::default(),
            steps: 0,
            state: vec![],
        };
        let slots = parameters.iter().map(slot).collect();
        Ok(Self { rule, unreached: Unreached::default(), slots })
    }

    /// The same optimiser with `group` deciding on each parameter's settings.
    pub fn with_groups(mut self, group: impl Fn(&Parameter) -> Group) -> Self {
        self.slots.iter_mut().for_each(|slot| slot.group = group(&slot.parameter));
        self
    }

    /// The same optimiser with another treatment of parameters that a step does not reach.
    pub fn with_unreached(mut self, unreached: Unreached) -> Self {
        self.unreached = unreached;
        self
    }

    /// The parameters, in the order in which [`Gradients`] must hold theirs.
    pub fn parameters(&self) -> Vec<Parameter> {
        self.slots.iter().map(|slot| slot.parameter.clone()).collect()
    }

    /// Updates all parameters in place with learning rate `lr`.
    ///
    /// # Errors
    /// When `gradients` are those of other parameters, or the tensor library fails.
    pub fn step(&mut self, lr: f64, gradients: &Gradients) -> Result<()> {
        let scale = gradients.pending_scale();
        let gradients = gradients.unscaled();
        if gradients.len() != self.slots.len() {
            return Err(Error::Argument(format!(
                "the optimiser has {} parameters, the step {} gradients",
                self.slots.len(),
                gradients.len()
            )));
        }
        let (rule, unreached) = (self.rule, self.unreached);
        self.slots.par_iter_mut().zip(gradients).try_for_each(|(slot, gradient)| {
            slot.step(rule, unreached, lr, scale, gradient.as_ref())
        })
    }

    /// A copy of the state, to be saved beside the parameters.
    ///
    /// # Errors
    /// Only when the tensor library fails.
    pub fn state(&self) -> Result<OptimiserState> {
        let mut state = OptimiserState::default();
        for slot in self.slots.iter().filter(|slot| slot.steps > 0) {
            let name = &slot.parameter.name;
            state.steps.insert(name.clone(), slot.steps);
            for (moment, var) in self.rule.state_names().iter().zip(&slot.state) {
                state.tensors.insert(format!("{moment}.{name}"), var.as_tensor().copy()?.detach());
            }
        }
        Ok(state)
    }

    /// Continues from `state`.
    ///
    /// # Errors
    /// When the state is that of another rule or of other parameters; nothing has changed then.
    pub fn restore(&mut self, state: &OptimiserState) -> Result<()> {
        let moments = self.rule.state_names();
        let mut restored = vec![];
        let mut used = 0;
        for slot in &self.slots {
            let name = &slot.parameter.name;
            let steps = state.steps.get(name).copied().unwrap_or(0);
            let mut vars = vec![];
            for moment in moments.iter().filter(|_| steps > 0) {
                vars.push(slot.moment(state, &format!("{moment}.{name}"))?);
            }
            used += vars.len();
            restored.push((steps, vars));
        }
        let known = restored.iter().filter(|(steps, _)| *steps > 0).count();
        if used != state.tensors.len() || known != state.steps.len() {
            return Err(Error::Argument(
                "the optimiser state belongs to another optimiser or another model".into(),
            ));
        }
        for (slot, (steps, vars)) in self.slots.iter_mut().zip(restored) {
            (slot.steps, slot.state) = (steps, vars);
        }
        Ok(())
    }
}

impl Slot {
    fn step(
        &mut self,
        rule: Rule,
        unreached: Unreached,
        lr: f64,
        gradient_scale: f64,
        gradient: Option<&Tensor>,
    ) -> Result<()> {
        let var = &self.parameter.var;
        let zeros;
        let gradient = match gradient {
            Some(gradient) => gradient,
            None if unreached == Unreached::Zero && self.steps > 0 => {
                zeros = var.as_tensor().zeros_like()?;
                &zeros
            }
            None => return Ok(()),
        };
        if gradient.shape() != var.shape() {
            let expected = format!("{:?}", var.dims());
            let what = format!("gradient of {}", self.parameter.name);
            return Err(Error::shape(what, expected, gradient.dims()));
        }
        if self.steps == 0 {
            let dtype = Rule::state_dtype(var.dtype());
            let zeros = |_: &&str| Ok(Var::zeros(var.shape(), dtype, var.device())?);
            self.state = rule.state_names().iter().map(zeros).collect::<Result<_>>()?;
        }
        self.steps += 1;
        let step = Step {
            lr: lr * self.group.lr_multiplier,
            weight_decay_multiplier: self.group.weight_decay_multiplier,
            gradient_scale,
            number: self.steps,
        };
        rule.update(step, var, &self.state, gradient)
    }

    /// The saved tensor `name`, as a variable of this parameter's shape and device.
    fn moment(&self, state: &OptimiserState, name: &str) -> Result<Var> {
        let var = &self.parameter.var;
        let tensor = state.tensors.get(name).ok_or_else(|| {
            Error::Argument(format!("the optimiser state lacks {name}; was the rule changed?"))
        })?;
        if tensor.shape() != var.shape() {
            return Err(Error::shape(name, format!("{:?}", var.dims()), tensor.dims()));
        }
        let tensor = tensor.to_device(var.device())?.to_dtype(Rule::state_dtype(var.dtype()))?;
        Ok(Var::from_tensor(&tensor.detach())?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::update::{AdamConfig, SgdConfig};
    use super::*;
    use crate::rng::Stream;

    const START: [f32; 5] = [0.5, -1.25, 2.0, 0.0, -0.0625];
    const GRADIENTS: [Option<[f32; 5]>; 5] = [
        Some([0.1, -0.2, 0.3, -0.4, 0.5]),
        Some([1.0, 2.0, -3.0, 0.0, 1e-6]),
        None,
        Some([-0.7, 0.01, 100.0, 1e-8, -2.5]),
        Some([0.25; 5]),
    ];
    const RATES: [f64; 5] = [1e-3, 2e-3, 3e-3, 1e-2, 5e-4];

    fn parameter(name: &str, tensor: &Tensor) -> Parameter {
        Parameter { name: name.into(), var: Var::from_tensor(tensor).unwrap() }
    }

    fn start(dtype: DType) -> Parameter {
        let tensor = Tensor::new(&START, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        parameter("p", &tensor)
    }

    /// The gradients of a step in which the loss reaches each parameter, or none.
    fn gradients(parameters: &[Parameter], values: Option<&Tensor>) -> Gradients {
        let mut gradients = Gradients::new(parameters);
        if let Some(values) = values {
            for parameter in parameters {
                let values = values.to_dtype(parameter.var.dtype()).unwrap();
                let loss = (parameter.var.as_tensor() * values).unwrap().sum_all().unwrap();
                gradients.add(&loss, 1.0).unwrap();
            }
        }
        gradients
    }

    fn values(parameter: &Parameter) -> Vec<f64> {
        let tensor = parameter.var.to_dtype(DType::F64).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn run(rule: Rule, unreached: Unreached, dtype: DType) -> Vec<f64> {
        let parameters = [start(dtype)];
        let mut optimiser = Optimiser::new(&parameters, rule).unwrap().with_unreached(unreached);
        for (gradient, lr) in GRADIENTS.iter().zip(RATES) {
            let gradient = gradient.map(|g| Tensor::new(&g, &Device::Cpu).unwrap());
            optimiser.step(lr, &gradients(&parameters, gradient.as_ref())).unwrap();
        }
        values(&parameters[0])
    }

    /// Every rule of the tests, with the parameters after the last step as torch 2.15's
    /// `torch.optim` (f32, CPU, `foreach=False`) gives them when a missing gradient is skipped, and
    /// when it is zero.
    #[rustfmt::skip]
    fn references() -> Vec<(Rule, [f64; 5], [f64; 5])> {
        let adam = AdamConfig { beta2: 0.98, weight_decay: 0.02, ..Default::default() };
        let adamw = AdamConfig { weight_decay: 0.1, ..Default::default() };
        let sgd = SgdConfig { momentum: 0.9, weight_decay: 0.01, nesterov: false };
        vec![
            (
                Rule::Adam(adam),
                [
                    0.49566033482551575, -1.2556434869766235, 1.9938908815383911,
                    0.007601049263030291, -0.05944760516285896,
                ],
                [
                    0.4943540692329407, -1.2561521530151367, 1.9959867000579834,
                    0.008225134573876858, -0.06141318380832672,
                ],
            ),
            (
                Rule::AdamW(adamw),
                [
                    0.49513089656829834, -1.2541494369506836, 1.9911644458770752,
                    0.0075424229726195335, -0.05931827425956726,
                ],
                [
                    0.4937363266944885, -1.2543559074401855, 1.9926892518997192,
                    0.008138777688145638, -0.06124018132686615,
                ],
            ),
            (
                Rule::Sgd(sgd),
                [
                    0.49449071288108826, -1.270365834236145, 0.9850426912307739,
                    0.0043806154280900955, -0.042111143469810486,
                ],
                [
                    0.49249476194381714, -1.2733702659606934, 0.9895297288894653,
                    0.005013784393668175, -0.042892761528491974,
                ],
            ),
            (
                Rule::Sgd(SgdConfig { nesterov: true, ..sgd }),
                [
                    0.4997497498989105, -1.2721844911575317, 0.09185536205768585,
                    0.004217312205582857, -0.01976662687957287,
                ],
                [
                    0.49793893098831177, -1.2748500108718872, 0.09583239257335663,
                    0.00478700315579772, -0.020468007773160934,
                ],
            ),
            (
                Rule::Sgd(SgdConfig::default()),
                [
                    0.5047750473022461, -1.2540249824523926, 1.0055748224258423,
                    0.00027499994030222297, -0.03812500089406967,
                ],
                [
                    0.5047750473022461, -1.2540249824523926, 1.0055748224258423,
                    0.00027499994030222297, -0.03812500089406967,
                ],
            ),
        ]
    }

    #[test]
    fn every_rule_agrees_with_pytorch() {
        for (rule, skip, zero) in references() {
            for (unreached, expected) in [(Unreached::Skip, skip), (Unreached::Zero, zero)] {
                for (dtype, tolerance) in [(DType::F32, 3e-7), (DType::F64, 3e-7)] {
                    let got = run(rule, unreached, dtype);
                    for (got, expected) in got.iter().zip(expected) {
                        let error = (got - expected).abs();
                        assert!(error < tolerance, "{rule:?} {unreached:?} {dtype:?}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn half_precision_parameters_keep_full_precision_moments() {
        let parameters = [start(DType::BF16)];
        let rule = Rule::Adam(AdamConfig::default());
        let mut optimiser = Optimiser::new(&parameters, rule).unwrap();
        let gradient = Tensor::new(&[0.1f32, -0.2, 0.3, -0.4, 0.5], &Device::Cpu).unwrap();
        optimiser.step(0.01, &gradients(&parameters, Some(&gradient))).unwrap();
        // The first step of Adam is the learning rate against the gradient's sign.
        let bf16 = |x: f32| f64::from(half::bf16::from_f32(x).to_f32());
        let expected = [0.49, -1.24, 1.99, 0.01, -0.0725].map(bf16);
        assert_eq!(values(&parameters[0]), expected);
        let state = optimiser.state().unwrap();
        assert!(state.tensors.values().all(|tensor| tensor.dtype() == DType::F32));
    }

    #[test]
    fn the_fused_kernel_agrees_with_tensor_operations_on_large_and_sliced_tensors() {
        let (rows, columns) = (97, 1031);
        let mut stream = Stream::new(1, "optimiser test", 0);
        let mut normal = || {
            let values: Vec<f32> = (0..rows * columns).map(|_| stream.normal() as f32).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        let initial = normal();
        // A transposed view: the gradient of `x^T` for instance.
        let steps: Vec<Tensor> =
            (0..3).map(|_| normal().t().unwrap().contiguous().unwrap().t().unwrap()).collect();
        for (rule, ..) in references() {
            let [fused, portable] = [DType::F32, DType::F64].map(|dtype| {
                let parameters = [parameter("p", &initial.to_dtype(dtype).unwrap())];
                let mut optimiser = Optimiser::new(&parameters, rule).unwrap();
                for gradient in &steps {
                    let mut gradients = gradients(&parameters, Some(gradient));
                    gradients.scale(0.5);
                    optimiser.step(0.01, &gradients).unwrap();
                }
                values(&parameters[0])
            });
            let worst = fused.iter().zip(&portable).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-6, "{rule:?}: {worst:e}");
        }
    }

    #[test]
    fn groups_change_the_rate_and_the_decay() {
        let matrix = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
        let vector = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        let parameters = [parameter("weight", &matrix), parameter("bias", &vector)];
        let rule = Rule::AdamW(AdamConfig { weight_decay: 0.5, ..Default::default() });
        let mut optimiser =
            Optimiser::new(&parameters, rule).unwrap().with_groups(Group::decay_matrices_only);
        let step = |optimiser: &mut Optimiser| {
            let zero = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
            let sum = parameters[0].var.broadcast_add(&parameters[1].var).unwrap();
            let loss = (sum * zero).unwrap().sum_all().unwrap();
            let all = Gradients::of(&loss, &parameters).unwrap();
            optimiser.step(0.1, &all).unwrap();
        };
        step(&mut optimiser);
        assert_eq!(values(&parameters[0]), [f64::from(0.95f32); 4]);
        assert_eq!(values(&parameters[1]), [1.0; 2]);
        let mut optimiser = Optimiser::new(&parameters, rule).unwrap().with_groups(|parameter| {
            let lr_multiplier = if parameter.name == "bias" { 2.0 } else { 0.0 };
            Group { lr_multiplier, ..Group::default() }
        });
        step(&mut optimiser);
        assert_eq!(values(&parameters[0]), [f64::from(0.95f32); 4]);
        assert_eq!(values(&parameters[1]), [f64::from(0.9f32); 2]);
    }

    #[test]
    fn a_restored_optimiser_continues_exactly() {
        for (rule, ..) in references() {
            let whole = [start(DType::F32)];
            let mut optimiser = Optimiser::new(&whole, rule).unwrap();
            let mut saved = None;
            let mut halfway = vec![];
            for (number, lr) in RATES.iter().enumerate() {
                if number == 2 {
                    saved = Some(optimiser.state().unwrap());
                    halfway = values(&whole[0]);
                }
                let gradient = Tensor::new(&[number as f32; 5], &Device::Cpu).unwrap();
                optimiser.step(*lr, &gradients(&whole, Some(&gradient))).unwrap();
            }
            let halfway: Vec<f32> = halfway.iter().map(|&x| x as f32).collect();
            let resumed = [parameter("p", &Tensor::new(halfway, &Device::Cpu).unwrap())];
            let mut optimiser = Optimiser::new(&resumed, rule).unwrap();
            optimiser.restore(&saved.unwrap()).unwrap();
            for (number, lr) in RATES.iter().enumerate().skip(2) {
                let gradient = Tensor::new(&[number as f32; 5], &Device::Cpu).unwrap();
                optimiser.step(*lr, &gradients(&resumed, Some(&gradient))).unwrap();
            }
            assert_eq!(values(&whole[0]), values(&resumed[0]), "{rule:?}");
        }
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let parameters = [start(DType::F32)];
        let adam = Rule::Adam(AdamConfig::default());
        let mut optimiser = Optimiser::new(&parameters, adam).unwrap();
        let gradient = Tensor::ones(5, DType::F32, &Device::Cpu).unwrap();
        optimiser.step(0.1, &gradients(&parameters, Some(&gradient))).unwrap();
        let good = optimiser.state().unwrap();

        let mut lacking = good.clone();
        lacking.tensors.remove("second_moment.p");
        let mut misshapen = good.clone();
        misshapen.tensors.insert("first_moment.p".into(), gradient.narrow(0, 0, 3).unwrap());
        let mut foreign = good.clone();
        foreign.steps.insert("q".into(), 1);
        let mut surplus = good.clone();
        surplus.tensors.insert("momentum.p".into(), gradient.clone());
        for state in [lacking, misshapen, foreign, surplus] {
            assert!(optimiser.restore(&state).is_err(), "{state:?}");
        }
        optimiser.restore(&good).unwrap();
        let sgd = Rule::Sgd(SgdConfig { momentum: 0.9, ..Default::default() });
        assert!(Optimiser::new(&parameters, sgd).unwrap().restore(&good).is_err());
    }

    #[test]
    fn settings_outside_their_domain_and_unknown_settings_are_refused() {
        let parse = |json: &str| serde_json::from_str::<Rule>(json);
        let rule = parse(r#"{"kind": "adamw", "beta2": 0.98}"#).unwrap();
        assert_eq!(rule, Rule::AdamW(AdamConfig { beta2: 0.98, ..Default::default() }));
        assert_eq!(parse(&serde_json::to_string(&rule).unwrap()).unwrap(), rule);
        for json in [r#"{"kind": "lion"}"#, r#"{"kind": "adam", "betas": 1}"#, "{}"] {
            assert!(parse(json).is_err(), "{json}");
        }
        for json in [
            r#"{"kind": "adam", "beta1": 1.0}"#,
            r#"{"kind": "adam", "beta2": -0.1}"#,
            r#"{"kind": "adamw", "eps": 0}"#,
            r#"{"kind": "sgd", "momentum": 1.5}"#,
            r#"{"kind": "sgd", "nesterov": true}"#,
            r#"{"kind": "sgd", "weight_decay": -1}"#,
        ] {
            assert!(Optimiser::new(&[], parse(json).unwrap()).is_err(), "{json}");
        }
        let twins = [start(DType::F32), start(DType::F32)];
        assert!(Optimiser::new(&twins, rule).is_err());
    }
}
