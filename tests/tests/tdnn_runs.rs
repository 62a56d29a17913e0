//! The speaker-verification tool as it is run: wrong usage, outputs that cannot be written, signals,
//! readers that leave, several runs at once, numbers of threads.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tests::tool::{Run, Workplace, media, root};

/// A folder `voices` with `count` recordings, and the list `trials.txt` of pairs of them.
fn write_voices(place: &Workplace, count: usize) {
    fs::create_dir(place.path("voices")).unwrap();
    let name = |i: usize| format!("{i:03}.flac");
    for i in 0..count {
        let recording = media(&format!("cards/00{}.flac", 1 + i % 5));
        fs::copy(recording, place.path("voices").join(name(i))).unwrap();
    }
    let pairs = (0..count).map(|i| format!("{} {}\n", name(i), name((i + 7) % count)));
    place.write("trials.txt", pairs.collect::<String>());
}

const SCORE: [&str; 5] = ["score", "--trials", "trials.txt", "--root", "voices"];

#[test]
fn wrong_usage_is_told_apart() {
    let place = Workplace::new("tdnn");
    let recording = media("cards/005.flac");
    place.write("trials.txt", "1 a.wav b.wav\n2 a.wav\n");
    place.write("unlabelled.txt", "a.wav b.wav\n");
    let cases: [&[&str]; 9] = [
        &[],
        &["verify", &recording],
        &["verify", &recording, &recording, "--threads", "0"],
        &["verify", &recording, &recording, "--device", "abacus"],
        &["verify", &recording, &recording, "--prior", "1.5"],
        &["embed", &recording, "--out", "x.npy", "--shard", "3/2"],
        &["evaluate", "--trials", "trials.txt"],
        &["evaluate", "--trials", "unlabelled.txt"],
        &["train", "--data", ".", "--out", "run"],
    ];
    for arguments in cases {
        place.run(arguments).failure(2, &[]);
    }
    assert_eq!(place.files(), ["trials.txt", "unlabelled.txt"]);
}

#[test]
fn outputs_that_cannot_be_written_leave_nothing() {
    let place = Workplace::new("tdnn");
    write_voices(&place, 2);
    let recording = media("cards/005.flac");
    let scores: Vec<&str> = SCORE.into_iter().chain(["--out"]).collect();
    let weights = root().join("shared/tests/data/checkpoint/lone.zip2.pt").display().to_string();
    place.run(scores.iter().chain(&["scores.txt"])).success();
    let files = place.files();
    let list = media("recordings.tsv");
    let commands: [&[&str]; 6] = [
        &["embed", &recording, "--out"],
        &scores,
        &["merge", "scores.txt", "--out"],
        &["convert", &weights, "--out"],
        &["enroll", "Reader", &recording, "--book"],
        &["train", "--data", &list, "--out"],
    ];
    let mut outputs = vec![("no/such/folder/x", "o such file"), ("trials.txt/x", "ot a directory")];
    if cfg!(target_os = "linux") {
        outputs.push(("/proc/x", "/proc/x"));
    }
    for command in commands {
        for (output, reason) in &outputs {
            // Training makes the folders that it needs.
            if command[0] != "train" || *output == "trials.txt/x" {
                place.run(command.iter().chain(&[*output])).failure(2, &[output, reason]);
            }
        }
        if command[0] != "train" && command[0] != "enroll" {
            place.run(command.iter().chain(&["voices"])).failure(2, &["voices", "is a folder"]);
            place.run(command.iter().chain(&["trials.txt"])).failure(2, &["trials.txt", "--force"]);
        }
    }
    assert_eq!(place.files(), files);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let place = Workplace::new("tdnn");
    write_voices(&place, 2);
    let recording = media("cards/005.flac");
    let weights = root().join("shared/tests/data/checkpoint/lone.zip2.pt").display().to_string();
    let outputs: [&[&str]; 3] = [
        &["embed", &recording, "--out", "/dev/full"],
        &["score", "--trials", "trials.txt", "--root", "voices", "--out", "/dev/full"],
        &["convert", &weights, "--out", "/dev/full"],
    ];
    for command in outputs {
        place.run(command).failure(2, &["/dev/full", "No space left"]);
        assert!(!Path::new("/dev/full.partial").exists());
    }
    let results: [&[&str]; 3] = [
        &["verify", &recording, &recording, "--threshold", "0"],
        &["verify", &recording, &recording, "--threshold", "0", "--json"],
        &["info"],
    ];
    for command in results {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = place.command(command).stdout(Stdio::from(full)).output().unwrap();
        Run::of(output).failure(2, &["error", "No space left"]);
    }

    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=4k", "tmpfs"];
    let mounted = Command::new("mount").args(mount).arg(&disk).stderr(Stdio::null()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("a small disk is not tested: this user may not mount one");
        return;
    }
    let embed = place.run(["embed", "voices", "--out", "disk/x.npy"]);
    let enroll = place.run(["enroll", "Reader", &recording, "--book", "disk/book"]);
    let left: Vec<_> = fs::read_dir(&disk).unwrap().map(|it| it.unwrap().file_name()).collect();
    Command::new("umount").arg(&disk).status().unwrap();
    embed.failure(2, &["disk/x.npy", "No space left"]);
    enroll.failure(2, &["disk/book", "No space left"]);
    // What was done is kept for when there is room.
    assert_eq!(left, ["x.npy.partial"]);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let place = Workplace::new("tdnn");
    let recording = media("cards/005.flac");
    let mut commands: Vec<Vec<&str>> = vec![
        vec!["info"],
        vec!["info", "--json"],
        vec!["verify", &recording, &recording, "--threshold", "0", "--json"],
    ];
    if cfg!(unix) {
        commands.push(vec!["embed", &recording, "--out", "/dev/stdout", "--format", "ark"]);
    }
    for command in commands {
        let mut child =
            place.command(&command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let run = Run::of(child.wait_with_output().unwrap());
        assert_eq!((run.code, run.stderr.contains("error")), (Some(0), false), "{}", run.stderr);
    }
    assert!(place.files().is_empty());
}

/// Sends `signal` to the process as soon as `ready` says so.
#[cfg(target_os = "linux")]
fn signal_when(child: &mut Child, signal: &str, ready: impl Fn(u32) -> bool) {
    while !ready(child.id()) {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the run ended before it could be interrupted"
        );
        sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()));
}

/// Whether a process handles SIGINT by itself, as the tool does while a job is under way.
#[cfg(target_os = "linux")]
fn handles_interrupts(process: u32) -> bool {
    const SIGINT_BIT: u64 = 1 << 1;
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & SIGINT_BIT != 0)
}

#[cfg(target_os = "linux")]
#[test]
fn interrupted_jobs_are_gone_on_with() {
    let place = Workplace::new("tdnn");
    write_voices(&place, 200);
    let jobs: [(&str, &[&str], &str); 2] = [
        ("-INT", &["embed", "voices", "--threads", "1", "--out"], "npy"),
        ("-TERM", &[&SCORE[..], &["--threads", "1", "--out"]].concat(), "txt"),
    ];
    for (signal, job, ending) in jobs {
        let [out, whole] = ["out", "whole"].map(|name| format!("{name}.{ending}"));
        let command: Vec<&str> = job.iter().copied().chain([out.as_str()]).collect();
        let mut child = place.command(&command).stderr(Stdio::piped()).spawn().unwrap();
        signal_when(&mut child, signal, handles_interrupts);
        let run = Run::of(child.wait_with_output().unwrap());
        run.failure(130, &["interrupted; run the same command again to go on"]);
        let partial = format!("{out}.partial");
        let left: Vec<String> =
            place.files().into_iter().filter(|name| name.starts_with(&out)).collect();
        assert_eq!(left, [partial.as_str()]);
        place.run(["merge", &partial, "--out", "so-far.npy", "--force"]).success();
        let so_far = fs::read_to_string(place.path("so-far.npy.names")).unwrap().lines().count();
        assert!((1..200).contains(&so_far), "{so_far}");

        place.run(&command).success();
        place.run(job.iter().chain([&whole.as_str()])).success();
        let bytes = |name: &str| fs::read(place.path(name)).unwrap();
        assert!(bytes(&out) == bytes(&whole), "{job:?}");
        assert!(!place.path(&partial).exists());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn interrupted_training_is_gone_on_with_exactly() {
    let place = Workplace::new("tdnn");
    let config = |crop_s: f64| {
        format!(
            r#"{{"architecture": "2.16.16.16.3.3.3.24", "batch": 8, "speeds": [1.0],
                "formants": [1.0, 1.1],
                "stages": [{{"steps": 40, "crop_s": {crop_s}, "margin": [0.0, 0.1],
                            "schedule": {{"kind": "constant", "lr": 0.001}}}}]}}"#
        )
    };
    place.write("config.json", config(0.6));
    let list = media("recordings.tsv");
    let train = |out: &'static str| {
        let data = ["train", "--data", &list, "--config", "config.json", "--threads", "1"];
        place.command(data.iter().chain(&["--out", out]))
    };
    let mut child = train("cut").stderr(Stdio::piped()).spawn().unwrap();
    let log = place.path("cut").join("stage-0/log.jsonl");
    signal_when(&mut child, "-INT", |_| {
        fs::read_to_string(&log).is_ok_and(|text| text.lines().count() >= 2)
    });
    let run = Run::of(child.wait_with_output().unwrap());
    run.failure(130, &["interrupted; run the same command again to go on"]);
    assert!(!place.path("cut/model.safetensors").exists());
    place.write("config.json", config(0.7));
    let changed = Run::of(train("cut").output().unwrap());
    changed.failure(2, &["cut/stage-0", "other settings", "\"crop_s\":0.6", "\"crop_s\":0.7"]);
    place.write("config.json", config(0.6));
    for out in ["cut", "whole"] {
        Run::of(train(out).output().unwrap()).success();
    }
    let bytes = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(bytes("cut/model.safetensors") == bytes("whole/model.safetensors"));
}

#[test]
fn of_several_runs_with_one_output_one_wins_whole() {
    let place = Workplace::new("tdnn");
    write_voices(&place, 5);
    let weights = root().join("shared/tests/data/checkpoint/layouts.zip2.pt").display().to_string();
    let jobs: [(&[&str], &str); 3] = [
        (&["embed", "voices", "--out"], "safetensors"),
        (&[&SCORE[..], &["--out"]].concat(), "txt"),
        (&["convert", &weights, "--out"], "safetensors"),
    ];
    for (job, ending) in jobs {
        let [out, alone] = ["out", "alone"].map(|name| format!("{name}.{ending}"));
        place.run(job.iter().chain([&alone.as_str()])).success();
        for force in [None, Some("--force")] {
            let spawn = |_| {
                let mut command = place.command(job.iter().chain([&out.as_str()]));
                command.args(force).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            };
            let children: Vec<Child> = (0..3).map(spawn).collect();
            let runs: Vec<Run> = children
                .into_iter()
                .map(|child| Run::of(child.wait_with_output().unwrap()))
                .collect();
            assert!(runs.iter().any(|run| run.code == Some(0)));
            for lost in runs.into_iter().filter(|run| run.code != Some(0)) {
                lost.failure(2, &[&out]);
            }
            assert!(fs::read(place.path(&out)).unwrap() == fs::read(place.path(&alone)).unwrap());
        }
        let temporary: Vec<String> =
            place.files().into_iter().filter(|name| name.ends_with(".tmp")).collect();
        assert!(temporary.is_empty(), "{temporary:?}");
        for name in [&out, &alone] {
            fs::remove_file(place.path(name)).unwrap();
        }
    }
}

#[test]
fn speakers_enrolled_at_the_same_time_are_all_in_the_book() {
    let place = Workplace::new("tdnn");
    let recording = media("cards/005.flac");
    let spawn = |number: usize| {
        let name = format!("speaker {number}");
        let mut command = place.command(["enroll", &name, &recording]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<Child> = (0..6).map(spawn).collect();
    for child in children {
        Run::of(child.wait_with_output().unwrap()).success();
    }
    let identify = ["identify", &recording, "--top", "9", "--json"];
    let found = place.run(identify).success().json();
    assert_eq!(found["candidates"].as_array().unwrap().len(), 6, "{found}");
}

#[test]
fn threads_change_rounding_only_and_runs_repeat() {
    let place = Workplace::new("tdnn");
    write_voices(&place, 5);
    fs::copy(media("librivox/0870.flac"), place.path("voices/long.flac")).unwrap();
    let embed = |threads: &str| {
        let arguments = ["embed", "voices", "--out", "x.ark", "--force", "--threads", threads];
        place.run(arguments).success();
        fs::read_to_string(place.path("x.ark")).unwrap()
    };
    let numbers = |text: &str| -> Vec<f64> {
        text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let one = embed("1");
    assert_eq!(numbers(&one).len(), 6 * 384);
    for threads in ["1", "2", "8"] {
        let [first, second] = [embed(threads), embed(threads)];
        assert!(first == second, "{threads} threads do not give the same twice");
        let (a, b) = (numbers(&one), numbers(&first));
        let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(a.len() == b.len() && largest < 1e-5, "{threads} threads: {largest}");
    }
}
