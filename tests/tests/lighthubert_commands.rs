//! The speech-encoder tool on the recordings in `samples/media`, with a tiny model, as a user runs it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lighthubert::{EncoderConfig, ModelFile, Sizes, Subnet, Supernet, SupernetConfig};
use serde_json::Value;
use shared::checkpoint::safetensors;
use shared::limits::Limits;
use shared::nn::Weights;
use tests::tool::{Workplace, media};
use tests::wave::{Header, Stored, wave};

/// A supernet of width 128 with random weights.
fn supernet() -> Supernet {
    let mut encoder = EncoderConfig::published();
    encoder.extractor.layers.iter_mut().for_each(|layer| layer.channels = 16);
    encoder.positional.kernel = 16;
    encoder.heads.size = 32;
    let config =
        SupernetConfig { encoder, embed_dim: 128, ffn_embed_dim: 512, prune_positional: true };
    Supernet::new(config, &Weights::fresh(4, DType::F32, &Device::Cpu)).unwrap()
}

fn write_model(place: &Workplace) -> PathBuf {
    let path = place.path("supernet.safetensors");
    let supernet = supernet();
    let sizes = Sizes::Supernet { config: supernet.config().clone(), space: None };
    let model = ModelFile::new(sizes, supernet.tensors().clone());
    model.write(&path, DType::F32, false).unwrap();
    path
}

/// A subnet of equal layers of width 64, but for the heads of one.
fn write_subnet(place: &Workplace, name: &str, heads: usize) -> PathBuf {
    let mut layers = supernet().config().largest().layers()[..10].to_vec();
    layers.iter_mut().for_each(|layer| (layer.heads, layer.ffn) = (1, 256));
    layers[3].heads = heads;
    place.write(name, serde_json::to_string(&Subnet::new(64, layers)).unwrap())
}

/// Shape and numbers of a NumPy file.
fn npy(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let length = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let header = String::from_utf8_lossy(&bytes[10..length]).into_owned();
    let shape = header.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let shape = shape.split(',').filter_map(|size| size.trim().parse().ok()).collect();
    let numbers = bytes[length..].as_chunks().0.iter().map(|it| f32::from_le_bytes(*it));
    (shape, numbers.collect())
}

fn features(place: &Workplace, input: &str, out: &str, more: &[&str]) -> (Vec<usize>, Vec<f32>) {
    let model = place.path("supernet.safetensors").display().to_string();
    let arguments = ["features", input, "--out", out, "--model", &model];
    place.run(arguments.iter().chain(more)).success();
    npy(&place.path(out))
}

#[test]
fn recordings_become_features() {
    let place = Workplace::new("lighthubert");
    write_model(&place);
    let recording = media("librivox/0870.flac");
    let (shape, last) = features(&place, &recording, "last.npy", &[]);
    let samples = shared::media::audio::read(Path::new(&recording), &Limits::default()).unwrap();
    let samples = samples.mono().resampled(16_000).unwrap().samples;
    assert_eq!(shape, [EncoderConfig::published().extractor.frames(samples.len()), 128]);
    assert!(last.iter().all(|value| value.is_finite()));
    // The library gives the same.
    let path = place.path("supernet.safetensors");
    let model = ModelFile::read(&path, &Limits::default()).unwrap();
    let network = model.network(None, &Device::Cpu).unwrap();
    let encoder = lighthubert::SpeechEncoder::new(network, model.card.chunks, Device::Cpu).unwrap();
    let expected = encoder.encode(&samples, &lighthubert::Layers::Last).unwrap();
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert!(last.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));

    let (all_shape, all) = features(&place, &recording, "all.npy", &["--layers", "all"]);
    assert_eq!(all_shape, [shape[0], 13, 128]);
    assert_eq!(all[12 * 128..13 * 128], last[..128]);
    let (_, third) = features(&place, &recording, "3.npy", &["--layers", "3"]);
    assert_eq!(all[3 * 128..4 * 128], third[..128]);
    let weights = "0.5,0,0,0,0,0,0,0,0,0,0,0,0.5";
    let (_, sum) = features(&place, &recording, "sum.npy", &["--layers", weights]);
    assert!((sum[0] - 0.5 * (all[0] + last[0])).abs() < 1e-5);
    let short = ["--window", "2", "--context", "0.5"];
    let (cut_shape, cut) = features(&place, &recording, "cut.npy", &short);
    assert!(cut_shape == shape && cut != last);

    let model = path.display().to_string();
    let again = ["features", &recording, "--out", "last.npy", "--model", &model];
    place.run(again).failure(2, &["last.npy", "--force"]);
    place
        .run(["features", &recording, "--out", "x.npy", "--model", &model, "--layers", "13"])
        .failure(2, &["no hidden state 13", "0 to 12"]);
}

#[test]
fn lists_become_folders_that_are_gone_on_with() {
    let place = Workplace::new("lighthubert");
    let model = write_model(&place).display().to_string();
    let names = ["librivox/0870.flac", "librivox/0890.flac", "asterisk/carlo-vm-options.flac"];
    let rows: String =
        names.iter().enumerate().map(|(i, name)| format!("a/{i}\t{}\t4\n", media(name))).collect();
    place.write("list.tsv", format!("id\tpath\tseconds\n{rows}"));
    let run = |more: &[&str]| {
        let arguments = ["features", "list.tsv", "--out", "out", "--model", &model, "--json"];
        place.run(arguments.iter().chain(more)).success().json_lines()
    };
    assert_eq!(run(&["--shard", "0/3"]).len(), 1);
    assert_eq!(run(&[]).len(), 2);
    assert_eq!(run(&[]).len(), 0);
    for (i, name) in names.iter().enumerate() {
        let (shape, together) = npy(&place.path(&format!("out/a_{i}.npy")));
        let (alone_shape, alone) = features(&place, &media(name), &format!("{i}.npy"), &[]);
        assert_eq!(shape, alone_shape);
        assert!(together.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-4), "{name}");
    }
    place.write("twice.tsv", "id\tpath\na/b\tx.wav\na_b\ty.wav\n");
    place
        .run(["features", "twice.tsv", "--out", "o", "--model", &model])
        .failure(2, &["a_b", "a/b"]);
}

#[test]
fn unusable_recordings_are_refused_by_name() {
    let place = Workplace::new("lighthubert");
    let model = write_model(&place).display().to_string();
    let write = |name: &str, samples: &[f32], rate_hz| {
        place.write(name, wave(samples, rate_hz, Stored::F32, Header::Plain, None))
    };
    write("short.wav", &[0.1; 399], 16_000);
    write("empty.wav", &[], 16_000);
    write("nan.wav", &[f32::NAN; 800], 16_000);
    write("silent.wav", &[0.0; 800], 16_000);
    write("slow.wav", &[0.1, -0.1].repeat(400), 8_000);
    place.write("text.wav", "no sound");
    let run = |name: &str| {
        place.run(["features", name, "--out", &format!("{name}.npy"), "--model", &model, "--json"])
    };
    for (name, kind) in [
        ("short.wav", "too_short"),
        ("nan.wav", "non_finite"),
        ("text.wav", "media"),
        ("no.wav", "io"),
    ] {
        let run = run(name).failure(2, &[name]);
        assert_eq!(run.json()["kind"], kind, "{name}");
    }
    run("empty.wav").failure(2, &["empty.wav"]);
    let notes = |name| run(name).success().json()["notes"].to_string();
    assert!(notes("silent.wav").contains("nothing to hear"));
    assert!(notes("slow.wav").contains("resampled from 8000 to 16000 Hz"));
    place.write("list.scp", "a short.wav\nb silent.wav\n");
    let list = ["features", "list.scp", "--out", "out", "--model", &model];
    place.run(list).failure(2, &["short.wav", "399 samples"]);
    let skipped = place.run(list.iter().chain(&["--skip-errors", "--force"])).success();
    assert!(skipped.stderr.contains("1 of 2 recordings skipped"), "{}", skipped.stderr);
    assert_eq!(npy(&place.path("out/b.npy")).0, [2, 128]);
}

#[test]
fn subnets_are_extracted_and_converted() {
    let place = Workplace::new("lighthubert");
    let model = write_model(&place).display().to_string();
    let equal = write_subnet(&place, "equal.json", 1).display().to_string();
    let unequal = write_subnet(&place, "unequal.json", 2).display().to_string();
    let recording = media("librivox/0870.flac");
    let extract = ["extract", "--model", &model, "--subnet", &equal, "--out", "one.safetensors"];
    let extracted = place.run(extract.iter().chain(&["--json"])).success().json();
    assert_eq!(extracted["subnet"]["layer_num"], 10);
    place.run(extract).failure(2, &["one.safetensors", "--force"]);
    let info = place.run(["info", "one.safetensors", "--json"]).success().json();
    assert_eq!(info["stored_parameters"], extracted["parameters"]);
    assert_eq!(info["networks"][0]["subnet"], extracted["subnet"]);

    // By itself, out of the supernet, and by way of Hugging Face's layout, the network is the same.
    let (shape, expected) = features(&place, &recording, "supernet.npy", &["--subnet", &equal]);
    assert_eq!(shape[1], 64);
    let to = ["convert", &model, "--to", "hugging-face", "--out"];
    place.run(to.iter().chain(&["folder", "--subnet", &equal])).success();
    place
        .run(to.iter().chain(&["other", "--subnet", &unequal]))
        .failure(2, &["layer 3 has 2 heads"]);
    for network in ["one.safetensors", "folder"] {
        let out = format!("{network}.npy");
        place.run(["features", &recording, "--out", &out, "--model", network]).success();
        let (_, found) = npy(&place.path(&out));
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{network}");
    }
    place
        .run(["extract", "--model", "one.safetensors", "--subnet", "max", "--out", "x"])
        .failure(2, &["search space"]);
    place.run(["doctor", "--model", "one.safetensors"]).success();
    let doctor = place.run(["doctor", "--model", "one.safetensors", "--json"]).success().json();
    assert!(doctor["self_test"].as_f64() > Some(0.9999));
}

#[test]
fn checkpoints_become_models() {
    let place = Workplace::new("lighthubert");
    let supernet = supernet();
    // A file with the tensors under the names of published checkpoints.
    let tensors: BTreeMap<String, Tensor> = supernet
        .tensors()
        .iter()
        .map(|(name, tensor)| (format!("model.{name}"), tensor.clone()))
        .collect();
    let path = place.path("raw.safetensors");
    safetensors::write(&path, &tensors, &BTreeMap::new(), false).unwrap();
    // Without a configuration it is taken for one of the published size, which it is not.
    place.run(["convert", "raw.safetensors", "--out", "x.safetensors"]).failure(2, &["numbers"]);
    place
        .run(["convert", "raw.safetensors", "--to", "safetensors", "--out", "copy.safetensors"])
        .success();
    assert!(place.files().contains(&"copy.safetensors".to_string()));
    place.write("text.pt", "no checkpoint");
    place.run(["info", "text.pt"]).failure(2, &["text.pt"]);
    place.run(["info", "copy.safetensors"]).failure(2, &["copy.safetensors"]);
}

#[test]
fn subnets_are_drawn_under_a_budget() {
    let place = Workplace::new("lighthubert");
    let budget = ["sample", "--space", "small", "--num", "3", "--max-parameters", "20000000"];
    let drawn = place.run(budget.iter().chain(&["--json"])).success().json_lines();
    assert_eq!(drawn.len(), 3);
    assert!(drawn.iter().all(|it| it["parameters"].as_u64() <= Some(20_000_000)));
    let first = place.run(["sample", "--space", "small", "--max-parameters", "20000000"]);
    let first: Value = serde_json::from_str(&first.success().stdout).unwrap();
    assert_eq!(first, drawn[0]["subnet"]);
    place
        .run(["sample", "--space", "base", "--max-gmacs", "10"])
        .failure(2, &["no subnet", "smallest"]);
    place.run(["sample", "--space", "huge"]).failure(2, &["base, small and stage1"]);
}
