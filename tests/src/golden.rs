//! Golden tests: cases of reference tensors made by another implementation, and the rule by which
//! results agree with them.
//!
//! A case is a safetensors file. Metadata: `kind` says what it tests, `config` (JSON) the sizes,
//! `files` the checkpoints that it loads, `weights_from` the file of the same folder with its
//! weights, `tolerance_f32_vs_f64` how far the reference's f32 is from its f64. Tensors: `w.*`
//! weights, `in.*` inputs, `out.*` results in f32, `out64.*` in f64, `mid.*` intermediate results.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Least tolerance on the largest error.
const LARGEST_ERROR: f64 = 1e-6;
/// How far beyond the reference's own f32 error a result may be.
const ERROR_FACTOR: f64 = 10.0;

/// The numbers of a reference tensor.
#[derive(Clone, Debug)]
pub struct Array {
    /// Shape.
    pub dims: Vec<usize>,
    /// Elements in row-major order.
    pub values: Vec<f64>,
    integer: bool,
}

impl Array {
    /// The elements of a tensor of any dtype.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let flat = tensor.flatten_all()?;
        let values = match tensor.dtype() {
            DType::I64 => flat.to_vec1::<i64>()?.into_iter().map(|v| v as f64).collect(),
            _ => flat.to_dtype(DType::F64)?.to_vec1()?,
        };
        Ok(Self { dims: tensor.dims().to_vec(), values, integer: tensor.dtype().is_int() })
    }

    fn read(view: &safetensors::tensor::TensorView) -> Result<Self> {
        fn numbers<const N: usize>(bytes: &[u8], number: fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
        }
        let bytes = view.data();
        let values = match view.dtype() {
            Dtype::F64 => numbers(bytes, f64::from_le_bytes),
            Dtype::F32 => numbers(bytes, |b| f32::from_le_bytes(b).into()),
            Dtype::F16 => numbers(bytes, |b| half::f16::from_le_bytes(b).into()),
            Dtype::I64 => numbers(bytes, |b| i64::from_le_bytes(b) as f64),
            Dtype::I32 => numbers(bytes, |b| i32::from_le_bytes(b).into()),
            Dtype::I16 => numbers(bytes, |b| i16::from_le_bytes(b).into()),
            Dtype::U8 | Dtype::BOOL => bytes.iter().map(|b| f64::from(*b)).collect(),
            other => bail!("elements of type {other}"),
        };
        let integer = !matches!(view.dtype(), Dtype::F64 | Dtype::F32 | Dtype::F16);
        Ok(Self { dims: view.shape().to_vec(), values, integer })
    }

    /// As a tensor: integers as i64, all else as f32.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn tensor(&self) -> Result<Tensor> {
        let tensor = Tensor::from_slice(&self.values, self.dims.as_slice(), &Device::Cpu)?;
        Ok(tensor.to_dtype(if self.integer { DType::I64 } else { DType::F32 })?)
    }

    /// The elements in f32.
    pub fn f32s(&self) -> Vec<f32> {
        self.values.iter().map(|value| *value as f32).collect()
    }
}

/// How exactly a result can agree, see [`Case::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Results of a forward computation.
    Forward,
    /// Gradients and trained weights.
    Gradient,
}

impl Class {
    fn relative_error(self) -> f64 {
        match self {
            Self::Forward => 1e-5,
            Self::Gradient => 1e-4,
        }
    }
}

/// One case, and what came of it.
pub struct Case {
    /// The file.
    pub path: PathBuf,
    /// What it tests.
    pub kind: String,
    /// Sizes, flags, sub-cases.
    pub config: Value,
    /// Alternative sets of checkpoint files, by role, relative to the case. A file on its own has the
    /// role `checkpoint`.
    pub files: Vec<BTreeMap<String, String>>,
    /// How far the reference's f32 is from its f64, by the tensor's name with its prefix.
    tolerance: Value,
    arrays: BTreeMap<String, Array>,
    checked: BTreeSet<String>,
    failures: Vec<String>,
}

impl Case {
    /// Reads a case.
    ///
    /// # Errors
    /// When the file is unreadable or lacks its metadata.
    pub fn read(path: &Path) -> Result<Self> {
        let (metadata, mut arrays) = read_arrays(path)?;
        let entry = |name: &str| metadata.get(name).map(String::as_str);
        if let Some(other) = entry("weights_from") {
            let (_, weights) = read_arrays(&path.with_file_name(other))?;
            arrays.extend(weights.into_iter().filter(|(name, _)| name.starts_with("w.")));
        }
        let json = |name: &str, default: &str| -> Result<Value> {
            serde_json::from_str(entry(name).unwrap_or(default)).context(name.to_string())
        };
        let files = json("files", "[]")?.as_array().context("files")?.clone().into_iter();
        let files = files.map(|set| match set {
            Value::String(file) => Ok([("checkpoint".to_string(), file)].into()),
            roles => serde_json::from_value(roles).context("files"),
        });
        Ok(Self {
            path: path.to_path_buf(),
            kind: entry("kind").context("metadata lacks `kind`")?.to_string(),
            config: json("config", "{}")?,
            files: files.collect::<Result<_>>()?,
            tolerance: json("tolerance_f32_vs_f64", "{}")?,
            arrays,
            checked: BTreeSet::new(),
            failures: vec![],
        })
    }

    /// The array `name`, with its prefix.
    ///
    /// # Errors
    /// When the case lacks it.
    pub fn array(&self, name: &str) -> Result<&Array> {
        self.arrays.get(name).with_context(|| format!("tensor {name} is missing"))
    }

    /// The tensor `name`, with its prefix.
    ///
    /// # Errors
    /// When the case lacks it.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.array(name)?.tensor()
    }

    /// Names of all arrays that begin with `prefix`, without it.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.arrays.keys().filter_map(|name| name.strip_prefix(prefix)).map(String::from).collect()
    }

    /// The weights by their names in a state dictionary.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn weights(&self) -> Result<BTreeMap<String, Tensor>> {
        self.names("w.")
            .into_iter()
            .map(|name| {
                let tensor = self.tensor(&format!("w.{name}"))?;
                Ok((name, tensor))
            })
            .collect()
    }

    /// The sub-cases of the configuration's entry `list`, without its notes.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn sub_cases(&self, list: &str) -> Result<Vec<(String, Value)>> {
        let entries = self.config[list].as_object().with_context(|| format!("config.{list}"))?;
        let named = entries.iter().filter(|(name, _)| !name.starts_with('_'));
        Ok(named.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Compares `result` with `out64.name`, `out.name` where there is no f64, or `mid.name`: relative
    /// L2 error at most max(1e-5 forward, 1e-4 gradient, 10 x stated), or largest error at most
    /// max(1e-6, 10 x stated), where the case states how far apart f32 and f64 runs of the reference
    /// are.
    ///
    /// # Errors
    /// When the case lacks the tensor or `result` cannot be read.
    pub fn check(&mut self, name: &str, result: &Tensor, class: Class) -> Result<()> {
        let (relative, largest) = self.allowed(name, class);
        self.compare(name, result, relative, largest)
    }

    /// The relative and the largest error that [`Case::check`] allows.
    fn allowed(&self, name: &str, class: Class) -> (f64, f64) {
        let named = |prefix: &str| &self.tolerance[format!("{prefix}.{name}")];
        let in_config = &self.config["f32_vs_f64"];
        let in_config = [&in_config[name], &in_config["per_tensor"][name]];
        let stated = in_config.into_iter().chain([named("out"), named("mid")]);
        let stated: Vec<&Value> = stated.collect();
        let stated = |part: &str| {
            let stated = stated.iter().find_map(|entry| entry[part].as_f64());
            ERROR_FACTOR * stated.unwrap_or(0.0)
        };
        let relative = stated("rel_to_max").max(stated("rel_l2")).max(class.relative_error());
        (relative, stated("max_abs").max(LARGEST_ERROR))
    }

    /// Compares like [`Case::check`], with `map` applied to the reference.
    ///
    /// # Errors
    /// As [`Case::check`].
    pub fn check_map(
        &mut self,
        name: &str,
        map: impl Fn(f64) -> f64,
        result: &Tensor,
        class: Class,
    ) -> Result<()> {
        for prefix in ["out", "out64"] {
            if let Some(array) = self.arrays.get_mut(&format!("{prefix}.{name}")) {
                array.values.iter_mut().for_each(|value| *value = map(*value));
            }
        }
        self.check(name, result, class)
    }

    /// Compares like [`Case::check`], but passes also with a largest error of `absolute`: for what
    /// is noise in f32.
    ///
    /// # Errors
    /// As [`Case::check`].
    pub fn check_noise(&mut self, name: &str, result: &Tensor, absolute: f64) -> Result<()> {
        let (relative, largest) = self.allowed(name, Class::Forward);
        self.compare(name, result, relative, largest.max(absolute))
    }

    /// Compares element by element, with no error allowed.
    ///
    /// # Errors
    /// As [`Case::check`].
    pub fn check_equal(&mut self, name: &str, result: &Tensor) -> Result<()> {
        self.compare(name, result, 0.0, 0.0)
    }

    /// Whether the case states that the whole numbers `name` are others in a f64 run of the reference.
    pub fn is_ambiguous(&self, name: &str) -> bool {
        self.tolerance[format!("out.{name}")]["int_equal"] == false
    }

    /// Compares a number, with an error of at most `absolute`.
    ///
    /// # Errors
    /// When the case lacks the tensor.
    pub fn check_number(&mut self, name: &str, result: f64, absolute: f64) -> Result<()> {
        self.check_numbers(name, &[result], absolute)
    }

    /// Compares numbers, each with an error of at most `absolute`.
    ///
    /// # Errors
    /// When the case lacks the tensor.
    pub fn check_numbers(&mut self, name: &str, result: &[f64], absolute: f64) -> Result<()> {
        let expected = self.expected(name)?;
        let result = Tensor::from_slice(result, expected.values.len(), &Device::Cpu)?;
        let result = result.reshape(expected.dims.as_slice())?;
        self.compare(name, &result, 0.0, absolute)
    }

    /// Marks `name` as compared by other means; `agrees` says how that went.
    pub fn check_that(&mut self, name: &str, agrees: bool, message: impl FnOnce() -> String) {
        self.checked.insert(name.to_string());
        if !agrees {
            self.failures.push(format!("{name}: {}", message()));
        }
    }

    /// Compares with the reference's own run in half precision: relative L2 error at most `relative`.
    ///
    /// # Errors
    /// As [`Case::check`].
    pub fn check_half(&mut self, name: &str, result: &Tensor, relative: f64) -> Result<()> {
        self.compare(name, result, relative, 0.0)
    }

    /// Leaves `name` out of the comparison: a result that the reference does not define.
    pub fn skip(&mut self, name: &str) {
        self.checked.insert(name.to_string());
    }

    /// What did not agree; results that nothing was compared with count.
    pub fn failures(&self) -> Vec<String> {
        let unchecked = self.names("out.").into_iter().filter(|name| !self.checked.contains(name));
        let unchecked = unchecked.map(|name| format!("{name}: not compared"));
        self.failures.iter().cloned().chain(unchecked).collect()
    }

    fn expected(&self, name: &str) -> Result<&Array> {
        let named = |prefix: &str| self.arrays.get(&format!("{prefix}.{name}"));
        let found = named("out64").or_else(|| named("out")).or_else(|| named("mid"));
        found.with_context(|| format!("tensor out.{name} is missing"))
    }

    fn compare(&mut self, name: &str, result: &Tensor, relative: f64, largest: f64) -> Result<()> {
        let expected = self.expected(name)?.clone();
        let result = Array::of(result)?;
        let message = if result.dims == expected.dims {
            let errors = Errors::between(&result.values, &expected.values);
            // Written so that NaN fails.
            let agrees = errors.relative <= relative || errors.largest <= largest;
            (!agrees).then(|| {
                format!(
                    "relative error {:.2e} (allowed {relative:.1e}), largest {:.2e} (allowed \
                     {largest:.1e})",
                    errors.relative, errors.largest
                )
            })
        } else {
            Some(format!("shape {:?} instead of {:?}", result.dims, expected.dims))
        };
        self.check_that(name, message.is_none(), || message.unwrap_or_default());
        Ok(())
    }
}

struct Errors {
    /// L2 norm of the difference over that of the expected values.
    relative: f64,
    /// Largest absolute difference.
    largest: f64,
}

impl Errors {
    fn between(result: &[f64], expected: &[f64]) -> Self {
        let (mut difference, mut norm, mut largest) = (0.0, 0.0, 0.0f64);
        for (a, b) in result.iter().zip(expected) {
            difference += (a - b).powi(2);
            norm += b.powi(2);
            // `max` alone would forget a NaN.
            let error = (a - b).abs();
            largest =
                if error.is_nan() || largest.is_nan() { f64::NAN } else { largest.max(error) };
        }
        let relative = if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() };
        Self { relative, largest }
    }
}

type Arrays = BTreeMap<String, Array>;

fn read_arrays(path: &Path) -> Result<(BTreeMap<String, String>, Arrays)> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let arrays = SafeTensors::deserialize(&bytes)?
        .iter()
        .map(|(name, view)| {
            Ok((name.to_string(), Array::read(&view).with_context(|| name.to_string())?))
        })
        .collect::<Result<_>>()?;
    Ok((metadata, arrays))
}

/// A table in a JSON file, and what came of it.
pub struct Table {
    /// File name without its extension.
    pub stem: String,
    /// Content.
    pub value: Value,
    failures: Vec<String>,
}

impl Table {
    /// Notes a disagreement unless `agrees`.
    pub fn check_that(&mut self, agrees: bool, message: impl FnOnce() -> String) {
        if !agrees {
            self.failures.push(message());
        }
    }
}

/// Whether a file was tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of it was compared.
    Tested,
    /// Part of it was compared; the rest, as described, belongs to what is not yet built.
    Partly(&'static str),
    /// It belongs to what is not yet built.
    NotYetBuilt,
}

/// Runs all cases and tables of `model`: the committed selection in `golden/<model>`,
/// `../shared/golden/<model>` beside the project where it exists, and `<dir>/<model>` for each
/// directory in `GOLDEN_DIR`. Prints a line a directory.
///
/// # Panics
/// When a file is unreadable or anything disagrees, with the whole list.
pub fn run(
    model: &str,
    case: impl Fn(&mut Case) -> Result<Verdict>,
    table: impl Fn(&mut Table) -> Result<Verdict>,
) {
    let mut failures = vec![];
    for directory in directories(model) {
        let outcomes = run_directory(&directory, &case, &table)
            .unwrap_or_else(|error| panic!("golden {model} {}: {error:#}", directory.display()));
        let passed = outcomes.iter().filter(|outcome| outcome.passed()).count();
        println!(
            "golden {model} {}: {} files, {passed} passed",
            directory.display(),
            outcomes.len()
        );
        let not_built: Vec<String> = outcomes.iter().filter_map(Outcome::not_built).collect();
        if !not_built.is_empty() {
            println!("  not yet built: {}", not_built.join(", "));
        }
        for Outcome { path, failures: found, .. } in outcomes {
            failures.extend(found.iter().map(|text| format!("{}: {text}", path.display())));
        }
    }
    assert!(failures.is_empty(), "{} disagreements\n{}", failures.len(), failures.join("\n"));
}

fn directories(model: &str) -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = here.join("../../shared/golden").join(model);
    let named = std::env::var_os("GOLDEN_DIR").unwrap_or_default();
    let named: Vec<PathBuf> = std::env::split_paths(&named)
        .filter(|directory| !directory.as_os_str().is_empty())
        .map(|directory| directory.join(model))
        .collect();
    std::iter::once(here.join("golden").join(model))
        .chain(beside.is_dir().then_some(beside))
        .chain(named)
        .collect()
}

/// What came of one file.
struct Outcome {
    path: PathBuf,
    verdict: Verdict,
    failures: Vec<String>,
}

impl Outcome {
    fn passed(&self) -> bool {
        self.failures.is_empty() && self.verdict != Verdict::NotYetBuilt
    }

    fn not_built(&self) -> Option<String> {
        let stem = stem(&self.path);
        match self.verdict {
            Verdict::Tested => None,
            Verdict::Partly(rest) => Some(format!("{stem} ({rest})")),
            Verdict::NotYetBuilt => Some(stem),
        }
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn run_directory(
    directory: &Path,
    case: &impl Fn(&mut Case) -> Result<Verdict>,
    table: &impl Fn(&mut Table) -> Result<Verdict>,
) -> Result<Vec<Outcome>> {
    let mut paths =
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut outcomes = vec![];
    for path in paths {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let outcome = match extension {
            Some("safetensors") => run_case(&path, case),
            Some("json") => run_table(&path, table),
            _ => continue,
        };
        let (verdict, failures) =
            outcome.unwrap_or_else(|error| (Verdict::Tested, vec![format!("{error:#}")]));
        outcomes.push(Outcome { path, verdict, failures });
    }
    ensure!(!outcomes.is_empty(), "no cases found");
    Ok(outcomes)
}

fn run_case(
    path: &Path,
    case: &impl Fn(&mut Case) -> Result<Verdict>,
) -> Result<(Verdict, Vec<String>)> {
    let mut read = Case::read(path)?;
    let verdict = case(&mut read)?;
    let failures = match verdict {
        Verdict::NotYetBuilt => vec![],
        _ => read.failures(),
    };
    Ok((verdict, failures))
}

fn run_table(
    path: &Path,
    table: &impl Fn(&mut Table) -> Result<Verdict>,
) -> Result<(Verdict, Vec<String>)> {
    let value = serde_json::from_slice(&std::fs::read(path)?)?;
    let mut read = Table { stem: stem(path), value, failures: vec![] };
    let verdict = table(&mut read)?;
    Ok((verdict, read.failures))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(values: Vec<f64>, stated: Value) -> Case {
        let array = Array { dims: vec![values.len()], values, integer: false };
        Case {
            path: PathBuf::new(),
            kind: String::new(),
            config: serde_json::json!({ "f32_vs_f64": { "y": stated } }),
            files: vec![],
            tolerance: Value::Null,
            arrays: BTreeMap::from([("out.y".to_string(), array)]),
            checked: BTreeSet::new(),
            failures: vec![],
        }
    }

    #[test]
    fn the_rule_takes_either_error_and_the_stated_difference() {
        let none = Value::Null;
        let loose = serde_json::json!({ "max_abs": 0.01, "rel_to_max": 1e-9 });
        for (result, stated, class, agrees) in [
            ([100.0, 1.0], &none, Class::Forward, true),
            ([100.0, 1.0005], &none, Class::Forward, true),
            ([100.0, 1.005], &none, Class::Forward, false),
            ([100.0, 1.005], &none, Class::Gradient, true),
            ([100.0, 1.05], &none, Class::Gradient, false),
            ([100.0, 1.05], &loose, Class::Forward, true),
            ([100.0, 1.15], &loose, Class::Forward, false),
            ([f64::NAN, 1.0], &loose, Class::Gradient, false),
            ([100.0, f64::NAN], &loose, Class::Gradient, false),
        ] {
            let mut case = case(vec![100.0, 1.0], stated.clone());
            case.check("y", &Tensor::new(&result, &Device::Cpu).unwrap(), class).unwrap();
            assert_eq!(case.failures().is_empty(), agrees, "{result:?} {class:?}");
        }
        let mut case = case(vec![100.0, 1.0], Value::Null);
        case.tolerance = serde_json::json!({ "out.y": { "max_abs": 0.0, "rel_l2": 1e-4 } });
        let result = Tensor::new(&[100.0, 1.05], &Device::Cpu).unwrap();
        case.check("y", &result, Class::Forward).unwrap();
        assert!(case.failures().is_empty());
    }

    #[test]
    fn what_is_not_compared_or_misshapen_fails() {
        let mut case = case(vec![0.0, 0.0], Value::Null);
        assert_eq!(case.failures().len(), 1);
        case.check("y", &Tensor::new(&[0.0f32], &Device::Cpu).unwrap(), Class::Forward).unwrap();
        assert_eq!(case.failures().len(), 1);
        assert!(
            case.check("z", &Tensor::new(&[0.0f32], &Device::Cpu).unwrap(), Class::Forward)
                .is_err()
        );
    }
}
