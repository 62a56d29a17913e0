//! Checkpoints of every layout, protocol and element type, as PyTorch wrote them, and files that
//! were made to do harm. `data/checkpoint/generate.py` says where the files come from.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use shared::checkpoint::{Format, Value, convert, data_hash, read, safetensors};
use shared::limits::Limits;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint")
}

fn torch_files() -> Vec<PathBuf> {
    let entries = fs::read_dir(data()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|it| it == "pt")).collect();
    files.sort();
    files
}

fn name_of(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn every_layout_and_protocol_gives_the_saved_values() {
    let limits = Limits::default();
    let mut wrong = vec![];
    for path in torch_files() {
        let (case, rest) = name_of(&path).split_once('.').unwrap();
        let found = read(&path, &limits).unwrap();
        let format = match rest.trim_end_matches(|c: char| !c.is_alphabetic()) {
            zip if zip.starts_with("zip") => Format::TorchZip,
            stream if stream.starts_with("stream") => Format::TorchStream,
            _ => Format::TorchTar,
        };
        let expected = read(&data().join(format!("{case}.safetensors")), &limits).unwrap();
        let values = fs::read_to_string(data().join(format!("{case}.json"))).unwrap();
        let values: serde_json::Value = serde_json::from_str(&values).unwrap();
        if found.format != format {
            wrong.push(format!("{}: format {:?}", path.display(), found.format));
        }
        let names = |tensors: &BTreeMap<String, _>| tensors.keys().cloned().collect::<Vec<_>>();
        if names(&found.tensors) != names(&expected.tensors) {
            wrong.push(format!("{}: names {:?}", path.display(), names(&found.tensors)));
        }
        for (name, tensor) in &found.tensors {
            let hash = |tensor: &candle_core::Tensor| {
                data_hash(&BTreeMap::from([(name.clone(), tensor.clone())])).unwrap()
            };
            if expected.tensors.get(name).is_some_and(|it| hash(it) != hash(tensor)) {
                wrong.push(format!("{}: tensor {name}: {tensor}", path.display()));
            }
        }
        if found.values.to_json() != values {
            wrong.push(format!("{}: values", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(torch_files().len() > 30);
}

#[test]
fn what_is_left_out_is_reported() {
    let limits = Limits::default();
    for file in ["foreign.zip2.pt", "foreign.zip4.pt"] {
        let mut notes = read(&data().join(file), &limits).unwrap().notes;
        notes.sort();
        let builtins = if file.contains('2') { "__builtin__" } else { "builtins" };
        let range = if file.contains('2') { "xrange" } else { "range" };
        let mut expected = vec![
            "left out __main__.Config: 1 in all, the first at config".to_string(),
            "left out __main__.Mode: 2 in all, the first at modes.0".to_string(),
            "left out a tensor with metadata: 1 in all, the first at negated (tensors inside: 1)".to_string(),
            "left out argparse.Namespace: 1 in all, the first at args".to_string(),
            format!("left out {builtins}.{range}: 1 in all, the first at range"),
            "left out torch.ComplexFloatStorage: 1 in all, the first at complex (tensors inside: 1)".to_string(),
            "left out torch._utils._rebuild_sparse_tensor: 1 in all, the first at sparse (tensors inside: 2)".to_string(),
            "left out torch.device: 1 in all, the first at device".to_string(),
            "left out torch.float32: 1 in all, the first at dtype".to_string(),
            "left out torch.nn.modules.linear.Linear: 1 in all, the first at module (tensors inside: 2)".to_string(),
        ];
        expected.sort();
        assert_eq!(notes, expected, "{file}");
    }
    let module = read(&data().join("module.stream2.pt"), &limits).unwrap();
    assert_eq!(
        module.notes,
        ["left out torch.nn.modules.flatten.Flatten: 1 in all, the first at module"]
    );
    let widened = read(&data().join("dtypes.zip2.pt"), &limits).unwrap();
    assert_eq!(widened.notes, ["tensors stored as i8 are read as i16, first int8"]);
}

#[test]
fn values_are_at_hand() {
    let found = read(&data().join("values.zip4.pt"), &Limits::default()).unwrap();
    let values = &found.values;
    let items = values.get("integers").unwrap().as_items().unwrap();
    assert_eq!(items[11].as_i64(), Some(i64::MAX));
    assert_eq!(items[14].as_i64(), None);
    assert_eq!(values.get("texts").unwrap().as_items().unwrap()[1].as_text(), Some("ascii"));
    let subnet = values.get("subnet").unwrap();
    assert!(matches!(subnet, Value::Tuple(_)));
    assert_eq!(subnet.as_items().unwrap()[0].as_f64(), Some(3.0));
    assert!(values.get("absent").is_none());
    let groups = values.get("optimizer").unwrap().get("param_groups").unwrap();
    let rate = groups.as_items().unwrap()[0].get("lr").unwrap().as_f64();
    assert_eq!(rate, Some(0.001));
    assert_eq!(
        found.tensors_under("optimizer.state").into_keys().collect::<Vec<_>>(),
        ["0.exp_avg", "0.step"]
    );
}

#[test]
fn conversion_keeps_tensors_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let limits = Limits::default();
    let read_back = convert(&data().join("values.stream3.pt"), &output, false, &limits).unwrap();
    let converted = read(&output, &limits).unwrap();
    assert_eq!(data_hash(&converted.tensors).unwrap(), data_hash(&read_back.tensors).unwrap());
    let entry = |name: &str| converted.metadata.get(name).map(String::as_str);
    assert_eq!(entry("subnet"), Some("[3,[24,32,16,24],[5,3,3,3],40]"));
    assert_eq!(entry("1"), Some("integer key"));
    assert_eq!(
        entry("optimizer.param_groups"),
        Some(r#"[{"lr":0.001,"betas":[0.9,0.999],"params":[0]}]"#)
    );
    assert_eq!(entry("twice.0.text"), Some("shared"));
    let error = convert(&data().join("lone.zip2.pt"), &output, false, &limits).unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    // A converted file converted again stays the same.
    let again = folder.path().join("again.safetensors");
    convert(&output, &again, false, &limits).unwrap();
    assert_eq!(fs::read(&output).unwrap(), fs::read(&again).unwrap());
}

#[test]
fn a_converted_file_does_not_depend_on_the_layout() {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<Vec<u8>> = ["zip2", "stream2", "zip5", "stream5"]
        .iter()
        .map(|layout| {
            let output = folder.path().join(layout);
            let input = data().join(format!("parameters.{layout}.pt"));
            convert(&input, &output, false, &Limits::default()).unwrap();
            fs::read(output).unwrap()
        })
        .collect();
    assert!(files.iter().all(|file| *file == files[0]));
}

#[test]
fn any_cut_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pt");
    for file in ["parameters.zip2.pt", "parameters.stream2.pt", "tar.tar2.pt", "dtypes.safetensors"]
    {
        let bytes = fs::read(data().join(file)).unwrap();
        // Tar archives end with empty blocks, which may be missing.
        let needed = match file.contains("tar.") {
            true => bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1,
            false => bytes.len(),
        };
        for length in (0..needed).step_by(7).chain([needed - 1]) {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = read(&path, &Limits::default()).unwrap_err().to_string();
            assert!(error.contains("cut.pt"), "{file} cut to {length}: {error}");
        }
    }
}

#[test]
fn other_files_are_told_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let plain_pickle = b"\x80\x02}q\x00.".as_slice();
    for (bytes, expected) in [
        (b"".as_slice(), "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!doctype html>", "web page"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"RIFF0000WAVE", "neither"),
        (plain_pickle, "torch.save did not write"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = read(&path, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for (path, expected) in
        [(folder.path().to_path_buf(), "folder"), (folder.path().join("missing"), "No such file")]
    {
        let error = read(&path, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn limits_hold_before_memory_is_taken() {
    let read = |file: &str, limits: &Limits| read(&data().join(file), limits).unwrap_err();
    let small =
        |header_bytes, tensor_bytes| Limits { header_bytes, tensor_bytes, ..Limits::default() };
    for file in ["layouts.zip2.pt", "layouts.stream2.pt", "layouts.safetensors"] {
        for limits in [small(100, 1 << 20), small(1 << 20, 1000)] {
            let error = read(file, &limits).to_string();
            assert!(error.contains("above the limit"), "{file}: {error}");
        }
    }
    // A file that is larger than all that may be in it is not even opened.
    let error = read("layouts.zip2.pt", &small(100, 100)).to_string();
    assert!(error.contains("file size"), "{error}");
}

/// Pickle streams and archives put together by hand.
mod craft {
    pub fn integer(value: i128) -> Vec<u8> {
        [b"\x8a\x10".as_slice(), &value.to_le_bytes()].concat()
    }

    pub fn text(text: &str) -> Vec<u8> {
        [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        [b"(".as_slice(), &items.concat(), b"t"].concat()
    }

    pub fn integers(values: &[i128]) -> Vec<u8> {
        tuple(&values.iter().map(|&value| integer(value)).collect::<Vec<_>>())
    }

    pub fn global(module: &str, name: &str) -> Vec<u8> {
        format!("c{module}\n{name}\n").into_bytes()
    }

    pub fn dictionary(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let entries = entries.iter().map(|(key, value)| [text(key), value.clone()].concat());
        [b"}(".as_slice(), &entries.collect::<Vec<_>>().concat(), b"u"].concat()
    }

    pub fn stream(value: &[u8]) -> Vec<u8> {
        [b"\x80\x02", value, b"."].concat()
    }

    pub fn storage(class: &str, key: &str, count: i128) -> Vec<u8> {
        let id = [text("storage"), global("torch", class), text(key), text("cpu"), integer(count)];
        [tuple(&id), b"Q".to_vec()].concat()
    }

    pub fn tensor(storage: Vec<u8>, offset: i128, shape: &[i128], strides: &[i128]) -> Vec<u8> {
        let arguments = [
            storage,
            integer(offset),
            integers(shape),
            integers(strides),
            b"\x89".to_vec(),
            b"N".to_vec(),
        ];
        [global("torch._utils", "_rebuild_tensor_v2"), tuple(&arguments), b"R".to_vec()].concat()
    }

    /// A zip archive of files stored as they are.
    pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut bytes, mut directory) = (vec![], vec![]);
        for (name, content) in files {
            let start = (bytes.len() as u32).to_le_bytes();
            let size = (content.len() as u32).to_le_bytes();
            let name_length = (name.len() as u16).to_le_bytes();
            // Versions, flags, method, time and checksum are zero, as are all the other fields
            // between those that are named here.
            let common = [&[0; 12], size.as_slice(), &size, &name_length].concat();
            let header = [b"PK\x03\x04\0\0", common.as_slice(), &[0; 2], name.as_bytes(), content];
            bytes.extend(header.concat());
            let entry =
                [b"PK\x01\x02\0\0\0\0", common.as_slice(), &[0; 12], &start, name.as_bytes()];
            directory.extend(entry.concat());
        }
        let count = (files.len() as u16).to_le_bytes();
        let start = (bytes.len() as u32).to_le_bytes();
        let size = (directory.len() as u32).to_le_bytes();
        let end = [b"PK\x05\x06\0\0\0\0", count.as_slice(), &count, &size, &start, &[0; 2]];
        [bytes, directory, end.concat()].concat()
    }

    /// A checkpoint with this value and a storage `0` of 16 bytes.
    pub fn checkpoint(value: &[u8]) -> Vec<u8> {
        archive(&[("a/data.pkl", &stream(value)), ("a/data/0", &[0; 16])])
    }

    /// The bytes with `new` at `offset` from the first `record`.
    pub fn patch(bytes: &[u8], record: &[u8], offset: usize, new: &[u8]) -> Vec<u8> {
        let at = bytes.windows(record.len()).position(|window| window == record).unwrap() + offset;
        let mut bytes = bytes.to_vec();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    }

    pub fn replace(bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut bytes = bytes;
        while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        bytes
    }
}

#[test]
fn attacks_are_refused() {
    use craft::*;
    let four = || storage("FloatStorage", "0", 4);
    let huge = 1i128 << 62;
    let good = tensor(four(), 0, &[2, 2], &[2, 1]);
    let bomb = {
        // Each list holds the one before it twice.
        let mut value = b"]".to_vec();
        for level in 0..40u8 {
            value.extend([b'q', level, b'0', b']', b'(', b'h', level, b'h', level, b'e']);
        }
        value
    };
    let deep = [vec![b']'; 5000], vec![b'a'; 4999]].concat();
    let endless = b"]q\x00h\x00a".to_vec();
    let mut wide = b"]q\x00(".to_vec();
    wide.extend((0..100_000).flat_map(|_| b"N0h\x000".to_vec()));
    wide.extend(b"e");
    let mut long_text = b"\x8d".to_vec();
    long_text.extend((1u64 << 62).to_le_bytes());
    let shared_text = {
        let mut value = [b"]".to_vec(), text(&"x".repeat(1 << 20)), b"q\x000(".to_vec()].concat();
        value.extend((0..1000).flat_map(|_| *b"h\x00"));
        value.push(b'e');
        value
    };
    let zip = |files: &[(&str, &[u8])]| archive(files);
    let pickle = stream(&good);
    let honest = checkpoint(&good);
    let mut appended = honest.clone();
    appended.extend(b"garbage");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("negative stride", checkpoint(&tensor(four(), 3, &[4], &[-1])), "strides"),
        ("negative offset", checkpoint(&tensor(four(), -1, &[4], &[1])), "offset"),
        ("negative size", checkpoint(&tensor(four(), 0, &[-4], &[1])), "shape"),
        ("view behind its storage", checkpoint(&tensor(four(), 1, &[4], &[1])), "reaches outside"),
        (
            "stride behind its storage",
            checkpoint(&tensor(four(), 0, &[2, 2], &[3, 1])),
            "reaches outside",
        ),
        ("offset overflows", checkpoint(&tensor(four(), huge, &[4], &[huge])), "reaches"),
        ("shape overflows", checkpoint(&tensor(four(), 0, &[huge, huge], &[0, 0])), "too large"),
        (
            "empty tensor overflows",
            checkpoint(&tensor(four(), 0, &[0, huge, huge], &[0, 0, 0])),
            "too large",
        ),
        (
            "64 GiB of one element",
            checkpoint(&tensor(four(), 0, &[1 << 34], &[0])),
            "above the limit",
        ),
        ("strides missing", checkpoint(&tensor(four(), 0, &[2, 2], &[1])), "dimensions"),
        ("65 dimensions", checkpoint(&tensor(four(), 0, &[1; 65], &[1; 65])), "dimensions"),
        (
            "shape of texts",
            checkpoint(
                &[
                    global("torch._utils", "_rebuild_tensor_v2"),
                    tuple(&[four(), integer(0), text("ab"), tuple(&[])]),
                    b"R".to_vec(),
                ]
                .concat(),
            ),
            "shape",
        ),
        (
            "storage of texts",
            checkpoint(&tensor(
                [
                    tuple(&[
                        text("storage"),
                        global("torch", "FloatStorage"),
                        integer(0),
                        text("cpu"),
                        text("4"),
                    ]),
                    b"Q".to_vec(),
                ]
                .concat(),
                0,
                &[4],
                &[1],
            )),
            "key",
        ),
        (
            "storage claims more",
            checkpoint(&tensor(storage("FloatStorage", "0", 5), 0, &[4], &[1])),
            "claims 5",
        ),
        (
            "storage claims all",
            checkpoint(&tensor(storage("FloatStorage", "0", huge), 0, &[4], &[1])),
            "claims",
        ),
        (
            "storage missing",
            checkpoint(&tensor(storage("FloatStorage", "../0", 4), 0, &[4], &[1])),
            "not in the archive",
        ),
        (
            "storage of another library",
            checkpoint(&tensor(
                [
                    tuple(&[
                        text("storage"),
                        global("evil", "FloatStorage"),
                        text("0"),
                        text("cpu"),
                        integer(4),
                    ]),
                    b"Q".to_vec(),
                ]
                .concat(),
                0,
                &[4],
                &[1],
            )),
            "evil",
        ),
        (
            "storage from a call",
            checkpoint(&tensor(
                [global("os", "system"), tuple(&[text("true")]), b"R".to_vec()].concat(),
                0,
                &[4],
                &[1],
            )),
            "os.system",
        ),
        (
            "tensor without arguments",
            checkpoint(
                &[global("torch._utils", "_rebuild_tensor_v2"), tuple(&[]), b"R".to_vec()].concat(),
            ),
            "lacks",
        ),
        (
            "parameter in parameter in ..",
            checkpoint(&{
                let wrap = |inner: Vec<u8>| {
                    [
                        global("torch._utils", "_rebuild_parameter"),
                        tuple(&[inner, b"\x88".to_vec(), b"N".to_vec()]),
                        b"R".to_vec(),
                    ]
                    .concat()
                };
                (0..10).fold(good.clone(), |inner, _| wrap(inner))
            }),
            "wrapped",
        ),
        (
            "two tensors of one name",
            checkpoint(&dictionary(&[
                ("a", dictionary(&[("b", good.clone())])),
                ("a.b", good.clone()),
            ])),
            "two tensors",
        ),
        (
            "key twice",
            checkpoint(&dictionary(&[("a", good.clone()), ("a", good.clone())])),
            "twice",
        ),
        (
            "name too long",
            checkpoint(&dictionary(&[(&"n".repeat(2000), good.clone())])),
            "name is longer",
        ),
        ("lists in lists", checkpoint(&deep), "nested"),
        ("list in itself", checkpoint(&endless), "nested"),
        ("doubling lists", checkpoint(&bomb), "above the limit"),
        ("shared text", checkpoint(&shared_text), "above the limit"),
        ("text of 2^62 bytes", checkpoint(&long_text), "truncated"),
        ("memo slot empty", checkpoint(b"h\x07"), "memo slot"),
        ("nothing on the stack", checkpoint(b"R"), "where there is none"),
        ("mark missing", checkpoint(b"t"), "mark"),
        ("values left over", checkpoint(b"NN"), "left over"),
        ("items for a number", checkpoint(b"K\x01Na"), "no list"),
        ("extension code", checkpoint(b"\x82\x01"), "extension"),
        ("buffer outside", checkpoint(b"\x97"), "buffers"),
        ("text protocol", zip(&[("a/data.pkl", b"(lp0\n.")]), "protocol 2"),
        ("protocol 9", zip(&[("a/data.pkl", b"\x80\x09N.")]), "protocol 9"),
        ("unknown instruction", checkpoint(b"\xff"), "unknown instruction"),
        (
            "two streams",
            zip(&[("a/data.pkl", &[pickle.clone(), pickle.clone()].concat())]),
            "goes on",
        ),
        (
            "path upwards",
            zip(&[("a/data.pkl", &pickle), ("a/../../etc/passwd", b"x")]),
            "unsafe name",
        ),
        ("absolute path", zip(&[("/a/data.pkl", &pickle)]), "unsafe name"),
        ("backslash", zip(&[("a/data.pkl", &pickle), ("a/..\\x", b"x")]), "unsafe name"),
        ("two folders", zip(&[("a/data.pkl", &pickle), ("b/data/0", &[0; 16])]), "another folder"),
        ("no folder", zip(&[("data.pkl", &pickle)]), "in no folder"),
        ("no pickle", zip(&[("a/data/0", &[0; 16])]), "without data.pkl"),
        ("big-endian", zip(&[("a/data.pkl", &pickle), ("a/byteorder", b"big")]), "little-endian"),
        ("TorchScript", zip(&[("a/data.pkl", &pickle), ("a/constants.pkl", b"x")]), "TorchScript"),
        (
            "name twice",
            replace(
                zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16]), ("a/data/1", &[1; 16])]),
                b"data/1",
                b"data/0",
            ),
            "occurs twice",
        ),
        (
            "name differs from the directory",
            {
                let mut bytes = honest.clone();
                let at = bytes.windows(8).position(|it| it == b"a/data/0").unwrap();
                bytes[at + 7] = b'1';
                bytes
            },
            "zip archive",
        ),
        ("bytes appended", appended, "appended"),
        ("cut", honest[..honest.len() - 1].to_vec(), "truncated"),
        ("compressed", patch(&honest, b"PK\x01\x02", 10, &[8]), "compressed"),
        ("larger when unpacked", patch(&honest, b"PK\x01\x02", 24, &[0, 0, 0, 64]), "compressed"),
        (
            "lying sizes",
            {
                let lying = patch(&honest, b"PK\x01\x02", 20, &[255, 255, 255, 127]);
                patch(&lying, b"PK\x01\x02", 24, &[255, 255, 255, 127])
            },
            "not as the directory says",
        ),
        ("entry elsewhere", patch(&honest, b"PK\x01\x02", 42, &[1]), "not as the directory says"),
        ("entry outside", patch(&honest, b"PK\x01\x02", 42, &[255; 3]), "outside the file"),
        (
            "entries at one place",
            patch(&honest, b"PK\x01\x02", 46 + 10 + 42, &[0; 4]),
            "not as the directory says",
        ),
        ("encrypted", patch(&honest, b"PK\x01\x02", 8, &[1]), "encrypted"),
        ("more entries than said", patch(&honest, b"PK\x05\x06", 8, &[1, 0, 1, 0]), "more entries"),
        ("fewer entries than said", patch(&honest, b"PK\x05\x06", 8, &[9, 0, 9, 0]), "malformed"),
        ("directory elsewhere", patch(&honest, b"PK\x05\x06", 16, &[1]), "not at the end"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("attack.pt");
    fs::write(&path, &honest).unwrap();
    assert_eq!(read(&path, &Limits::default()).unwrap().tensors["tensor"].dims(), [2, 2]);
    let mut wrong = vec![];
    for (name, bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        match read(&path, &Limits::default()) {
            Ok(found) => wrong.push(format!("{name}: read {:?}", found.tensors.keys())),
            Err(error) => {
                let error = error.to_string();
                if !error.contains(expected) || !error.contains("attack.pt") {
                    wrong.push(format!("{name}: {error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn code_in_a_pickle_is_a_foreign_object_and_nothing_else() {
    use craft::*;
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("victim");
    let command = text(&format!("touch {}", victim.display()));
    let call = [global("os", "system"), tuple(&[command]), b"R".to_vec()].concat();
    let good = tensor(storage("FloatStorage", "0", 4), 0, &[4], &[1]);
    let path = folder.path().join("x.pt");
    fs::write(&path, checkpoint(&dictionary(&[("evil", call), ("weight", good)]))).unwrap();
    let found = read(&path, &Limits::default()).unwrap();
    assert_eq!(found.notes, ["left out os.system: 1 in all, the first at evil"]);
    assert_eq!(found.tensors.into_keys().collect::<Vec<_>>(), ["weight"]);
    assert!(!victim.exists());
}

#[test]
fn shared_values_are_read_wherever_they_occur() {
    use craft::*;
    let good = tensor(storage("FloatStorage", "0", 4), 0, &[4], &[1]);
    // The same tensor object under two names, and views of one storage.
    let tied = [good, b"q\x01".to_vec()].concat();
    let value = dictionary(&[("a", tied), ("b", b"h\x01".to_vec())]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    fs::write(&path, checkpoint(&value)).unwrap();
    let found = read(&path, &Limits::default()).unwrap();
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(found.tensors["a"].id(), found.tensors["b"].id());
}

#[test]
fn written_files_are_deterministic() {
    let folder = tempfile::tempdir().unwrap();
    let found = read(&data().join("dtypes.zip2.pt"), &Limits::default()).unwrap();
    let metadata: BTreeMap<_, _> = (0..20).map(|i| (format!("k{i}"), i.to_string())).collect();
    let write = |name: &str| {
        let path = folder.path().join(name);
        safetensors::write(&path, &found.tensors, &metadata, false).unwrap();
        fs::read(path).unwrap()
    };
    assert_eq!(write("a"), write("b"));
}
