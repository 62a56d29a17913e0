//! Model files in the safetensors format: a JSON header, then the tensors' bytes without holes.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Write;
use std::path::Path;

use candle_core::Tensor;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::element::{Element, little_endian_bytes};
use super::mapped::FileBytes;
use super::{Checkpoint, Format, MAX_DIMENSIONS, MAX_TENSORS, Value};
use crate::files::OutputFile;
use crate::limits::Limits;
use crate::{Error, Result};

/// Name in the header that is no tensor.
const METADATA: &str = "__metadata__";

/// Length of the field that holds the header's length, in bytes.
const LENGTH_BYTES: usize = 8;

/// Returns the tensors and metadata of a safetensors file.
///
/// # Errors
/// [`Error::Checkpoint`] when the file is truncated, malformed, has holes, overlaps or names that
/// occur twice, or holds elements of an unsupported type; [`Error::Limit`]; [`Error::Io`].
pub fn read(path: &Path, limits: &Limits) -> Result<Checkpoint> {
    read_bytes(&FileBytes::open(path, limits)?, path, limits)
}

/// Returns the metadata of a safetensors file without reading its tensors.
///
/// # Errors
/// As [`read`].
pub fn read_metadata(path: &Path, limits: &Limits) -> Result<BTreeMap<String, String>> {
    Ok(metadata_of(&parse_header(&FileBytes::open(path, limits)?, path, limits)?.0))
}

/// Writes `tensors` and `metadata` to a safetensors file, which appears whole or not at all. Equal
/// input gives equal bytes.
///
/// # Errors
/// [`Error::Exists`] when the file is there and `force` is not given; [`Error::Argument`] for a
/// tensor called `__metadata__` or of a dtype below a byte; [`Error::Io`].
pub fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
    force: bool,
) -> Result<()> {
    let mut ordered: Vec<(&String, &Tensor)> = tensors.iter().collect();
    // Large elements first, so that each tensor lies at a multiple of its element's size and
    // readers can use a mapped file in place.
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
    let header = header(&ordered, metadata)?;
    let mut file = OutputFile::create(path, force)?;
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io(path));
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    for (_, tensor) in ordered {
        put(&little_endian_bytes(tensor)?)?;
    }
    file.finish()
}

/// Returns the tensors and metadata in the `bytes` of a safetensors file; `path` is for messages.
///
/// # Errors
/// As [`read`], without [`Error::Io`].
pub fn read_bytes(bytes: &[u8], path: &Path, limits: &Limits) -> Result<Checkpoint> {
    let (header, data) = parse_header(bytes, path, limits)?;
    let mut tensors = BTreeMap::new();
    for (name, info) in header.tensors() {
        let refuse = |reason: String| Error::checkpoint(path, format!("tensor {name:?}: {reason}"));
        if info.shape.len() > MAX_DIMENSIONS {
            return Err(refuse(format!("more than {MAX_DIMENSIONS} dimensions")));
        }
        let element = Element::of_safetensors(info.dtype)
            .ok_or_else(|| refuse(format!("elements of type {} are not supported", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let bytes = data.get(start..end).ok_or_else(|| refuse("lies outside the file".into()))?;
        let tensor =
            element.tensor(bytes, &info.shape).map_err(|error| refuse(error.to_string()))?;
        tensors.insert(name, tensor);
    }
    Ok(Checkpoint {
        format: Format::Safetensors,
        tensors,
        values: Value::Dict(vec![]),
        metadata: metadata_of(&header),
        notes: vec![],
    })
}

/// The parsed header, and the bytes after it.
fn parse_header<'a>(bytes: &'a [u8], path: &Path, limits: &Limits) -> Result<(Metadata, &'a [u8])> {
    let truncated = |reason: String| {
        Error::checkpoint(
            path,
            format!("{reason}; the file is truncated: copy or download it again"),
        )
    };
    let above = |quantity, actual, limit| Error::Limit {
        path: path.to_path_buf(),
        quantity,
        actual,
        limit,
    };
    let (length, rest) = bytes
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or_else(|| truncated(format!("{} bytes are no safetensors file", bytes.len())))?;
    let length = u64::from_le_bytes(*length);
    let header_limit = limits.header_bytes as u64;
    if length > header_limit {
        return Err(above("safetensors header in bytes", length, header_limit));
    }
    let (json, data) = rest.split_at_checked(length as usize).ok_or_else(|| {
        truncated(format!("the header claims {length} bytes, {} follow", rest.len()))
    })?;
    if data.len() as u64 > limits.tensor_bytes {
        return Err(above("tensors in bytes", data.len() as u64, limits.tensor_bytes));
    }
    let keys: UniqueKeys = serde_json::from_slice(json)
        .map_err(|error| Error::checkpoint(path, format!("safetensors header: {error}")))?;
    if keys.count > MAX_TENSORS {
        return Err(above("tensors", keys.count as u64, MAX_TENSORS as u64));
    }
    match SafeTensors::read_metadata(bytes) {
        Ok((_, header)) => Ok((header, data)),
        Err(safetensors::SafeTensorError::MetadataIncompleteBuffer) => Err(truncated(format!(
            "the header does not describe the {} bytes of tensors that follow",
            data.len()
        ))),
        Err(error) => Err(Error::checkpoint(path, format!("safetensors header: {error}"))),
    }
}

fn metadata_of(header: &Metadata) -> BTreeMap<String, String> {
    header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The header of a file with `tensors` in this order, padded to a multiple of 8 bytes.
fn header(tensors: &[(&String, &Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert(METADATA.into(), serde_json::json!(metadata));
    }
    let mut start = 0;
    for (name, tensor) in tensors {
        if *name == METADATA {
            return Err(Error::Argument(format!("a tensor cannot be called {METADATA}")));
        }
        let end = start + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let info = TensorInfo {
            dtype: Dtype::from(tensor.dtype()),
            shape: tensor.dims().to_vec(),
            data_offsets: (start, end),
        };
        entries.insert((*name).clone(), serde_json::json!(info));
        start = end;
    }
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(LENGTH_BYTES), b' ');
    Ok(json)
}

/// Passes over a JSON object and fails on a key that occurs twice, which other readers would
/// resolve each in its own way; also on one in the metadata.
struct UniqueKeys {
    count: usize,
}

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == METADATA {
                        map.next_value::<UniqueKeys>()?;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                    if seen.contains(&key) {
                        return Err(A::Error::custom(format!("{key:?} occurs twice")));
                    }
                    seen.insert(key);
                }
                Ok(UniqueKeys { count: seen.len() })
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use candle_core::{DType, Device, Shape};
    use half::{bf16, f16};

    use super::super::{check_finite, data_hash, finite_report};
    use super::*;

    fn sample() -> BTreeMap<String, Tensor> {
        let device = &Device::Cpu;
        let grid = Tensor::arange(0f32, 12.0, device).unwrap().reshape((3, 4)).unwrap();
        let tensors = [
            ("f64", grid.to_dtype(DType::F64).unwrap()),
            ("f32", grid.clone()),
            ("transposed", grid.t().unwrap()),
            ("narrowed", grid.narrow(1, 1, 2).unwrap()),
            ("f16", grid.to_dtype(DType::F16).unwrap()),
            ("bf16", grid.to_dtype(DType::BF16).unwrap()),
            ("i64", Tensor::new(&[i64::MIN, i64::MAX], device).unwrap()),
            ("i32", Tensor::new(&[i32::MIN, i32::MAX], device).unwrap()),
            ("i16", Tensor::new(&[i16::MIN, i16::MAX], device).unwrap()),
            ("u32", Tensor::new(&[u32::MAX], device).unwrap()),
            ("u8", Tensor::new(&[1u8, 2, 255], device).unwrap()),
            ("scalar", Tensor::new(2.5f32, device).unwrap()),
            ("empty", Tensor::zeros((0, 5), DType::F32, device).unwrap()),
        ];
        tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect()
    }

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn read_error(bytes: &[u8]) -> String {
        let limits = Limits { tensor_bytes: 1 << 20, ..Limits::default() };
        read_bytes(bytes, Path::new("x.safetensors"), &limits).unwrap_err().to_string()
    }

    #[test]
    fn tensors_and_metadata_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata = BTreeMap::from([("b".to_string(), "\"quoted\" \u{1F600}".to_string())]);
        write(&path, &sample(), &metadata, false).unwrap();
        let found = super::super::read(&path, &Limits::default()).unwrap();
        assert_eq!(found.metadata, metadata);
        assert_eq!(read_metadata(&path, &Limits::default()).unwrap(), metadata);
        for (name, tensor) in sample() {
            assert_eq!(found.tensors[&name].dims(), tensor.dims(), "{name}");
        }
        assert_eq!(data_hash(&found.tensors).unwrap(), data_hash(&sample()).unwrap());
        let again = folder.path().join("again");
        write(&again, &found.tensors, &metadata, false).unwrap();
        assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
        assert!(matches!(write(&path, &sample(), &metadata, false), Err(Error::Exists { .. })));
    }

    #[test]
    fn the_crate_reads_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write(&path, &sample(), &BTreeMap::new(), false).unwrap();
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), sample().len());
        let transposed = file.tensor("transposed").unwrap();
        assert_eq!(transposed.shape(), [4, 3]);
        let expected: Vec<u8> =
            [0f32, 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.].map(f32::to_le_bytes).concat();
        assert_eq!(transposed.data(), expected);
        for (name, view) in file.tensors() {
            let place = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(place % (view.dtype().bitsize() / 8), 0, "{name}");
        }
    }

    #[test]
    fn narrow_and_unsigned_types_are_widened() {
        let cases = [
            ("I8", 1, vec![0x80u8, 0x7f], Tensor::new(&[-128i16, 127], &Device::Cpu)),
            ("BOOL", 1, vec![0, 1], Tensor::new(&[0u8, 1], &Device::Cpu)),
            ("U16", 2, vec![1, 0, 0xff, 0xff], Tensor::new(&[1u32, 0xffff], &Device::Cpu)),
            (
                "U64",
                8,
                [5u64, 6].map(u64::to_le_bytes).concat(),
                Tensor::new(&[5i64, 6], &Device::Cpu),
            ),
            ("F8_E4M3", 1, vec![0x38, 0xc0], Tensor::new(&[1f32, -2.0], &Device::Cpu)),
        ];
        for (dtype, size, data, expected) in cases {
            let end = 2 * size;
            let header =
                format!(r#"{{"x":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{end}]}}}}"#);
            let found =
                read_bytes(&with_header(&header, &data), Path::new("x"), &Limits::default());
            let found = data_hash(&found.unwrap().tensors).unwrap();
            let expected = BTreeMap::from([("x".to_string(), expected.unwrap())]);
            assert_eq!(found, data_hash(&expected).unwrap(), "{dtype}");
        }
    }

    #[test]
    fn attacks_and_damage_are_refused() {
        let one = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        let entry = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let cases: &[(&str, Vec<u8>, &str)] = &[
            ("empty file", vec![], "truncated"),
            ("four bytes", vec![1, 2, 3, 4], "truncated"),
            ("header of 2^63", (1u64 << 63).to_le_bytes().to_vec(), "limit"),
            ("header of 64 MiB", (64u64 << 20).to_le_bytes().to_vec(), "truncated"),
            ("no JSON", with_header("{", b""), "header"),
            ("array", with_header("[]", b""), "header"),
            (
                "name twice",
                with_header(&format!(r#"{{"a":{one},"a":{one}}}"#), &[0; 4]),
                "occurs twice",
            ),
            (
                "escaped name twice",
                with_header(&format!(r#"{{"a":{one},"\u0061":{one}}}"#), &[0; 4]),
                "occurs twice",
            ),
            (
                "metadata twice",
                with_header(r#"{"__metadata__":{"k":"1","k":"2"}}"#, b""),
                "occurs twice",
            ),
            (
                "overlap",
                with_header(
                    &format!(
                        r#"{{"a":{one},"b":{{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}}}"#
                    ),
                    &[0; 6],
                ),
                "offset",
            ),
            ("hole", with_header(&entry("F32", "[1]", "[4,8]"), &[0; 8]), "offset"),
            ("offsets reversed", with_header(&entry("F32", "[1]", "[4,0]"), &[0; 4]), "offset"),
            ("trailing bytes", with_header(&entry("F32", "[1]", "[0,4]"), &[0; 5]), "truncated"),
            ("cut", with_header(&entry("F32", "[2]", "[0,8]"), &[0; 7]), "truncated"),
            ("shape too large", with_header(&entry("F32", "[2]", "[0,4]"), &[0; 4]), "shape"),
            (
                "shape overflows",
                with_header(&entry("F32", "[4294967296,4294967296,4]", "[0,4]"), &[0; 4]),
                "overflow",
            ),
            (
                "empty tensor of absurd shape",
                with_header(
                    &entry("F32", "[18446744073709551615,18446744073709551615,0]", "[0,0]"),
                    b"",
                ),
                "overflow",
            ),
            ("negative size", with_header(&entry("F32", "[-1]", "[0,4]"), &[0; 4]), "header"),
            (
                "65 dimensions",
                with_header(&entry("U8", &format!("{:?}", [1; 65]), "[0,1]"), &[0]),
                "dimensions",
            ),
            ("complex", with_header(&entry("C64", "[1]", "[0,8]"), &[0; 8]), "C64"),
            ("u64 too large", with_header(&entry("U64", "[1]", "[0,8]"), &[255; 8]), "too large"),
            (
                "tensors above the limit",
                with_header(&entry("U8", "[2097152]", "[0,2097152]"), &[0; 2 << 20]),
                "limit",
            ),
        ];
        for (name, bytes, expected) in cases {
            let error = read_error(bytes);
            assert!(error.contains(expected) && error.contains("x.safetensors"), "{name}: {error}");
        }
    }

    #[test]
    fn unwritable_tensors_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let reserved =
            BTreeMap::from([(METADATA.to_string(), Tensor::new(1f32, &Device::Cpu).unwrap())]);
        assert!(matches!(
            write(&path, &reserved, &BTreeMap::new(), false),
            Err(Error::Argument(_))
        ));
        let tiny = Tensor::from_raw_buffer(&[0x38], DType::F8E4M3, &[1], &Device::Cpu).unwrap();
        let tiny = BTreeMap::from([("x".to_string(), tiny)]);
        assert!(matches!(write(&path, &tiny, &BTreeMap::new(), false), Err(Error::Argument(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn non_finite_elements_are_counted() {
        let device = &Device::Cpu;
        let mut tensors = sample();
        assert!(finite_report(&tensors).unwrap().is_empty());
        let bad = [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY];
        let halves = bad.map(f16::from_f32);
        let brains = bad.map(bf16::from_f32);
        let shape = Shape::from((2, 2));
        let column = Tensor::new(&bad, device).unwrap().reshape(&shape).unwrap().narrow(1, 0, 1);
        for (name, tensor) in [
            ("a", column.unwrap()),
            ("b", Tensor::new(&halves, device).unwrap()),
            ("c", Tensor::new(&brains, device).unwrap()),
            ("d", Tensor::new(&bad.map(f64::from), device).unwrap()),
        ] {
            tensors.insert(name.into(), tensor);
        }
        let found = finite_report(&tensors).unwrap();
        let counts: Vec<_> =
            found.iter().map(|it| (it.name.as_str(), it.nan, it.infinite)).collect();
        assert_eq!(counts, [("a", 1, 1), ("b", 1, 2), ("c", 1, 2), ("d", 1, 2)]);
        let error = check_finite(&tensors, Path::new("x")).unwrap_err().to_string();
        assert!(
            error.starts_with("x: tensor a (1 NaN, 1 infinite), tensor b")
                && error.contains("and 1 more"),
            "{error}"
        );
    }

    #[test]
    fn the_hash_tells_names_shapes_and_values_apart() {
        let tensor =
            |shape: (usize, usize), fill: f32| Tensor::full(fill, shape, &Device::Cpu).unwrap();
        let hash = |name: &str, tensor: Tensor| {
            data_hash(&BTreeMap::from([(name.to_string(), tensor)])).unwrap()
        };
        let hashes = HashSet::from([
            hash("a", tensor((2, 3), 1.0)),
            hash("b", tensor((2, 3), 1.0)),
            hash("a", tensor((3, 2), 1.0)),
            hash("a", tensor((2, 3), 2.0)),
            hash("a", tensor((2, 3), 1.0).to_dtype(DType::F64).unwrap()),
        ]);
        assert_eq!(hashes.len(), 5);
        assert!(hashes.iter().all(|hash| hash.len() == 64));
    }
}
