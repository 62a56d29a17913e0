//! The files that the authors publish: a supernet's weights, and the batch norms of one subnet.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use shared::checkpoint::{self, Checkpoint, LoadReport, Value};
use shared::limits::Limits;
use shared::nn::Weights;
use shared::{Error, Result};

use crate::architecture::{Architecture, NetworkConfig};
use crate::supernet::Supernet;

/// A subnet put together from published files.
pub struct PublishedSubnet {
    /// Its size.
    pub config: NetworkConfig,
    /// Its tensors, under the names of [`crate::Subnet`].
    pub tensors: BTreeMap<String, Tensor>,
    /// What the files say besides, e.g. the error rates that the authors measured.
    pub results: serde_json::Map<String, serde_json::Value>,
    /// What was left out of the files, a sentence each.
    pub notes: Vec<String>,
    /// The tensors of the supernet's file against those asked for.
    pub supernet: LoadReport,
    /// The tensors of the batch norms' file against those asked for.
    pub batch_norms: LoadReport,
}

/// The supernet in a `.torchparams` file: its size, which is read off the tensors, and its
/// tensors, frozen. The training head and the tables of the front-end are left out. With
/// `allow_missing`, tensors that the file lacks are as at the start of a training.
///
/// # Errors
/// [`Error::Checkpoint`] when the file cannot be read or holds no such network; [`Error::Tensors`]
/// when tensors are missing, unexpected or of another shape; [`Error::NonFinite`].
pub fn read_supernet(
    path: &Path,
    allow_missing: bool,
    limits: &Limits,
    device: &Device,
) -> Result<(Supernet, LoadReport)> {
    let checkpoint = checkpoint::read(path, limits)?;
    checkpoint::check_finite(&checkpoint.tensors, path)?;
    let tensors = named_like(&checkpoint, "layer1.conv.conv.weight", path)?;
    let config = size_of(&tensors, path)?;
    let weights = Weights::loaded(tensors, path, false, DType::F32, device);
    let supernet = Supernet::new(config, &weights)?;
    let report = weights.check(allow_missing)?;
    Ok((supernet, report))
}

/// The subnet whose architecture and batch norms stand in the `.bn.tar` file `batch_norms`, with
/// all other weights from the supernet's `.torchparams` file. With `allow_missing`, batch norms
/// that the second file lacks stay those of the supernet.
///
/// # Errors
/// As [`read_supernet`]; also when the batch norms are not exactly those of the subnet.
pub fn read_subnet(
    supernet: &Path,
    batch_norms: &Path,
    allow_missing: bool,
    limits: &Limits,
    device: &Device,
) -> Result<PublishedSubnet> {
    let (full, report) = read_supernet(supernet, allow_missing, limits, device)?;
    let checkpoint = checkpoint::read(batch_norms, limits)?;
    checkpoint::check_finite(&checkpoint.tensors, batch_norms)?;
    let subnet = with_batch_norms(&full, checkpoint, allow_missing, batch_norms)?;
    Ok(PublishedSubnet { supernet: report, ..subnet })
}

/// The subnet of `supernet` that the file `batch_norms`, read as `checkpoint`, describes.
fn with_batch_norms(
    supernet: &Supernet,
    checkpoint: Checkpoint,
    allow_missing: bool,
    batch_norms: &Path,
) -> Result<PublishedSubnet> {
    let architecture = architecture_of(&checkpoint.values, batch_norms)?;
    let (config, mut tensors) = supernet.materialise(&architecture)?;
    let entries = named_like(&checkpoint, "layer1.bn.weight", batch_norms)?;
    let report = replace_batch_norms(&mut tensors, entries, allow_missing, batch_norms)?;
    let mut results = match checkpoint.values.to_json() {
        serde_json::Value::Object(entries) => entries,
        _ => serde_json::Map::new(),
    };
    results.retain(|key, _| !["subnet", "bn"].contains(&key.as_str()));
    Ok(PublishedSubnet {
        config,
        tensors,
        results,
        notes: checkpoint.notes,
        supernet: LoadReport::default(),
        batch_norms: report,
    })
}

/// The tensors beside the one whose name ends in `known`, without what stands before it: wrappers
/// around the network (`module.`, `__S__.`) and dictionaries in the file.
fn named_like(
    checkpoint: &Checkpoint,
    known: &str,
    path: &Path,
) -> Result<BTreeMap<String, Tensor>> {
    let prefixes: Vec<&str> = checkpoint
        .tensors
        .keys()
        .filter_map(|name| name.strip_suffix(known))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    let [prefix] = prefixes.as_slice() else {
        return Err(Error::checkpoint(
            path,
            format!(
                "expected one tensor named {known}, with or without a prefix, found {}",
                prefixes.len()
            ),
        ));
    };
    let strip = |(name, tensor): (&String, &Tensor)| {
        Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()))
    };
    Ok(checkpoint.tensors.iter().filter_map(strip).collect())
}

/// The size of the supernet that has `tensors`.
fn size_of(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<NetworkConfig> {
    let dims = |name: &str| {
        tensors.get(name).map(Tensor::dims).ok_or_else(|| {
            Error::checkpoint(path, format!("tensor {name} of the supernet is missing"))
        })
    };
    let convolution = |name: &str| match dims(name)? {
        &[output, input, kernel] => Ok([output, input, kernel]),
        other => Err(Error::shape(format!("{}: {name}", path.display()), "[O, I, K]", other)),
    };
    let [trunk, features, stem_kernel] = convolution("layer1.conv.conv.weight")?;
    let (mut widths, mut kernels) = (vec![trunk], vec![stem_kernel]);
    while let Some(i) = Some(widths.len() - 1)
        .filter(|i| tensors.contains_key(&format!("blocks.{i}.first_conv.conv.conv.weight")))
    {
        let [mid, ..] = convolution(&format!("blocks.{i}.first_conv.conv.conv.weight"))?;
        let [.., kernel] = convolution(&format!("blocks.{i}.resconv.convs.0.conv.conv.weight"))?;
        widths.push(mid);
        kernels.push(kernel);
    }
    let [cat, ..] = convolution("catconv.conv.weight")?;
    let embedding = dims("linear.linear.bias")?.iter().product();
    let architecture = Architecture::new(&widths, &kernels, cat)
        .map_err(|error| Error::checkpoint(path, error.to_string()))?;
    Ok(NetworkConfig { features, embedding, architecture })
}

/// The entry `subnet`: (depth, widths, kernels, cat).
fn architecture_of(values: &Value, path: &Path) -> Result<Architecture> {
    let wrong =
        || Error::checkpoint(path, "expected an entry `subnet` of (depth, widths, kernels, cat)");
    let number = |value: &Value| usize::try_from(value.as_i64()?).ok();
    let numbers =
        |value: &Value| -> Option<Vec<usize>> { value.as_items()?.iter().map(number).collect() };
    let parts = values.get("subnet").and_then(Value::as_items).ok_or_else(wrong)?;
    let [depth, widths, kernels, cat] = parts else { return Err(wrong()) };
    let architecture = Architecture::new(
        &numbers(widths).ok_or_else(wrong)?,
        &numbers(kernels).ok_or_else(wrong)?,
        number(cat).ok_or_else(wrong)?,
    )
    .map_err(|error| Error::checkpoint(path, error.to_string()))?;
    match number(depth) == Some(architecture.depth()) {
        true => Ok(architecture),
        false => Err(wrong()),
    }
}

/// Puts `entries` in the place of all batch-norm tensors.
fn replace_batch_norms(
    tensors: &mut BTreeMap<String, Tensor>,
    mut entries: BTreeMap<String, Tensor>,
    allow_missing: bool,
    path: &Path,
) -> Result<LoadReport> {
    let norms: Vec<String> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(".running_mean"))
        .map(str::to_string)
        .collect();
    let mut report = LoadReport::default();
    for norm in norms {
        for part in ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"] {
            let name = format!("{norm}.{part}");
            let Some(own) = tensors.get_mut(&name) else { continue };
            match entries.remove(&name) {
                None => report.missing.push(name),
                Some(entry) if entry.dims() != own.dims() => {
                    report.misshapen.push((name, own.dims().to_vec(), entry.dims().to_vec()));
                }
                Some(entry) => {
                    *own = entry.to_device(own.device())?.to_dtype(own.dtype())?;
                    report.loaded.push(name);
                }
            }
        }
    }
    report.unexpected = entries.into_keys().collect();
    if report.fits(allow_missing) {
        return Ok(report);
    }
    Err(Error::Tensors { path: path.to_path_buf(), report: report.to_string() })
}

#[cfg(test)]
mod tests {
    use shared::checkpoint::Format;

    use super::*;

    const ARCHITECTURE: &str = "1.12.16.3.1.17";

    fn supernet() -> Supernet {
        let config = NetworkConfig {
            features: 10,
            embedding: 6,
            architecture: "2.16.24.16.5.3.5.20".parse().unwrap(),
        };
        Supernet::new(config, &Weights::fresh(1, DType::F32, &Device::Cpu)).unwrap()
    }

    /// A batch-norm file for [`ARCHITECTURE`] whose vectors are all `value`.
    fn batch_norms(prefix: &str, value: f64) -> Checkpoint {
        let (_, tensors) = supernet().materialise(&ARCHITECTURE.parse().unwrap()).unwrap();
        let is_norm = |name: &str| name.contains(".bn.") || name.starts_with("bn");
        let norms = tensors.into_iter().filter(|(name, _)| is_norm(name));
        let sizes = |sizes: &[i128]| Value::List(sizes.iter().copied().map(Value::Int).collect());
        let subnet =
            Value::Tuple(vec![Value::Int(1), sizes(&[12, 16]), sizes(&[3, 1]), Value::Int(17)]);
        let text = |text: &str| Value::Text(text.into());
        Checkpoint {
            format: Format::Safetensors,
            tensors: norms
                .map(|(name, tensor)| {
                    let filled = (tensor.zeros_like().unwrap() + value).unwrap();
                    (format!("{prefix}{name}"), filled)
                })
                .collect(),
            values: Value::Dict(vec![
                (text("subnet"), subnet),
                (text("EER (%) w/ AS-Norm"), Value::Float(0.94)),
            ]),
            metadata: BTreeMap::new(),
            notes: vec![],
        }
    }

    #[test]
    fn batch_norms_replace_those_of_the_supernet_under_any_prefix() {
        for prefix in ["", "bn.", "bn.module.", "bn.__S__.", "bn.module.__S__."] {
            let file = batch_norms(prefix, 3.0);
            let subnet = with_batch_norms(&supernet(), file, false, Path::new("x.bn.tar")).unwrap();
            assert_eq!(subnet.config.architecture.to_string(), ARCHITECTURE);
            assert_eq!(subnet.results["EER (%) w/ AS-Norm"], 0.94);
            let norms = ["layer1.bn.weight", "bnpool.running_var", "blocks.0.last_conv.bn.bias"];
            for name in norms {
                let values: Vec<f32> = subnet.tensors[name].to_vec1().unwrap();
                assert!(values.iter().all(|value| *value == 3.0), "{prefix} {name}");
            }
            let counter = &subnet.tensors["bnembed.num_batches_tracked"];
            assert_eq!(counter.to_scalar::<i64>().unwrap(), 3);
            let origin = Path::new("x");
            let device = Device::Cpu;
            crate::Subnet::from_tensors(subnet.config, subnet.tensors, origin, false, &device)
                .unwrap();
        }
    }

    #[test]
    fn missing_batch_norms_stay_those_of_the_supernet_where_that_is_allowed() {
        let mut file = batch_norms("bn.", 3.0);
        file.tensors.remove("bn.bnpool.running_mean");
        let subnet = with_batch_norms(&supernet(), file, true, Path::new("x.bn.tar")).unwrap();
        assert_eq!(subnet.batch_norms.missing, ["bnpool.running_mean"]);
        let kept: Vec<f32> = subnet.tensors["bnpool.running_mean"].to_vec1().unwrap();
        assert!(kept.iter().all(|value| *value == 0.0), "{kept:?}");
        let replaced: Vec<f32> = subnet.tensors["bnpool.running_var"].to_vec1().unwrap();
        assert!(replaced.iter().all(|value| *value == 3.0), "{replaced:?}");
    }

    #[test]
    fn incomplete_and_foreign_batch_norms_are_refused() {
        type Damage = fn(&mut Checkpoint);
        let damages: [(&str, Damage); 6] = [
            ("bnpool.running_mean", |file| {
                file.tensors.remove("bn.bnpool.running_mean");
            }),
            ("unexpected", |file| {
                let zero = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
                file.tensors.insert("bn.blocks.1.first_conv.bn.bias".into(), zero);
            }),
            ("expected [12], found [13]", |file| {
                let longer = Tensor::zeros(13, DType::F32, &Device::Cpu).unwrap();
                file.tensors.insert("bn.layer1.bn.weight".into(), longer);
            }),
            ("found 0", |file| file.tensors.clear()),
            ("`subnet`", |file| file.values = Value::Dict(vec![])),
            ("`subnet`", |file| {
                if let Value::Dict(entries) = &mut file.values {
                    entries[0].1 = Value::Tuple(vec![Value::Int(-1); 4]);
                }
            }),
        ];
        for (expected, damage) in damages {
            let mut file = batch_norms("bn.", 1.0);
            damage(&mut file);
            let refused = with_batch_norms(&supernet(), file, false, Path::new("x.bn.tar"));
            let message = refused.err().unwrap().to_string();
            assert!(message.contains(expected) && message.contains("x.bn.tar"), "{message}");
        }
    }
}
