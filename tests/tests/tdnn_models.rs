//! What the speaker-verification tool says to models and checkpoints that are not as they should
//! be: an error with the file's name and a reason, and no output.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use shared::checkpoint::{data_hash, read, safetensors};
use shared::limits::Limits;
use tests::tool::{Workplace, media, root};

type Tensors = BTreeMap<String, Tensor>;

/// A matrix and a vector of the shipped model.
const MATRIX: &str = "linear.weight";
const VECTOR: &str = "bnembed.running_mean";

fn shipped() -> Vec<u8> {
    fs::read(root().join("samples/models/tdnn.safetensors")).unwrap()
}

/// Writes the shipped model with its tensors and its card changed, as a program would that does
/// not know better: the card's hash is that of the tensors.
fn write_model(path: &Path, change: impl FnOnce(&mut Tensors), card: impl FnOnce(&mut Value)) {
    let path_of_shipped = root().join("samples/models/tdnn.safetensors");
    let mut file = safetensors::read(&path_of_shipped, &Limits::default()).unwrap();
    let cohort = file.tensors.remove("cohort");
    change(&mut file.tensors);
    let mut description: Value = serde_json::from_str(&file.metadata["tdnn"]).unwrap();
    description["tensors_sha256"] = data_hash(&file.tensors).unwrap().into();
    card(&mut description);
    file.tensors.extend(cohort.map(|cohort| ("cohort".to_owned(), cohort)));
    let metadata = BTreeMap::from([("tdnn".to_owned(), description.to_string())]);
    safetensors::write(path, &file.tensors, &metadata, true).unwrap();
}

/// `tensor` with one element that is no number.
fn spoilt(tensor: &Tensor) -> Tensor {
    let shape = tensor.shape().clone();
    let tensor = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    let mut values: Vec<f32> = tensor.to_vec1().unwrap();
    values[0] = f32::NAN;
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// All tensors of floating-point numbers as `dtype`.
fn converted(tensors: &mut Tensors, dtype: DType) {
    for tensor in tensors.values_mut().filter(|tensor| tensor.dtype().is_float()) {
        *tensor = tensor.to_dtype(dtype).unwrap();
    }
}

#[test]
fn files_that_are_no_models_are_refused() {
    let place = Workplace::new("tdnn");
    let recording = media("cards/005.flac");
    let shipped = shipped();
    let mut damaged = shipped.clone();
    let last = damaged.len() - 1000;
    damaged[last] ^= 0x55;
    let header_of = |length: u64| [&length.to_le_bytes(), &shipped[8..]].concat();
    let named_twice = {
        let header = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        [&(header.len() as u64).to_le_bytes(), header.as_slice(), b"xy"].concat()
    };
    let no_card = {
        let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
        [&(header.len() as u64).to_le_bytes(), header.as_slice(), b"xy"].concat()
    };
    let cases: [(&str, Vec<u8>, &str); 10] = [
        ("truncated.safetensors", shipped[..shipped.len() / 2].to_vec(), ""),
        ("half-a-header.safetensors", shipped[..100].to_vec(), ""),
        ("damaged.safetensors", damaged, "damaged"),
        ("header-of-2-to-63.safetensors", header_of(1 << 63), "header"),
        ("header-of-all.safetensors", header_of(u64::MAX), "header"),
        ("named-twice.safetensors", named_twice, "twice"),
        ("no-card.safetensors", no_card, "no speaker model"),
        ("text.safetensors", b"no model at all, but a line of text\n".to_vec(), ""),
        ("empty.safetensors", vec![], "empty"),
        ("recording.safetensors", fs::read(&recording).unwrap(), ""),
    ];
    for (name, content, _) in &cases {
        place.write(name, content);
    }
    let files = place.files();
    let missing = [("missing.safetensors", vec![], "No such file")];
    for (name, _, word) in cases.iter().chain(&missing) {
        place.run(["verify", &recording, &recording, "--model", name]).failure(2, &[name, word]);
        place.run(["info", name]).failure(2, &[name, word]);
        place.run(["enroll", "Nobody", &recording, "--model", name]).failure(2, &[name, word]);
        if !["damaged.safetensors", "no-card.safetensors"].contains(name) {
            place.run(["convert", name, "--out", "out.safetensors"]).failure(2, &[name, word]);
        }
    }
    let tiny = root().join("tests/golden/tdnn/ckpt/tiny.torchparams").display().to_string();
    place.run(["verify", &recording, &recording, "--model", &tiny]).failure(2, &["tdnn convert"]);
    assert_eq!(place.files(), files, "something was left behind");
}

#[test]
fn models_with_other_tensors_than_their_card_says_are_refused() {
    type Change = fn(&mut Tensors);
    let place = Workplace::new("tdnn");
    let recording = media("cards/005.flac");
    let cases: [(&str, Change, &[&str]); 6] = [
        (
            "missing-key",
            |tensors| drop(tensors.remove(MATRIX)),
            &["1 missing", "missing: linear.weight"],
        ),
        (
            "extra-key",
            |tensors| drop(tensors.insert("extra.weight".to_owned(), tensors[VECTOR].clone())),
            &["1 unexpected", "unexpected: extra.weight"],
        ),
        (
            "wrong-shape",
            |tensors| {
                let transposed = tensors[MATRIX].t().unwrap().contiguous().unwrap();
                tensors.insert(MATRIX.to_owned(), transposed);
            },
            &["1 of another shape", "linear.weight: expected"],
        ),
        (
            "nan-in-a-matrix",
            |tensors| drop(tensors.insert(MATRIX.to_owned(), spoilt(&tensors[MATRIX]))),
            &["tensor linear.weight (1 NaN, 0 infinite)", "is not finite"],
        ),
        (
            "nan-in-a-vector",
            |tensors| drop(tensors.insert(VECTOR.to_owned(), spoilt(&tensors[VECTOR]))),
            &["tensor bnembed.running_mean (1 NaN, 0 infinite)", "is not finite"],
        ),
        ("no-tensors", BTreeMap::clear, &["too few"]),
    ];
    for (name, change, words) in cases {
        let name = format!("{name}.safetensors");
        write_model(&place.path(&name), change, |_| ());
        let words: Vec<&str> = words.iter().copied().chain([name.as_str()]).collect();
        place.run(["verify", &recording, &recording, "--model", &name]).failure(2, &words);
        place.run(["info", &name]).failure(2, &words);
        place.run(["embed", &recording, "--out", "x.npy", "--model", &name]).failure(2, &words);
        fs::remove_file(place.path(&name)).unwrap();
    }
    assert!(place.files().is_empty());
}

#[test]
fn model_cards_that_make_no_sense_are_refused() {
    type Change = fn(&mut Value);
    let place = Workplace::new("tdnn");
    let recording = media("cards/005.flac");
    let cases: [(Change, &str); 12] = [
        (|card| *card = json!([]), "malformed"),
        (|card| card["version"] = 7.into(), "version 7"),
        (|card| card["unknown"] = 7.into(), "unknown"),
        (|card| card["network"]["embedding"] = u64::MAX.into(), "too few"),
        (|card| card["network"]["features"] = (1u64 << 40).into(), "too few"),
        (|card| card["network"]["architecture"] = "1.16384.16384.7.7.16384".into(), "too few"),
        (|card| card["network"]["architecture"] = "1.0.0.3.3.0".into(), "width 0"),
        (|card| card["further"] = json!(vec![card["network"].clone(); 7]), "network 3"),
        (|card| card["windows"]["repeat_below_samples"] = (1u64 << 62).into(), "windows"),
        (|card| card["windows"]["min_samples"] = u64::MAX.into(), "windows"),
        (|card| card["frontend"]["log_mel"]["stft"]["hop_samples"] = 0.into(), "hop"),
        (
            |card| card["frontend"]["log_mel"]["stft"]["fft_samples"] = (1u64 << 50).into(),
            "Fourier",
        ),
    ];
    for (change, word) in cases {
        write_model(&place.path("odd.safetensors"), |_| (), change);
        let words = ["odd.safetensors", word];
        let model = ["--model", "odd.safetensors"];
        place.run(["verify", &recording, &recording].iter().chain(&model)).failure(2, &words);
        place.run(["info", "odd.safetensors"]).failure(2, &words);
    }
}

#[test]
fn models_in_every_floating_point_type_give_about_the_same_scores() {
    let place = Workplace::new("tdnn");
    let (a, b) = (media("librivox/0870.flac"), media("librivox/0890.flac"));
    let score = |model: &[&str]| {
        let verify = ["verify", &a, &b, "--json", "--threshold", "0"];
        let run = place.run(verify.iter().chain(model)).success();
        run.json()["score"].as_f64().unwrap()
    };
    let expected = score(&[]);
    for (dtype, tolerance) in [(DType::F64, 1e-6), (DType::F16, 0.01), (DType::BF16, 0.05)] {
        write_model(&place.path("other.safetensors"), |tensors| converted(tensors, dtype), |_| ());
        place.run(["info", "other.safetensors"]).success();
        let found = score(&["--model", "other.safetensors"]);
        assert!((found - expected).abs() < tolerance, "{dtype:?}: {found}, not {expected}");
    }
}

#[test]
fn published_weights_that_do_not_fit_are_refused() {
    type Change = fn(&mut Tensors);
    let place = Workplace::new("tdnn");
    let folder = root().join("tests/golden/tdnn/ckpt");
    let supernet = read(&folder.join("tiny.torchparams"), &Limits::default()).unwrap().tensors;
    let bn = folder.join("tiny.3.24.32.16.24.5.3.3.1.40.bn.tar").display().to_string();
    let plain = |name: &str| name.strip_prefix("state_dict.module.__S__.").map(str::to_owned);
    let supernet: Tensors =
        supernet.into_iter().filter_map(|(name, tensor)| Some((plain(&name)?, tensor))).collect();
    let write = |name: &str, change: Change| {
        let mut tensors = supernet.clone();
        change(&mut tensors);
        safetensors::write(&place.path(name), &tensors, &BTreeMap::new(), true).unwrap();
    };
    let refused: [(&str, Change, &[&str]); 4] = [
        (
            "missing-key",
            |tensors| drop(tensors.remove("linear.linear.weight")),
            &["missing: linear.linear.weight"],
        ),
        (
            "extra-key",
            |tensors| {
                let copy = tensors["linear.linear.weight"].clone();
                tensors.insert("linear.extra.weight".to_owned(), copy);
            },
            &["unexpected: linear.extra.weight"],
        ),
        (
            "wrong-shape",
            |tensors| {
                let matrix = tensors.get_mut("linear.linear.weight").unwrap();
                *matrix = matrix.t().unwrap().contiguous().unwrap();
            },
            &["linear.linear.weight: expected"],
        ),
        (
            "nan",
            |tensors| {
                let matrix = tensors.get_mut("linear.linear.weight").unwrap();
                *matrix = spoilt(matrix);
            },
            &["tensor linear.linear.weight (1 NaN, 0 infinite)"],
        ),
    ];
    for (name, change, words) in refused {
        write(name, change);
        let words: Vec<&str> = words.iter().copied().chain([name]).collect();
        let convert = ["convert", "--supernet", name, "--bn", &bn, "--out", "out.safetensors"];
        place.run(convert).failure(2, &words);
        fs::remove_file(place.path(name)).unwrap();
    }
    assert!(place.files().is_empty());

    let types: [(&str, Change); 4] = [
        ("as-it-is", |_| ()),
        ("f64", |tensors| converted(tensors, DType::F64)),
        ("f16", |tensors| converted(tensors, DType::F16)),
        ("bf16", |tensors| converted(tensors, DType::BF16)),
    ];
    for (name, change) in types {
        write(name, change);
        let out = format!("{name}.safetensors");
        place.run(["convert", "--supernet", name, "--bn", &bn, "--out", &out]).success();
        place.run(["info", &out]).success();
    }
    let bytes = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(bytes("as-it-is.safetensors") == bytes("f64.safetensors"));
}

/// `content` with every `old` replaced by `new`, which is as long.
fn replaced(content: &[u8], old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut content = content.to_vec();
    let places: Vec<usize> = content
        .windows(old.len())
        .enumerate()
        .filter(|(_, window)| *window == old.as_bytes())
        .map(|(place, _)| place)
        .collect();
    assert!(!places.is_empty(), "{old}");
    for place in places {
        content[place..place + new.len()].copy_from_slice(new.as_bytes());
    }
    content
}

#[test]
fn checkpoints_made_to_do_harm_are_refused() {
    let place = Workplace::new("tdnn");
    let folder = root().join("shared/tests/data/checkpoint");
    let zip = fs::read(folder.join("layouts.zip4.pt")).unwrap();
    let stream = fs::read(folder.join("layouts.stream4.pt")).unwrap();
    let tar = fs::read(folder.join("tar.tar2.pt")).unwrap();
    let entry = "layouts.zip4/data/0";
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("upwards.pt", replaced(&zip, entry, "../../../..//data/0"), "unsafe name"),
        ("absolute.pt", replaced(&zip, entry, "/ayouts.zip4/data/0"), "unsafe name"),
        ("twice.pt", replaced(&zip, "layouts.zip4/data/1", entry), "twice"),
        ("truncated-zip.pt", zip[..zip.len() - 30].to_vec(), ""),
        ("truncated-stream.pt", stream[..stream.len() / 2].to_vec(), ""),
        ("truncated-tar.tar", tar[..2000].to_vec(), ""),
        ("code.pt", b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.".to_vec(), ""),
    ];
    for (name, content, _) in &cases {
        place.write(name, content);
    }
    let files = place.files();
    for (name, _, word) in &cases {
        place.run(["convert", name, "--out", "out.safetensors"]).failure(2, &[name, word]);
        place.run(["info", name]).failure(2, &[name, word]);
    }
    assert_eq!(place.files(), files, "something was left behind");
}

#[test]
fn what_is_odd_about_a_converted_checkpoint_is_said() {
    let place = Workplace::new("tdnn");
    let numbers = Tensor::new(&[1.0f32, f32::NAN, f32::INFINITY], &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([("weight".to_owned(), numbers)]);
    safetensors::write(&place.path("odd.safetensors"), &tensors, &BTreeMap::new(), true).unwrap();
    let run = place.run(["convert", "odd.safetensors", "--out", "out.safetensors", "--json"]);
    let notes = run.success().json()["notes"].clone();
    assert_eq!(notes, json!(["tensor weight (1 NaN, 1 infinite) is not finite"]));
}
